"""TCP connections on the move: a *connection state* or *listener state* is one socket as a value and as
bytes; *freeze* reads it and silences the socket, *thaw* rebuilds it where nobody hears, *release* lets it
live; the *injector* says again, in the peer's name, what only the peer could say; a *handshake hold* keeps
new connections from being born half on one host and half on the other.
"""
