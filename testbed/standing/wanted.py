"""What is asked for when a lab is to stand, as data. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from testbed.scenario.model import Scenario
from testbed.scenario.pcap import Pcap


@dataclass(frozen=True)
class Wanted:
    """A lab that is to stand. `options` are those of which the scenario comes, if any; `folder` is
    absolute."""

    scenario: Scenario
    folder: Path
    import_path: Sequence[str] = ()
    options: dict[str, Any] = field(default_factory=dict)
    pcap: Pcap | None = None
