"""The report of real runs in a real browser: what is drawn is what was recorded, nothing goes wrong in it,
and it asks nobody for anything. Screenshots stay in the run's folder as evidence.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from testbed.memory import page_map
from testbed.report.page.render import write_report
from testbed.report.page.synthetic import BLACKOUT_NS, LONGEST_NS, write_run
from tests.browser import Browser, chromium
from tests.conftest import require
from tests.system.commands import SMALL, run

EVENTS = 1_000_000
MOST_BYTES = 5_000_000
RUN = "report.runs[0]"
FILM = f"{RUN}.replay.film"
COPIED, DIRTY, LAST = 2, 3, 4
"""What film.js calls the states of a cell."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small real run there and back, with its report."""
    where = tmp_path_factory.mktemp("report")
    ended = run(where, "migrate", *SMALL, "--migrations", "2", "--runs", "runs", "--name", "small")
    assert ended.status == 0, ended.err + ended.out
    (folder,) = (where / "runs").iterdir()
    assert f"{Path('runs') / folder.name / 'report.html'}" in ended.out.replace("\n", "")
    (folder / "evidence").mkdir()
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    require("chromium", lambda: chromium() is not None)
    with Browser() as opened:
        yield opened


@pytest.fixture
def opened(browser: Browser, folder: Path) -> Browser:
    """The browser with the small run's report, as on a desk by day, and nothing gone wrong yet."""
    return show(browser, folder / "report.html")


def show(browser: Browser, path: Path, width: int = 1280, height: int = 900, **preferences: str) -> Browser:
    browser.errors.clear()
    browser.requests.clear()
    browser.size(width, height, phone=width < 500)
    browser.prefer(**preferences)
    browser.open(path)
    assert browser.ask("document.documentElement.dataset.ready") == "yes", browser.errors
    return browser


def events_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


def mark(events: list[dict[str, Any]], name: str) -> int:
    """When the first migration made it (ns)."""
    return next(int(one["t_ns"]) for one in events if one.get("name") == name)


def origin_of(events: list[dict[str, Any]]) -> int:
    return min(int(one["t_ns"]) for one in events)


def nothing_went_wrong(browser: Browser, path: Path) -> None:
    assert browser.errors == []
    assert {one for one in browser.requests if not one.startswith("data:")} == {path.resolve().as_uri()}


LOOKS = (
    ("desk-light", 1280, "light"),
    ("desk-dark", 1280, "dark"),
    ("phone-light", 390, "light"),
    ("phone-dark", 390, "dark"),
)


@pytest.mark.parametrize(("name", "width", "scheme"), LOOKS)
def test_it_is_whole_on_every_screen(
    browser: Browser, folder: Path, name: str, width: int, scheme: str
) -> None:
    path = folder / "report.html"
    show(browser, path, width, scheme=scheme)
    assert browser.ask("document.documentElement.scrollWidth") == width  # nothing to scroll sideways for
    browser.picture(folder / "evidence" / f"{name}.png", whole=True)
    nothing_went_wrong(browser, path)
    red, *_ = json.loads(browser.ask("JSON.stringify(report.colour('paper').match(/\\d+/g).map(Number))"))
    assert (red < 60) == (scheme == "dark")
    painted = "[...document.querySelectorAll('canvas')].map(one => new Set(one.getContext('2d').getImageData("
    painted += "0, 0, one.width, one.height).data).size)"
    assert all(colours > 20 for colours in browser.ask(painted))  # drawn, and not one plain colour
    unnamed = (
        "[...document.querySelectorAll('canvas,button,input,select')].filter(one => !(one.textContent.trim()"
    )
    unnamed += " || one.ariaLabel || one.labels?.[0]?.textContent.trim())).map(one => one.outerHTML)"
    assert browser.ask(unnamed) == []


