"""A host: the agent that owns the guest's process, RAM, port and devices, as a virtual machine monitor does.

An *agent* (:mod:`.agent`) is one process in its host's namespace. It obeys *commands* on its control socket
(:mod:`.control`). A :class:`.hosted.HostedGuest` is the guest that it runs: the *guest process*
(:mod:`.guest_process`), its RAM and tracker, and its *network* (:mod:`.network`). For the engine,
:class:`.departing.DepartingGuest` is that guest on its way out,
:class:`.arriving.ArrivingGuest` one on its way in; *devices* (:mod:`.devices`) are the parts of its state, as
they cross.
"""
