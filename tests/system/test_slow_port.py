"""A guest's port that forwards only some time after it was opened."""

from __future__ import annotations

import socket
import threading
import time

import pytest

from netns.namespace import Namespace
from testbed.handover.wiring import GUEST_PORT
from testbed.kernel import netlink
from tests.system import handover_stage as stage

pytestmark = pytest.mark.universe

DELAY_S = 0.4
DEADLINE_S = 20.0


def test_a_slow_port_passes_nothing_until_its_time_and_everything_after() -> None:
    stage.make_network()
    host = stage.make_host("host-a")
    ledger = stage.Ledger(host.guest)
    host.port.delay_forwarding(DELAY_S)
    host.cut()
    opened_ns = time.time_ns()
    host.port.open()
    host.port.plug()
    sent, arrived = 0, []
    while len(arrived) < 40:
        assert time.time_ns() - opened_ns < DEADLINE_S * 1e9, arrived
        stage.send("client", range(sent, sent + 1))
        sent += 1
        threading.Event().wait(0.01)
        arrived += ledger.read()
    assert arrived[0][0] - opened_ns >= DELAY_S * 1e9 - 1e6
    first = arrived[0][1]
    assert first > 0
    assert [number for _, number in arrived] == list(range(first, first + len(arrived)))
    assert host.hold.drain() == []


def test_a_slow_port_that_is_cut_again_does_not_open_by_itself() -> None:
    stage.make_network()
    host = stage.make_host("host-a")
    host.port.delay_forwarding(0.1)
    host.port.plug()
    host.cut()
    threading.Event().wait(0.3)
    ledger = stage.Ledger(host.guest)
    stage.send("client", range(5))
    with host.guest.socket(socket.AF_INET, socket.SOCK_DGRAM) as guest, Namespace.open("client") as client:
        with client.socket(socket.AF_INET, socket.SOCK_DGRAM) as heard:
            heard.bind((stage.CLIENT_4, stage.PORT + 1))
            heard.settimeout(0.1)
            guest.sendto(b"out of a shut port", (stage.CLIENT_4, stage.PORT + 1))
            with pytest.raises(TimeoutError):
                heard.recv(100)
    host.port.silence()
    assert [stage.number_of(frame) for frame in host.hold.drain()] == list(range(5))
    assert ledger.read() == []


def test_a_port_that_has_had_its_delay_is_an_ordinary_one() -> None:
    stage.make_network()
    host = stage.make_host("host-a")
    host.port.delay_forwarding(0.1)
    host.port.plug()
    deadline_s = time.monotonic() + DEADLINE_S
    while stage.port_state("host-a", GUEST_PORT) != netlink.BR_STATE_FORWARDING:
        assert time.monotonic() < deadline_s
        threading.Event().wait(0.01)
    host.cut()
    host.port.plug()
    ledger = stage.Ledger(host.guest)
    stage.send("client", range(5))
    threading.Event().wait(0.05)
    assert [number for _, number in ledger.read()] == list(range(5))