def test_it_plays_from_its_begin_to_its_end(opened: Browser, folder: Path) -> None:
    """With a clock that goes on by 20 ms from frame to frame, however long this machine takes for one."""
    seen = opened.ask(
        f"""const due = []; let now = 0;
        requestAnimationFrame = draw => {{ if (due.push(draw) === 1) setTimeout(() => {{
            now += 20; due.splice(0).forEach(one => one(now)); }}); return due.length; }};
        document.querySelector('.speed').value = '4'; document.querySelector('.play').click();
        new Promise(done => {{ const seen = []; const look = () => {{
            seen.push([{RUN}.replay.second, document.querySelector('.caption').textContent]);
            {RUN}.replay.playing ? requestAnimationFrame(look) : done(seen); }}; look(); }})"""
    )
    seconds = [second for second, _ in seen]
    assert seconds == sorted(seconds)
    length = opened.ask(f"{RUN}.replay.warp.length")
    frames = length / (0.02 * 4) + 1
    assert len(set(seconds)) == pytest.approx(frames, abs=2)
    assert seconds[-1] == pytest.approx(length)
    assert "deleted" in seen[-1][1] or "announces" in seen[-1][1]
    nothing_went_wrong(opened, folder / "report.html")


def test_each_chapter_shows_its_step(opened: Browser, folder: Path) -> None:
    count = opened.ask("document.querySelectorAll('.chapter').length")
    assert count == 5
    shown = []
    for number in range(count):
        opened.ask(f"document.querySelectorAll('.chapter')[{number}].click()")
        opened.ask("document.querySelector('.replay').scrollIntoView({behavior: 'instant'})")
        states = f"[{FILM}.source({RUN}.replay.at), {FILM}.target({RUN}.replay.at)].join()"
        shown.append(opened.ask(states))
        opened.picture(folder / "evidence" / f"chapter-{number + 1}.png")
    assert shown == ["running,ready", "running,ready", "running,ready", "paused,ready", "gone,running"]
    nothing_went_wrong(opened, folder / "report.html")


def test_the_map_shows_the_pages_that_were_recorded(opened: Browser, folder: Path) -> None:
    events = events_of(folder)
    opened.ask(f"{RUN}.choose(0)")
    origin = origin_of(events)
    rounds = [one for one in events if one["event"] == "round"]
    rounds = [one for one in rounds if one["t_ns"] < mark(events, "paused")]
    (last, *_) = [one for one in events if one["event"] == "pages"]
    sent = [set(np.flatnonzero(page_map.decode(one["map"])).tolist()) for one in [*rounds, last]]

    def cells(t_ns: float, *states: int) -> set[int]:
        wanted = " || ".join(f"state === {one}" for one in states)
        expression = f"{FILM}.pages({(t_ns - origin) / 1e3}); [...{FILM}.state.keys()].filter(i => "
        return set(opened.ask(f"{expression} {{ const state = {FILM}.state[i]; return {wanted}; }})"))

    for number, one in enumerate(rounds):
        end_ns = one["begin_ns"] + one["duration_ns"]
        assert cells(end_ns + 1000, DIRTY) == sent[number + 1]
        assert cells(end_ns + 1000, COPIED) == set().union(*sent[: number + 1]) - sent[number + 1]
    for number, one in enumerate(rounds[1:], 1):
        assert cells(one["begin_ns"] + 200, DIRTY) == sent[number]  # none of them is there yet
    half = rounds[0]["begin_ns"] + rounds[0]["duration_ns"] / 2
    assert cells(half, COPIED) == set(sorted(sent[0])[: len(cells(half, COPIED))])
    assert 0 < len(cells(half, COPIED)) < len(sent[0])
    assert cells(mark(events, "pages-sent") + 1000, LAST) == sent[-1]


