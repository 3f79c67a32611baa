"""A lab that stands: its network, its hosts with their agents, its storage, its guests and its clients, made
of what a scenario says. Lives inside a universe, and ends with it.
"""
