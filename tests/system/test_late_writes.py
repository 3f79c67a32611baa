"""An old write that was held back on its way and is let go after newer ones does not land over them."""

from __future__ import annotations

import fcntl
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from netns.namespace import Namespace
from testbed.storage import nbd, stream
from testbed.storage.client import NbdClient, NbdRefused
from testbed.storage.nbd import Request
from testbed.storage.stream import StreamLost
from tests.system import storage_stage as storage
from tests.system.guest_agent import eventually
from tests.system.storage_stage import KEY_A, bound, share
from tests.system.volume_stage import DEADLINE_S, MIB, PRELOAD, RELAY_PORT, STALL, STALLED, Stage, mounted

pytestmark = pytest.mark.universe(preload=PRELOAD)

DISK = 1 << 20
OLD, NEW = b"old!" * 1024, b"new!" * 1024
SESSION = "5" * 16
STAGE = "tests.system.volume_stage"


# ---- the target, and a relay that the test is


class Held:
    """A relay that has taken a write in and stands still. Its peer has gone, and it has not heard of it."""

    def __init__(self, export: str, namespace: Namespace) -> None:
        """Open the export, as the peer has done through it."""
        self._far = stream.connect(storage.NBD, DEADLINE_S, namespace)
        stream.converse(self._far, nbd.client_handshake(export))

    def let_go(self) -> bytes:
        """Carry the old write on; what the target says to it."""
        try:
            stream.send(self._far, nbd.encode_request(Request(nbd.NBD_CMD_WRITE, DISK, len(OLD))), OLD)
            return stream.receive(self._far, nbd.SIMPLE_REPLY.size)
        except StreamLost:
            return b""

    def close(self) -> None:
        self._far.close()


@contextmanager
def held_and_overtaken(folder: Path, *turns: str) -> Iterator[tuple[storage.Stage, Held, NbdClient]]:
    """A target; the connection on which an old write will come; and one on which a newer one has been
    answered. `turns` are what they say besides the lease."""
    with storage.standing(folder) as made, ExitStack() as stack:
        made.start()
        share(made.lun())
        old, new = (bound(KEY_A, "disk", 5) + turn for turn in turns)
        held = Held(old, made.namespace("host-a"))
        stack.callback(held.close)
        client = made.nbd(new)
        client.write(DISK, NEW)
        yield made, held, client


def test_what_a_relay_lets_go_after_a_newer_turn_does_not_land(tmp_path: Path) -> None:
    turns = (f"&session={SESSION}&turn=1", f"&session={SESSION}&turn=2")
    with held_and_overtaken(tmp_path, *turns) as (made, held, client):
        assert held.let_go() == b"", "the connection of an older turn has been ended"
        assert client.read(DISK, len(NEW)) == NEW
        client.write(DISK, b"and goes on")
        with pytest.raises(NbdRefused, match=f"turn 1 of session {SESSION} is over: it is at 2"):
            made.nbd(bound(KEY_A, "disk", 5) + turns[0])


def test_without_a_session_it_lands(tmp_path: Path) -> None:
    """The negative control of the test above: lease and epoch are the same."""
    with held_and_overtaken(tmp_path, "", "") as (_, held, client):
        assert held.let_go() == nbd.simple_reply(0)
        assert client.read(DISK, len(OLD)) == OLD


def test_two_sessions_of_one_host_go_on_side_by_side(tmp_path: Path) -> None:
    turns = (f"&session={SESSION}&turn=1", f"&session={SESSION[:-1]}6&turn=2")
    with held_and_overtaken(tmp_path, *turns) as (_, held, client):
        assert held.let_go() == nbd.simple_reply(0)
        client.write(DISK, NEW)


# ---- a host's volume service, and what it leaves behind in the kernel


@contextmanager
def disk_of_host_b(entry: str = "testbed.storage.service:main") -> Iterator[tuple[Stage, NbdClient]]:
    """A disk that host-b has open; `entry` is what its volume service is."""
    with mounted() as (made, _, _):
        made.kill("host-b")
        made.start_service("host-b", entry=entry)
        b = made.client("host-b")
        b.mount()
        b.create("d", MIB)
        yield made, made.disk("host-b", "d")


