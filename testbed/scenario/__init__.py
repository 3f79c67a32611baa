"""What is asked for, as data: a scenario (hosts, clients, links, guests, what happens when), the options of a
command, their words and units. Nothing here acts.
"""
