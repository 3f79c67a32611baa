"""Routing netlink by hand: the few messages that the blackout cannot wait for a library to build.

Transcription only. A message is encoded once (:class:`Request`), long before it is needed, and sent on a
socket that is already open (:class:`RouteSocket`): the kernel acts on it inside ``send``, so what is left for
the blackout is one system call for the deed and one for each acknowledgement.

Names are those of ``linux/netlink.h``, ``linux/rtnetlink.h``, ``linux/if_link.h`` and ``linux/neighbour.h``.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

# linux/netlink.h
NETLINK_ROUTE = 0
SOL_NETLINK = 270
NETLINK_CAP_ACK = 10
NETLINK_EXT_ACK = 11
NETLINK_GET_STRICT_CHK = 12
NLM_F_REQUEST = 0x1
NLM_F_ACK = 0x4
NLM_F_DUMP = 0x300
NLM_F_REPLACE = 0x100
NLM_F_CREATE = 0x400
NLM_F_CAPPED = 0x100
NLM_F_ACK_TLVS = 0x200
NLMSG_ERROR = 2
NLMSG_DONE = 3
NLMSGERR_ATTR_MSG = 1
NLA_F_NESTED = 0x8000
NLA_TYPE_MASK = 0x3FFF

# linux/rtnetlink.h
RTMGRP_LINK = 0x1
RTMGRP_NEIGH = 0x4
RTM_NEWLINK = 16
RTM_GETLINK = 18
RTM_SETLINK = 19
RTM_NEWNEIGH = 28
RTM_DELNEIGH = 29
RTM_GETNEIGH = 30

# linux/if_link.h, linux/if_bridge.h
AF_BRIDGE = 7
IFLA_ADDRESS = 1
IFLA_IFNAME = 3
IFLA_MASTER = 10
IFLA_PROTINFO = 12
IFLA_OPERSTATE = 16
IF_OPER_UP = 6
IFLA_BRPORT_STATE = 1
IFLA_BRPORT_LEARNING = 8
IFLA_BRPORT_UNICAST_FLOOD = 9
IFLA_BRPORT_MULTICAST_ROUTER = 25
MDB_RTR_TYPE_TEMP_QUERY = 1
MDB_RTR_TYPE_PERM = 2
BR_STATE_DISABLED = 0
BR_STATE_LEARNING = 2
BR_STATE_FORWARDING = 3

# linux/neighbour.h
NDA_DST = 1
NDA_LLADDR = 2
NTF_SELF = 0x02
NTF_MASTER = 0x04
NTF_STICKY = 0x40
NUD_INCOMPLETE = 0x01
NUD_REACHABLE = 0x02
NUD_STALE = 0x04
NUD_DELAY = 0x08
NUD_PROBE = 0x10
NUD_FAILED = 0x20
NUD_NOARP = 0x40
NUD_PERMANENT = 0x80

_NLMSGHDR = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_NLATTR = struct.Struct("=HH")  # length, type
_IFINFOMSG = struct.Struct("=BxHiII")  # family, type, index, flags, change
_NDMSG = struct.Struct("=BxxxiHBB")  # family, index, state, flags, type
_ERRNO = struct.Struct("=i")
_U32 = struct.Struct("=I")

_SEQUENCE_OFFSET = 8
_RECEIVE_BYTES = 1 << 16


@dataclass(frozen=True)
class Message:
    """One netlink message: its type, its flags beside REQUEST and ACK, and the payload after ``nlmsghdr``."""

    type: int
    flags: int
    payload: bytes
    what: str
    """What the message asks for, in words: the text of the error if the kernel refuses it."""


@dataclass(frozen=True)
class Request:
    """Messages encoded for one ``send``: the kernel acts on them in order, and on the later ones too if one
    fails."""

    data: bytes
    what: tuple[str, ...]


@dataclass(frozen=True)
class Link:
    """An interface; `master` is the index of the bridge that it is a port of, or 0."""

    index: int
    name: str
    mac: bytes
    master: int
    operstate: int


@dataclass(frozen=True)
class NeighbourEntry:
    """One entry of a neighbour table as the kernel tells it; `destination` is a packed IPv4 or IPv6
    address."""

    family: int
    index: int
    state: int
    flags: int
    destination: bytes
    mac: bytes


def prepare(*messages: Message) -> Request:
    """Encode `messages`, each to be acknowledged, numbered from 1."""
    data = bytearray()
    for number, message in enumerate(messages, start=1):
        data += _NLMSGHDR.pack(
            _NLMSGHDR.size + len(message.payload),
            message.type,
            message.flags | NLM_F_REQUEST | NLM_F_ACK,
            number,
            0,
        )
        data += message.payload + bytes(-len(message.payload) % 4)
    return Request(bytes(data), tuple(message.what for message in messages))


def port_state(index: int, state: int) -> Message:
    """Put the bridge port `index` into `state` (net/bridge/br_netlink.c, br_set_port_state)."""
    return _port(index, {IFLA_BRPORT_STATE: state}, f"set bridge port {index} to state {state}")


def port_flags(index: int, *, learning: bool, unicast_flood: bool, all_multicast: bool) -> Message:
    """Say whether the bridge port `index` learns source addresses, gets frames for unknown ones, and gets
    every multicast even where the bridge knows who listens to what (a kernel without snooping ignores that).
    """
    attributes = {
        IFLA_BRPORT_LEARNING: int(learning),
        IFLA_BRPORT_UNICAST_FLOOD: int(unicast_flood),
        IFLA_BRPORT_MULTICAST_ROUTER: MDB_RTR_TYPE_PERM if all_multicast else MDB_RTR_TYPE_TEMP_QUERY,
    }
    return _port(index, attributes, f"set learning and flooding of bridge port {index}")


def forwarding_entry(mac: bytes, index: int, *, sticky: bool) -> Message:
    """Point the bridge's forwarding entry of `mac` at its port `index`, whatever it pointed at before.

    A sticky entry is static and stays when a frame with source `mac` comes in by another port. One that is
    not sticky is what the bridge would have learned by itself: it moves with the next such frame, and ages.
    """
    state = NUD_NOARP if sticky else NUD_REACHABLE
    flags = NTF_MASTER | (NTF_STICKY if sticky else 0)
    payload = _NDMSG.pack(AF_BRIDGE, index, state, flags, 0) + _attribute(NDA_LLADDR, mac)
    return Message(
        RTM_NEWNEIGH,
        NLM_F_CREATE | NLM_F_REPLACE,
        payload,
        f"point the forwarding entry of {mac.hex(':')} at {index}",
    )


def neighbour(index: int, family: int, destination: bytes, mac: bytes, state: int) -> Message:
    """Put `destination` (packed, of `family`) at `mac` into the neighbour table of interface `index`."""
    payload = (
        _NDMSG.pack(family, index, state, 0, 0)
        + _attribute(NDA_DST, destination)
        + _attribute(NDA_LLADDR, mac)
    )
    return Message(
        RTM_NEWNEIGH,
        NLM_F_CREATE | NLM_F_REPLACE,
        payload,
        f"install the neighbour {destination.hex()} on {index}",
    )


class RouteSocket:
    """A routing netlink socket that answers each request before the next: one user, one thread.

    It owns the socket given, which decides the network namespace: make it inside the namespace that is meant.
    """

    def __init__(self, route: socket.socket) -> None:
        self._socket = route
        route.setsockopt(SOL_NETLINK, NETLINK_CAP_ACK, 1)
        route.setsockopt(SOL_NETLINK, NETLINK_EXT_ACK, 1)
        route.bind((0, 0))

    def request(self, request: Request) -> None:
        """Have the kernel act on `request`; it has when this returns. 10 to 20 us for one message.

        Raises OSError with the kernel's words for the first message refused. The messages after that one have
        been acted on all the same, and so have those before it.
        """
        self._socket.send(request.data)
        refusal: OSError | None = None
        for what in request.what:
            answer = self._socket.recv(_RECEIVE_BYTES)
            refusal = refusal or _refusal(answer, what)
        if refusal is not None:
            raise refusal

    def link(self, name: str) -> Link:
        """The interface called `name`; OSError (ENODEV) when there is none."""
        payload = _IFINFOMSG.pack(0, 0, 0, 0, 0) + _attribute(IFLA_IFNAME, name.encode() + b"\0")
        what = f"find the interface {name}"
        self._socket.send(_one(RTM_GETLINK, NLM_F_REQUEST, payload))
        answer = self._socket.recv(_RECEIVE_BYTES)
        if (refusal := _refusal(answer, what)) is not None:
            raise refusal
        return _link(answer[_NLMSGHDR.size :])

    def links(self) -> list[Link]:
        """Every interface of the namespace."""
        dump = self._dump(RTM_GETLINK, _IFINFOMSG.pack(0, 0, 0, 0, 0), "read the interfaces")
        return [_link(body) for body in dump]

    def ports(self, bridge: int) -> list[Link]:
        """The interfaces that are ports of the bridge with index `bridge`."""
        return [link for link in self.links() if link.master == bridge]

    def neighbours(self, index: int) -> list[NeighbourEntry]:
        """The IPv4 and IPv6 neighbour table of interface `index`, in the kernel's order."""
        return [
            entry
            for family in (socket.AF_INET, socket.AF_INET6)
            for entry in self._neighbour_dump(int(family))
            if entry.index == index
        ]

    def forwarding(self) -> list[NeighbourEntry]:
        """The entries of every bridge in the namespace; `index` is the port, `destination` empty."""
        return self._neighbour_dump(AF_BRIDGE)

    def _neighbour_dump(self, family: int) -> list[NeighbourEntry]:
        header = _NDMSG.pack(family, 0, 0, 0, 0)
        return [_neighbour(body) for body in self._dump(RTM_GETNEIGH, header, "read the neighbour table")]

    def _dump(self, kind: int, header: bytes, what: str) -> list[bytes]:
        self._socket.send(_one(kind, NLM_F_REQUEST | NLM_F_DUMP, header))
        bodies: list[bytes] = []
        while True:
            for answer, body in _messages(self._socket.recv(_RECEIVE_BYTES)):
                if answer == NLMSG_DONE:
                    return bodies
                if answer == NLMSG_ERROR:
                    raise _error(-_ERRNO.unpack_from(body)[0], "", what)
                bodies.append(body)

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def wait_operational(watch: socket.socket, ask: RouteSocket, name: str, deadline_s: float) -> Link:
    """Wait until the interface `name` is operational (its own and its peer's carrier noticed by the kernel).

    `watch` is an unbound routing socket in the same namespace as `ask`; it is bound to the link group here.
    The kernel notices a carrier on a work queue, and a bridge puts a port back to forwarding when it does:
    until then a port state does not last. TimeoutError after `deadline_s`.
    """
    watch.bind((0, RTMGRP_LINK))
    watch.settimeout(deadline_s)
    link = ask.link(name)
    while link.operstate != IF_OPER_UP:
        try:
            heard = watch.recv(_RECEIVE_BYTES)
        except TimeoutError:
            raise TimeoutError(f"interface {name} did not become operational within {deadline_s} s") from None
        for kind, body in _messages(heard):
            if kind == RTM_NEWLINK and (news := _link(body)).index == link.index:
                link = news
    return link


