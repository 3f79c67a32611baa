"""What breaks before the commit costs nothing: the guest runs on at the source, and no client notices."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from testbed.commands.ending import CHECK_FAILED, ROLLED_BACK, status_of
from testbed.experiment import run as run_module
from testbed.faults.kinds import Fault
from testbed.host.control import CommandFailed
from testbed.host.network import guest_namespace
from testbed.lab import plan as planned
from testbed.lab.lab import Lab
from testbed.lab.migrations import Move
from testbed.measure.result import Result
from testbed.migration import wire
from tests.system.labs import PRELOAD, REPOSITORY, SMALL, Witness, lab_of, move

pytestmark = pytest.mark.universe(preload=PRELOAD)

DEADLINE_S = 60
NAMED = Path("/run/netns")
SLOW = replace(SMALL, max_bandwidth_bits_per_s=100_000_000)
"""The first round takes three seconds: long enough for something to happen in it."""


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with lab_of(SLOW, tmp_path, peer_deadline_s=3.0) as standing:
        standing.boot()
        standing.start_clients()
        yield standing


def assert_guest_unharmed(lab: Lab) -> None:
    """The guest runs at the first host, and its clients have lost nothing."""
    assert lab.vm.owner == "host-a"
    before = lab.vm.stats()
    lab.watch(0.3, lambda event: None)
    after = lab.vm.stats()
    assert before is not None
    assert after is not None
    assert after["guest"]["state"] == "running"
    assert after["guest"]["steps"] > before["guest"]["steps"]
    for summary in lab.stop_clients([]).values():
        for probe in summary["probes"]:
            assert probe["broken"] == probe["resets"] == probe["failed_connects"] == probe["bytes_lost"] == 0


def in_first_round(act: Callable[[], None]) -> Callable[[dict[str, Any]], None]:
    """An event handler that acts once, when the first round tells how far it is."""
    done: list[bool] = []

    def handle(event: dict[str, Any]) -> None:
        if event["event"] == "sending" and not done:
            assert event["number"] == 1
            done.append(True)
            act()

    return handle


def test_the_target_agent_dies_during_precopy(lab: Lab) -> None:
    target = lab.vm.agents["host-b"]
    source_answer, target_answer = move(lab, in_first_round(target.process.kill))
    assert source_answer["kind"] == "PeerLost"
    assert "error" in target_answer
    assert_guest_unharmed(lab)


def test_the_migration_is_cancelled_during_precopy(lab: Lab) -> None:
    def cancel() -> None:
        lab.vm.agents["host-a"].line.send({"do": "cancel"})

    source_answer, target_answer = move(lab, in_first_round(cancel))
    assert source_answer["kind"] == "Cancelled"
    assert target_answer["kind"] == "PeerRefused"
    assert_guest_unharmed(lab)


@pytest.mark.slow
def test_a_cancel_on_a_slow_wire_does_not_wait_for_the_round(tmp_path: Path) -> None:
    """Which would take minutes."""
    with lab_of(replace(SMALL, fill=0.9, bandwidth_bits_per_s=1_000_000), tmp_path) as lab:
        lab.boot()
        lab.start_clients()
        cancelling = threading.Timer(1.0, lab.vm.agents["host-a"].line.send, [{"do": "cancel"}])
        cancelling.start()
        source_answer, target_answer = move(lab)
        assert source_answer["kind"] == "Cancelled"
        assert target_answer["kind"] == "PeerRefused"
        assert_guest_unharmed(lab)


@pytest.mark.parametrize(("patience_s", "failed"), [(1.0, True), (None, False)])
def test_a_wire_that_is_dead_for_four_seconds_ends_a_migration_without_patience(
    tmp_path: Path, patience_s: float | None, failed: bool
) -> None:
    with lab_of(SMALL, tmp_path) as lab:
        lab.boot()
        fault = Fault.parse("precopy:link-black-hole")
        asked = Move(lab.vm.name, "host-b", lab.scenario.manner(), fault, patience_s)
        (moved,) = lab.migrate([asked], lambda event: None, DEADLINE_S)
        assert moved.failed == failed, (moved.source_answer, moved.target_answer)


def test_after_a_rollback_the_next_migration_is_clean(lab: Lab) -> None:
    def cancel() -> None:
        lab.vm.agents["host-a"].line.send({"do": "cancel"})

    move(lab, in_first_round(cancel))
    source_answer, target_answer = move(lab)
    assert "error" not in source_answer | target_answer
    assert source_answer["audited"]
    assert lab.vm.owner == "host-b"


def test_a_rollback_before_the_pause_gives_the_guest_no_frame_again(lab: Lab) -> None:
    """Nothing was held from it: what it heard before is not said to it twice."""

    def cancel() -> None:
        lab.vm.agents["host-a"].line.send({"do": "cancel"})

    move(lab, in_first_round(cancel))
    stats = lab.vm.stats()
    assert stats is not None
    assert stats["counts"]["frames_released"] == 0


def test_a_rollback_tells_what_was_counted_in_it_and_nothing_of_the_migration_before(lab: Lab) -> None:
    _, arrival = move(lab)
    assert arrival["counts"]["announcements_sent"] > 0

    def cancel() -> None:
        lab.vm.agents["host-b"].line.send({"do": "cancel"})

    source_answer, target_answer = move(lab, in_first_round(cancel))
    nothing = {"frames_held": 0, "frames_released": 0, "frames_dropped": 0, "announcements_sent": 0}
    assert source_answer["counts"] == target_answer["counts"] == nothing


def test_a_rollback_tells_what_both_hosts_held_and_announced(tmp_path: Path) -> None:
    over = threading.Event()

    def send_all_the_time(sender: socket.socket) -> None:
        while not over.wait(0.0002):
            sender.sendto(b"held, or not", ("10.7.0.10", 9))

    with lab_of(replace(SMALL, program="tests.system.programs:Sneaky"), tmp_path) as lab:
        lab.boot([str(REPOSITORY)])
        lab.start_clients()
        with lab.topology.namespace("client1").socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sending = threading.Thread(target=send_all_the_time, args=(sender,))
            sending.start()
            source_answer, target_answer = move(lab, import_path=[str(REPOSITORY)])
            over.set()
            sending.join()
        assert "RAM" in source_answer["error"]
        lab.watch(1.0, lambda event: None)
        stats = lab.vm.stats()
    assert stats is not None
    source, target = stats["counts"], target_answer["counts"]
    assert source_answer["counts"]["frames_released"] > 0
    assert source["frames_held"] + target["frames_held"] == source["frames_released"]
    assert source["announcements_sent"] > target["announcements_sent"] > 0


def test_a_client_wire_that_is_cut_does_not_end_the_agent_that_announces(lab: Lab) -> None:
    move(lab)
    with lab.start_program("host-b", ["ip", "link", "set", planned.UPLINK, "down"]) as down:
        assert down.wait(DEADLINE_S) == 0
    lab.watch(1.0, lambda event: None)
    stats = lab.vm.stats()
    assert stats is not None
    assert stats["guest"]["state"] == "running"


def test_a_cancel_that_comes_too_late_is_not_answered(lab: Lab) -> None:
    """The next question has its own answer."""
    source_answer, _ = move(lab)
    line = lab.vm.agents["host-a"].line
    line.send({"do": "cancel"})
    assert "error" not in source_answer
    assert line.ask({"do": "stats"}, DEADLINE_S) is None


def processes_of_guest(host: str) -> list[int]:
    """Those in the guest's network namespace."""
    namespace = (NAMED / guest_namespace(host)).stat().st_ino
    found = []
    for process in psutil.pids():
        with suppress(OSError):
            if Path(f"/proc/{process}/ns/net").stat().st_ino == namespace:
                found.append(process)
    return found


