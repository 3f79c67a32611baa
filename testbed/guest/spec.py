"""What a machine is told at its start, and the listening sockets which that implies."""

from __future__ import annotations

import _socket
import socket
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any

from testbed.guest.load import LoadSpec
from testbed.guest.program import Program
from testbed.guest.service import LINGER_NS
from testbed.udp.sockets import ROOM_BYTES, make
from testbed.udp.state import SocketState

BACKLOG = 4096


@dataclass(frozen=True)
class MachineSpec:
    """What a machine is given at start, the `argument` of :func:`main`. Both hosts give the same but for
    `host`.
    """

    program: str
    host: str = ""
    addresses: tuple[str, ...] = ("0.0.0.0", "::")
    fresh: bool = True
    populate: bool = False
    fill: float = 0.0
    seed: int = 0
    max_connections: int = 4096
    linger_ns: int = LINGER_NS
    import_path: tuple[str, ...] = ()
    load: LoadSpec = field(default_factory=LoadSpec)

    @classmethod
    def from_json(cls, argument: dict[str, Any]) -> MachineSpec:
        """From JSON of the same names (``load`` an object). Raises ValueError, with one line, for any other
        name or a bad value.
        """
        known = set(cls.__dataclass_fields__)
        unknown = sorted(set(argument) - known)
        if unknown or "program" not in argument:
            wrong = ", ".join(unknown) or "nothing"
            raise ValueError(f"a machine is not described by {wrong}; known: {', '.join(sorted(known))}")
        values = dict(argument)
        for name in ("addresses", "import_path"):
            if name in values:
                values[name] = tuple(values[name])
        try:
            values["load"] = LoadSpec(**{"seed": int(values.get("seed", 0)), **values.get("load", {})})
            spec = cls(**values)
        except TypeError as error:
            raise ValueError(f"a machine's load is described wrongly: {error}") from error
        if not 0 <= spec.fill <= 1:
            raise ValueError(f"a fill of {spec.fill} is not between 0 and 1")
        if spec.max_connections < 1:
            raise ValueError(f"{spec.max_connections} connections at most: one or more are needed")
        return spec


def listening_socket(address: str, program: type[Program]) -> socket.socket:
    """A listener for `program` on one address. OSError names the address; nothing is left then."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        # What a listener is set to, its connections inherit.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if program.send_buffer_bytes:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, program.send_buffer_bytes)
        listener.bind((address, program.port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        problem = f"cannot listen on {address} port {program.port}: {error.strerror}"
        raise OSError(error.errno, problem) from error
    return listener


def datagram_socket(address: str, program: type[Program]) -> socket.socket:
    """A UDP socket for `program` on one address, with room to receive. OSError names the address; nothing is
    left then."""
    return make(SocketState(ip_address(address), program.udp_port, True, 2 * ROOM_BYTES, 2 * ROOM_BYTES))


def tcp_socket(fd: int) -> _socket.socket:
    """A connection's descriptor, IPv4 or IPv6, as a plain socket object: the cheapest that there is."""
    return _socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, fd)
