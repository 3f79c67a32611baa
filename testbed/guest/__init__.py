"""The guest: a pseudo-VM in one process.

A *machine* is the loop that serves sockets, pauses at the end of a step and is resumed elsewhere; a *program*
is what runs on it; *memory* is guest RAM seen through a *heap* with named roots; a *connection* is one TCP
peer, its queues and its record in RAM; the *disk* is a *ring* of requests in RAM and a socket that speaks
NBD; the *load* dirties RAM beside the program. Everything that a guest
remembers is in RAM, the few registers that are not travel in the pause message, and the rest is derived from
RAM when a machine attaches to it.
"""
