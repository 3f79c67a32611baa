"""Moving a VM's place in the network, so that no frame is lost, none arrives twice, and the clients follow.

The nouns of this room: the **wiring** is a host's hold pair and a guest's silent interface; the **guest
port** is the one forwarding entry that decides whether the guest or the hold gets the VM's frames; a **hold**
keeps **frames** while nobody can take them, and a **release** gives them to the guest; a **SYN hold** does so
for the handshakes that a guest still running no longer accepts; **neighbours** are the guest's own table of
whom it knows, carried along; an **announcement** is the frames that tell the network where the VM is, built
by rule, and the **announcer** sends them on a schedule; **observers** stand at the other end and say when
that was heard.
"""
