"""Connections that move while their client looks on: every state, every queue, byte for byte."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from testbed.tcp.freeze import freeze, unchanged
from testbed.tcp.state import decode, encode
from testbed.tcp.thaw import prepare, release, thaw
from tests.system.tcp_stage import GUEST_4, GUEST_6, Stage, stage

pytestmark = pytest.mark.universe


@pytest.fixture
def lab() -> Iterator[Stage]:
    with stage() as made:
        yield made


@pytest.mark.parametrize("address", [GUEST_4, GUEST_6])
def test_an_idle_connection_goes_on(lab, address):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with lab.source.entered():
        listener = socket.create_server((address, 7000), family=family)
    with lab.client.entered():
        client = socket.create_connection((address, 7000))
    server, _ = listener.accept()
    client.sendall(b"x" * 1000)
    assert server.recv(1000) == b"x" * 1000
    lab.cut("source")
    state = freeze(server)
    print(state, len(encode(state)))
    moved = decode(encode(state))
    assert moved == state
    with lab.target.entered():
        there = thaw(moved, prepare(family))
    assert unchanged(server, state)
    server.close()
    lab.plug("target")
    release(there, moved, probe=True)
    client.settimeout(5)
    client.sendall(b"hello")
    there.settimeout(5)
    assert there.recv(10) == b"hello"
    there.sendall(b"world")
    assert client.recv(10) == b"world"
