"""What an agent and its guest say to each other: one JSON object a packet, descriptors beside it.

The channel is a SOCK_SEQPACKET socket pair, so a message is whole or not there. Every order is answered by
one message (a pause by as many as its sockets need, see below); ``{"error": "one line"}`` says that it was
not carried out. Times are CLOCK_MONOTONIC nanoseconds. The guest's first message, unasked:

    {"ready": true, "pid", "address", "ram_bytes", "program", "port", "tracking_error": null | text} + [uffd]
        RAM is mapped at `address`; the uffd is there when tracking_error is null.
        Or {"error": text}, and the process ends with 2.

Orders, the states in which each is obeyed, and the answers:

    {"do": "start"}     new -> running         first boot: {"running": t_ns}. With "disk": {"bytes"} and one
                                               descriptor the guest has a disk, see below
    {"do": "pause"}     running -> paused      {"paused": true, "t_ns", "registers": {...}, "last": bool,
                                                "sockets": [[slot, fd, kind], ...]} of kind "listener",
                                               "datagrams" (UDP) or "connection",
                                               at most SOCKETS_A_MESSAGE of them; more follow in messages
                                               {"sockets", "last"}, the last of which has "last": true
    {"do": "continue"}  paused -> running      {"running": t_ns}: a migration was rolled back
    {"do": "attach", "registers": {...}, "sockets": [[slot, kind], ...], "gone": [slot, ...], "last"} + fds
                        new -> attached        as many messages as needed, registers in the first, at most
                                               FDS_A_MESSAGE descriptors in each, the sockets' in their order;
                                               only the last is answered: {"attached": true}. A guest with a
                                               disk needs a socket [0, "disk"] too, and "disk": {"bytes"} in
                                               the same message
    {"do": "resume"}    attached -> running    {"running": t_ns}
    {"do": "sockets"}   paused, attached       {"sockets", "last"} as for pause, for an agent that takes over
    {"do": "stats"}     any                    {"state", "steps", "connections", ...}: see Machine.stats
    {"do": "sync", "token"}  any               {"token", "state"}: earlier answers were another agent's
    {"do": "disk"} + fd running, paused,       {"connected": true}: another connection of its disk, for that
                        attached               which it had; with "disk": {"bytes"} if the disk has grown
    {"do": "stop"}      any                    {"stopped": true}, and the process ends with 0

`gone` names connections that could not be moved; their program sees a reset. A slot of RAM that is in
neither list is an error, so that no connection is lost in silence.

A disk's descriptor is a connected socket in the transmission phase of NBD, with simple replies. A running
guest may say of it, unasked and at any time, so perhaps before the answer to an order (:func:`is_unasked`):

    {"fenced": text}    the disk answered EPERM: it is another host's. The state is *fenced* from now on: the
                        guest runs nothing and sends nothing more, and obeys stats and stop alone
    {"disk": "lost"}    the connection of the disk ended. The guest runs on, its requests wait for an order
                        "disk"

A byte shared between the two (descriptor 2 of the guest, a page) tells the guest between two handlers that
an order waits. The agent sets it to 1 *before* it sends the pause; the guest sets it back. Without it a
pause still works, but waits for the whole batch of ready sockets.
"""

from __future__ import annotations

import array
import json
import socket
from collections.abc import Mapping, Sequence
from typing import Any

FDS_A_MESSAGE = 253  # SCM_MAX_FD, <net/scm.h>
SOCKETS_A_MESSAGE = 4096
MESSAGE_BYTES = 1 << 18


class ControlError(Exception):
    """What came is not a message of this protocol."""


class ControlClosed(Exception):
    """The other side is gone."""


def is_unasked(message: Mapping[str, Any]) -> bool:
    """Whether the guest says this of itself, in answer to nothing."""
    return message.keys() == {"fenced"} or message == {"disk": "lost"}


class Control:
    """One end of the channel."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock

    def fileno(self) -> int:
        return self.socket.fileno()

    def send(self, message: dict[str, Any], fds: Sequence[int] = ()) -> None:
        """Send `message` and duplicates of `fds`. Raises ControlClosed, ControlError when it is too long;
        nothing is sent then.
        """
        data = json.dumps(message, separators=(",", ":")).encode()
        if len(data) > MESSAGE_BYTES or len(fds) > FDS_A_MESSAGE:
            raise ControlError(f"a message of {len(data)} bytes and {len(fds)} descriptors is too long")
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            self.socket.sendmsg([data], rights, socket.MSG_NOSIGNAL)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise ControlClosed("the other end of the control channel is closed") from error

    def receive(self, *, wait: bool = True) -> tuple[dict[str, Any], list[int]] | None:
        """The next message and its descriptors, which are the caller's from here on; None when there is
        none and `wait` is False.

        Raises ControlClosed, and ControlError (descriptors that came with it are closed) when it is not a
        JSON object.
        """
        try:
            data, rights, flags, _ = self.socket.recvmsg(
                MESSAGE_BYTES,
                socket.CMSG_SPACE(FDS_A_MESSAGE * 4),
                socket.MSG_CMSG_CLOEXEC | (0 if wait else socket.MSG_DONTWAIT),
            )
        except BlockingIOError:
            return None
        except ConnectionResetError as error:
            raise ControlClosed("the other end of the control channel is closed") from error
        fds: list[int] = []
        for level, kind, payload in rights:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds.extend(memoryview(payload[: len(payload) - len(payload) % 4]).cast("i"))
        if not data and not fds:
            raise ControlClosed("the other end of the control channel is closed")
        try:
            if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
                raise ControlError("a control message was cut off")
            message = json.loads(data)
            if not isinstance(message, dict):
                raise ControlError("a control message is a JSON object")
        except (ControlError, ValueError) as error:
            for fd in fds:
                socket.close(fd)
            raise ControlError(str(error)) from error
        return message, fds
