"""The kernel's interfaces as they are, transcribed: userfaultfd, pagemap, TCP_REPAIR, netlink,
ptrace. Names and numbers are the kernel's, a failed call raises OSError, nothing is decided here.
"""