def test_the_clients_wait_as_they_did(opened: Browser, folder: Path) -> None:
    """In the middle of the blackout: for each client, since when the request that waits longest is under
    way."""
    events = events_of(folder)
    t_ns = (mark(events, "paused") + mark(events, "resumed")) // 2
    origin = origin_of(events)
    for number, path in enumerate(sorted(folder.glob("client*.npz"))):
        arrays = np.load(path)
        steady = np.flatnonzero(arrays["kinds"] == "open-loop")
        asked = ~np.isin(arrays["probe"], steady)
        under_way = asked & (arrays["sent_ns"] < t_ns) & (arrays["received_ns"] > t_ns)
        expected = t_ns - int(arrays["sent_ns"][under_way].min()) if under_way.any() else 0
        shown = opened.ask(f"{RUN}.requests.waiting({number}, {(t_ns - origin) / 1e3})")
        if steady.size:  # whose deliveries wait too, by another rule
            assert shown >= expected / 1e3 - 2
        else:
            assert shown == pytest.approx(expected / 1e3, abs=2)


def test_another_migration_can_be_chosen(opened: Browser, folder: Path) -> None:
    opened.ask(
        "{ const choice = document.querySelector('.choice select'); choice.value = 1; "
        "choice.dispatchEvent(new Event('change')); }"
    )
    assert opened.ask(f"[{RUN}.move.source, {RUN}.move.target].join()") == "host-b,host-a"
    assert (
        opened.ask("[...document.querySelectorAll('[data-move]')].map(one => one.hidden).join()")
        == "true,false"
    )
    opened.picture(folder / "evidence" / "second.png")
    nothing_went_wrong(opened, folder / "report.html")


def test_the_timeline_zooms_by_keys_and_tells_what_lies_under_the_pointer(
    opened: Browser, folder: Path
) -> None:
    opened.call("Page.bringToFront")
    opened.ask(
        "document.querySelector('[data-view=run]').click(); "
        "document.querySelector('.timeline canvas').focus()"
    )
    whole = opened.ask(f"{RUN}.timeline.view[1] - {RUN}.timeline.view[0]")
    for key in ("+", "ArrowRight"):
        opened.call("Input.dispatchKeyEvent", type="keyDown", key=key)
    assert opened.ask(f"{RUN}.timeline.view[1] - {RUN}.timeline.view[0]") == pytest.approx(whole * 0.6)
    opened.ask("document.querySelector('[data-view=migration]').click()")
    tip = opened.ask(f"{{ const t = {RUN}.timeline, hit = t.hits[0]; t.under(hit.from + 1, hit.top + 9); }}")
    assert tip.startswith("host-")
    opened.picture(folder / "evidence" / "migration.png")
    nothing_went_wrong(opened, folder / "report.html")


def test_who_wants_no_motion_gets_steps(browser: Browser, folder: Path) -> None:
    show(browser, folder / "report.html", motion="reduce")
    playing, first, then = browser.ask(
        f"""document.querySelector('.speed').value = '4'; document.querySelector('.play').click();
        new Promise(done => {{ const replay = {RUN}.replay, {{playing, at, second}} = replay;
            const told = () => done([playing, at, replay.at]);
            const look = () => replay.second === second ? setTimeout(look, 5) : told(); look(); }})"""
    )
    captions = browser.ask(f"{FILM}.captions.map(one => one.at)")
    assert playing is True
    assert first == pytest.approx(captions[0] + 1, abs=0.5)
    assert min(abs(then - 1 - one) for one in captions) < 0.5
    nothing_went_wrong(browser, folder / "report.html")


