"""Quick Migration as it was, beside live migration of the same guest on the same storage."""

from __future__ import annotations

from pathlib import Path

import pytest

from testbed.measure.result import Result
from tests.system.labs import PRELOAD, Witness, failed_checks, migrate

pytestmark = pytest.mark.universe(preload=PRELOAD)

RAM_BYTES = 32 << 20
RATE_BITS_PER_S = 100_000_000
LEAST_S = 2 * RAM_BYTES * 8 / RATE_BITS_PER_S
"""All of RAM goes over that wire to the LUN, and comes back over another like it."""


def moved(folder: Path, mode: str, witness: Witness | None = None) -> Result:
    folder.mkdir()
    return migrate(
        folder,
        witness,
        mode=mode,
        ram_bytes=RAM_BYTES,
        disk_bytes=4 << 20,
        storage_rate_bits_per_s=RATE_BITS_PER_S,
        working_set_bytes=1 << 20,
    )


def test_quick_is_as_long_as_the_lun_takes_and_live_is_a_small_part_of_it(tmp_path: Path) -> None:
    witness = Witness()
    quick = moved(tmp_path / "quick", "quick", witness)
    live = moved(tmp_path / "live", "live")
    assert failed_checks(quick) == failed_checks(live) == []
    assert quick.blackout_ms is not None
    assert live.blackout_ms is not None
    assert quick.blackout_ms >= LEAST_S * 1000
    assert sum(quick.blackout_parts_ms.values()) == pytest.approx(quick.blackout_ms, abs=0.1)
    lun_ms = sum(quick.blackout_parts_ms[part] for part in ("to the LUN", "flush", "from the LUN"))
    assert lun_ms >= 0.5 * quick.blackout_ms
    assert quick.blackout_ms / live.blackout_ms >= 20
    marks = [
        event["name"]
        for event in sorted(witness.events, key=lambda one: one["t_ns"])
        if event["event"] == "mark"
    ]
    story = ["paused", "state-saved", "dismounted", "mounted", "verified", "committed", "claimed", "resumed"]
    assert [name for name in marks if name in story] == story
