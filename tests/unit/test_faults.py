"""Which faults there are, and what a sweep calls wrong."""

from __future__ import annotations

import pytest

from testbed.experiment.sweep import counted, judge, spoilt_by
from testbed.faults.kinds import Fault, FaultError, Kind, Side, chosen, matrix
from testbed.lab.migrations import Move, Moved
from testbed.migration.phases import Phase
from testbed.scenario.model import Manner

FAULT = Fault(Phase.COMMIT, Kind.LINK_RESET)
DEATH = Fault(Phase.COMMIT, Kind.GUEST_KILLED)
NOTHING: dict[str, int] = {}


def test_the_matrix_is_every_kind_at_every_phase() -> None:
    assert len(matrix(storage=True)) == len(Phase) * len(Kind) >= 100
    assert not any(fault.kind.needs_storage for fault in matrix(storage=False))


def test_a_fault_is_written_as_it_is_read() -> None:
    for fault in matrix(storage=True):
        assert Fault.parse(str(fault)) == fault


@pytest.mark.parametrize("text", ["", "commit", "commit:", "nowhere:link-reset", "commit:nothing"])
def test_what_is_no_fault_is_refused_with_what_is_allowed(text: str) -> None:
    with pytest.raises(FaultError, match=r"setup|link-reset"):
        Fault.parse(text)
    with pytest.raises(FaultError):
        chosen([text], storage=True)


def test_patterns_choose_faults_once_each() -> None:
    assert chosen(["commit:link-*", "commit:link-reset"], storage=True) == [
        Fault(Phase.COMMIT, kind) for kind in (Kind.LINK_BLACK_HOLE, Kind.LINK_RESET, Kind.LINK_SLOW)
    ]
    with pytest.raises(FaultError, match="shared storage"):
        chosen(["*:storage-*"], storage=False)


def test_each_fault_has_a_side_and_a_guest_dies_where_it_is() -> None:
    assert all(fault.sides for fault in matrix(storage=True))
    assert Fault(Phase.COMMIT, Kind.GUEST_KILLED).sides == {Side.SOURCE}
    assert Fault(Phase.RESUME, Kind.GUEST_KILLED).sides == {Side.TARGET}
    assert Fault(Phase.PRECOPY, Kind.TARGET_SPEAKS_EARLY).sides == {Side.TARGET}
    assert Fault(Phase.PAUSE, Kind.STORAGE_CUT_BOTH).sides == {Side.SOURCE, Side.TARGET}


@pytest.mark.parametrize(
    ("outcome", "owners", "counts", "spoilt", "wrong"),
    [
        ("completed", ["host-b"], NOTHING, "", ""),
        ("completed", ["host-a", "host-b"], NOTHING, "", "runs on host-a and host-b"),
        ("restarted", [], NOTHING, "", "runs nowhere"),
        ("completed", ["host-b"], {"broken": 2}, "", "broken 2"),
        ("completed", ["host-b"], {"writes_lost": 1}, "", "writes_lost 1"),
        ("completed", ["host-b"], NOTHING, "peer lost", "the next migration was not clean: peer lost"),
    ],
)
def test_what_is_wrong_with_a_cell(
    outcome: str, owners: list[str], counts: dict[str, int], spoilt: str, wrong: str
) -> None:
    assert "; ".join(judge(FAULT, outcome, owners, counts, spoilt)) == wrong


def test_a_dead_guests_clients_may_be_cut_off_and_its_acknowledged_writes_may_not_be_lost() -> None:
    assert judge(DEATH, "restarted", [], {"broken": 9, "resets": 9, "bytes_lost": 64}, "") == []
    assert judge(DEATH, "restarted", [], {"writes_lost": 1}, "") == ["writes_lost 1"]


@pytest.mark.parametrize(
    ("source", "target", "spoilt"),
    [
        ({"audited": True}, {}, ""),
        ({"audited": False}, {}, "it was not verified"),
        ({"error": "peer lost"}, {"error": "refused"}, "it failed: peer lost; refused"),
        ({"audited": True}, {"error": ""}, "it failed: "),  # without a word, and not clean for that
    ],
)
def test_what_spoils_the_migration_after_a_fault(
    source: dict[str, object], target: dict[str, object], spoilt: str
) -> None:
    move = Move("vm1", "host-b", Manner("live", 300_000_000, 30, "switch"))
    assert spoilt_by(Moved(move, "host-a", source, target, 0, 1)) == spoilt


def test_counts_of_all_probes_are_summed() -> None:
    summaries = {
        "client1": {"probes": [{"broken": 1, "writes_lost": 2}, {"broken": 3, "resets": None}]},
        "client2": {"probes": [{"broken": 5}]},
    }
    found = counted(summaries)
    assert (found["broken"], found["writes_lost"], found["resets"]) == (9, 2, 0)
