"""The TCP channel over real sockets on loopback: what is sent out of one RAM is in the other."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.memory.region import Region
from testbed.migration import wire
from testbed.migration.channel import STRIPED_PAGES, TcpChannel, accept_lane, connect_lane, halves
from testbed.migration.errors import PeerLost, ProtocolError

SECRET = b"k" * 32
DEADLINE_S = 10.0
PAGES = 3 * STRIPED_PAGES


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 9)), min_size=1, max_size=20))
def test_halves_keep_every_page_in_order_and_are_even(gaps: list[tuple[int, int]]) -> None:
    runs, end = [], 0
    for gap, count in gaps:
        runs.append((end + gap, count))
        end += gap + count
    first, second = halves(runs)

    def pages(part: object) -> list[int]:
        return [page for start, count in part for page in range(start, start + count)]  # type: ignore[attr-defined]

    assert pages(first) + pages(second) == pages(runs)
    assert len(pages(first)) == len(pages(runs)) // 2


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(DEADLINE_S)
        yield listening


@pytest.fixture
def channels(listener: socket.socket) -> Iterator[tuple[TcpChannel, TcpChannel]]:
    """A source's end and a target's end."""
    address = listener.getsockname()
    ours = socket.create_connection(address, DEADLINE_S)
    theirs, _ = listener.accept()
    source = TcpChannel(ours, DEADLINE_S, partial(connect_lane, address, SECRET, DEADLINE_S))
    target = TcpChannel(theirs, DEADLINE_S, partial(accept_lane, listener, SECRET, DEADLINE_S))
    yield source, target
    source.close()
    target.close()


def filled() -> Region:
    ram = Region.create(PAGES * wire.PAGE)
    ram.array[:] = np.random.default_rng(3).integers(0, 256, ram.array.shape, np.uint8)
    return ram


@pytest.mark.parametrize(
    "runs",
    [
        ((5, 1),),
        ((0, 300),),
        tuple((page, 1) for page in range(0, 900, 3)),
        ((0, 2 * STRIPED_PAGES), (2 * STRIPED_PAGES + 7, 11)),
        tuple((page, 5) for page in range(0, PAGES - 8, 8))[: wire.MAX_RUNS],
    ],
    ids=["page", "run", "scattered", "striped", "striped-scattered"],
)
def test_page_data_arrives_where_it_belongs(
    channels: tuple[TcpChannel, TcpChannel], runs: tuple[wire.Run, ...]
) -> None:
    source, target = channels
    here, there = filled(), Region.create(PAGES * wire.PAGE)
    sender = threading.Thread(target=lambda: [source.send_pages(wire.Pages(runs), here) for _ in range(3)])
    sender.start()
    for _ in range(3):
        message = target.receive()
        assert isinstance(message, wire.Pages)
        assert isinstance(message, wire.StripedPages) == (message.pages >= STRIPED_PAGES)
        target.receive_pages(message, there)
    sender.join()
    sent = np.zeros(PAGES, bool)
    for start, count in runs:
        sent[start : start + count] = True
    assert (there.array[sent] == here.array[sent]).all()
    assert not there.array[~sent].any()


def test_a_lane_of_somebody_else_is_refused(listener: socket.socket) -> None:
    stranger = connect_lane(listener.getsockname(), b"x" * 32, DEADLINE_S)
    with stranger, pytest.raises(ProtocolError, match="secret"):
        accept_lane(listener, SECRET, DEADLINE_S)


def test_striped_data_without_a_lane_is_refused(listener: socket.socket) -> None:
    ours = socket.create_connection(listener.getsockname(), DEADLINE_S)
    theirs, _ = listener.accept()
    target = TcpChannel(theirs, DEADLINE_S)
    with ours:
        ours.sendall(wire.encode(wire.StripedPages(((0, STRIPED_PAGES),))))
        message = target.receive()
        assert isinstance(message, wire.Pages)
        with pytest.raises(ProtocolError, match="lane"):
            target.receive_pages(message, Region.create(PAGES * wire.PAGE))
    target.close()


def test_a_silent_peer_is_given_up_at_the_deadline(channels: tuple[TcpChannel, TcpChannel]) -> None:
    source, _ = channels
    source.set_deadline(0.05)
    with pytest.raises(PeerLost, match="silent"):
        source.receive()


def test_a_lane_that_dies_fails_the_transfer(channels: tuple[TcpChannel, TcpChannel]) -> None:
    source, target = channels
    here, there = filled(), Region.create(PAGES * wire.PAGE)
    source.send_pages(wire.Pages(((0, STRIPED_PAGES),)), here)
    message = target.receive()
    assert isinstance(message, wire.Pages)
    target.receive_pages(message, there)
    assert target._lane is not None
    target._lane._connection.shutdown(socket.SHUT_RDWR)

    def send_on() -> None:
        for _ in range(100):
            source.send_pages(wire.Pages(((0, STRIPED_PAGES),)), here)

    with pytest.raises(PeerLost):
        send_on()
