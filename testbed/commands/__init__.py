"""What the commands of ``testbed`` are made of: the options that several take, the way into a universe and
out of it, and the endings that the contract knows. A command of some size has a file here; the others stand
in :mod:`testbed.cli`.

What a run needs is imported when there is one: ``testbed --help`` answers at once.
"""
