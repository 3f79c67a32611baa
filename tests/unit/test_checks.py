"""What is checked of every run."""

from __future__ import annotations

import pytest

from testbed.experiment.checks import judge
from testbed.measure.result import Clients


@pytest.mark.parametrize("asked_to_move", [True, False])
def test_where_nothing_moved_nothing_is_said_to_have_moved_well(asked_to_move: bool) -> None:
    """`✓ migrated, verified, deleted` was said of runs in which nothing did, and exit status 0 with it."""
    clients = Clients.model_construct(
        broken=0,
        resets=0,
        failed_connects=0,
        bytes_lost=0,
        bytes_duplicated=0,
        bytes_corrupted=0,
        each=[],
    )
    checks = judge([], clients, [], asked_to_move=asked_to_move)
    assert {check.name for check in checks} & {"verified", "deleted"} == set()
    assert [check.passed for check in checks if check.name == "migrated"] == [False] * asked_to_move
    assert "no connection broken" in [check.name for check in checks if check.passed]
