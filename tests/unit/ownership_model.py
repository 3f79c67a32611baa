"""Two hosts, a storage and a network as one transition system that moves by the tables of ownership.py.

It is searched whole, without a bound on crashes, cuts, lost or repeated claims, or migrations. That is
possible because nothing depends on an epoch itself, only on how far it lies behind the storage's: 0, 1, or
more than 1, when no claim of it can be won and no RAM of it is good. So all epochs are kept relative to the
storage's, and the world has finitely many states.

What is abstracted. The pre-copy is one state, COPYING. A cut of a storage link is a claim that is not
carried out yet, and every order of carrying out is searched; what a cut can do beyond delay is lose a claim
or its answer, and those are faults of their own. A cut of the migration link truncates what is under way at
any message. A host reads the lease in one step: to act on an old reading is to claim an old epoch, which is
searched anyway.

Steps are *progress*, *deadlines*, *faults* or *choices*. The first two happen by themselves sooner or later:
messages arrive, claims are carried out and answered, crashed agents restart, a peer or a storage that is
silent is waited for no longer. Nobody has to begin a migration, and no fault has to happen.
"""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from testbed.migration import ownership
from testbed.migration.ownership import Event, Lease, Ownership, SourceOwnership, TargetOwnership
from testbed.migration.phases import OutOfOrder

PROGRESS, DEADLINE, FAULT, CHOICE = "progress", "deadline", "fault", "choice"
FROM, TO = 0, 1
WHO = ("source", "target")
UNBOUNDED = 1 << 30
OLD = -2
"""An epoch that lies two or more behind the storage's."""

STATE_END, STALE_STATE_END, COMMIT, ABORT = "StateEnd", "StateEnd (old)", "Commit", "Abort"
READY, REFUSAL, RESUMED = "Ready", "Abort/Returned", "Resumed"

State = SourceOwnership | TargetOwnership
AT_REST = (None, SourceOwnership.YIELDED, TargetOwnership.DISCARDED)  # here the epoch says nothing
IDLE = (SourceOwnership.YIELDED, TargetOwnership.DISCARDED, TargetOwnership.LOOKING)


class Host(NamedTuple):
    """An agent and the guest's copy on its host. `own` is None while the agent is dead."""

    own: State | None
    epoch: int  # of its Ownership
    ram: int | None  # the epoch stored with the RAM, and the one under which a running guest writes
    newest: bool  # the truth, which no host knows: nobody has run on from this RAM's state elsewhere
    runs: bool
    answer: bool | None  # of the storage to the last claim: won?
    attached: bool  # to the migration's connection


class World(NamedTuple):
    hosts: tuple[Host, Host]  # the source and the target of the last migration
    asked_back: bool  # the source sent Abort and waits for Returned
    cut: bool  # of the migration's connection
    queues: tuple[tuple[str, ...], tuple[str, ...]]  # messages under way to each host
    claims: frozenset[tuple[int, int]]  # under way to the storage: (host, epoch)
    holder: int  # of the lease; its epoch is 0 by definition


@dataclass(frozen=True)
class Rules:
    """What the hosts and the storage go by; a mutant replaces one of them."""

    source: ownership.Table[SourceOwnership] = field(default_factory=lambda: ownership.SOURCE)
    target: ownership.Table[TargetOwnership] = field(default_factory=lambda: ownership.TARGET)
    after_restart: Callable[[Lease, str], Any] = ownership.after_restart
    ram_is_good: Callable[[int | None, int], bool] = ownership.ram_is_good
    compare: bool = True  # the storage compares before it swaps
    idempotent: bool = True  # it tells the winner so as often as it asks
    lease: bool = True  # there is shared storage
    strict: bool = True  # what is not in a table ends the search; else it changes nothing


class Step(NamedTuple):
    kind: str
    label: str
    to: World
    needs: int | None = None  # the host that must reach the storage for it


