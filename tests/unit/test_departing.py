"""A rollback, and a removal, go to their end whatever becomes of their steps; without a guest under them."""

from __future__ import annotations

from unittest.mock import MagicMock, Mock

import pytest

from testbed.host.departing import DepartingGuest
from testbed.measure.trace import Trace


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


def test_figures_that_cannot_be_taken_do_not_keep_the_guest_from_being_removed() -> None:
    guest = Mock()
    guest.network.egress.times_ns.side_effect = OSError(100, "Network is down")
    with pytest.raises(OSError, match="Network is down"):
        DepartingGuest(guest, MagicMock(), Trace("test")).delete()
    guest.close.assert_called_once()
