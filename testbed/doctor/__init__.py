"""The doctor: what a run needs of this machine. A *feature* is something of the kernel or of the machine,
with what is lost without it and how to get it; a *probe* tries it; a *finding* says whether it is there.
"""
