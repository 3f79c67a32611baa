"""Which machine this is, and which version of the instrument: what a calibration is good for, and where the
last one is kept."""

from __future__ import annotations

import hashlib
import os
import platform
from importlib import metadata
from pathlib import Path

from pydantic import ValidationError

from testbed.measure.calibration import Calibration, Machine
from testbed.measure.result import Instrument

PACKAGE = "live-migration-testbed"
_READING = ("accuracy", "continuity", "wire")
MEASURING = (
    "clients/*.py",
    "measure/accuracy.py",
    "measure/continuity.py",
    "measure/wire.py",
    "guest/machine.py",
)
"""The code that takes the times and reads them: another text of it is another instrument."""


def this_machine() -> Machine:
    """This machine as it is now, and the instrument as it is installed."""
    return Machine(
        host=platform.node(),
        processor=_processor(),
        processors=os.cpu_count() or 1,
        kernel=platform.release(),
        version=metadata.version(PACKAGE),
        instrument=_instrument(),
    )


def _processor() -> str:
    """The model's name as the kernel has it; empty where it has none."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _instrument() -> str:
    package = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for pattern in MEASURING:
        for path in sorted(package.glob(pattern)):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def kept_at() -> Path:
    """Where the last calibration of this machine is kept: a file below $XDG_STATE_HOME, or ~/.local/state."""
    state = os.environ.get("XDG_STATE_HOME", "")
    below = Path(state) if state.startswith("/") else Path.home() / ".local" / "state"
    return below / PACKAGE / "calibration.json"


def keep(calibration: Calibration) -> Path:
    """Keep it for the runs to come; returns where. OSError where that cannot be.

    What root makes in somebody's home is theirs: whoever has the folder that was there already.
    """
    path = kept_at()
    there = next(parent for parent in path.parents if parent.exists())
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_suffix(".new")
    half.write_text(calibration.model_dump_json(indent=2) + "\n")
    half.replace(path)
    uid, gid = owner_of(there)
    if os.geteuid() == 0 and uid != 0:
        for made in (path, *(one for one in path.parents if one.is_relative_to(there) and one != there)):
            os.chown(made, uid, gid)
    return path


def owner_of(folder: Path) -> tuple[int, int]:
    """The user and the group that have it."""
    there = folder.stat()
    return there.st_uid, there.st_gid


def last_calibration() -> Calibration | None:
    """The one that was kept, if it is of this machine, this kernel and this instrument."""
    try:
        kept = Calibration.model_validate_json(kept_at().read_text())
    except (OSError, ValidationError):
        return None  # never made, or by another version
    return kept if kept.machine == this_machine() else None


def instrument() -> Instrument | None:
    """What a run's result says of the instrument's own error.

    It is not measured in the run itself: known stalls in its baseline would stand in the very noise floor
    that a migration is held against, would stop a guest that its owner did not ask to stop, and would give a
    median of two.
    """
    kept = last_calibration()
    if kept is None or kept.gap_error_ms is None or kept.gap_bound_ms is None:
        return None
    return Instrument(
        calibrated_at=kept.started_at,
        host=kept.machine.host,
        processor=kept.machine.processor,
        kernel=kept.machine.kernel,
        version=kept.machine.version,
        gap_error_ms=kept.gap_error_ms.median,
        gap_error_p95_ms=kept.gap_error_ms.p95,
        gap_bound_ms=kept.gap_bound_ms.median,
        holds=kept.holds,
    )
