"""The TCP channel over real sockets on loopback: what is sent out of one RAM is in the other."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from testbed.memory.region import Region
from testbed.migration import wire
from testbed.migration.channel import TcpChannel
from testbed.migration.errors import PeerLost

DEADLINE_S = 10.0
PAGES = 3000


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
    source, target = TcpChannel(ours, DEADLINE_S), TcpChannel(theirs, DEADLINE_S)
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
        ((0, 2048), (2055, 11)),
        tuple((page, 5) for page in range(0, PAGES - 8, 8))[: wire.MAX_RUNS],
    ],
    ids=["page", "run", "scattered", "long", "long-scattered"],
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
        target.receive_pages(message, there)
    sender.join()
    sent = np.zeros(PAGES, bool)
    for start, count in runs:
        sent[start : start + count] = True
    assert (there.array[sent] == here.array[sent]).all()
    assert not there.array[~sent].any()


def test_a_silent_peer_is_given_up_at_the_deadline(channels: tuple[TcpChannel, TcpChannel]) -> None:
    source, _ = channels
    source.set_deadline(0.05)
    with pytest.raises(PeerLost, match="silent"):
        source.receive()


def test_a_peer_that_closes_within_page_data_is_lost(
    channels: tuple[TcpChannel, TcpChannel],
) -> None:
    source, target = channels
    here, there = filled(), Region.create(PAGES * wire.PAGE)
    source.send_pages(wire.Pages(((0, 8),)), here)
    source.send(wire.Finished())
    message = target.receive()
    assert isinstance(message, wire.Pages)
    source.close()
    with pytest.raises(PeerLost, match="closed"):
        target.receive_pages(wire.Pages(((0, 64),)), there)