def watch(route: socket.socket, groups: int) -> socket.socket:
    """Have `route`, an unbound routing socket, hear of changes in `groups` (RTMGRP_*); it never waits."""
    route.bind((0, groups))
    route.setblocking(False)
    return route


def _link(body: bytes) -> Link:
    _, _, index, _, _ = _IFINFOMSG.unpack_from(body)
    attributes = dict(_attributes(body[_IFINFOMSG.size :]))
    (master,) = _U32.unpack(attributes.get(IFLA_MASTER, bytes(_U32.size)))
    name = attributes.get(IFLA_IFNAME, b"").rstrip(b"\0").decode(errors="replace")
    operstate = attributes.get(IFLA_OPERSTATE, b"\0")[0]
    return Link(index, name, attributes.get(IFLA_ADDRESS, b""), master, operstate)


def _port(index: int, attributes: dict[int, int], what: str) -> Message:
    nested = b"".join(_attribute(kind, bytes([value])) for kind, value in attributes.items())
    payload = _IFINFOMSG.pack(AF_BRIDGE, 0, index, 0, 0) + _attribute(IFLA_PROTINFO | NLA_F_NESTED, nested)
    return Message(RTM_SETLINK, 0, payload, what)


def _one(kind: int, flags: int, payload: bytes) -> bytes:
    return _NLMSGHDR.pack(_NLMSGHDR.size + len(payload), kind, flags, 1, 0) + payload


