"""The run on a terminal: plain lines as things happen, then a summary that is understood at a glance.

Everything goes to the console that is given, which is standard error where standard output carries JSON.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from testbed.measure.result import Connection, Instrument, Predicted, Ram, Result, Span
from testbed.report.waits import Asked, missed
from testbed.scenario.units import format_count, format_ms, format_rate, format_size

PART_STYLES = ("cyan", "green", "yellow", "magenta", "blue", "red", "bright_cyan", "bright_green")
BAR_WIDTH = 56
STORY = {
    "provision": "provision    a guest is put in place at {target}, silent and not active",
    "precopy": "pre-copy     RAM crosses while the guest runs",
    "pause": "pause        the guest stops at {source}, frames for it are held",
    "switchover": "state        what is left crosses: pages, sockets, registers",
    "verify": "verify       both copies are held against each other",
    "commit": "commit       from here the guest is {target}'s",
    "announce": "announce     the network is told that the guest is at {target}",
    "resume": "resume       held frames are released, the guest runs on at {target}",
    "delete": "delete       the copy at {source} is audited once more and deleted",
}
MARKS = {
    "state-saved": "saved        all of it lies on the LUN",
    "dismounted": "dismount     {source} has let go of the LUN",
    "mounted": "mount        {target} has the LUN",
}
"""What a Quick Migration does with its LUN."""


class Progress:
    """Prints what events tell, as they come. `quiet` prints nothing."""

    def __init__(self, console: Console, quiet: bool = False) -> None:
        self._console = console
        self._quiet = quiet
        self._routes: dict[str | None, dict[str, str]] = {}

    def say(self, text: str) -> None:
        if not self._quiet:
            self._console.print(Text(text, style="dim"))

    def migration(self, source: str, target: str, number: int, of: int, vm: str | None = None) -> None:
        """A migration is about to begin; of the guest `vm`, where there are several."""
        self._routes[vm] = {"source": source, "target": target}
        if not self._quiet:
            count = f" ({number} of {of})" if of > 1 else ""
            what = "migrating" if vm is None else f"migrating {vm}"
            self._console.print(Text(f"{what} {source} → {target}{count}", style="bold"))

    def event(self, event: dict[str, Any]) -> None:
        """Print `event` if it is one that a person follows."""
        if self._quiet or not self._routes:
            return
        vm = event.get("vm")
        if event["event"] == "round":
            if event["number"] == 1:
                self._tell(STORY["precopy"], vm)
            self._console.print(Text(f"  {_whose(vm)}{round_line(event)}"))
        elif event["event"] == "begin" and self._is_told(event):
            self._tell(STORY[event["phase"]], vm)
        elif event["event"] == "mark" and event["name"] in MARKS:
            self._tell(MARKS[event["name"]], vm)
        elif event["event"] == "volume-state":
            host = str(event["source"]).removesuffix("-volume")
            self._console.print(Text(f"  storage      {host}: {event['volume']}", style="yellow"))
        elif event["event"] == "lun":
            self._console.print(Text(f"  {lun_line(event)}"))
        elif event["event"] == "rolled-back":
            self._console.print(Text(f"  {_whose(vm)}rolled back   {event['reason']}", style="yellow"))

    def _tell(self, line: str, vm: str | None) -> None:
        if vm in self._routes:
            self._console.print(Text(f"  {_whose(vm)}{line.format(**self._routes[vm])}"))

    def _is_told(self, event: dict[str, Any]) -> bool:
        """Pre-copy is told with its first round: not every mode has one."""
        told = event["phase"] in STORY and event["phase"] != "precopy"
        route = self._routes.get(event.get("vm"))
        return told and route is not None and str(event["source"]).partition(":")[0] == route["source"]


def _whose(vm: str | None) -> str:
    """Whose news it is, where several guests have some."""
    return "" if vm is None else f"{vm}  "


def lun_line(event: dict[str, Any]) -> str:
    """How far a saved state is on its way to the LUN, or back."""
    way = "to the LUN" if event["way"] == "out" else "from the LUN"
    return f"{way:<12} {format_size(event['bytes']):>9} of {format_size(event['of_bytes'])}"


def round_line(event: dict[str, Any]) -> str:
    """One pre-copy round as a line that fits eighty columns."""
    names = ("number", "pages", "bytes", "duration_ns", "dirty_pages")
    return "  ".join(round_columns(*(event[name] for name in names)))


def round_columns(number: int, pages: int, size: int, duration_ns: int, dirty_pages: int) -> tuple[str, ...]:
    """What is told of a round, each at its width."""
    return (
        f"round {number:<2}",
        f"{pages:>7} pages",
        f"{format_size(size):>9}",
        f"{format_ms(duration_ns / 1e6):>7}",
        f"{format_rate(size * 8e9 / max(duration_ns, 1)):>11}",
        f"{dirty_pages:>6} dirtied",
    )


def foretold_line(foretold: Predicted) -> str:
    """What was predicted, each figure with its span where it has one."""
    rounds, size = foretold.rounds, foretold.transferred_bytes
    told = [
        _spanned(size, lambda value: format_size(round(value))),
        f"total {_spanned(foretold.total_ms, format_ms)}",
        f"blackout {_spanned(foretold.blackout_ms, format_ms)}",
    ]
    if foretold.converges is not None:
        told.insert(0, f"{_spanned(rounds, lambda value: f'{value:.0f}')} rounds")
    return ", ".join(told) + ("" if foretold.basis == "sampled" else " (from the options only)")


def _spanned(span: Span, show: Callable[[float], str]) -> str:
    likely, low, high = show(span.likely), show(span.low), show(span.high)
    return likely if low == high else f"{likely} ({low} to {high})"


def show_summary(console: Console, result: Result, folder: str | None) -> None:
    """The whole result, for a person."""
    last = result.migrations[-1] if len({one.vm for one in result.migrations}) == 1 else None
    held = result.outcome == "completed" and all(check.passed for check in result.checks)
    style = "bold green" if held else "bold red"
    route = f"{last.source} → {last.target}" if last else ""
    count = f" x {len(result.migrations)}" if len(result.migrations) > 1 else ""
    console.print()
    if result.migrations:
        what = f"{result.mode} migration {route}{count}" if last else f"{len(result.migrations)} migrations"
        console.print(Text(f"{what}: {result.outcome}", style=style))
    else:
        console.print(Text("nothing migrated", style=style))
    if last and last.reason:
        console.print(Text(f"  {last.reason}", style="yellow"))
    if last is None:
        _show_migrations(console, result)
    if result.blackout_ms is not None:
        _show_blackout(console, result)
    _show_clients(console, result)
    _show_counts(console, result)
    _show_links_and_programs(console, result)
    passed = [check.name for check in result.checks if check.passed and not check.waived]
    _print_hanging(console, Text("✓ ", style="green").append(", ".join(passed), style="default"))
    for check in result.checks:
        if check.waived:
            _print_hanging(console, Text(f"~ {check.name}: {check.detail}", style="yellow"))
        elif not check.passed:
            _print_hanging(console, Text(f"✗ {check.name}: {check.detail}", style="red"))
    if folder:
        console.print(Text(f"\n  {folder}/result.json", style="dim"))


def _print_hanging(console: Console, text: Text) -> None:
    """A line of its own, two columns in. A terminal that is too narrow has the rest of it below, further in;
    a file or a pipe has all of it on the line, for grep."""
    if not console.is_terminal:
        console.print(Text("  ").append_text(text), soft_wrap=True)
        return
    first, *others = text.wrap(console, max(20, console.width - 4))
    console.print(Text("  ").append_text(first))
    for line in others:
        console.print(Text("    ").append_text(line))


def _show_migrations(console: Console, result: Result) -> None:
    """A line for each, where several guests moved."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    for name in ("  guest", "from", "to", "began", "took", "blackout", "longest wait", ""):
        table.add_column(
            name, justify="left" if name in ("  guest", "from", "to", "") else "right", no_wrap=True
        )
    for one in result.migrations:
        blackout = "-" if one.blackout_ms is None else format_ms(one.blackout_ms)
        wait = "-" if one.gap_ms.max is None else format_ms(one.gap_ms.max)
        began, took = f"+{format_ms(one.begun_ms)}", format_ms(one.total_ms)
        outcome = "" if one.outcome == "completed" else one.outcome
        table.add_row(f"  {one.vm}", one.source, one.target, began, took, blackout, wait, outcome)
    if result.migrations:
        console.print()
        console.print(table)


