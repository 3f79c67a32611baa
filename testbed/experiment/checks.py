"""What must hold for a run to have passed. Pure: a result in, verdicts out."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from testbed.measure.result import Check, Clients, Migration


def judge(
    migrations: Sequence[Migration],
    clients: Clients,
    faults: Sequence[str],
    not_held: Collection[str] = (),
    *,
    asked_to_move: bool = True,
) -> list[Check]:
    """Every check, in the order in which a person wants to know; their names are
    :data:`testbed.scenario.steps.STANDARD_CHECKS`. Of the guests that are `not_held` frames are lost.

    Where nothing moved, nothing is said of a copy, and of moving only if that was asked (`asked_to_move`)."""
    hold = not not_held
    completed = sum(one.outcome == "completed" for one in migrations)
    verified = sum(one.ram.verified for one in migrations if one.outcome == "completed")
    left_behind = [str(one.reason) for one in migrations if one.outcome == "completed" and not one.deleted]
    dropped = sum(one.network.frames_dropped for one in migrations)
    held_dropped = sum(one.network.frames_dropped for one in migrations if one.vm not in not_held)
    count = len(migrations)
    moving = [
        _check("migrated", completed == count, f"{completed} of {count} migrations completed"),
        _check("verified", verified == completed, f"RAM proved equal in {verified} of {completed}"),
        _check("deleted", not left_behind, left_behind[0] if left_behind else "nothing left at the source"),
    ]
    if not migrations:
        moved_not = _check("migrated", False, "nothing moved: whoever was to move was there already")
        moving = [moved_not] if asked_to_move else []
    checks = [
        *moving,
        _none("no connection broken", clients.broken),
        _none("no reset", clients.resets),
        _none("no connect failed", clients.failed_connects),
        _none("no byte lost, duplicated or corrupted", _damaged(clients)),
        _check("no held frame dropped", not held_dropped, _dropped(dropped, hold)),
        _check("no fault in the guest", not faults, faults[0] if faults else "no handler raised"),
    ]
    if any(one.probe == "ledger" for one in clients.each):
        checks.append(_ledgers(clients))
    return checks


def _ledgers(clients: Clients) -> Check:
    """Whether a durable store keeps to its word. What could not be read back counts as broken."""
    kept = clients.writes_lost == clients.writes_phantom == clients.ledgers_unsettled == 0
    detail = (
        f"of {clients.acknowledged} acknowledged {clients.writes_lost} are lost; "
        f"{clients.writes_phantom} values that nobody wrote; "
        f"{clients.ledgers_unsettled} ledgers that could not be read back"
    )
    return _check("no acknowledged write lost", kept, detail)


def _damaged(clients: Clients) -> int:
    return clients.bytes_lost + clients.bytes_duplicated + clients.bytes_corrupted


def _dropped(dropped: int, hold: bool) -> str:
    return f"{dropped or 'none'}" if hold else f"{dropped or 'none'}, as holding was off"


def _check(name: str, passed: bool, detail: str) -> Check:
    return Check(name=name, passed=passed, detail=detail)


def _none(name: str, count: int) -> Check:
    return _check(name, count == 0, str(count) if count else "none")
