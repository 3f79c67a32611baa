"""A store on a disk, in a whole lab: its guest moves, and is killed, and its clients hold it to its word."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from testbed.faults.kinds import Fault, Kind
from testbed.lab import plan as planned
from testbed.lab.lab import Lab
from testbed.lab.storage import NBD_PORT, service_sockets
from testbed.migration.phases import Phase
from testbed.storage.client import NbdClient, NbdRefused
from tests.conftest import require
from tests.system.labs import PRELOAD, REPOSITORY, SMALL, failed_checks, ignored, lab_of, migrate, move

pytestmark = pytest.mark.universe(preload=(*PRELOAD, "testbed.guest.programs.kv_durable"))

DEADLINE_S = 60
DURABLE: dict[str, Any] = {"program": "kv-durable", "disk_bytes": 8 << 20}
IMPORT_PATH = [str(REPOSITORY)]
SECTOR = bytes(512)


@contextmanager
def standing(folder: Path, **options: Any) -> Iterator[Lab]:
    """A lab with a guest and clients, for half a second already."""
    with lab_of(replace(SMALL, **options), folder) as lab:
        lab.boot(IMPORT_PATH)
        lab.start_clients()
        lab.watch(0.5, ignored)
        yield lab


def watch_until(lab: Lab, done: Callable[[dict[str, Any]], bool]) -> None:
    """Until `done` of what the guest says of itself."""
    deadline_s = time.monotonic() + DEADLINE_S
    while not ((stats := lab.vm.stats()) and done(stats["guest"])):
        assert time.monotonic() < deadline_s, stats
        lab.watch(0.1, ignored)


def test_nothing_is_lost_that_was_acknowledged_on_a_journey(tmp_path: Path) -> None:
    result = migrate(tmp_path, migrations=3, **DURABLE)
    assert result.outcome == "completed"
    assert failed_checks(result) == []
    assert "no acknowledged write lost" in [check.name for check in result.checks]
    assert {row.probe for row in result.clients.each} == {"ledger"}
    assert {row.address for row in result.clients.each} == {"10.7.0.10", "fd07::10"}
    assert result.clients.acknowledged > 100
    assert result.guest.program_stats["log"]["commits"] > 0


@pytest.mark.parametrize(
    ("program", "server"),
    [("kv-durable", "testbed"), ("kv-durable", "nbdkit"), ("tests.system.programs:Hasty", "testbed")],
)
def test_a_guest_that_is_killed_is_booted_from_its_disk_and_held_to_its_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, server: str
) -> None:
    """The negative control tells before it is on the disk; everything else about it is the same."""
    if server == "nbdkit":
        require("nbdkit", bool(shutil.which("nbdkit")))
    described = planned.guest
    monkeypatch.setattr(planned, "guest", lambda *asked: replace(described(*asked), program=program))
    with standing(tmp_path, storage_server=server, **DURABLE) as lab:
        watch_until(lab, lambda guest: guest["steps"] > 500)
        fault = Fault(Phase.PRECOPY, Kind.GUEST_KILLED)
        killed, _ = move(lab, import_path=IMPORT_PATH, fault=fault)
        assert "error" in killed
        lab.restart(lab.vm, IMPORT_PATH)
        watch_until(lab, lambda guest: guest["connections"] == SMALL.connections)
        probes = [probe for summary in lab.stop_clients([]).values() for probe in summary["probes"]]
    assert sum(probe["broken"] for probe in probes) == SMALL.connections
    assert all(probe["acknowledged"] > 0 for probe in probes)
    assert [probe["unsettled"] for probe in probes] == [0] * len(probes)
    assert [probe["writes_phantom"] for probe in probes] == [0] * len(probes)
    lost = sum(probe["writes_lost"] for probe in probes)
    assert (lost == 0) is (program == "kv-durable")


def test_a_disk_that_nbdkit_serves_moves_along(tmp_path: Path) -> None:
    require("nbdkit", bool(shutil.which("nbdkit")))
    result = migrate(tmp_path, migrations=2, storage_server="nbdkit", **DURABLE)
    assert result.outcome == "completed"
    assert failed_checks(result) == []
    assert result.clients.acknowledged > 100
    assert "claim" not in result.blackout_parts_ms, "there is nothing to claim"


def write_from_the_host_that_was_left(lab: Lab) -> None:
    """As an agent would that does not know yet that its guest has moved. NbdRefused."""
    left = lab.vm.next_host()
    if lab.scenario.storage.server == "nbdkit":
        address: Any = (planned.storage_address(lab.scenario, planned.STORAGE), NBD_PORT)
        export = lab.vm.name
    else:
        address = Path(service_sockets(left)["nbd"])
        now = lab.vm.line(lab.vm.owner).ask({"do": "status"}, DEADLINE_S)["epoch"]
        export = f"{lab.vm.name}?epoch={now - 1}"
    namespace = lab.topology.namespace(left)
    with NbdClient.connect(address, export, deadline_s=DEADLINE_S, namespace=namespace) as client:
        client.write(0, SECTOR)


def test_nobody_is_fenced_where_nbdkit_serves_the_disk(tmp_path: Path) -> None:
    require("nbdkit", bool(shutil.which("nbdkit")))
    with standing(tmp_path, disk_bytes=1 << 20, storage_server="nbdkit") as lab:
        move(lab, import_path=IMPORT_PATH)
        assert lab.vm.owner == "host-b"
        write_from_the_host_that_was_left(lab)


def test_the_host_that_was_left_is_fenced_by_the_target(tmp_path: Path) -> None:
    with standing(tmp_path, disk_bytes=1 << 20) as lab:
        move(lab, import_path=IMPORT_PATH)
        assert lab.vm.owner == "host-b"
        with pytest.raises(NbdRefused, match="EPERM"):
            write_from_the_host_that_was_left(lab)
