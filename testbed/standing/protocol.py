"""What is said between a lab's server and a terminal: JSON, one object a line, over a Unix stream socket.

A connection carries one request after the other; any number of connections may be open. A request has ``do``
and what it needs. Any number of *progress* messages may come, then exactly one *answer*:

    request    {"do": "ps", "processes": bool}    who and what is there
               {"do": "node", "node"}             the network namespace of a node, where it is now
               {"do": "migrate", "step", "beat_ms"}
                                                  a step of a scenario; without its verb: the first guest;
                                                  with `beat_ms` clients tell of their waits as often
               {"do": "link", "step"}             a step that sets or resets the conditions of a link
               {"do": "figures", "link"}          what was asked of a link and what came of it (null: of all)
               {"do": "capture", "link", "file", "snap_bytes", "limit_bytes"}
                                                  until "stop", or the end of the connection
               {"do": "stop"}                     the end of a capture: its file is written
               {"do": "clients", "begin_ns"}      what clients counted so far; with begin_ns a span ends
               {"do": "evidence"}                 write down what the network looks like now
               {"do": "follow"}                   be told of events, until the lab goes down
               {"do": "down"}                     bring the lab down
    progress   {"say": text}                      a line for a person
               {"migration": {"source", "target", "number", "of", "vm"}}   one is about to begin
               {"event": {...}}                   a trace event (testbed.measure.trace)
               {"log": bytes}                     events.jsonl is so long now: read it up to there
    answer     {"ok": {...}}                      done; what is in it depends on the request
               {"error": text, "status": n}       not done, why, and the command's exit status (1 to 4)

Events that are followed do not travel: their reader has the file. So a reader that is slow loses nothing, and
the server keeps nothing for it. A line is at most :data:`MOST_BYTES` long; whoever sends a longer one, or
what is no JSON object, is hung up on. A terminal that hangs up stops nothing that it has asked for.

On the connection of the terminal that brings a lab up nothing is asked: its answer comes when the lab stands.
Pure: bytes and messages, no socket.
"""

from __future__ import annotations

import json
from typing import Any

Message = dict[str, Any]

MOST_BYTES = 1 << 20


class ProtocolError(Exception):
    """The other end sent what is no message of this protocol, or stopped in the middle of one."""


class LabGone(ProtocolError):
    """The other end hung up: the lab has gone down, or died."""


class Refused(Exception):
    """A request that cannot be carried out: one line for a person, and the exit status of the command."""

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.status = status


def encode(message: Message) -> bytes:
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


class Incoming:
    """What has come in on one connection, on its way to being messages."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Message]:
        """The messages that are whole now. ProtocolError for what is none."""
        self._buffer += data
        *lines, rest = self._buffer.split(b"\n")
        if len(rest) > MOST_BYTES or any(len(line) > MOST_BYTES for line in lines):
            raise ProtocolError(f"a message of more than {MOST_BYTES} bytes")
        self._buffer = bytearray(rest)
        return [_parse(bytes(line)) for line in lines]


def _parse(line: bytes) -> Message:
    try:
        message = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"no JSON: {line[:60]!r}") from error
    if not isinstance(message, dict):
        raise ProtocolError(f"no JSON object: {line[:60]!r}")
    return message
