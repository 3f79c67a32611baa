"""The live picture: a :class:`LiveState` at a moment, as exactly so many lines of so many columns. Pure.

From top to bottom: what runs and for how long; the hosts with their guests, the wire between them and the
switch below; the phases; the rounds; the blackout; each client's strip; the last line that was said. What
does not fit is left out from the bottom of each part, clients' strips last.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.text import Text

from testbed.report.glyphs import UNICODE, Glyphs
from testbed.report.live_hosts import hosts_lines
from testbed.report.live_state import CELL_NS, GuestState, LiveState, Strip
from testbed.report.terminal import PART_STYLES, round_columns
from testbed.report.waits import short_ms, wait_level, wait_style
from testbed.scenario.units import format_ms, format_size

LEAST_WIDTH, LEAST_HEIGHT = 72, 16
PHASE_NAMES = {
    "setup": "setup",
    "provision": "provision",
    "precopy": "pre-copy",
    "pause": "pause",
    "switchover": "state",
    "verify": "verify",
    "commit": "commit",
    "announce": "announce",
    "resume": "resume",
    "delete": "delete",
}
_MOST_ROUNDS = 6
_NAME_COLUMNS, _WIDE_NAME_COLUMNS = 14, 20
_WIDE = 100


def picture(
    state: LiveState, now_ns: int, width: int, height: int, glyphs: Glyphs = UNICODE
) -> list[Text]:
    """`height` lines, none longer than `width`."""
    head = [_title(state, now_ns, width, glyphs), *hosts_lines(state, now_ns, width, glyphs, height)]
    foot = [Text(state.said, style="dim")]
    left = height - len(head) - len(foot)
    phases = _phase_lines(state, width, glyphs)[: max(1, left // 6)]
    focus = state.focus
    blackout = _blackout_lines(focus, width, glyphs)
    strips_room = max(3, left - len(phases) - len(blackout) - 2 - _MOST_ROUNDS)
    detailed = len(state.strips) + sum(len(strip.kinds) for strip in state.strips.values())
    strips_rows = 1 + (detailed if detailed <= strips_room else min(len(state.strips), strips_room))
    room = left - len(phases) - len(blackout) - strips_rows
    rounds = _round_lines(focus, width, glyphs)
    rounds = rounds[len(rounds) - min(len(rounds), max(0, room)) :]
    body = [*phases, *rounds, *blackout]
    spare = left - len(body) - strips_rows
    if body and spare > 0:
        body.insert(len(phases), Text())
        spare -= 1
    strips = _strip_lines(state, width, max(1, strips_rows), glyphs)
    filling = [Text() for _ in range(max(0, spare))]
    lines = [*head, *body, *filling, *strips, *foot][:height]
    lines += [Text() for _ in range(height - len(lines))]
    for line in lines:
        line.truncate(width)
    return lines


# ---- what happens


def _title(state: LiveState, now_ns: int, width: int, glyphs: Glyphs) -> Text:
    elapsed = f"{(now_ns - state.begun_ns) / 1e9:.1f} s"
    left = Text(state.cast.title, style="bold")
    for guest in state.moving[:2]:
        number, of = guest.count
        count = f" ({number} of {of})" if of > 1 else ""
        route = f"{guest.name} {guest.source} {glyphs.towards} {guest.target}{count}"
        left.append(f"   {route}", style="not bold cyan")
    left.truncate(width - len(elapsed) - 1)
    return left.append(elapsed.rjust(width - left.cell_len), style="dim")


def _phase_lines(state: LiveState, width: int, glyphs: Glyphs) -> list[Text]:
    """Where each guest that moves is; of the last one where it came to, when none does."""
    shown = state.moving or ([state.focus] if state.focus.target is not None else [])
    several = len(state.guests) > 1
    return [_phases(guest, width, glyphs, with_name=several) for guest in shown]


def _phases(guest: GuestState, width: int, glyphs: Glyphs, *, with_name: bool) -> Text:
    line = Text().append(f" {guest.name} " if with_name else " ", style="bold")
    between = " " if line.cell_len + sum(len(name) + 2 for name in PHASE_NAMES.values()) <= width + 1 else ""
    names = list(PHASE_NAMES)
    reached = names.index(guest.phase) if guest.phase is not None else -1
    for number, (phase, name) in enumerate(PHASE_NAMES.items()):
        if guest.rolled_back is not None and number == reached:
            line.append(f"{glyphs.broken}{name}{between}", style="bold red")
        elif number < reached or guest.deleted:
            line.append(f"{glyphs.done}{name}{between}", style="green")
        elif phase == guest.phase:
            line.append(f"{glyphs.now}{name}{between}", style="bold yellow")
        else:
            line.append(f"{glyphs.waiting}{name}{between}", style="dim")
    line.rstrip()
    return line


def _round_lines(guest: GuestState, width: int, glyphs: Glyphs) -> list[Text]:
    """The rounds that are over, and the one that is under way; each with a bar for its bytes."""
    lines = []
    most = max((one.bytes for one in guest.rounds), default=1)
    for one in guest.rounds:
        words = "  ".join(round_columns(one.number, one.pages, one.bytes, one.duration_ns, one.dirty_pages))
        bar = max(0, width - len(words) - 4)
        # A root of it: the second round is a hundredth of the first, and is to be seen.
        share = math.sqrt(one.bytes / max(most, 1))
        lines.append(Text(f" {words}  ").append(glyphs.bar(share, min(bar, 60)), style="cyan"))
    if guest.under_way is not None:
        number, sent, of = guest.under_way
        words = f" round {number:<2}  {format_size(sent):>9} of {format_size(of)}  "
        lines.append(Text(words).append(glyphs.bar(sent / max(of, 1), 24, "·"), style="yellow"))
    if guest.lun is not None and "resumed" not in guest.marks:
        way, done, of = guest.lun
        words = f" {'to' if way == 'out' else 'from'} the LUN  {format_size(done):>9} of {format_size(of)}  "
        lines.append(Text(words).append(glyphs.bar(done / max(of, 1), 24, "·"), style="yellow"))
    return lines


def _blackout_lines(guest: GuestState, width: int, glyphs: Glyphs) -> list[Text]:
    """What stood still and for how long, once it is known; what undid it, where it came to that."""
    if guest.rolled_back is not None:
        return [Text(f" rolled back: {guest.rolled_back}", style="bold red")]
    blackout_ns = guest.blackout_ns
    if blackout_ns is None:
        waiting = guest.switching_since_ns is not None
        return [Text(" switching over: the guest stands still", style="bold yellow")] if waiting else []
    head = Text(" blackout ", style="").append(format_ms(blackout_ns / 1e6), style="bold")
    parts = [(name, ms) for name, ms in guest.parts_ms.items() if ms > 0]
    if not parts:
        return [head]
    room = max(10, width - head.cell_len - 3)
    total = sum(ms for _, ms in parts)
    head.append("  ")
    legend = [Text(" ")]
    for (name, ms), style in zip(parts, PART_STYLES * 2, strict=False):
        head.append(glyphs.full * round(min(room, 60) * ms / total), style=style)
        words = f" {name} {format_ms(ms)}".removesuffix(" ms")
        if legend[-1].cell_len + len(words) + 3 > width:
            legend.append(Text(" "))
        legend[-1].append(glyphs.mark, style=style).append(f"{words}  ")
    return [head, *legend]


# ---- clients


def _strip_lines(state: LiveState, width: int, rows: int, glyphs: Glyphs) -> list[Text]:
    """A head, and the clients' strips; of more clients than there is room for those that waited longest."""
    columns = _WIDE_NAME_COLUMNS if width >= _WIDE else _NAME_COLUMNS
    count = max(10, width - columns - 1 - 20)
    end = state.end
    first = end - count
    names = list(state.strips)
    shown = names
    if len(names) > rows - 1:
        worst = sorted(names, key=lambda name: -state.strips[name].longest_ns)[: max(1, rows - 2)]
        shown = [name for name in names if name in worst]
    head = Text(" " * (columns + 1))
    marks = {
        number - first
        for begin, stop in state.pauses
        for number in range(begin // CELL_NS, stop // CELL_NS + 1)
    }
    told = f"longest wait in each {CELL_NS // 1_000_000} ms"
    row = "".join(glyphs.pause if number in marks else " " for number in range(count))
    if not marks & set(range(count)):
        row = told.ljust(count)[:count]
    head.append(row, style="bold magenta" if marks else "dim").append("      now    longest", style="dim")
    lines = [head]
    detailed = rows - 1 > len(names)
    for name in shown:
        strip = state.strips[name]
        lines.append(_strip_line(f" {name}", strip, columns, count, end, glyphs))
        for kind, of_kind in strip.kinds.items() if detailed else ():
            lines.append(_strip_line(f"   {kind}", of_kind, columns, count, end, glyphs))
    if len(shown) < len(names):
        rest = [state.strips[name].longest_ns for name in names if name not in shown]
        more = f" and {len(rest)} more clients, of which none waited longer than {short_ms(max(rest))}"
        lines.append(Text(more, style="dim"))
    return lines[:rows]


def _strip_line(name: str, strip: Strip, columns: int, count: int, end: int, glyphs: Glyphs) -> Text:
    line = Text().append(f"{name[:columns]:<{columns + 1}}", style="bold red" if strip.broke else "default")
    for wait in strip.cells(count, end):
        if wait is None:
            line.append(" ")
        else:
            line.append(glyphs.levels[wait_level(wait)], style=wait_style(wait))
    now = strip.now_ns
    line.append(f"{'' if now is None else short_ms(now):>9}", style="dim")
    if strip.broke:
        line.append(f"{strip.broke:>4} broken", style="bold red")
    else:
        longest = short_ms(strip.longest_ns) if now is not None else ""
        line.append(f"{longest:>11}", style=wait_style(strip.longest_ns))
    return line


def fits(width: int, height: int) -> bool:
    """Whether a terminal is large enough for a picture at all."""
    return width >= LEAST_WIDTH and height >= LEAST_HEIGHT


def plain(lines: Sequence[Text]) -> str:
    """The picture without its colours."""
    return "\n".join(line.plain for line in lines)
