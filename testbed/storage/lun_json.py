"""What comes from outside about a LUN, checked: names of exports, commands; and its state as JSON.

Every function that parses raises LunError (BadRequest) with one line that says what is wrong and what is
allowed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from testbed.storage.lun import (
    MOST_EPOCH,
    Kind,
    Lease,
    LunError,
    LunState,
    Nexus,
    Ranges,
    Reservation,
    ReservationType,
)

STATE_VERSION = 1

_KEY = re.compile(r"[0-9a-f]{16}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_NEXUS = re.compile(
    r"key=([0-9A-Fa-f]{16})"
    rf"(?:&lease=({_NAME.pattern})&epoch=([0-9]{{1,19}}))?"
    r"(?:&session=([0-9A-Fa-f]{16})&turn=([0-9]{1,19}))?"
)


# ---- names and numbers


def parse_export_name(name: str) -> tuple[str, Nexus]:
    """LUN and nexus of an export's name: NAME or NAME?key=HEX16, after which may stand &lease=NAME&epoch=N,
    and then &session=HEX16&turn=N.

    LunError (BadRequest) for anything else.
    """
    lun, mark, query = name.partition("?")
    if not mark:
        return lun, Nexus()
    said = _NEXUS.fullmatch(query)
    if said is None:
        form = "NAME?key=HEX16[&lease=NAME&epoch=N][&session=HEX16&turn=N]"
        text = f"export {name!r}: must be like {form}, where HEX16 is 16 hexadecimal digits"
        raise LunError(Kind.BAD_REQUEST, text)
    key, lease, epoch, session, turn = said.groups()
    return lun, Nexus(
        key.lower(),
        lease,
        None if epoch is None else int(epoch),
        None if session is None else session.lower(),
        int(turn or 0),
    )


def parse_key(value: object) -> str:
    """A key in lower case. LunError (BadRequest)."""
    key = value.lower() if isinstance(value, str) else ""
    if not _KEY.fullmatch(key):
        raise LunError(Kind.BAD_REQUEST, f"key {value!r}: a key is 16 hexadecimal digits")
    return key


def parse_name(value: object, what: str) -> str:
    """A name of a lease or a LUN (`what`). LunError (BadRequest)."""
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        text = f"{what} {value!r}: a name is 1 to 63 of A-Z, a-z, 0-9, '.', '_', '-', no sign first"
        raise LunError(Kind.BAD_REQUEST, text)
    return value


def parse_epoch(value: object, name: str) -> int:
    """An epoch. LunError (BadRequest)."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MOST_EPOCH:
        raise LunError(Kind.BAD_REQUEST, f"{name} {value!r}: an epoch is a whole number, 0 to {MOST_EPOCH}")
    return value


def parse_ranges(value: object) -> Ranges:
    """Ranges as they stand in JSON, [[start, length], ...], sorted; ranges that touch are made one. LunError
    (BadRequest)."""
    if not isinstance(value, list) or not all(_is_range(one) for one in value):
        raise LunError(Kind.BAD_REQUEST, "ranges: must be a list of [start, length], whole numbers of bytes")
    return tuple(_joined(sorted((start, length) for start, length in value)))


def _is_range(value: object) -> bool:
    if not isinstance(value, list) or len(value) != 2:
        return False
    return all(isinstance(number, int) and not isinstance(number, bool) and number >= 0 for number in value)


def _joined(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    joined: list[tuple[int, int]] = []
    for start, length in ranges:
        if joined and sum(joined[-1]) == start:
            joined[-1] = (joined[-1][0], joined[-1][1] + length)
        else:
            joined.append((start, length))
    return joined


# ---- commands

Decide = Callable[[LunState], LunState]


def command(request: Mapping[str, Any]) -> Decide:
    """What a request of the control service ("do", and what it needs) does to a state. LunError (BadRequest).

    The keys of the request are those of the methods of :class:`LunState`.
    """
    key = parse_key(request.get("key"))
    match request.get("do"):
        case "register":
            return lambda state: state.register(key)
        case "unregister":
            return lambda state: state.unregister(key)
        case "reserve":
            kind = _reservation_type(request.get("type"))
            return lambda state: state.reserve(key, kind)
        case "release":
            return lambda state: state.release(key)
        case "preempt":
            victim = parse_key(request.get("victim"))
            return lambda state: state.preempt(key, victim)
        case "guard":
            return _guard(key, request)
        case "unguard":
            lease = parse_name(request.get("lease"), "lease")
            return lambda state: state.unguard(key, lease)
        case "claim":
            lease = parse_name(request.get("lease"), "lease")
            expect = parse_epoch(request.get("expect"), "expect")
            return lambda state: state.claim(key, lease, expect)
    known = ", ".join(COMMANDS)
    raise LunError(Kind.BAD_REQUEST, f"unknown command {request.get('do')!r}; known are: {known}")


COMMANDS = ("register", "unregister", "reserve", "release", "preempt", "guard", "unguard", "claim")


def _guard(key: str, request: Mapping[str, Any]) -> Decide:
    lease, ranges = parse_name(request.get("lease"), "lease"), parse_ranges(request.get("ranges"))
    holder = None if request.get("holder") is None else parse_key(request["holder"])
    epoch = None if request.get("epoch") is None else parse_epoch(request["epoch"], "epoch")
    return lambda state: state.guard(key, lease, ranges, holder, epoch)


def _reservation_type(value: object) -> ReservationType:
    if value not in list(ReservationType):
        raise LunError(Kind.BAD_REQUEST, f"type {value!r}: must be one of {', '.join(ReservationType)}")
    return ReservationType(str(value))


# ---- the state, kept


def as_json(state: LunState) -> dict[str, Any]:
    """All of a state, to be kept."""
    return {"version": STATE_VERSION, **state.as_dict(), "floor": state.floor}


def from_json(saved: Mapping[str, Any], size_bytes: int) -> LunState:
    """What :func:`as_json` made, of a LUN that now has `size_bytes`. ValueError for anything else."""
    try:
        if saved["version"] != STATE_VERSION:
            raise ValueError(f"version {saved['version']!r}, not {STATE_VERSION}")
        held = saved["reservation"]
        leases = {
            name: Lease(one["holder"], int(one["epoch"]), parse_ranges(one["ranges"]))
            for name, one in saved["leases"].items()
        }
        reservation = None if held is None else Reservation(ReservationType(held["type"]), held["holder"])
        registrations = frozenset(saved["registrations"])
        return LunState(size_bytes, registrations, reservation, leases, int(saved["floor"]))
    except (KeyError, TypeError, AttributeError, LunError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error