def test_on_paper_it_is_light_and_has_everything(browser: Browser, folder: Path) -> None:
    show(browser, folder / "report.html", scheme="dark")
    browser.paper(folder / "evidence" / "paper.pdf")
    assert (folder / "evidence" / "paper.pdf").read_bytes().startswith(b"%PDF")
    browser.call("Emulation.setEmulatedMedia", media="print")
    assert browser.ask("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert browser.ask("getComputedStyle(document.querySelector('.play')).display") == "none"
    browser.call("Emulation.setEmulatedMedia", media="")
    nothing_went_wrong(browser, folder / "report.html")


def test_several_runs_have_a_tab_each(browser: Browser, folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    write_run(other, requests=2000, events=100)
    ended = run(tmp_path, "report", str(folder), "other", "-o", "both.html")
    assert (ended.status, ended.out, ended.err) == (0, "both.html\n", "")
    show(browser, tmp_path / "both.html")
    hidden = "[...document.querySelectorAll('section.run')].map(one => one.hidden).join()"
    assert browser.ask(hidden) == "false,true"
    browser.ask("document.querySelectorAll('[role=tab]')[0].focus()")
    browser.call("Input.dispatchKeyEvent", type="keyDown", key="ArrowRight")
    assert browser.ask(hidden) == "true,false"
    assert browser.ask("report.runs.length") == 2
    browser.picture(folder / "evidence" / "several.png", whole=True)
    nothing_went_wrong(browser, tmp_path / "both.html")


def test_a_million_events_keep_their_longest_wait(browser: Browser, folder: Path, tmp_path: Path) -> None:
    write_run(tmp_path, requests=EVENTS, events=EVENTS)
    path = write_report([tmp_path])
    assert path.stat().st_size <= MOST_BYTES
    show(browser, path)
    assert browser.ask(f"{RUN}.requests.total") == EVENTS
    assert browser.ask(f"{RUN}.requests.longest") == pytest.approx(LONGEST_NS / 1e6)
    assert browser.ask(f"{RUN}.move.resume - {RUN}.move.pause") == BLACKOUT_NS / 1e3
    assert browser.ask(f"{RUN}.data.others[0].count") > EVENTS * 0.99
    browser.ask("document.querySelector('[data-view=run]').click()")
    browser.picture(folder / "evidence" / "million.png", whole=True)
    nothing_went_wrong(browser, path)


def test_a_run_that_was_cut_short_is_shown(browser: Browser, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "client1.npz").write_bytes((folder / "client1.npz").read_bytes())
    whole = (folder / "events.jsonl").read_bytes()
    (tmp_path / "events.jsonl").write_bytes(whole[: whole.index(b'"switchover"') + 5])
    ended = run(tmp_path, "report", ".")
    assert (ended.status, ended.out) == (0, "report.html\n")
    assert "testbed: .: result.json is not there" in ended.err, "a script does not read the page"
    show(browser, tmp_path / "report.html")
    told = browser.ask("document.querySelector('.missing').textContent")
    for what in ("result.json is not there", "middle of a line", "No samples of client2"):
        assert what in told
    assert browser.ask(f"{FILM}.source({RUN}.data.span)") == "paused"
    browser.picture(folder / "evidence" / "cut-short.png", whole=True)
    nothing_went_wrong(browser, tmp_path / "report.html")


# ---- the command


def test_what_is_no_run_is_one_line_and_status_two(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name, what in (("empty", "no run"), ("absent", "no such folder")):
        ended = run(tmp_path, "report", name)
        assert (ended.status, ended.out) == (2, "")
        assert what in ended.err
        assert ended.err.count("\n") == 1
    assert run(tmp_path, "report").status == 2


def test_a_report_that_cannot_be_written_is_one_line_and_status_three(folder: Path, tmp_path: Path) -> None:
    ended = run(tmp_path, "report", str(folder), "--out", "absent/report.html")
    assert (ended.status, ended.out) == (3, "")
    assert "absent/report.html" in ended.err
    assert ended.err.count("\n") == 1


def test_a_run_can_do_without(tmp_path: Path) -> None:
    ended = run(tmp_path, "migrate", *SMALL, "--no-report", "--runs", "runs")
    assert ended.status == 0, ended.err
    (folder,) = (tmp_path / "runs").iterdir()
    assert not (folder / "report.html").exists()
    assert os.access(folder / "result.json", os.R_OK)
