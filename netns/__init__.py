"""Linux networks and processes, as a library of its own.

The nouns of this room: a **universe** is a set of private namespaces in which everything else lives and with
which everything ends; a **namespace** is one named network namespace inside it; the **fork server** is the
universe's first process, which starts every other **process**; a **spec** says as data which nodes, bridges
and links there shall be, a **plan** is the list of **steps** that a spec comes to, and a **topology** is what
applying the plan has made; **conditions** are what a link does to the frames that pass (delay, loss, a
rate), a **passage** is one direction under them, a **detour** leads a link's frames through a **relay** and
back, and a **conditioned link** brings conditions about by whoever can; **neighbours**, **forwarding
entries** and **counters** are what one can see in it afterwards. Nothing here knows what the networks are
for.
"""