BEGIN = World(
    hosts=(
        Host(SourceOwnership.OWNER, 0, 0, True, True, None, False),
        Host(TargetOwnership.DISCARDED, 0, None, False, False, None, False),
    ),
    asked_back=False,
    cut=False,
    queues=((), ()),
    claims=frozenset(),
    holder=0,
)


# ---- small changes of a world


def change(world: World, i: int, **fields: Any) -> World:
    host = world.hosts[i]._replace(**fields)
    return World((host, world.hosts[TO]) if i == FROM else (world.hosts[FROM], host), *world[1:])


def queue(world: World, i: int, messages: tuple[str, ...]) -> World:
    return world._replace(queues=(messages, world.queues[1]) if i == FROM else (world.queues[0], messages))


def send(world: World, i: int, message: str) -> World:
    """Host `i` sends; what goes to a closed or cut connection is lost, and nobody is told yet."""
    if world.cut or not world.hosts[i].attached or not world.hosts[1 - i].attached:
        return world
    return queue(world, 1 - i, (*world.queues[1 - i], message))


def detach(world: World, i: int) -> World:
    """Host `i` closes its end; what it sent can still be read. A source that has yielded deletes its copy."""
    world = queue(change(world, i, attached=False), i, ())
    if world.hosts[i].own is SourceOwnership.YIELDED:
        world = change(world, i, ram=None, newest=False)
    if world.hosts[1 - i].attached:
        return world
    return world._replace(cut=False, asked_back=False)


def behind(epoch: int) -> int:
    return max(epoch - 1, OLD)


def next_epoch(world: World, holder: int, keep: bool) -> World:
    """The storage's epoch moves on by one: everything else lies one further behind.

    A claim that is still under way can then change nothing but what its sender hears, who hears the same
    when it asks again. So it need not be kept, unless the storage does not compare.
    """
    one, other = (
        host._replace(
            epoch=0 if host.own in AT_REST else behind(host.epoch),
            ram=None if host.ram is None else behind(host.ram),
        )
        for host in world.hosts
    )
    claims = frozenset((i, behind(epoch)) for i, epoch in world.claims) if keep else frozenset()
    return world._replace(hosts=(one, other), claims=claims, holder=holder)


def start(world: World, i: int, rules: Rules) -> World:
    """The guest runs on host `i`: from good RAM, else from its disk."""
    host = world.hosts[i]
    warm = rules.ram_is_good(host.ram, host.epoch) if rules.lease else host.ram is not None
    world = change(world, i, ram=host.epoch, runs=True, newest=host.newest if warm else True)
    world = change(world, 1 - i, newest=False)
    old = tuple(STALE_STATE_END if one == STATE_END else one for one in world.queues[1 - i])
    return queue(world, 1 - i, old) if old else world


