"""The migration engine: how a running guest changes hosts, and nothing about what the guest is.

A *source* and a *target* walk through the same ten *phases* (:mod:`.phases`). They speak *messages*
(:mod:`.wire`) over a *channel* (:mod:`.channel`). While the guest runs, its RAM crosses in *rounds*; after
each of them a
*strategy* (:mod:`.strategy`) decides from the rounds' statistics whether to go on, to switch over, or to give
up. The engine asks its two ends for what only they can do: :class:`.source.SourceVM` and
:class:`.target.TargetVM` are the seams. Nothing here opens a socket, reads a clock or starts a thread, except
the channel.
"""
