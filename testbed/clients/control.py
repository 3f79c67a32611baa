"""The control connection between a client and who runs the lab: JSON on a SOCK_SEQPACKET unix socket.

Every request gets exactly one reply, in order; times are CLOCK_MONOTONIC nanoseconds, deadlines are optional:

    {"do": "start", "deadline_ms"}                             {"started": {"t_ns", "connections"}}
    {"do": "heartbeat"}                                        {"heartbeat": {"t_ns", "probes": [live, ...]}}
    {"do": "beat", "every_ms"}                                 {"beating": {"t_ns"}}
    {"do": "report", "windows", "deadline_ms", "forget", "save"}
                                                               {"summary": {...}}
    {"do": "stop", "windows", "deadline_ms"}                   {"summary": {...}}, and the client ends
    any, if it cannot be done                                  {"error": "client1: why"}

From `beat` on the client tells the recorder of its longest waits, every so many milliseconds and unasked (see
:mod:`testbed.clients.pulse`); 0 ends that.

`live` is `kind`, `connections` (of churn those open now), `broken`, `requests`, `longest_wait_ns` (since the
last heartbeat, waits under way included) and `wrong_bytes`. `windows` are the migrations,
[[begin_ns, end_ns], ...]. A summary has `name`, `begun_ns`, `ended_ns`, `windows`, `cpu_s` and `probes`, as
:meth:`testbed.clients.probe.Probe.report` says.

A message longer than :data:`PIECE_CHARACTERS` travels in pieces, `{"piece": k, "of": n, "text": ...}`, whose
texts joined are the message: a datagram cannot be longer than the socket's buffer, and a summary of many
connections is.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

PIECE_CHARACTERS = 48 << 10
_MOST_PIECES = 4096
_DATAGRAM_BYTES = 1 << 20  # a piece in which every character is escaped, with room to spare
_START_DEADLINE_S = 10.0
_STOP_DEADLINE_S = 5.0
_REPLY_SLACK_S = 15.0


class ControlError(Exception):
    """The other end hung up, did not answer in time, or sent what is no message of this protocol."""


class ClientFailed(Exception):
    """The client says that it could not do what was asked. The text is its own, one line."""


def send_message(control: socket.socket, message: Mapping[str, Any]) -> None:
    """Send all of `message`. ControlError if the other end is gone or takes nothing for the socket's
    timeout."""
    text = json.dumps(message, separators=(",", ":"))
    pieces = [text[at : at + PIECE_CHARACTERS] for at in range(0, len(text), PIECE_CHARACTERS)]
    try:
        if len(pieces) == 1:
            control.send(text.encode())
            return
        for number, piece in enumerate(pieces):
            control.send(json.dumps({"piece": number, "of": len(pieces), "text": piece}).encode())
    except OSError as error:
        raise ControlError(f"control connection: {error}") from error


def receive_message(control: socket.socket) -> dict[str, Any] | None:
    """The next whole message; None if the other end has hung up. ControlError for what is no message."""
    first = _receive_json(control)
    if first is None or "piece" not in first:
        return first
    texts: list[str] = []
    piece: dict[str, Any] | None = first
    while True:
        if piece is None:
            raise ControlError("control connection: hung up in the middle of a message")
        of, text = piece.get("of"), piece.get("text")
        if piece.get("piece") != len(texts) or of != first["of"] or not isinstance(text, str):
            raise ControlError("control connection: pieces out of order")
        if not isinstance(of, int) or not 0 < of <= _MOST_PIECES:
            raise ControlError(f"control connection: a message of {of!r} pieces")
        texts.append(text)
        if len(texts) == of:
            return _parse("".join(texts).encode())
        piece = _receive_json(control)


class ClientControl:
    """The end of who runs the lab: asks one client, and waits for its answers.

    Each method raises ClientFailed with the client's own words if it could not do it, and ControlError if it
    is gone.
    """

    def __init__(self, control: socket.socket) -> None:
        self._control = control

    def fileno(self) -> int:
        """Readable when an answer, or the client's end, is there."""
        return self._control.fileno()

    def start(self, deadline_s: float = _START_DEADLINE_S) -> dict[str, Any]:
        """Have every connection made, then all probes begin. Returns `{"t_ns", "connections"}`."""
        return self._ask("started", deadline_s, do="start", deadline_ms=round(deadline_s * 1000))

    def heartbeat(self) -> dict[str, Any]:
        """Small live figures; about 50 us of the client's time for ten connections."""
        return self._ask("heartbeat", 0.0, do="heartbeat")

    def beat(self, every_ms: int) -> None:
        """Have the client send `beat` events to the recorder from now on; 0: no more."""
        self._ask("beating", 0.0, do="beat", every_ms=every_ms)

    def report(
        self,
        windows: Sequence[tuple[int, int]] = (),
        *,
        forget: bool = False,
        save: Path | None = None,
        deadline_s: float = _STOP_DEADLINE_S,
    ) -> dict[str, Any]:
        """A summary in between: the probes rest while it is made, and go on after.

        Replies that are due may come for up to `deadline_s`; later ones are in the next summary. `save`
        writes the samples to a .npz, `forget` then lets go of them (if no reply was due), so that memory
        stays flat; the counters go on.
        """
        request = {"do": "report", "windows": windows, "forget": forget, "save": save and str(save)}
        return self._ask("summary", deadline_s, **request, deadline_ms=round(deadline_s * 1000))

    def stop(
        self, windows: Sequence[tuple[int, int]] = (), deadline_s: float = _STOP_DEADLINE_S
    ) -> dict[str, Any]:
        """Let due replies come for up to `deadline_s`, close every connection in as long, and sum up.

        `windows` are the migrations, [begin, end) in CLOCK_MONOTONIC ns. The client's process ends after
        this.
        """
        deadline_ms = round(deadline_s * 1000)
        return self._ask("summary", deadline_s, do="stop", windows=windows, deadline_ms=deadline_ms)

    def close(self) -> None:
        self._control.close()

    def _ask(self, answer: str, deadline_s: float, **request: Any) -> dict[str, Any]:
        self._control.settimeout(2 * deadline_s + _REPLY_SLACK_S)
        send_message(self._control, request)
        reply = receive_message(self._control)
        if reply is None:
            raise ControlError(f"the client hung up when asked to {request['do']}")
        if "error" in reply:
            raise ClientFailed(str(reply["error"]))
        if not isinstance(reply.get(answer), dict):
            raise ControlError(f"{list(reply)} is no answer to {request['do']}")
        return dict(reply[answer])


def _receive_json(control: socket.socket) -> dict[str, Any] | None:
    try:
        data, _, flags, _ = control.recvmsg(_DATAGRAM_BYTES)
    except ConnectionResetError:
        return None
    except OSError as error:
        raise ControlError(f"control connection: {error or os.strerror(error.errno or 0)}") from error
    if flags & socket.MSG_TRUNC:
        raise ControlError(f"control connection: a datagram of more than {_DATAGRAM_BYTES} bytes")
    return _parse(data) if data else None


def _parse(data: bytes) -> dict[str, Any]:
    try:
        message = json.loads(data)
    except ValueError as error:
        raise ControlError(f"control connection: no JSON ({error}): {data[:60]!r}") from error
    if not isinstance(message, dict):
        raise ControlError(f"control connection: no JSON object: {data[:60]!r}")
    return message
