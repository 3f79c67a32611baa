"""A rollback, and a removal, go to their end whatever becomes of their steps; without a guest under them."""

from __future__ import annotations

from unittest.mock import MagicMock, Mock

import pytest

from testbed.host.departing import DepartingGuest
from testbed.measure.trace import Trace
from testbed.migration.errors import LocalError


@pytest.mark.parametrize("step", ["port.open", "deliver", "announcer.announce"])
def test_a_step_back_that_fails_does_not_keep_the_guest_paused(step: str) -> None:
    guest, trace = Mock(), Trace("test")
    guest.network.held.return_value = []
    guest.process.pause.return_value = ({"t_ns": 1, "registers": {}}, [])
    guest.configure_mock(**{f"network.{step}.side_effect": OSError(100, "Network is down")})
    departing = DepartingGuest(guest, MagicMock(), trace)
    departing.pause()
    with pytest.raises(OSError, match="Network is down"):
        departing.roll_back([])
    guest.process.unpause.assert_called_once()


def test_a_guest_that_was_claimed_to_run_on_lets_go_of_its_old_disk_before_it_runs() -> None:
    """A write under the epoch before would be refused, and the guest would take itself for fenced. The disk
    itself it gets when it runs: however long the storage takes, its clients do not wait for it.
    """
    order, keeper = Mock(), Mock()
    guest = order.guest
    guest.epoch, guest.site.moving_lun = 3, None
    guest.network.held.return_value = []
    guest.process.pause.return_value = ({"t_ns": 1, "registers": {}}, [])
    guest.regain_disk.side_effect = LocalError("no storage")
    order.attach_mock(keeper, "keeper")
    departing = DepartingGuest(guest, keeper, Trace("test"))
    departing.pause()
    departing.arbiter.epoch = 4  # type: ignore[union-attr, misc]
    with pytest.raises(LocalError, match="no storage"):
        departing.roll_back([])
    done = [name for name, _, _ in order.mock_calls]
    steps = ["guest.let_go_of_disk", "keeper.settle", "guest.process.unpause", "guest.regain_disk"]
    assert [name for name in done if name in steps] == steps
    keeper.settle.assert_called_once_with(4)
    guest.regain_disk.assert_called_once_with(4)


def test_figures_that_cannot_be_taken_do_not_keep_the_guest_from_being_removed() -> None:
    guest = Mock()
    guest.network.egress.times_ns.side_effect = OSError(100, "Network is down")
    with pytest.raises(OSError, match="Network is down"):
        DepartingGuest(guest, MagicMock(), Trace("test")).delete()
    guest.close.assert_called_once()


@pytest.mark.parametrize("deleted", [False, True])
def test_a_guest_that_stays_is_listened_to_no_longer(deleted: bool) -> None:
    """One that went took its wire along."""
    guest = Mock()
    guest.network.egress.times_ns.return_value = []
    departing = DepartingGuest(guest, MagicMock(), Trace("test"))
    if deleted:
        departing.delete()
    departing.let_go()
    assert guest.network.egress.stop.called is not deleted
