"""The ways of a host to its storage: direct, through the peer, or none for a while."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator

import pytest

from tests.system.volume_stage import (
    DEADLINE_S,
    MIB,
    PRELOAD,
    Both,
    closed,
    fenced,
    mounted,
    number_on,
    refusal,
    stage,
    writing,
)

pytestmark = pytest.mark.universe(preload=PRELOAD)

@pytest.fixture
def both() -> Iterator[Both]:
    with mounted() as made:
        yield made


@pytest.fixture
def patient() -> Iterator[Both]:
    with mounted(entry="tests.system.volume_stage:service_with_patience") as made:
        yield made


def test_io_goes_on_through_the_peer_while_the_storage_link_is_cut(patient: Both) -> None:
    made, a, b = patient
    b.create("d", MIB)
    with writing(made.disk("host-b", "d")) as writer:
        writer.await_more()
        made.link("host-b", "stor0", up=False)
        made.await_state("host-b", "redirected")
        writer.await_more()
        assert b.state()["volume"] == "redirected"
        assert b.lease("d")["holder"] == "host-b"
        b.create("made-meanwhile", MIB)
        made.link("host-b", "stor0", up=True)
        made.await_state("host-b", "direct")
        writer.await_more()
        last = writer.end()
        assert writer.refused is None
    assert number_on(made.disk("host-a", "d?epoch=1")) == last
    assert made.states("host-b") == ["direct", "redirected", "direct"]
    assert made.states("host-a") == ["direct"]
    assert b.state()["volume"] == a.state()["volume"] == "direct"


def test_fencing_holds_on_the_redirected_way_as_well(both: Both) -> None:
    made, a, b = both
    epoch = a.create("d", MIB)
    made.link("host-b", "stor0", up=False)
    made.await_state("host-b", "redirected")
    disk = made.disk("host-b", f"d?epoch={epoch + 1}")
    fenced(lambda: disk.write(0, b"x" * 512))
    assert b.claim("d", epoch) == epoch + 1
    disk.write(0, b"x" * 512)
    a.claim("d", epoch + 1)
    fenced(lambda: disk.write(0, b"y" * 512))


def test_while_no_way_works_io_waits_and_then_goes_on(both: Both) -> None:
    made, a, b = both
    b.create("d", MIB)
    with writing(made.disk("host-b", "d")) as writer:
        writer.await_more()
        made.link("host-b", "mig0", up=False)
        made.link("host-b", "stor0", up=False)
        made.await_state("host-b", "offline")
        before = writer.acknowledged
        offline = refusal(lambda: b.lease("d"))
        assert offline.kind == "Offline"
        assert "direct: " in str(offline)
        assert "redirected: " in str(offline)
        assert writer.acknowledged == before
        assert b.state()["volume"] == "offline"
        made.link("host-b", "mig0", up=True)
        made.await_state("host-b", "redirected")
        writer.await_more()
        made.link("host-b", "stor0", up=True)
        made.await_state("host-b", "direct")
        writer.await_more()
        last = writer.end()
        assert writer.refused is None
    assert number_on(made.disk("host-a", f"d?epoch={a.lease('d')['epoch']}")) == last


def test_who_still_waits_on_a_way_that_is_no_longer_the_best_is_not_left_there(both: Both) -> None:
    """Back on the direct way, with a request under way on the redirected one, which is then cut."""
    made, _, b = both
    b.create("d", MIB)
    made.link("host-b", "stor0", up=False)
    made.await_state("host-b", "redirected")
    disk = made.disk("host-b", "d")
    disk.read(0, 512)
    signal.pidfd_send_signal(made.processes["host-a"].pidfd, signal.SIGSTOP)
    request = threading.Thread(target=disk.write, args=(0, b"x" * 4096))
    request.start()
    made.link("host-b", "stor0", up=True)
    made.await_state("host-b", "direct")
    request.join(DEADLINE_S)
    assert not request.is_alive()
    assert disk.read(0, 4096) == b"x" * 4096


def test_a_client_that_goes_while_its_io_waits_is_forgotten(both: Both) -> None:
    made, a, _ = both
    a.create("d", MIB)
    with writing(made.disk("host-a", "d")) as writer:
        writer.await_more()
        made.kill("storage")
        made.await_state("host-a", "offline")
        assert a.state()["open"] == {"d": 1}
        writer.hang_up()
    closed(a, "d")


def test_a_target_that_is_started_again_is_found_again(both: Both) -> None:
    made, a, b = both
    epoch = a.create("d", MIB)
    with writing(made.disk("host-a", "d")) as writer:
        writer.await_more()
        made.kill("storage")
        made.await_state("host-a", "offline")
        made.start_target()
        made.await_state("host-a", "direct")
        writer.await_more()
        last = writer.end()
        assert writer.refused is None
    assert number_on(made.disk("host-b", f"d?epoch={epoch}")) == last
    assert a.state()["coordinator"] == "host-a"
    assert b.claim("d", epoch) == epoch + 1


def test_a_target_that_cannot_be_reached_at_start_is_told() -> None:
    with stage() as made:
        made.kill("storage")
        made.kill("host-a")
        made.start_service("host-a")
        offline = refusal(made.client("host-a").mount)
        assert offline.kind == "Offline"
        assert "10.5.0.10:3260: Connection refused" in str(offline)
        made.start_target()
        made.await_state("host-a", "direct")
        made.client("host-a").format()