def write_over_a_cut_link(made: Stage, disk: NbdClient) -> None:
    """Cut host-b's storage link, and write to the same place "old!", which finds out, and then "new!"."""
    disk.read(0, 512)  # there is a connection over it
    made.link("host-b", "stor0", up=False)
    disk.write(0, OLD)
    disk.write(0, NEW)
    assert disk.read(0, len(NEW)) == NEW
    made.await_state("host-b", "redirected")


def leave_an_old_write_behind(made: Stage, disk: NbdClient) -> None:
    """host-b's kernel has "old!" still to deliver, once the link is mended; "new!" has gone another way."""
    for _ in range(5):
        write_over_a_cut_link(made, disk)
        if made.unsent_bytes("host-b") >= len(OLD):
            return
        made.link("host-b", "stor0", up=True)  # the cut was noticed before the write
        made.await_state("host-b", "direct")
    pytest.fail("the cut is noticed before each write")


def test_a_write_left_behind_on_a_way_that_was_cut_never_arrives() -> None:
    """It has gone another way meanwhile, and so have newer ones. The abort throws it away."""
    with disk_of_host_b() as (made, disk):
        write_over_a_cut_link(made, disk)
        assert made.unsent_bytes("host-b") < 512  # each FIN counts as one
        made.link("host-b", "stor0", up=True)
        made.await_state("host-b", "direct")
        assert disk.read(0, len(NEW)) == NEW


def test_without_the_abort_it_arrives_and_its_turn_is_over() -> None:
    with disk_of_host_b(f"{STAGE}:service_that_leaves_connections_behind") as (made, disk):
        leave_an_old_write_behind(made, disk)
        made.link("host-b", "stor0", up=True)
        eventually(lambda: made.unsent_bytes("host-b") < 512)
        assert disk.read(0, len(NEW)) == NEW


def test_without_abort_and_turns_it_arrives_after_newer_ones() -> None:
    """The negative control of both: the kernel delivers what it has once the link is mended."""
    with disk_of_host_b(f"{STAGE}:service_with_neither") as (made, disk):
        leave_an_old_write_behind(made, disk)
        made.link("host-b", "stor0", up=True)
        eventually(lambda: disk.read(0, len(OLD)) == OLD)


# ---- and in its peer's relay


def overtake(made: Stage, disk: NbdClient) -> ExitStack:
    """host-b's old write comes to host-a's relay, which stands still. host-b goes the direct way again,
    without the relay hearing of it, and writes "new!" there. To close what is returned lets the relay go
    on."""
    made.kill("host-a")
    made.start_service("host-a", entry=f"{STAGE}:service_whose_relay_stalls")
    made.link("host-b", "stor0", up=False)
    made.await_state("host-b", "redirected")
    disk.read(0, 512)  # there is a connection through the relay
    with ExitStack() as stalling:
        fcntl.flock(stalling.enter_context(STALL.open("w")), fcntl.LOCK_EX)
        request = threading.Thread(target=disk.write, args=(0, OLD))
        request.start()
        eventually(lambda: STALLED.exists() and not made.unsent_bytes("host-b", RELAY_PORT))
        made.link("host-b", "mig0", up=False)
        made.link("host-b", "stor0", up=True)
        made.await_state("host-b", "direct")
        request.join(DEADLINE_S)
        assert not request.is_alive()
        disk.write(0, NEW)
        return stalling.pop_all()


def test_a_write_in_a_relay_that_stood_still_does_not_land_after_newer_ones() -> None:
    with disk_of_host_b() as (made, disk):
        with overtake(made, disk):
            eventually(lambda: made.ended_by_target("host-a") == 1)
        eventually(lambda: made.ended_by_target("host-a") == 0)  # the relay has tried to carry it on
        assert disk.read(0, len(NEW)) == NEW


def test_without_turns_it_does() -> None:
    """The negative control: a volume service whose connections do not say which of them is the newest."""
    with disk_of_host_b(f"{STAGE}:service_without_turns") as (made, disk):
        with overtake(made, disk):
            assert disk.read(0, len(NEW)) == NEW
        eventually(lambda: disk.read(0, len(OLD)) == OLD)
