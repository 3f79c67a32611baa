"""Shared storage: a target on the storage network, what fences a host off it, and the clients of both.

The nouns of this room: the **target** is the process that has the storage; a **LUN** is one disk of it, a
file that is an NBD **export**; a **nexus** is what one NBD connection says of itself in the export's name: a
host's **key**, perhaps a **lease** and its **epoch**, and perhaps the **turn** of a **session**, of which a
later one ends those before it; a **registration** makes a key known, a **reservation** says whose keys may
write at all, and a lease who may write its ranges; a **claim** takes a lease over, at an epoch that counts
up. The **volume service** of each host puts virtual disks on a LUN.
"""
