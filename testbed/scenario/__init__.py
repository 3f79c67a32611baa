"""A scenario: a whole lab, brought up, put through its migrations, and judged.

:class:`.options.Options` says what is asked. A :class:`.lab.Lab` is the network, the *agents* of the two
hosts and the *clients*, all of it in a universe. :func:`.run.run` leads it through one run and leaves a
folder; :mod:`.outcome` makes the result out of what agents, clients and events tell, and :mod:`.checks`
judges it.
"""
