"""The upper part of the live picture: hosts as boxes, guests in them, the wire along which one moves, and the
switch with the clients below. Pure."""

from __future__ import annotations

from rich.text import Text

from testbed.report.glyphs import Glyphs
from testbed.report.live_state import GuestState, LiveState
from testbed.report.waits import wait_style
from testbed.scenario.units import format_rate, format_size

_LEAST_BOX = 18
_MOST_ROWS = 5
_STEP_NS = 120_000_000
"""How long a packet on the wire stands where it is."""
_SLIDE_NS = 700_000_000
"""How long a guest takes from one box to the other, in the picture: it was there before the picture was."""
_LOW = 20


def hosts_lines(state: LiveState, now_ns: int, width: int, glyphs: Glyphs, height: int) -> list[Text]:
    """The hosts: in boxes, or in a list where they are too many; without the switch on a low terminal."""
    hosts = state.cast.hosts
    gap = max(20, width // 3) if len(hosts) == 2 else 1
    box = (width - 2 - gap * (len(hosts) - 1)) // len(hosts)
    if box < _LEAST_BOX:
        return [_listed(state, host, glyphs) for host in hosts]
    rows = _rows(state)
    edges = [glyphs.box[:2], glyphs.box[2:4]]
    top, bottom = Text(" "), Text(" ")
    for number, host in enumerate(hosts):
        space = " " * (gap if number else 0)
        name = f"{glyphs.box[4]} {host} "[: box - 2]
        top.append(f"{space}{edges[0][0]}").append(name.ljust(box - 2, glyphs.box[4])).append(edges[0][1])
        stem = (glyphs.stem if height >= _LOW else glyphs.box[4]).center(box - 2, glyphs.box[4])
        bottom.append(f"{space}{edges[1][0]}{stem}{edges[1][1]}")
    lines = [top]
    for row in range(rows):
        line = Text(" ")
        for number, host in enumerate(hosts):
            if number:
                line.append(_wire(state, row, gap, now_ns, glyphs) if len(hosts) == 2 else " ")
            inside = _fitted(_cell(state, host, row, box - 4, glyphs), box - 4)
            line.append(f"{glyphs.box[5]} ").append(inside).append(f" {glyphs.box[5]}")
        lines.append(line)
    lines.append(bottom)
    if height >= _LOW:
        lines += [_switch(len(hosts), box, gap, glyphs), _clients(state, width, glyphs)]
    return lines


def _rows(state: LiveState) -> int:
    return 2 if len(state.guests) == 1 else min(len(state.guests), _MOST_ROWS)


def _fitted(content: Text, columns: int) -> Text:
    content.truncate(columns)
    content.pad_right(columns - content.cell_len)
    return content


# ---- guests in boxes


def _cell(state: LiveState, host: str, row: int, columns: int, glyphs: Glyphs) -> Text:
    """A row of a box. One guest has two: what it does and its RAM; of several each has one."""
    guests = list(state.guests.values())
    if len(guests) == 1:
        guest = guests[0]
        if not _is_here(guest, host):
            return Text()
        if not state.serving:
            return Text() if row else Text(f"{glyphs.absent} {guest.name} boots", style="dim")
        return _ram(guest, host, columns, glyphs) if row else _doing(guest, host, glyphs)
    if len(guests) > _MOST_ROWS:
        guests = [guest for guest in guests if _is_here(guest, host)]
    if row == _MOST_ROWS - 1 and len(guests) > _MOST_ROWS:
        return Text(f"and {len(guests) - row} more", style="dim")
    if row >= len(guests) or not _is_here(guests[row], host):
        return Text()
    guest = guests[row]
    cell = Text().append(_symbol(guest, host, glyphs)).append(f" {guest.name} ")
    bar = columns - cell.cell_len
    return cell.append(_ram(guest, host, bar, glyphs)) if bar > 3 else cell


def _is_here(guest: GuestState, host: str) -> bool:
    return guest.host == host or (guest.moving and host in (guest.source, guest.target))


def _symbol(guest: GuestState, host: str, glyphs: Glyphs) -> Text:
    if guest.host != host:
        return Text(glyphs.absent, style="dim")
    if guest.switching_since_ns is not None:
        return Text(glyphs.still, style="bold yellow")
    return Text(glyphs.running, style="bold green")


def _doing(guest: GuestState, host: str, glyphs: Glyphs) -> Text:
    line = _symbol(guest, host, glyphs).append(f" {guest.name} ", style="default bold")
    if guest.host == host:
        still = guest.switching_since_ns is not None
        return line.append("stands still" if still else "runs", style="yellow" if still else "green")
    if host == guest.target:
        provisioned = guest.phase not in (None, "setup")
        return line.append("in place, silent" if provisioned else "expected", style="dim")
    return line.append("copy to delete", style="dim")


def _ram(guest: GuestState, host: str, columns: int, glyphs: Glyphs) -> Text:
    """The guest's RAM as a bar: where it runs, full, what is still to be copied in yellow; where it goes,
    what has come."""
    size = f" {format_size(guest.ram_bytes)}"
    bar = columns - len(size) if columns > 20 else columns
    told = size if columns > 20 else ""
    if guest.moving and host == guest.target and guest.host != host:
        return Text(glyphs.bar(guest.copied, bar, "·"), style="cyan").append(told, style="dim")
    if guest.moving and guest.host != host:
        return Text(glyphs.empty * bar, style="dim").append(told, style="dim")
    missing = round(bar * (1 - guest.copied)) if guest.moving and guest.phase != "provision" else 0
    if guest.moving and guest.rounds and guest.rounds[-1].dirty_pages:
        missing = max(missing, 1)
    missing = 0 if guest.phase in (None, "setup") or guest.host == guest.target else missing
    line = Text(glyphs.full * (bar - missing), style="green").append(glyphs.dirty * missing, style="yellow")
    return line.append(told, style="dim")


# ---- the wire, the switch, the clients


def _wire(state: LiveState, row: int, gap: int, now_ns: int, glyphs: Glyphs) -> Text:
    """What is on the wire between two boxes, in the row of the guest that moves."""
    guests = list(state.guests.values())
    alone = len(guests) == 1
    if not alone and len(guests) > _MOST_ROWS:
        return Text(" " * gap)
    guest = guests[0] if alone else guests[row]
    rightwards = guest.source == state.cast.hosts[0]
    slid_ns = None if guest.moved_at_ns is None else now_ns - guest.moved_at_ns
    if slid_ns is not None and slid_ns < _SLIDE_NS and (row == 0 or not alone):
        return _sliding(guest, gap, slid_ns / _SLIDE_NS, rightwards, glyphs)
    if not guest.moving or guest.phase in (None, "setup") or guest.host == guest.target:
        return Text(" " * gap)
    if alone and row:
        return Text(_crossed(guest).center(gap)[:gap], style="dim")
    moving = guest.phase in ("precopy", "pause", "switchover")
    inner = gap - 4
    if not moving:
        return Text(f"  {glyphs.wire * inner}  ", style="dim")
    step = now_ns // _STEP_NS % 4
    shift = step if not rightwards else 3 - step
    cells = [glyphs.packet if (at + shift) % 4 < 3 else " " for at in range(inner - 1)]
    drawn = "".join(cells)
    drawn = drawn + glyphs.towards if rightwards else glyphs.back + drawn
    return Text(f"  {drawn}  ", style="cyan")


def _sliding(guest: GuestState, gap: int, share: float, rightwards: bool, glyphs: Glyphs) -> Text:
    label = f"{guest.name} {glyphs.towards}" if rightwards else f"{glyphs.back} {guest.name}"
    room = max(0, gap - len(label))
    at = round(room * (share if rightwards else 1 - share))
    return Text(" " * at + label + " " * (room - at), style="bold green")


def _crossed(guest: GuestState) -> str:
    """How much has crossed, and how fast the last round was."""
    sent = sum(one.bytes for one in guest.rounds)
    if guest.under_way is not None:
        return format_size(sent + guest.under_way[1])
    if not guest.rounds:
        return ""
    # The first round has most of it; later ones are too short for a rate that means something.
    return f"{format_size(sent)}, {format_rate(guest.rounds[0].bits_per_s)}"


def _switch(hosts: int, box: int, gap: int, glyphs: Glyphs) -> Text:
    """From stem to stem, with the switch in the middle."""
    # `str.center` puts the odd one left or right by the length: measured, not computed.
    first = 1 + 1 + glyphs.stem.center(box - 2, " ").index(glyphs.stem)
    stems = [first + number * (box + gap) for number in range(hosts)]
    length = stems[-1] - stems[0] + 1
    line = list(" switch ".center(length, glyphs.box[4]))
    for stem in stems:
        line[stem - stems[0]] = glyphs.branch
    line[0], line[-1] = glyphs.corner_left, glyphs.corner_right
    return Text(" " * stems[0] + "".join(line))


def _clients(state: LiveState, width: int, glyphs: Glyphs) -> Text:
    """Each client with a dot in the colour of what it waits now."""
    line = Text()
    names = list(state.strips)
    for number, name in enumerate(names):
        rest = f"  and {len(names) - number} more"
        if line.cell_len + len(name) + 5 + len(rest) > width - 2 and number < len(names) - 1:
            line.append(rest, style="dim")
            break
        strip = state.strips[name]
        style = "dim" if strip.now_ns is None else wait_style(strip.now_ns)
        line.append("   " if number else "").append(f"{glyphs.running} ", style=style).append(name)
    return Text(" " * max(0, (width - line.cell_len) // 2)).append(line)


def _listed(state: LiveState, host: str, glyphs: Glyphs) -> Text:
    line = Text(f" {host:<12}", style="bold")
    for guest in state.guests.values():
        if _is_here(guest, host):
            line.append(_symbol(guest, host, glyphs)).append(f" {guest.name}  ")
    return line