def _show_blackout(console: Console, result: Result) -> None:
    assert result.blackout_ms is not None
    rounds = format_count(len(result.rounds), "round")
    console.print(
        Text(f"\n  {rounds}, then a blackout of ").append(
            f"{format_ms(result.blackout_ms)}{_of_which(result)}", style="bold"
        )
    )
    bar, legend = Text("  "), Table.grid(padding=(0, 2))
    cells: list[Text] = []
    for (name, ms), style in zip(result.blackout_parts_ms.items(), PART_STYLES * 2, strict=False):
        width = round(BAR_WIDTH * ms / result.blackout_ms) if result.blackout_ms else 0
        bar.append("█" * width, style=style)
        cells.append(Text("  ■ ", style=style).append(f"{name} {_short(ms)}", style="default"))
    for start in range(0, len(cells), 4):
        legend.add_row(*cells[start : start + 4])
    console.print(bar)
    console.print(legend)


def _of_which(result: Result) -> str:
    """Whose blackout stands for all, where there are several."""
    if len(result.migrations) < 2:
        return ""
    if len({one.vm for one in result.migrations}) < 2:
        return " (the longest)"
    longest = max(result.migrations, key=lambda one: one.blackout_ms or 0.0)
    return f" (the longest, {longest.vm}'s)"


def _short(ms: float) -> str:
    """Milliseconds without their unit, which stands beside the sum; seconds with it."""
    return f"{ms:.2f}" if ms < 1000 else format_ms(ms)