class Model:
    """The transition system under some rules; `used` collects which entries of the tables were needed."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.used: set[tuple[State, Event]] = set()

    def note(self, world: World, i: int, event: Event) -> World:
        """Host `i` notes `event`, and acts as its new state says."""
        host = world.hosts[i]
        before = host.own
        table: Any = self.rules.source if isinstance(before, SourceOwnership) else self.rules.target
        mine: Ownership[Any] = Ownership(table, before, host.epoch)
        assert before is not None
        try:
            mine.note(event)
        except OutOfOrder:
            if self.rules.strict:
                raise
            return world
        self.used.add((before, event))
        epoch = 0 if mine.state in AT_REST else min(mine.epoch, 0)
        world = change(world, i, own=mine.state, epoch=epoch)
        if mine.state.may_run and not host.runs:
            world = start(world, i, self.rules)
        if mine.state is not before:
            world = change(world, i, answer=None)
            if mine.state is TargetOwnership.DISCARDED:
                world = change(world, i, ram=None, newest=False)
        return world

    def steps(self, world: World) -> Iterator[Step]:
        for i in (FROM, TO):
            host = world.hosts[i]
            if host.own is None:
                yield from self.of_the_dead(world, i)
                continue
            yield from self.crashes(world, i)
            if host.attached:
                yield from self.connection(world, i)
                yield from self.of_source(world) if i == FROM else self.of_target(world)
            if self.rules.lease:
                yield from self.asking(world, i)
            yield from self.beginnings(world, i)
        yield from self.storage(world)
        if any(host.attached for host in world.hosts) and not world.cut:
            yield Step(FAULT, "the migration link is cut", world._replace(cut=True))

    # ---- what befalls an agent

    def crashes(self, world: World, i: int) -> Iterator[Step]:
        down = change(detach(world, i), i, own=None, epoch=0, answer=None)
        yield Step(FAULT, f"the {WHO[i]}'s agent dies, the guest's process lives", down)
        gone = change(down, i, ram=None, newest=False, runs=False)
        yield Step(FAULT, f"the {WHO[i]}'s agent dies, its RAM with it", gone)
        found = change(gone, i, ram=OLD)
        yield Step(FAULT, f"the {WHO[i]}'s agent dies, what is left is an older copy", found)

    def of_the_dead(self, world: World, i: int) -> Iterator[Step]:
        if not self.rules.lease:
            return
        lease = Lease(str(world.holder), 0)
        mine = self.rules.after_restart(lease, str(i))
        ram = world.hosts[i].ram
        if world.holder == i:
            ram = 0 if self.rules.ram_is_good(ram, 0) else None
        elif not self.rules.ram_is_good(ram, 1):  # not even if its own late claim were to be carried out
            ram = None
        newest = world.hosts[i].newest and ram is not None
        up = change(world, i, own=mine.state, epoch=0, ram=ram, newest=newest, runs=False)
        if mine.state.may_run:
            up = start(up, i, self.rules)
        yield Step(PROGRESS, f"the {WHO[i]}'s agent restarts as {mine.state.value}", up, i)

    def beginnings(self, world: World, i: int) -> Iterator[Step]:
        one, other = world.hosts[i], world.hosts[1 - i]
        if one.attached or other.attached or not (one.own and one.own.may_run and other.own in IDLE):
            return
        source = one._replace(own=SourceOwnership.OWNER, attached=True)
        target = Host(TargetOwnership.COPYING, one.epoch, None, False, False, None, True)
        if i == TO:
            claims = frozenset((1 - claimant, epoch) for claimant, epoch in world.claims)
            world = world._replace(claims=claims, holder=1 - world.holder)
        label = "a migration begins" if i == FROM else "a migration back begins: the roles change"
        yield Step(CHOICE, label, world._replace(hosts=(source, target)))

    # ---- the migration's connection

    def connection(self, world: World, i: int) -> Iterator[Step]:
        if world.queues[i]:
            message, *rest = world.queues[i]
            after = queue(world, i, tuple(rest))
            heard = self.source_hears(after, message) if i == FROM else self.target_hears(after, message)
            yield Step(PROGRESS, f"{message} arrives at the {WHO[i]}", heard)
        if world.cut or not world.hosts[1 - i].attached:
            event = Event.FAILED if i == FROM else Event.PEER_LOST
            yield Step(
                PROGRESS, f"the {WHO[i]} finds the connection lost", detach(self.note(world, i, event), i)
            )
        if world.hosts[i].own in (*IDLE, TargetOwnership.OWNER):
            yield Step(PROGRESS, f"the {WHO[i]} closes the connection", detach(world, i))

    def source_hears(self, world: World, message: str) -> World:
        if message == RESUMED:
            return self.note(world, FROM, Event.RESUMED_HEARD)
        if message == REFUSAL:
            world = self.note(world, FROM, Event.PEER_REFUSED)
            return detach(world, FROM) if world.hosts[FROM].runs else world
        if world.hosts[FROM].own is SourceOwnership.EXPOSED and not world.asked_back:
            return send(self.note(world, FROM, Event.COMMIT_SENT), FROM, COMMIT)
        return world

    def target_hears(self, world: World, message: str) -> World:
        if message == ABORT:
            world = self.note(world, TO, Event.ABORT_HEARD)
            return send(world, TO, REFUSAL) if world.hosts[TO].own is TargetOwnership.DISCARDED else world
        if world.hosts[TO].own is TargetOwnership.DISCARDED:
            return world
        if message == COMMIT:
            return self.resumed(self.note(world, TO, Event.COMMIT_HEARD))
        world = self.note(world, TO, Event.VERIFIED)
        world = change(world, TO, ram=world.hosts[TO].epoch, newest=message == STATE_END)
        return send(world, TO, READY)

    def resumed(self, world: World) -> World:
        return send(world, TO, RESUMED) if world.hosts[TO].runs else world

    def of_source(self, world: World) -> Iterator[Step]:
        own = world.hosts[FROM].own
        if own is SourceOwnership.OWNER and world.hosts[FROM].runs:
            paused = change(self.note(world, FROM, Event.STATE_SENT), FROM, runs=False)
            yield Step(PROGRESS, "the source pauses the guest, sends StateEnd", send(paused, FROM, STATE_END))
        if own is SourceOwnership.EXPOSED and not world.asked_back:
            yield Step(
                FAULT,
                "the source asks for the guest back",
                send(world, FROM, ABORT)._replace(asked_back=True),
            )
        if own in (SourceOwnership.YIELDED, SourceOwnership.IN_DOUBT):
            yield Step(FAULT, "the source fails", self.note(world, FROM, Event.FAILED))
            return
        failed = self.note(world, FROM, Event.FAILED)
        if own is not SourceOwnership.COMMITTED:
            failed = send(failed, FROM, ABORT)
        if failed.hosts[FROM].runs:
            failed = detach(failed, FROM)
        if own is not SourceOwnership.DOUBT:
            yield Step(DEADLINE, "the source fails, or waits no longer", failed)

    def of_target(self, world: World) -> Iterator[Step]:
        own = world.hosts[TO].own
        failed = self.note(world, TO, Event.FAILED)
        if own is TargetOwnership.CLAIMING:
            failed = change(failed, TO, ram=None, newest=False)
        if failed.hosts[TO].own is TargetOwnership.DISCARDED is not own:
            failed = send(failed, TO, REFUSAL)
        yield Step(FAULT, "the target fails", failed)
        yield Step(DEADLINE, "the target waits no longer", self.note(world, TO, Event.PEER_LOST))

    # ---- the storage

    def asking(self, world: World, i: int) -> Iterator[Step]:
        host = world.hosts[i]
        assert host.own is not None
        if host.own is TargetOwnership.LOOKING:
            event = ownership.seen(Lease(str(world.holder), 0), str(i), host.epoch)
            looked = self.note(world, i, event)
            yield Step(PROGRESS, f"the {WHO[i]} looks: {event.value}", looked, i)
            yield Step(DEADLINE, f"the {WHO[i]} looks in vain", self.note(world, i, Event.UNANSWERED))
        if not host.own.must_claim:
            return
        if host.answer is not None:
            event = Event.CLAIM_WON if host.answer else Event.CLAIM_LOST
            answered = self.note(change(world, i, answer=None), i, event)
            if answered.hosts[i].runs:
                answered = detach(answered, i) if i == FROM else self.resumed(answered)
            yield Step(PROGRESS, f"the {WHO[i]} hears: {event.value}", answered)
            return
        yield Step(PROGRESS, f"the {WHO[i]} claims", world._replace(claims=world.claims | {(i, host.epoch)}))
        yield Step(DEADLINE, f"the {WHO[i]} gets no answer", self.note(world, i, Event.UNANSWERED))

    def storage(self, world: World) -> Iterator[Step]:
        for claim in world.claims:
            i, epoch = claim
            rest = world._replace(claims=world.claims - {claim})
            yield Step(FAULT, f"a claim of the {WHO[i]} is lost", rest)
            yield Step(
                PROGRESS, f"a claim of the {WHO[i]} is carried out", self.carry_out(rest, i, epoch, True), i
            )
            yield Step(
                FAULT,
                f"a claim of the {WHO[i]} is carried out, unheard",
                self.carry_out(rest, i, epoch, False),
            )

    def carry_out(self, world: World, i: int, epoch: int, answered: bool) -> World:
        host = world.hosts[i]
        waits = host.own is not None and host.own.must_claim and host.epoch == epoch
        won = True
        if epoch == 0 or not self.rules.compare:
            world = next_epoch(world, i, not self.rules.compare)
        else:
            won = self.rules.idempotent and epoch == -1 and world.holder == i
        return change(world, i, answer=won) if answered and waits else world


# ---- the search


class Broken(Exception):
    """A rule that should hold does not; the text is how the world got there."""


def broken(world: World, lease: bool) -> str | None:
    """What must never be, in words; None if all is well."""
    running = [i for i in (FROM, TO) if world.hosts[i].runs]
    if len(running) > 1:
        return "two copies run"
    for i in running:
        if not world.hosts[i].newest:
            return f"the {WHO[i]} runs an old state"
        if not lease:
            continue
        if world.holder != i or world.hosts[i].ram != 0:
            return f"the {WHO[i]} runs without the lease"
        if any(epoch == 0 for _, epoch in world.claims):
            return f"the {WHO[i]} runs under an epoch that somebody asked for"
    return None


@dataclass(frozen=True)
class Searched:
    """Every reachable world, how it was first reached, and its steps that need no fault."""

    came: Mapping[World, tuple[World, str] | None]
    onward: Mapping[World, tuple[Step, ...]]
    used: frozenset[tuple[State, Event]]
    transitions: int

    def trace(self, world: World) -> str:
        return "\n".join(way(self.came, world))


def way(came: Mapping[World, tuple[World, str] | None], world: World) -> list[str]:
    lines: list[str] = []
    at = came[world]
    while at is not None:
        world, label = at
        lines.append(label)
        at = came[world]
    return lines[::-1]


@contextmanager
def without_collector() -> Iterator[None]:
    """The worlds make no cycles, and to walk them all again and again would cost half the time."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@without_collector()