def kill_guest(lab: Lab) -> None:
    for process in processes_of_guest(lab.vm.owner):
        os.kill(process, signal.SIGKILL)


def kill_source(lab: Lab) -> None:
    lab.vm.agents[lab.vm.owner].process.kill()


def run_and(act: Callable[[Lab], None], folder: Path, monkeypatch: pytest.MonkeyPatch) -> Result:
    """A run in whose first round something happens."""
    labs: list[Lab] = []

    class Known(Lab):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            labs.append(self)
            super().__init__(*arguments, **options)

    class Acts(Witness):
        event = staticmethod(in_first_round(lambda: act(labs[0])))

    monkeypatch.setattr(run_module, "Lab", Known)
    return run_module.run_options(SLOW, "test", folder, Acts())


def test_a_guest_that_dies_during_precopy_has_failed_and_was_not_rolled_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the run leaves its result all the same."""
    result = run_and(kill_guest, tmp_path, monkeypatch)
    assert result.outcome == "failed"
    assert "does not run any more" in str(result.migrations[0].reason)
    assert status_of(result) == CHECK_FAILED
    assert (tmp_path / "result.json").exists()


def test_a_source_agent_that_dies_leaves_a_run_that_was_rolled_back_and_clients_unbroken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = run_and(kill_source, tmp_path, monkeypatch)
    assert (result.outcome, result.migrations[0].owner) == ("rolled-back", "host-a")
    assert status_of(result) == ROLLED_BACK


def test_the_migration_wire_is_cut_during_precopy(lab: Lab) -> None:
    """Nothing arrives at the target any more, and nothing says so: the deadline does."""

    def cut() -> None:
        with lab.start_program("host-b", ["ip", "link", "set", planned.MIGRATION, "down"]) as down:
            assert down.wait(DEADLINE_S) == 0

    source_answer, target_answer = move(lab, in_first_round(cut))
    assert source_answer["kind"] == target_answer["kind"] == "PeerLost"
    assert_guest_unharmed(lab)


def _receiving(lab: Lab) -> dict[str, Any]:
    request = {"do": "receive", "secret": secrets.token_hex(32), "port": planned.MIGRATION_PORT}
    lab.vm.agents["host-b"].line.ask(request, DEADLINE_S)
    return request


def _connect(lab: Lab) -> socket.socket:
    alien = lab.topology.namespace("host-a").socket(socket.AF_INET, socket.SOCK_STREAM)
    alien.settimeout(DEADLINE_S)
    alien.connect((planned.migration_address(lab.scenario, "host-b"), planned.MIGRATION_PORT))
    return alien


HELLO = wire.encode(wire.Hello(wire.VERSION, bytes(16)))


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "not this protocol"),
        (HELLO[:20], "closed the connection"),
        (HELLO[:-1] + b"\xff", "digest"),
        (wire.HEADER.pack(wire.MAGIC, wire.Frames.kind, 0xFFFFFFFF, 0), "over"),
        (wire.encode(wire.Hello(99, bytes(16))), "version 99"),
        (wire.encode(wire.Commit()), "Commit where Hello was due"),
        (HELLO + wire.encode(wire.Proof(bytes(32))), "secret"),
        (HELLO + wire.encode(wire.Offer(1 << 30, {})), "Offer where Proof was due"),
    ],
    ids=[
        "alien",
        "truncated",
        "corrupt",
        "oversized",
        "version",
        "out-of-turn",
        "no-secret",
        "unproven-offer",
    ],
)
def test_a_peer_that_is_not_ours_is_refused_and_the_guest_unharmed(lab: Lab, said: bytes, why: str) -> None:
    _receiving(lab)
    with _connect(lab) as alien:
        alien.sendall(said)
        alien.shutdown(socket.SHUT_WR)
        with pytest.raises(CommandFailed, match=why) as refusal:
            lab.vm.agents["host-b"].line.answer(DEADLINE_S)
    assert refusal.value.kind in ("ProtocolError", "PeerLost")
    assert lab.vm.agents["host-b"].line.ask({"do": "stats"}, DEADLINE_S) is None
    assert_guest_unharmed(lab)
