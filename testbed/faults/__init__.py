"""Faults that are made on purpose: which there are, and how an agent makes them happen to itself.

A *fault* is a *kind* at a *phase*: ``verify:target-agent-killed``. It is part of the order to migrate; each
agent gets the order, and the one whom the fault concerns makes it happen as it enters the phase, so that the
moment is exact and not a matter of luck.
"""