def search(rules: Rules, faults: int = UNBOUNDED) -> Searched:
    """Fewest faults first, then breadth first, so that a counterexample is a simple one. Raises Broken."""
    model = Model(rules)
    came: dict[World, tuple[World, str] | None] = {BEGIN: None}
    onward: dict[World, tuple[Step, ...]] = {}
    transitions = 0
    near = deque([BEGIN])
    beyond: list[tuple[World, Step]] = []  # what one more fault leads to

    def reach(before: World, step: Step) -> None:
        if step.to in came:
            return
        came[step.to] = (before, step.label)
        near.append(step.to)
        wrong = broken(step.to, rules.lease)
        if wrong:
            raise Broken("\n".join([*way(came, step.to), f"-> {wrong}"]))

    while near:
        world = near.popleft()
        try:
            steps = [step for step in model.steps(world) if step.to != world]
        except OutOfOrder as error:
            raise Broken("\n".join([*way(came, world), f"-> not in the table: {error}"])) from error
        transitions += len(steps)
        onward[world] = tuple(step for step in steps if step.kind != FAULT)
        beyond += [(world, step) for step in steps if step.kind == FAULT and step.to not in came]
        for step in onward[world]:
            reach(world, step)
        if not near and faults:
            faults -= 1
            for before, step in beyond:
                reach(before, step)
            beyond.clear()
    return Searched(came, onward, frozenset(model.used), transitions)
