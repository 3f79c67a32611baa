"""The page of whatever a run left: all of it, some of it, or nothing."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from testbed.measure.result import SCHEMA_VERSION
from testbed.report.page import charts, render, tables, words
from testbed.report.page.folder import MOST_LOG_BYTES, NotARun, read
from testbed.report.page.render import page, write_report
from testbed.report.page.synthetic import CLIENTS, LONGEST_NS, write_run
from testbed.report.page.view import view


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "20260101-000000-run"
    folder.mkdir()
    write_run(folder, requests=3000, events=400)
    return folder


def result_of(folder: Path) -> dict[str, object]:
    return dict(json.loads((folder / "result.json").read_text()))


# ---- what is there


def test_a_whole_run_misses_nothing(run: Path) -> None:
    found = read(run)
    assert found.missing == []
    assert len(found.samples) == CLIENTS
    data = json.loads(view(found).data)
    assert data["requests"]["count"] == 3000
    assert [move["source"] for move in data["moves"]] == ["host-a"]
    assert data["moves"][0]["resume"] - data["moves"][0]["pause"] == 5000.0


def test_what_a_run_misses_is_told_to_whoever_makes_its_page(run: Path) -> None:
    told: list[str] = []
    write_report([run], None, told.append)
    assert told == []
    (run / "result.json").write_text('{"schema_version": 99, "na')
    write_report([run], None, told.append)
    assert [line.partition(" (")[0] for line in told] == [f"{run}: result.json cannot be read"]


def test_the_page_is_one_file_that_asks_nobody_for_anything(run: Path) -> None:
    path = write_report([run])
    assert path == run / "report.html"
    text = path.read_text()
    assert re.findall(r"(?:https?:)?//[\w.-]+\.\w+", re.sub(r'"data":"[^"]*"', "", text)) == []
    assert not re.search(r"<(?:link(?! rel=\"icon\" href=\"data:)|iframe|object|embed|img)\b", text)
    assert not re.search(r"<script[^>]*\bsrc=|@import|url\(", text)
    assert "default-src 'none'" in text


def test_bulk_transfers_are_told_by_the_millisecond(run: Path) -> None:
    path = run / "client3.npz"
    with np.load(path) as archive:
        arrays = dict(archive)
    begin = int(arrays["sent_ns"][0])
    arrays |= {"bytes_per_ms_5": np.array([7, 0, 9], np.uint64), "bytes_per_ms_begin_ns_5": np.int64(begin)}
    np.savez(path, **arrays)
    (flow,) = json.loads(view(read(run)).data)["flows"]
    assert (flow["client"], flow["connection"], flow["bucket_us"]) == ("client3", "5", 1000)
    assert np.frombuffer(base64.b64decode(flow["bytes"]["data"]), "<u4").tolist() == [7, 0, 9]


def test_what_a_run_is_called_cannot_leave_its_place(run: Path) -> None:
    hostile = "</script><script>alert(1)</script>"
    result = result_of(run) | {"name": hostile, "scenario": {"shows": hostile}}
    (run / "result.json").write_text(json.dumps(result))
    with (run / "events.jsonl").open("a") as file:
        file.write(
            json.dumps({"t_ns": 7 * 10**15, "source": hostile, "event": hostile, "text": hostile}) + "\n"
        )
    text = page([run])
    assert "<script>alert" not in text
    assert text.count("</script>") == 2  # the data's and the page's own


def test_a_log_is_shown_with_its_end(run: Path) -> None:
    (run / "host-a.log").write_text("x" * MOST_LOG_BYTES + "the end")
    (run / "host-b.log").write_text("\n")
    logs = read(run).logs
    assert list(logs) == ["host-a.log"]
    assert logs["host-a.log"].endswith("the end")
    assert len(logs["host-a.log"]) == MOST_LOG_BYTES


# ---- what is not


def test_no_result_is_a_run_that_was_cut_short(run: Path) -> None:
    (run / "result.json").unlink()
    found = view(read(run))
    assert ["result.json is not there" in line for line in found.missing] == [True]
    assert found.passed is None
    assert found.moves[0].blackout == "5 ms"
    assert "cut short" in found.title


def test_half_a_last_line_is_told_and_the_rest_is_shown(run: Path) -> None:
    path = run / "events.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    found = read(run)
    assert found.events.count == 399
    assert found.missing == ["events.jsonl ends in the middle of a line: the run was cut short."]


def test_lines_that_are_no_events_are_counted(run: Path) -> None:
    with (run / "events.jsonl").open("ab") as file:
        file.write(b'{"t_ns":"late","source":"a","event":"b"}\n[1]\n\xff\xfe\n')
        file.write(b'{"t_ns":7000000000000001,"source":"a","event":"b"}\n')
    found = read(run)
    assert found.events.count == 401
    assert found.missing == ["events.jsonl: 3 lines are no events and were left out."]


@pytest.mark.parametrize("damage", ["cut", "gone", "empty", "other"])
def test_samples_that_cannot_be_read_are_told(run: Path, damage: str) -> None:
    path = run / "client2.npz"
    if damage == "gone":
        path.unlink()
        result = result_of(run)
        clients = dict(result["clients"])  # type: ignore[call-overload]
        clients["each"] = [{"client": "client2", "probe": "closed-loop"}]
        (run / "result.json").write_text(json.dumps(result | {"clients": clients}))
    elif damage == "other":
        np.savez(path, other=np.zeros(3))
    else:
        path.write_bytes(path.read_bytes()[: 3000 if damage == "cut" else 0])
    found = read(run)
    (line,) = found.missing
    assert "client2" in line
    assert len(found.samples) == CLIENTS - 1
    assert page([run])


def test_a_newer_schema_is_shown_as_far_as_it_is_known(run: Path) -> None:
    result = result_of(run) | {
        "schema_version": SCHEMA_VERSION + 1,
        "new": {"thing": 1},
        "options": {"x_y": [1]},
    }
    (run / "result.json").write_text(json.dumps(result))
    (line,) = read(run).missing
    assert f"schema {SCHEMA_VERSION + 1}" in line
    assert page([run])


STRANGE = (
    '{"migrations": [1], "clients": null, "checks": null}',
    '{"blackout_ms": "long", "clients": {"gap_ms": 1}}',
)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", *STRANGE])
def test_whatever_the_result_is_there_is_a_page(run: Path, text: str) -> None:
    (run / "result.json").write_text(text)
    assert page([run])


def test_what_is_no_run_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    for name, what in (("empty", "no run"), ("file", "no folder"), ("absent", "no such folder")):
        with pytest.raises(NotARun, match=what) as error:
            page([tmp_path / name])
        assert "\n" not in str(error.value)


# ---- several


def test_several_runs_lie_beside_each_other_where_all_of_them_are(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    write_run(other, requests=100, events=50, seed=2)
    path = write_report([run, other])
    assert path == tmp_path / "report.html"
    text = path.read_text()
    assert text.count('<button type="button" role="tab"') == 2
    assert text.count('type="application/json"') == 2


def test_of_many_runs_each_tells_fewer_requests_one_by_one(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(render, "MOST_DOTS_OF_ALL", 4000)
    counts = [int(one) for one in re.findall(r'"requests":(\d+)}', page([run, run]))]
    assert len(counts) == 2
    assert all(0 < one < 3000 for one in counts)
    assert re.findall(r'"requests":(\d+)}', page([run])) == ["0"]


def test_a_comparison_stands_for_its_runs(run: Path, tmp_path: Path) -> None:
    figure = {"median": 5.0, "low": 4.0, "high": 6.0, "values": [4.0, 5.0, 6.0]}
    told = {
        "repeats": 1,
        "variants": [{"label": "live", "figures": {"blackout_ms": figure}}],
        "differences": [
            {"real": True, "sentence": "A is 3 times B."},
            {"real": False, "sentence": "Not this."},
        ],
        "effects": [{"real": True, "sentence": "hold=no makes it longer."}],
        "complete": False,
        "workers": 2,
        "runs": [
            {"folder": run.name, "variant": "live", "repeat": 1},
            {"folder": "gone", "variant": "live", "repeat": 2, "error": "no memory"},
        ],
    }
    (tmp_path / "comparison.json").write_text(json.dumps(told))
    text = page([tmp_path])
    for what in (
        "A is 3 times B.",
        "hold=no makes it longer.",
        "gone: no memory",
        "was ended before",
        "spoiled",
    ):
        assert what in text
    assert "Not this." not in text
    assert "5 ms (4 ms to 6 ms)" in text
    (tmp_path / "comparison.json").write_text("{}")
    with pytest.raises(NotARun, match="comparison"):
        page([tmp_path])


# ---- tables


def test_a_client_has_a_column_for_what_its_probe_knows_besides() -> None:
    row = {
        "client": "client1",
        "requests": 10,
        "longest_wait_ms": 3.0,
        "baseline_wait_ms": None,
        "broken": None,
    }
    rows = [
        {**row, "probe": "icmp", "round_trip_ms": {"p50": 0.7, "p99": 1.0, "max": 6.0}},
        {**row, "probe": "udp", "lost": 2, "one_way_there_ms": {"p50": 0.5, "p99": 1.0, "max": 4.0}},
        {**row, "probe": "download", "rate_mbit": {"before": 900.0, "during": 450.0, "after": None}},
        {**row, "probe": "http", "statuses": {"200": 9, "500": 1}},
    ]
    table = tables.clients({"clients": {"each": rows}})
    assert table is not None
    names = ["round trip", "one way there", "lost", "rate before, during, after", "statuses"]
    assert [one for one in table.columns if one in names] == names
    cells = {
        (line[0], name): cell for line in table.rows for name, cell in zip(table.columns, line, strict=True)
    }
    assert cells["client1 udp", "lost"] == "2"
    assert cells["client1 udp", "one way there"] == "0.5 ms (at most 4 ms)"
    assert cells["client1 icmp", "round trip"] == "0.7 ms (at most 6 ms)"
    assert cells["client1 download", names[3]] == "900 Mbit/s, 450 Mbit/s, -"
    assert cells["client1 http", "statuses"] == "200: 9, 500: 1"
    assert cells["client1 http", "lost"] == "-"


def test_a_link_stands_as_asked_beside_as_measured() -> None:
    asked = {"delay_ms": 10.0, "jitter_ms": 2.0, "rate_mbit": 100.0, "loss": 0.01, "lost_announcements": 1}
    measured = {"sent": 500, "arrived": 495, "delay_p50_ms": 10.1, "delay_p99_ms": 12.0, "loss": 0.01}
    link = {
        "name": "client1",
        "backend": "relay",
        "forward": {"asked": asked, "measured": measured, "lost": 7},
    }
    (table,) = tables.network({"links": [link]})
    assert table.rows == [
        [
            "from client1",
            "10 ms ± 2 ms, 100 Mbit/s, 1 % lost, the first 1 announcements lost",
            "10.1 ms (99 %: 12 ms), 1 % lost of 500",
            "7 lost",
            "relay",
        ]
    ]


def test_what_was_predicted_stands_beside_what_was_measured() -> None:
    span = {"low": 1e6, "likely": 2 << 20, "high": 4 << 20}
    guess = {
        "rounds": {"low": 3, "likely": 4.0, "high": 4},
        "transferred_bytes": span,
        "sentence": "It will.",
    }
    told = {
        "rounds": [{}, {}, {}],
        "ram": {"transferred_bytes": 3 << 20},
        "total_ms": None,
        "predicted": guess,
    }
    table = tables.predicted(told)
    assert table is not None
    assert table.rows == [
        ["rounds", "4 (3 to 4)", "3"],
        ["transferred", "2 MiB (976.6 KiB to 4 MiB)", "3 MiB"],
    ]
    assert table.note == "It will."
    assert tables.predicted({"predicted": None}) is None


def test_a_scenario_is_told_part_by_part() -> None:
    scenario = {
        "name": "x",
        "hosts": ["a", "b"],
        "vm": [{"name": "vm1", "ram": "1GiB"}],
        "step": [{"wait": "1s"}],
    }
    table = tables.asked({"options": {}, "scenario": scenario})
    assert table is not None
    assert table.rows == [["hosts", "a b"], ["vm vm1", "ram 1GiB"], ["step", "wait 1s"]]


# ---- words and pictures


def clients(**counts: float) -> dict[str, object]:
    gap = {"gap_ms": {"max": counts.pop("gap", 7.0)}, "baseline_gap_ms": {"max": counts.pop("floor", 5.0)}}
    return {**counts, **gap}


@pytest.mark.parametrize(
    ("result", "begins", "passed"),
    [
        (
            {"outcome": "completed", "clients": clients()},
            "No connection broke and no byte was lost. The longest",
            True,
        ),
        (
            {"outcome": "completed", "clients": clients(gap=4.0)},
            "No connection broke and no byte was lost. The",
            True,
        ),
        (
            {"outcome": "completed", "clients": clients(broken=1, resets=2)},
            "1 connection broke, 2 resets.",
            False,
        ),
        ({"outcome": "rolled-back", "clients": clients()}, "The migration was taken back", None),
        ({"outcome": "rolled-back", "clients": clients(bytes_lost=3)}, "The migration was taken back", False),
        ({"outcome": "failed", "clients": clients()}, "The migration failed", False),
        (None, "The run did not come to its end.", None),
    ],
)
def test_the_verdict_says_what_happened(
    result: dict[str, object] | None, begins: str, passed: bool | None
) -> None:
    if result is not None:
        lost = any(result["clients"].get(key) for key in ("broken", "bytes_lost"))  # type: ignore[attr-defined]
        migrated = {"name": "migrated", "passed": result["outcome"] == "completed"}
        result["checks"] = [migrated, {"name": "no connection broken", "passed": not lost}]
    text, held = words.verdict(result)
    assert text.startswith(begins)
    assert held is passed


def test_a_wait_below_the_floor_is_called_no_effect() -> None:
    text, _ = words.verdict({"outcome": "completed", "checks": [], "clients": clients(gap=4.0)})
    assert "not more than it waits without a migration (5 ms)" in text


def test_units_are_told_by_the_end_of_a_key() -> None:
    assert words.option("ram_bytes", 1 << 20) == ("ram", "1 MiB")
    assert words.option("bandwidth_bits_per_s", None) == ("bandwidth", "-")
    assert words.option("baseline_ns", 10**9) == ("baseline", "1 s")
    assert words.option("hold", True) == ("hold", "yes")


def test_pictures_are_whole_and_named() -> None:
    strip = charts.Strip("client1 <x>", 0, {"p50": 0.2, "p99": 0.9, "max": 3.0}, [5.0, 0.0001])
    round_ = {"number": 1.0, "ms": 10.0, "rate": 1e9, "dirty": 1e6}
    pictures = [
        charts.blackout_bar({"cut off": 1.0, "a <b>": 4.0}, 5.0),
        charts.rounds_chart([round_, {**round_, "dirty": 0.0}], 2e9),
        charts.wait_strips([strip]),
    ]
    for one in pictures:
        root = ElementTree.fromstring(one)
        assert root.attrib["aria-label"]
    assert charts.blackout_bar({}, 0.0) == charts.rounds_chart([], None) == charts.wait_strips([]) == ""


def test_the_bars_parts_fill_it() -> None:
    root = ElementTree.fromstring(charts.blackout_bar({"a": 1.0, "b": 3.0}, 4.0))
    bars = [one for one in root if one.tag == "rect"]
    assert [float(one.attrib["x"]) for one in bars] == [0.0, charts.WIDTH / 4]


def test_the_longest_of_a_large_run_is_one_of_its_dots(tmp_path: Path) -> None:
    write_run(tmp_path, requests=150_000, events=10)
    data = json.loads(view(read(tmp_path)).data)["requests"]
    assert data["density"]["requests"] > 0
    lengths = np.frombuffer(base64.b64decode(data["wait"]["data"]), "<f4")
    assert len(lengths) + data["density"]["requests"] == data["count"] == 150_000
    assert float(lengths.max()) == pytest.approx(LONGEST_NS / 1e6)
