"""A UDP socket as data: its binding and what lies in its receive queue, read on one host, and there again on
another.

There is little to move, for UDP promises little. But a datagram that the source's kernel has taken in and its
program has not read is nowhere else: nobody would send it again. :mod:`~testbed.udp.state` is what crosses,
:mod:`~testbed.udp.sockets` reads and makes sockets, and :mod:`~testbed.udp.frames` turns a datagram back into
the frames in which it came, for the new host's kernel to take in.
"""