def _show_clients(console: Console, result: Result) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    table.add_column("  client", no_wrap=True)
    table.add_column("probe", no_wrap=True)
    for name in ("open", "requests", "longest wait", "normally", "resent", "broken"):
        table.add_column(name, justify="right", no_wrap=True)
    for (client, probe), rows in sorted(_by_probe(result.clients.each).items()):
        longest = _longest([row.longest_wait_ms for row in rows])
        table.add_row(
            f"  {client}",
            probe,
            str(len(rows)) if probe != "churn" else "-",
            str(sum(row.requests for row in rows)),
            Text(longest, style="bold"),
            _longest([row.baseline_wait_ms for row in rows]),
            str(sum(row.retransmits for row in rows)),
            str(sum(row.broken is not None for row in rows)),
        )
    console.print()
    console.print(table)
    asked = (Asked(row.client, row.longest_wait_ms, row.asked_late_ms) for row in result.clients.each)
    for line in missed(asked):
        _print_hanging(console, Text(line, style="yellow"))


def _show_counts(console: Console, result: Result) -> None:
    clients, network = result.clients, result.network
    gap = "" if result.network_gap_ms is None else f"silence on the wire {format_ms(result.network_gap_ms)}, "
    relearned = network.switch_relearned_ms
    learned = "" if relearned is None else f"; the switch relearned after {format_ms(relearned)}"
    lines = [
        f"connections broken {clients.broken}, resets {clients.resets}, "
        f"failed connects {clients.failed_connects}",
        f"bytes lost {clients.bytes_lost}, duplicated {clients.bytes_duplicated}, "
        f"corrupted {clients.bytes_corrupted}",
        f"{gap}frames held {network.frames_held}, released {network.frames_released}, "
        f"dropped {network.frames_dropped}",
        f"announcements sent {network.announcements_sent}, seen {network.announcements_seen}{learned}",
        *_ram_lines(result),
        *_foretold_lines(result),
    ]
    if any(one.probe == "ledger" for one in clients.each):
        lines.insert(
            2,
            f"writes acknowledged {clients.acknowledged}, lost {clients.writes_lost}, "
            f"never sent but there {clients.writes_phantom}",
        )
    lines.append(_instrument_line(result.instrument))
    console.print()
    for line in lines:
        _print_hanging(console, Text(line))
    console.print()


def _ram_lines(result: Result) -> Iterator[str]:
    """What crossed the wire, a line for each guest."""
    of_guest: dict[str, list[Ram]] = {}
    for one in result.migrations:
        of_guest.setdefault(one.vm, []).append(one.ram)
    for vm, moved in (of_guest or {"": [result.ram]}).items():
        whose = f" of {vm}" if len(of_guest) > 1 else ""
        crossed = sum(one.transferred_bytes for one in moved)
        times = f" in {len(moved)} migrations" if len(moved) > 1 else ""
        yield f"RAM{whose} {format_size(moved[0].bytes)}, {format_size(crossed)} crossed the wire{times}"


def _foretold_lines(result: Result) -> Iterator[str]:
    """What was said of each guest's last migration before it began."""
    last = {one.vm: one.predicted for one in result.migrations}
    for vm, foretold in last.items():
        if foretold is not None:
            yield f"foretold{f' of {vm}' if len(last) > 1 else ''}: {foretold_line(foretold)}"


def _instrument_line(instrument: Instrument | None) -> str:
    if instrument is None:
        return "the instrument's own error: not calibrated here (testbed calibrate)"
    beyond = "" if instrument.holds else ", more than promised"
    return (
        f"the instrument's own error: {instrument.gap_error_ms:+.2f} ms at the median, "
        f"{instrument.gap_error_p95_ms:.2f} ms at p95{beyond}"
    )


def _show_links_and_programs(console: Console, result: Result) -> None:
    """What was measured of links under conditions, and how ordinary programs ended."""
    for link in result.links:
        measured = (
            "not measured" if link.round_trip_ms is None else f"measured {format_ms(link.round_trip_ms)}"
        )
        asked = f"round trip asked {format_ms(link.asked_round_trip_ms)}, {measured}"
        console.print(Text(f"  link {link.name} ({link.backend}): {asked}"))
    for one in result.programs:
        ended = f"exit status {one.exit_status}" if one.signal is None else f"ended by {one.signal}"
        by = "" if one.ended_by == "itself" else f" ({one.ended_by})"
        console.print(Text(f"  program {one.name}: {ended}{by}, {one.output_file}"))
    if result.links or result.programs:
        console.print()


def _by_probe(rows: list[Connection]) -> dict[tuple[str, str], list[Connection]]:
    groups: dict[tuple[str, str], list[Connection]] = {}
    for row in rows:
        groups.setdefault((row.client, row.probe), []).append(row)
    return groups


def _longest(waits: list[float | None]) -> str:
    known = [wait for wait in waits if wait is not None]
    return format_ms(max(known)) if known else "-"
