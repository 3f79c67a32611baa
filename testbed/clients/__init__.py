"""Clients: what the users of a guest see while it moves.

A *client* is one process in one client namespace. It runs *probes*; a probe has *members*, each one
connection, and each takes *samples* (when it sent, when the answer was there) and holds every byte against
what was due (*integrity*). A *codec* knows what to say to a guest program. Who runs the lab talks to the
client through its *control* connection.
"""
