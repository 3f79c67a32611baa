"""What breaks before the commit costs nothing: the guest runs on at the source, and no client notices."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from testbed.host.control import CommandFailed
from testbed.migration import wire
from testbed.scenario import plan as planned
from testbed.scenario.lab import Lab
from tests.system.labs import PRELOAD, SMALL

pytestmark = pytest.mark.universe(preload=PRELOAD)

DEADLINE_S = 60
SLOW = replace(SMALL, max_bandwidth_bits_per_s=300_000_000)
"""Pre-copy takes a second: long enough for something to happen in it."""


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with Lab(SLOW, tmp_path, peer_deadline_s=3.0) as standing:
        standing.boot([])
        standing.start_clients()
        yield standing


def assert_guest_unharmed(lab: Lab) -> None:
    """The guest runs at the first host, and its clients have lost nothing."""
    assert lab.owner == "host-a"
    before = lab.guest_stats()
    lab.watch(0.3, lambda event: None)
    after = lab.guest_stats()
    assert before is not None
    assert after is not None
    assert after["guest"]["state"] == "running"
    assert after["guest"]["steps"] > before["guest"]["steps"]
    for summary in lab.stop_clients([]).values():
        for probe in summary["probes"]:
            assert probe["broken"] == probe["resets"] == probe["failed_connects"] == probe["bytes_lost"] == 0


def on_first_round(lab: Lab, act: Callable[[], None]) -> Callable[[dict[str, Any]], None]:
    """An event handler that acts once the first round is told."""
    done: list[bool] = []

    def handle(event: dict[str, Any]) -> None:
        if event["event"] == "round" and not done:
            done.append(True)
            act()

    return handle


def test_the_target_agent_dies_during_precopy(lab: Lab) -> None:
    target = lab.agents["host-b"]
    source_answer, target_answer = lab.migrate(on_first_round(lab, target.process.kill), DEADLINE_S, [])
    assert source_answer["kind"] == "PeerLost"
    assert "error" in target_answer
    assert_guest_unharmed(lab)


def test_the_migration_is_cancelled_during_precopy(lab: Lab) -> None:
    def cancel() -> None:
        lab.agents["host-a"].line.send({"do": "cancel"})

    source_answer, target_answer = lab.migrate(on_first_round(lab, cancel), DEADLINE_S, [])
    assert source_answer["kind"] == "Cancelled"
    assert target_answer["kind"] == "PeerRefused"
    assert_guest_unharmed(lab)


def test_after_a_rollback_the_next_migration_is_clean(lab: Lab) -> None:
    def cancel() -> None:
        lab.agents["host-a"].line.send({"do": "cancel"})

    lab.migrate(on_first_round(lab, cancel), DEADLINE_S, [])
    source_answer, target_answer = lab.migrate(lambda event: None, DEADLINE_S, [])
    assert "error" not in source_answer | target_answer
    assert source_answer["audited"]
    assert lab.owner == "host-b"


def test_a_rollback_before_the_pause_gives_the_guest_no_frame_again(lab: Lab) -> None:
    """Nothing was held from it: what it heard before is not said to it twice."""

    def cancel() -> None:
        lab.agents["host-a"].line.send({"do": "cancel"})

    lab.migrate(on_first_round(lab, cancel), DEADLINE_S, [])
    stats = lab.guest_stats()
    assert stats is not None
    assert stats["counts"]["frames_released"] == 0


def test_a_client_wire_that_is_cut_does_not_end_the_agent_that_announces(lab: Lab) -> None:
    lab.migrate(lambda event: None, DEADLINE_S, [])
    with lab.start_program("host-b", ["ip", "link", "set", planned.UPLINK, "down"]) as down:
        assert down.wait(DEADLINE_S) == 0
    lab.watch(1.0, lambda event: None)
    stats = lab.guest_stats()
    assert stats is not None
    assert stats["guest"]["state"] == "running"


def test_the_migration_wire_is_cut_during_precopy(lab: Lab) -> None:
    """Nothing arrives at the target any more, and nothing says so: the deadline does."""

    def cut() -> None:
        with lab.start_program("host-b", ["ip", "link", "set", planned.MIGRATION, "down"]) as down:
            assert down.wait(DEADLINE_S) == 0

    source_answer, target_answer = lab.migrate(on_first_round(lab, cut), DEADLINE_S, [])
    assert source_answer["kind"] == target_answer["kind"] == "PeerLost"
    assert_guest_unharmed(lab)


def _receiving(lab: Lab) -> dict[str, Any]:
    request = {"do": "receive", "secret": secrets.token_hex(32), "port": planned.MIGRATION_PORT}
    lab.agents["host-b"].line.ask(request, DEADLINE_S)
    return request


def _connect(lab: Lab) -> socket.socket:
    alien = lab.topology.namespace("host-a").socket(socket.AF_INET, socket.SOCK_STREAM)
    alien.settimeout(DEADLINE_S)
    alien.connect((planned.MIGRATION_ADDRESS["host-b"], planned.MIGRATION_PORT))
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
            lab.agents["host-b"].line.answer(DEADLINE_S)
    assert refusal.value.kind in ("ProtocolError", "PeerLost")
    assert lab.agents["host-b"].line.ask({"do": "stats"}, DEADLINE_S) is None
    assert_guest_unharmed(lab)
