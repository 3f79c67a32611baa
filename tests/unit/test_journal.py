"""events.jsonl of a lab that stands."""

from __future__ import annotations

import json
from pathlib import Path

from testbed.standing.journal import Journal, read


def event(t_ns: int) -> dict[str, object]:
    return {"t_ns": t_ns, "source": "x", "event": "y"}


def test_what_is_read_is_what_was_whole_at_that_length(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.write([event(3), event(1)])
    length = journal.length
    journal.write([event(2)])
    with (tmp_path / "events.jsonl").open("rb") as file:
        assert [one["t_ns"] for one in read(file, 0, length)] == [3, 1]
        assert [one["t_ns"] for one in read(file, length, journal.length)] == [2]
        assert list(read(file, length, length)) == []
    assert [one["t_ns"] for one in journal.since(0)] == [1, 2, 3]
    assert [one["t_ns"] for one in journal.since(length)] == [2]


def test_in_the_end_the_file_is_in_the_order_of_time(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.write(event(t_ns) for t_ns in (5, 2, 9, 1))
    journal.close()
    lines = (tmp_path / "events.jsonl").read_text().splitlines()
    assert [json.loads(line)["t_ns"] for line in lines] == [1, 2, 5, 9]
    assert [path.name for path in tmp_path.iterdir()] == ["events.jsonl"]
