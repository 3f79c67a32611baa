"""Tries each feature of the kernel, by doing what a run will do with it.

Every probe of this module runs inside a universe, returns what there is to say of the feature ("" for
nothing), and raises where it is missing: the exception's text is the finding's. No probe looks at a version.
"""

from __future__ import annotations

import itertools
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from netns import packet, syscalls
from netns.detour import Detour, Place
from netns.links import LinkError, Links
from netns.namespace import Namespace
from netns.netem import Netem
from testbed.kernel import inet_diag, tcp_repair
from testbed.memory import tracking

SOMEWHERE = "02:00:00:00:00:01"
ELSEWHERE = "02:00:00:00:00:02"
MTU = 1500
RATE_MBIT = 1000.0
SLOT_BYTES = 2048
_NUMBERS = itertools.count(1)


class Missing(Exception):
    """The feature is not there; the text says how that showed."""


@contextmanager
def _node() -> Iterator[tuple[Namespace, Links]]:
    """A network namespace that goes away with the block."""
    with ExitStack() as stack:
        namespace = stack.enter_context(Namespace.create(f"doctor{next(_NUMBERS)}"))
        stack.callback(namespace.delete)
        yield namespace, stack.enter_context(Links(namespace))


@contextmanager
def _wire() -> Iterator[tuple[Namespace, Links]]:
    """A network namespace with one end of a wire, `eth0`, in it; the other end is in another one."""
    with _node() as (near, links), _node() as (far, _):
        links.add_veth("eth0", SOMEWHERE, far, "eth0", ELSEWHERE, MTU)
        yield near, links


def namespaces() -> str:
    with _node():
        return ""


def veth() -> str:
    with _wire():
        return ""


def bridge() -> str:
    with _wire() as (_, links):
        links.add_bridge("br0", ELSEWHERE, MTU)
        links.enslave("eth0", "br0")
        return ""


def token_bucket() -> str:
    with _wire() as (_, links):
        links.limit_rate("eth0", RATE_MBIT)
        return ""


def netem() -> str:
    with _wire() as (_, links):
        try:
            links.netem("eth0", Netem(limit_frames=1000, delay_ns=1_000_000))
        except LinkError as error:
            raise Missing(f"the kernel refuses it: {error}") from error
        return ""


def redirection() -> str:
    """A detour as a relay's, with nobody in the middle."""
    with _node() as (near, links), _node() as (far, others), _node() as (middle, _):
        links.add_veth("eth0", SOMEWHERE, far, "eth0", ELSEWHERE, MTU)
        links.set_up("eth0")
        others.set_up("eth0")
        with Detour(Place(near, "eth0"), Place(far, "eth0"), middle) as detour:
            detour.lead(forward=True, backward=True)
        return ""


def packet_sockets() -> str:
    """One as frames are held with: offload headers, a receive ring, bound to a wire."""
    with _wire() as (near, _), near.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as caught:
        caught.setsockopt(packet.SOL_PACKET, packet.PACKET_VNET_HDR, 1)
        packet.ReceiveRing(caught, SLOT_BYTES, packet.ReceiveRing.BLOCK_BYTES // SLOT_BYTES).close()
        packet.bind(caught, "eth0")
        return ""


def ipv6() -> str:
    with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as bound:
        bound.bind(("::1", 0))
    return ""


def cubic() -> str:
    """Chosen in a network namespace of its own, where only what the machine's root allows may be chosen."""
    switch = Path("/proc/sys/net/ipv4/tcp_congestion_control")
    try:
        switch.write_text("cubic")
    except OSError as error:
        raise Missing(f"{error.strerror}; {switch.read_text().strip()} is used") from error
    return ""


def connections_in_repair() -> str:
    """Both sides of a move: an established connection is read, and one is made without a peer."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        stack.enter_context(socket.create_connection(listener.getsockname()))
        served = stack.enter_context(listener.accept()[0])
        tcp_repair.repair_on(served)
        end = tcp_repair.queue_end(served, tcp_repair.TCP_SEND_QUEUE)
        tcp_repair.timestamp(served)
        window = tcp_repair.window(served)
        tcp_repair.repair_off(served, probe=False)

        made = stack.enter_context(tcp_repair.open_repaired(socket.AF_INET))
        made.bind(("127.0.0.1", 0))
        tcp_repair.set_queue_start(made, tcp_repair.TCP_SEND_QUEUE, end)
        tcp_repair.set_queue_start(made, tcp_repair.TCP_RECV_QUEUE, window.rcv_wup)
        made.connect(("127.0.0.1", 9))
        if tcp_repair.tcp_info(made).state != tcp_repair.TcpState.ESTABLISHED:
            raise Missing("a connection that is made in repair mode is not established")
    return ""


def half_open_list() -> str:
    with inet_diag.open_diag() as diag:
        half_open = 1 << tcp_repair.TcpState.SYN_RECV
        for family in (socket.AF_INET, socket.AF_INET6):
            list(inet_diag.dump(diag, family, half_open))
    return ""


def borrowed_descriptors() -> str:
    """The descriptor of a child, which sleeps on the other end of a pair until it is killed."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        child = os.fork()
        if child == 0:
            try:
                ours.close()
                theirs.recv(1)
            finally:
                os._exit(0)
        try:
            pidfd = os.pidfd_open(child)
            try:
                os.close(syscalls.pidfd_getfd(pidfd, theirs.fileno()))
            finally:
                os.close(pidfd)
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    return ""


def _tracker(name: str) -> str:
    (capability,) = tracking.probe([name])
    if not capability.available:
        raise Missing(capability.reason)
    return ""


def userfaultfd() -> str:
    return _tracker("userfaultfd")


def soft_dirty() -> str:
    return _tracker("soft-dirty")


def page_digests() -> str:
    return _tracker("digest")
