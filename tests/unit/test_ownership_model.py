"""Every state that the tables of ownership.py can lead to, with any number of faults: what must hold in each.

And the other way round: for each rule a mutant that breaks it, which the same search must find.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import pytest

from testbed.migration import ownership
from testbed.migration.ownership import (
    SOURCE,
    SOURCE_ALONE,
    TARGET,
    TARGET_ALONE,
    Event,
    Lease,
    Ownership,
    SourceOwnership,
    Table,
    TargetOwnership,
)
from tests.unit.ownership_model import (
    ABORT,
    BEGIN,
    CHOICE,
    FROM,
    PROGRESS,
    TO,
    Broken,
    Host,
    Rules,
    Searched,
    Step,
    World,
    search,
)

S, T = SourceOwnership, TargetOwnership
LEASE = Rules()
ALONE = Rules(source=SOURCE_ALONE, target=TARGET_ALONE, lease=False)


@pytest.fixture(scope="module")
def searched() -> Searched:
    return search(LEASE)


# ---- liveness: what the search found, held against "never none for ever"


def inevitable(steps: Iterable[Step], without: int | None = None) -> list[World]:
    """Where the steps lead that need neither a fault nor a choice, nor the storage link of host `without`."""
    return [step.to for step in steps if step.kind != CHOICE and (without is None or step.needs != without)]


def last_first(searched: Searched) -> list[World]:
    """The worlds, each after all that it inevitably leads to. Raises Broken where that goes round."""
    into: dict[World, list[World]] = {world: [] for world in searched.came}
    waiting: dict[World, int] = {}
    for world, steps in searched.onward.items():
        goals = inevitable(steps)
        waiting[world] = len(goals)
        for goal in goals:
            into[goal].append(world)
    order = [world for world, count in waiting.items() if not count]
    for world in order:
        for before in into[world]:
            waiting[before] -= 1
            if not waiting[before]:
                order.append(before)
    if len(order) < len(into):
        raise Broken("it goes round for ever without a fault")
    return order


def owned(world: World) -> bool:
    """One host runs the guest, and an agent that knows it is the owner."""
    running = [host for host in world.hosts if host.runs]
    return len(running) == 1 and running[0].own is not None and running[0].own.may_run


def never_none_for_ever(searched: Searched) -> None:
    """Raises Broken for a world that needs no more fault to stay without an owner.

    What is inevitable has no cycles, so in whatever order it happens it ends in a world that stays as it is.
    """
    order = last_first(searched)
    survives: dict[World, bool] = {}
    for world in order:
        steps = searched.onward[world]
        if not inevitable(steps) and not owned(world):
            raise Broken(f"{searched.trace(world)}\n-> nobody runs the guest, for ever")
        for gone in (FROM, TO):  # dead for ever, or cut off from the storage for ever
            rest = inevitable(steps, without=gone)
            if not rest and not world.hosts[1 - gone].runs and world.holder != gone:
                raise Broken(
                    f"{searched.trace(world)}\n-> a host that is cut off keeps the other from running"
                )
        rest = inevitable(steps, without=FROM)
        survives[world] = all(survives[goal] for goal in rest) if rest else world.hosts[TO].runs
        if source_died(world) and not survives[world]:
            raise Broken(f"{searched.trace(world)}\n-> the source died, and its verified copy does not run")


def source_died(world: World) -> bool:
    """The copy is verified, the source is dead and has neither asked for the guest back nor claimed."""
    source, target = world.hosts
    return (
        target.own is T.READY
        and target.epoch == 0
        and source.own is None
        and world.holder == FROM
        and ABORT not in world.queues[TO]
        and all(claimant != FROM for claimant, _ in world.claims)
    )


def goes_there_and_back(searched: Searched) -> None:
    """Raises Broken where a guest does not arrive though there is no fault and no deadline passes."""
    world = BEGIN
    for _ in range(2):
        way = [step.to for step in searched.onward[world] if step.kind == CHOICE]
        for at in way:
            goals = {step.to for step in searched.onward[at] if step.kind == PROGRESS}
            way += goals.difference(way)
        ends = [at for at in way if all(step.kind != PROGRESS for step in searched.onward[at])]
        if not ends:
            raise Broken(f"{searched.trace(world)}\n-> the guest does not leave")
        for world in ends:
            if (world.hosts[FROM].own, world.hosts[TO].own) != (S.YIELDED, T.OWNER):
                raise Broken(f"{searched.trace(world)}\n-> the guest does not arrive")


# ---- with a lease


def test_no_two_run_and_none_runs_an_old_state(searched: Searched) -> None:
    """`search` holds every world against it, and would have raised."""
    print(f"{len(searched.came)} worlds, {searched.transitions} steps")
    assert len(searched.came) > 20_000


def test_there_is_an_owner_in_the_end(searched: Searched) -> None:
    never_none_for_ever(searched)
    assert any(source_died(world) for world in searched.came)


def test_undisturbed_the_guest_goes_there_and_back(searched: Searched) -> None:
    goes_there_and_back(searched)


def test_every_entry_of_the_tables_can_happen(searched: Searched) -> None:
    assert entries(SOURCE) | entries(TARGET) == searched.used


def entries(table: Mapping[Any, Mapping[Event, Any]]) -> set[tuple[Any, Event]]:
    return {(state, event) for state, row in table.items() for event in row}


# ---- without a lease


def test_alone_no_two_run() -> None:
    found = search(ALONE)
    print(f"{len(found.came)} worlds, {found.transitions} steps")
    assert entries(SOURCE_ALONE) | entries(TARGET_ALONE) == found.used


def test_alone_nobody_can_decide_a_doubt() -> None:
    """Two worlds that the source cannot tell apart: in one the guest runs at the target, in one nowhere."""
    doubts = [world for world in search(ALONE).came if world.hosts[FROM].own is S.IN_DOUBT]
    quiet = [world for world in doubts if not any(host.attached for host in world.hosts)]
    running = {seen_by_source(world) for world in quiet if world.hosts[TO].runs}
    nowhere = {seen_by_source(world) for world in quiet if world.hosts[TO].own is T.DISCARDED}
    assert running & nowhere


def seen_by_source(world: World) -> Host:
    return world.hosts[FROM]._replace(newest=False)  # which no host knows


# ---- mutants: each rule is needed, and the search sees it


def source(state: SourceOwnership, event: Event, to: SourceOwnership) -> Rules:
    return Rules(source=altered(SOURCE, state, event, to))


def target(state: TargetOwnership, event: Event, to: TargetOwnership) -> Rules:
    return Rules(target=altered(TARGET, state, event, to))


def altered(
    table: Table[ownership.S], state: ownership.S, event: Event, to: ownership.S
) -> Table[ownership.S]:
    assert event in table[state], "a mutant alters an entry that there is"
    return {**table, state: {**table[state], event: to}}


def runs_on_at_once(lease: Lease, who: str) -> Ownership[SourceOwnership] | Ownership[TargetOwnership]:
    """A restarted agent that takes the lease for leave to run."""
    if lease.holder == who:
        return Ownership(SOURCE, S.OWNER, lease.epoch)
    return ownership.after_restart(lease, who)


def stays_away(lease: Lease, who: str) -> Ownership[SourceOwnership] | Ownership[TargetOwnership]:
    """A restarted agent that looks at the lease once."""
    if lease.holder == who:
        return ownership.after_restart(lease, who)
    return Ownership(TARGET, T.DISCARDED, lease.epoch)


MUTANTS = {
    "the source runs on after a failure, without a claim": source(S.EXPOSED, Event.FAILED, S.OWNER),
    "the source forgets that it sent StateEnd": source(S.OWNER, Event.STATE_SENT, S.OWNER),
    "the source trusts a refusal while its own claim is under way": source(
        S.DOUBT, Event.PEER_REFUSED, S.OWNER
    ),
    "the source runs when the storage is silent": source(S.DOUBT, Event.UNANSWERED, S.OWNER),
    "the source gives up when the storage is silent": source(S.DOUBT, Event.UNANSWERED, S.YIELDED),
    "the source runs though it lost": source(S.DOUBT, Event.CLAIM_LOST, S.OWNER),
    "the source yields though it won": source(S.DOUBT, Event.CLAIM_WON, S.YIELDED),
    "the source yields because it sent Commit": source(S.EXPOSED, Event.COMMIT_SENT, S.YIELDED),
    "the source yields to a refusal": source(S.EXPOSED, Event.PEER_REFUSED, S.YIELDED),
    "the source takes the guest back once it sent Commit": source(S.EXPOSED, Event.COMMIT_SENT, S.DOUBT),
    "the target is deaf to Commit": target(T.READY, Event.COMMIT_HEARD, T.READY),
    "the target runs before the claim": target(T.READY, Event.COMMIT_HEARD, T.OWNER),
    "the target runs because the source is silent": target(T.READY, Event.PEER_LOST, T.OWNER),
    "the target discards because the source is silent": target(T.READY, Event.PEER_LOST, T.DISCARDED),
    "the target refuses when it may have claimed": target(T.CLAIMING, Event.FAILED, T.DISCARDED),
    "the target gives in to Abort when it may have claimed": target(
        T.CLAIMING, Event.ABORT_HEARD, T.DISCARDED
    ),
    "the target gives up when the storage is silent": target(T.CLAIMING, Event.UNANSWERED, T.DISCARDED),
    "the target runs when the storage is silent": target(T.CLAIMING, Event.UNANSWERED, T.OWNER),
    "the target runs though it lost": target(T.CLAIMING, Event.CLAIM_LOST, T.OWNER),
    "the target claims though the copy is not complete": target(T.COPYING, Event.PEER_LOST, T.CLAIMING),
    "a restarted target looks once": Rules(after_restart=stays_away),
    "a restarted target stops looking too soon": target(T.LOOKING, Event.LEASE_UNCHANGED, T.DISCARDED),
    "a restarted target runs at once": target(T.LOOKING, Event.LEASE_UNCHANGED, T.OWNER),
    "a restarted target runs when the storage is silent": target(T.LOOKING, Event.UNANSWERED, T.OWNER),
    "a restarted target gives up when the storage is silent": target(
        T.LOOKING, Event.UNANSWERED, T.DISCARDED
    ),
    "a restarted target leaves what is its": target(T.LOOKING, Event.LEASE_OURS, T.DISCARDED),
    "a restarted source runs at once": Rules(after_restart=runs_on_at_once),
    "the storage swaps without comparing": Rules(compare=False),
    "the storage tells the winner once": Rules(idempotent=False),
    "any RAM is good": Rules(ram_is_good=lambda ram_epoch, epoch: ram_epoch is not None),
}

MUTANTS_ALONE = {
    "the source takes silence after Commit for a no": Rules(
        source=altered(SOURCE_ALONE, S.COMMITTED, Event.FAILED, S.OWNER), target=TARGET_ALONE, lease=False
    ),
    "the source forgets that it sent Commit": Rules(
        source=altered(SOURCE_ALONE, S.EXPOSED, Event.COMMIT_SENT, S.EXPOSED),
        target=TARGET_ALONE,
        lease=False,
    ),
    "the target runs without Commit": Rules(
        source=SOURCE_ALONE, target=altered(TARGET_ALONE, T.READY, Event.PEER_LOST, T.OWNER), lease=False
    ),
    "the target refuses after Commit": Rules(
        source=SOURCE_ALONE, target=altered(TARGET_ALONE, T.OWNER, Event.FAILED, T.DISCARDED), lease=False
    ),
}


def everything_holds(rules: Rules) -> None:
    """Raises Broken. One fault is enough for each mutant."""
    searched = search(rules, faults=1)
    never_none_for_ever(searched)
    goes_there_and_back(searched)


@pytest.mark.parametrize("name", MUTANTS)
def test_mutants_are_found(name: str) -> None:
    with pytest.raises(Broken) as found:
        everything_holds(replace(MUTANTS[name], strict=False))
    print(f"{name}:\n{found.value}")


@pytest.mark.parametrize("name", MUTANTS_ALONE)
def test_mutants_without_a_lease_are_found(name: str) -> None:
    with pytest.raises(Broken) as found:
        search(replace(MUTANTS_ALONE[name], strict=False))
    print(f"{name}:\n{found.value}")
