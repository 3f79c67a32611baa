"""A client's wire: which frames are a wait, and how long it was there."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable

import pytest

from testbed.measure.accuracy import Definition, Sight
from testbed.measure.wire import Frame, OnWire, Wire, frame

SYN, ACK, PUSH = 0x02, 0x10, 0x18
REQUEST, DELIVERY = Definition.REQUEST, Definition.DELIVERY


def ethernet(protocol: int, ports: tuple[int, int], payload: bytes, flags: int = PUSH) -> bytes:
    """A frame with an IPv4 header of 24 bytes and, of TCP, a header with 12 bytes of options."""
    if protocol == socket.IPPROTO_TCP:
        transport = struct.pack("!HHIIBBHHH", *ports, 1, 1, 8 << 4, flags, 0, 0, 0) + bytes(12)
    else:
        transport = struct.pack("!HHHH", *ports, 8 + len(payload), 0)
    return over_ipv4(protocol, transport + payload)


def over_ipv4(protocol: int, packet: bytes) -> bytes:
    header = struct.pack("!BBHHHBBH", 0x46, 0, 24 + len(packet), 0, 0, 64, protocol, 0) + bytes(12)
    return bytes(12) + b"\x08\x00" + header + packet


def over_ipv6(whole: bytes) -> bytes:
    """The same in IPv6."""
    transport = whole[14 + 24 :]
    header = struct.pack("!IHBB", 6 << 28, len(transport), whole[23], 64) + bytes(32)
    return whole[:12] + b"\x86\xdd" + header + transport


@pytest.mark.parametrize("convert", [bytes, over_ipv6])
@pytest.mark.parametrize("leaves", [True, False])
@pytest.mark.parametrize("protocol", [socket.IPPROTO_TCP, socket.IPPROTO_UDP])
def test_data_is_seen_with_the_clients_port(
    protocol: int, leaves: bool, convert: Callable[[bytes], bytes]
) -> None:
    ports = (40000, 7000) if leaves else (7000, 40000)
    assert frame(5, leaves, convert(ethernet(protocol, ports, b"x"))) == Frame(5, leaves, 40000)
    assert frame(5, leaves, convert(ethernet(protocol, ports, b"", ACK))) is None


@pytest.mark.parametrize(
    ("convert", "protocol", "ask", "answer"),
    [(bytes, socket.IPPROTO_ICMP, 8, 0), (over_ipv6, socket.IPPROTO_ICMPV6, 128, 129)],
)
def test_an_echo_is_seen_with_its_identifier(
    convert: Callable[[bytes], bytes], protocol: int, ask: int, answer: int
) -> None:
    def echo(kind: int) -> bytes:
        return convert(over_ipv4(protocol, struct.pack("!BBHHH", kind, 0, 0xBEEF, 77, 1)))

    assert frame(5, True, echo(ask)) == Frame(5, True, 77)
    assert frame(5, False, echo(answer)) == Frame(5, False, 77)
    for leaves, kind in ((True, answer), (False, ask), (True, 3)):
        assert frame(5, leaves, echo(kind)) is None


def test_a_connection_asked_for_is_a_request() -> None:
    assert frame(5, True, ethernet(socket.IPPROTO_TCP, (40000, 7000), b"", SYN)) == Frame(5, True, 40000)
    answer = ethernet(socket.IPPROTO_TCP, (7000, 40000), b"", SYN | ACK)
    assert frame(5, False, answer) is None, "the kernel's, not the guest's"


def test_what_is_neither_is_passed_over() -> None:
    for alien in (b"", bytes(60), b"\xff" * 60, ethernet(socket.IPPROTO_ICMP, (1, 2), b"x" * 30)):
        assert frame(5, True, alien) is None


def test_a_cut_frame_is_no_error() -> None:
    for whole in (over_ipv6(tcp := ethernet(socket.IPPROTO_TCP, (40000, 7000), b"x")), tcp):
        for length in range(len(whole)):
            assert frame(5, True, whole[:length]) in (None, Frame(5, True, 40000))


FRAMES = [
    Frame(100, True, 1), Frame(110, True, 2), Frame(150, False, 2), Frame(300, False, 1), Frame(310, True, 1),
    Frame(400, False, 2), Frame(1400, False, 2), Frame(1420, False, 1),
]  # fmt: skip


@pytest.mark.parametrize("frames", [FRAMES, FRAMES[::-1]], ids=["in order", "out of order"])
def test_a_request_is_followed_to_its_answer(frames: list[Frame]) -> None:
    wire = Wire(frames)
    assert wire.wait(REQUEST, 0, Sight(0, 99)) == OnWire(200, 300), "of its own port"
    assert wire.wait(REQUEST, 0, Sight(0, 101)) == OnWire(40, 150)
    assert wire.wait(REQUEST, 0, Sight(0, 305)) == OnWire(1110, 1420)
    assert wire.wait(REQUEST, 0, Sight(0, 311)) is None, "nothing left after it"


def test_deliveries_are_apart_as_they_came() -> None:
    wire = Wire(FRAMES)
    assert wire.wait(DELIVERY, 600, Sight(0, 405)) == OnWire(400, 1400)
    assert wire.wait(DELIVERY, 2000, Sight(0, 405)) == OnWire(0, 1400)
    assert wire.wait(DELIVERY, 600, Sight(0, 149)) is None, "none before it"
    assert wire.wait(DELIVERY, 600, Sight(0, 1420)) is None, "none after it"


def test_nothing_is_known_of_what_was_not_captured() -> None:
    for definition in Definition:
        assert Wire(()).wait(definition, 1, Sight(1, 1)) is None