def _attribute(kind: int, value: bytes) -> bytes:
    return _NLATTR.pack(_NLATTR.size + len(value), kind) + value + bytes(-len(value) % 4)


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + _NLATTR.size <= len(data):
        length, kind = _NLATTR.unpack_from(data, at)
        if length < _NLATTR.size:
            return
        yield kind & NLA_TYPE_MASK, data[at + _NLATTR.size : at + length]
        at += length + -length % 4


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + _NLMSGHDR.size <= len(data):
        length, kind, _, _, _ = _NLMSGHDR.unpack_from(data, at)
        yield kind, data[at + _NLMSGHDR.size : at + length]
        at += length + -length % 4


def _neighbour(body: bytes) -> NeighbourEntry:
    family, index, state, flags, _ = _NDMSG.unpack_from(body)
    attributes = dict(_attributes(body[_NDMSG.size :]))
    return NeighbourEntry(
        family, index, state, flags, attributes.get(NDA_DST, b""), attributes.get(NDA_LLADDR, b"")
    )


def _refusal(answer: bytes, what: str) -> OSError | None:
    """The error that `answer` carries, if it is one: with the kernel's own words where it gave any."""
    _, kind, flags, _, _ = _NLMSGHDR.unpack_from(answer)
    if kind != NLMSG_ERROR:
        return None
    (negative,) = _ERRNO.unpack_from(answer, _NLMSGHDR.size)
    if negative == 0:
        return None
    words = ""
    if flags & NLM_F_ACK_TLVS and flags & NLM_F_CAPPED:
        tail = answer[2 * _NLMSGHDR.size + _ERRNO.size :]
        words = dict(_attributes(tail)).get(NLMSGERR_ATTR_MSG, b"").rstrip(b"\0").decode(errors="replace")
    return _error(-negative, words, what)


def _error(number: int, words: str, what: str) -> OSError:
    text = os.strerror(number) + (f": {words}" if words else "")
    return OSError(number, text, what)


def sequence_numbers(request: Request) -> Sequence[int]:
    """The sequence numbers in `request`, as encoded (for tests and for reading a capture)."""
    numbers, at = [], 0
    while at < len(request.data):
        length, _, _, number, _ = _NLMSGHDR.unpack_from(request.data, at)
        numbers.append(number)
        at += length + -length % 4
    return numbers
