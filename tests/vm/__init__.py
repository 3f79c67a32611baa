"""The tests on other kernels: Debian's own, booted under QEMU's software emulation. ``python -m tests.vm``.

The nouns: a *release* of Debian; an *image*, which is a file that becomes a disk and is kept in a cache
(the *root* of a release, its *wheelhouse* of Python packages); the *checkout*, archived anew for each run; a
*run*, which boots the root, has it unpack the checkout, provision itself as a Vagrant box would
(``provision.sh``) and test; and its *verdict*, read from the disk that the machine wrote.

No network, no shared folder, no hypervisor and, once the images are there, no root. Only the standard library
is imported, so any Python from 3.11 on can start it.
"""
