"""When a guest was last heard, by the frames that it sent."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from testbed.handover.egress import EgressWatch
from testbed.handover.wiring import GUEST_PORT
from tests.system import handover_stage as stage

pytestmark = pytest.mark.universe

DEADLINE_S = 20.0
ROOM = 4096


@pytest.fixture
def guest() -> Iterator[tuple[EgressWatch, socket.socket]]:
    """A watch that has begun, and a socket of the guest that it watches."""
    stage.make_network()
    host = stage.make_host("host-a")
    with (
        closing(EgressWatch(host.namespace, GUEST_PORT)) as watch,
        host.guest.socket(socket.AF_INET, socket.SOCK_DGRAM) as speaking,
    ):
        speaking.connect((stage.CLIENT_4, stage.PORT))
        watch.start()
        yield watch, speaking


def say(speaking: socket.socket, count: int) -> None:
    for _ in range(count):
        speaking.send(b"heard")


def heard(watch: EgressWatch, before: int | None) -> int | None:
    """What it says once it has something new to say."""
    deadline_s = time.monotonic() + DEADLINE_S
    while (last_ns := watch.last_ns(before)) == before:
        assert time.monotonic() < deadline_s
    return last_ns


def test_the_last_word_is_remembered_until_there_is_another(
    guest: tuple[EgressWatch, socket.socket],
) -> None:
    watch, speaking = guest
    assert watch.last_ns(None) is None
    begun_ns = time.monotonic_ns()
    say(speaking, 1)
    first_ns = heard(watch, None)
    assert first_ns is not None
    assert begun_ns <= first_ns <= time.monotonic_ns()
    assert watch.last_ns(first_ns) == first_ns
    say(speaking, 1)
    later_ns = heard(watch, first_ns)
    assert later_ns is not None
    assert later_ns > first_ns


def test_of_more_frames_than_there_is_room_for_the_last_is_not_known(
    guest: tuple[EgressWatch, socket.socket],
) -> None:
    """An older one is not told in its place."""
    watch, speaking = guest
    say(speaking, 2 * ROOM)
    assert heard(watch, 1) is None
    say(speaking, 1)
    assert heard(watch, None) is not None
