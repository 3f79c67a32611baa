"""The say of one side: what it may do in each state, its epoch, and what an agent finds when it restarts."""

from __future__ import annotations

import pytest

from testbed.migration import ownership
from testbed.migration.ownership import Event, Lease, SourceOwnership, TargetOwnership
from testbed.migration.phases import OutOfOrder

LEASE = Lease("host-a", 7)


def test_a_migration_with_a_lease() -> None:
    source, target = ownership.of_source(LEASE), ownership.of_target(LEASE)
    assert source.state.may_run
    source.note(Event.STATE_SENT)
    target.note(Event.VERIFIED)
    source.note(Event.COMMIT_SENT)
    assert not source.state.may_run
    assert target.note(Event.COMMIT_HEARD).must_claim
    assert target.epoch == 7
    assert target.note(Event.CLAIM_WON).may_run
    assert target.epoch == 8
    assert source.note(Event.RESUMED_HEARD).may_delete


def test_a_migration_alone() -> None:
    source, target = ownership.of_source(None), ownership.of_target(None)
    source.note(Event.STATE_SENT)
    target.note(Event.VERIFIED)
    assert source.note(Event.COMMIT_SENT) is SourceOwnership.COMMITTED
    assert target.note(Event.COMMIT_HEARD).may_run
    assert source.note(Event.FAILED) is SourceOwnership.IN_DOUBT
    assert [source.state.may_run, source.state.must_claim, source.state.may_delete] == [False] * 3
    assert (source.epoch, target.epoch) == (0, 0)


def test_a_source_in_doubt_takes_its_guest_back_by_a_claim() -> None:
    source = ownership.of_source(LEASE)
    source.note(Event.STATE_SENT)
    assert source.note(Event.FAILED).must_claim
    assert source.note(Event.UNANSWERED).must_claim
    assert source.epoch == 7
    assert source.note(Event.CLAIM_WON).may_run
    assert source.epoch == 8


def test_what_is_not_in_the_table_changes_nothing() -> None:
    target = ownership.of_target(LEASE)
    with pytest.raises(OutOfOrder, match="claim-won while copying"):
        target.note(Event.CLAIM_WON)
    assert (target.state, target.epoch) == (TargetOwnership.COPYING, 7)


def test_a_state_that_its_table_does_not_know_raises_too() -> None:
    with pytest.raises(OutOfOrder, match="failed while claiming"):
        ownership.step(ownership.TARGET_ALONE, TargetOwnership.CLAIMING, Event.FAILED)


def test_a_restarted_agent_runs_nothing_at_once() -> None:
    holder, other = ownership.after_restart(LEASE, "host-a"), ownership.after_restart(LEASE, "host-b")
    assert (holder.state, holder.epoch) == (SourceOwnership.DOUBT, 7)
    assert (other.state, other.epoch) == (TargetOwnership.LOOKING, 7)


def test_a_restarted_target_runs_what_its_late_claim_won() -> None:
    target = ownership.after_restart(LEASE, "host-b")
    target.note(ownership.seen(LEASE, "host-b", target.epoch))
    assert target.state is TargetOwnership.LOOKING
    assert target.note(ownership.seen(Lease("host-b", 8), "host-b", target.epoch)).may_run
    assert target.epoch == 8


def test_a_restarted_target_discards_what_another_won() -> None:
    target = ownership.after_restart(LEASE, "host-b")
    assert target.note(ownership.seen(Lease("host-a", 8), "host-b", target.epoch)).may_delete


@pytest.mark.parametrize(
    ("ram_epoch", "good"),
    [
        (7, True),  # the guest ran here under 7
        (6, True),  # it stood still here, or was copied to here, and this host won the claim of 6
        (5, False),  # somebody has run since
        (8, False),
        (None, False),
    ],
)
def test_ram_is_good_for_its_epoch_and_the_next(ram_epoch: int | None, good: bool) -> None:
    assert ownership.ram_is_good(ram_epoch, 7) is good
