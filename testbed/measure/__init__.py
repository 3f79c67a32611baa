"""Measuring: what happened when, and what a client saw of it.

A *trace* is the events of one process, stamped on the clock that all processes share. The *pattern* is a byte
stream in which every byte tells where it belongs. *Continuity* turns the times of a probe's *samples* (sent,
received) into figures: the longest *wait*, its percentiles, and the noise floor beside it.
"""
