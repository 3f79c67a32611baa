"""What a migration takes besides its pages: measured on this testbed, kept as a table, refined as one runs.

The table that ships (:data:`TABLE_FILE`) was written by ``testbed bench prediction`` and says on what; the
same command writes one for another machine. Nothing in it is guessed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from testbed.migration.spans import Span

TABLE_FILE = Path(__file__).with_name("overheads.json")


class OverheadsError(ValueError):
    """A file is no table of overheads; the text names what is wrong with it."""


@dataclass(frozen=True)
class Overheads:
    """Each is what it likely is, and its quartiles. Times in ns; `_page_ns` for each page of RAM (`before`)
    or of touched RAM (`after`, `digest`), or for each zero page; `_connection_ns` for each connection.

    `before` is from the order to the first round, `gap` from one round's answer to the next round's first
    page, `round` what a round takes besides moving its bytes, `pause` from the last round to the pause,
    `after` from the resume to the source's copy deleted. `program_pages` are those that a program writes all
    the time, which no load's formula knows.
    """

    bandwidth_bytes_per_s: Span
    before_ns: Span
    before_page_ns: Span
    round_ns: Span
    gap_ns: Span
    digest_page_ns: Span
    zero_page_ns: Span
    pause_ns: Span
    blackout_ns: Span
    blackout_connection_ns: Span
    after_ns: Span
    after_page_ns: Span
    program_pages: Span

    @classmethod
    def shipped(cls) -> Overheads:
        return cls.read(TABLE_FILE)

    @classmethod
    def read(cls, path: Path) -> Overheads:
        """The table in a file. OSError where it cannot be read, OverheadsError where it is none."""
        try:
            return cls.from_json(json.loads(path.read_text())["overheads"])
        except (ValueError, KeyError, TypeError) as error:
            raise OverheadsError(f"{path} is no table of overheads: {error}") from error

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> Overheads:
        missing = [one.name for one in fields(cls) if one.name not in told]
        if missing:
            raise OverheadsError(f"it lacks {', '.join(missing)}")
        return cls(**{one.name: Span(**told[one.name]) for one in fields(cls)})

    def as_json(self, measured_on: str) -> str:
        return json.dumps({"measured_on": measured_on, "overheads": asdict(self)}, indent=2) + "\n"
