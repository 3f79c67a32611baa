"""The source's side of a migration."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol, TypeVar

from testbed.memory import page_map
from testbed.memory.digests import PageDigests
from testbed.memory.pages import PageSet
from testbed.memory.region import Region
from testbed.memory.tracking import DirtyTracker
from testbed.migration import wire
from testbed.migration.arbiter import Arbiter, ask
from testbed.migration.channel import Channel
from testbed.migration.errors import (
    Cancelled,
    CommitInDoubt,
    MigrationError,
    NotConverging,
    NotVerified,
    Overtaken,
    PeerLost,
    PeerRefused,
    ProtocolError,
)
from testbed.migration.ownership import Event, SourceOwnership, of_source
from testbed.migration.phases import Phase, Progress
from testbed.migration.strategy import (
    FIRST_MESSAGE_PAGES,
    Decision,
    Policy,
    RoundStatistics,
    Verdict,
    decide,
    message_pages,
    takes_long,
)

M = TypeVar("M", bound=wire.Message)

_TELL_NS = 250_000_000
"""How often a round that takes long says how far it is: an event costs 50 us."""
LOST_PEER_DEADLINE_S = 0.5
"""How long a peer that was silent already is waited for once more, with the guest stopped."""


class SourceVM(Protocol):
    """What the engine asks of the host on which the guest runs. Until :meth:`delete` each step can be taken
    back."""

    ram: Region
    tracker: DirtyTracker

    @property
    def arbiter(self) -> Arbiter | None:
        """None where no storage is shared: then the commit that was sent is what decides."""
        ...

    def describe(self) -> Mapping[str, Any]:
        """What the target must know to provision the guest; JSON-able."""
        ...

    def foresee_devices(self) -> Mapping[str, Any]:
        """What device state will come, as far as is known while the guest runs, so that the target can
        prepare."""
        ...

    def hold_handshakes(self) -> None:
        """From here on no new connection begins; those under way are complete when this returns."""
        ...

    def pause(self) -> None:
        """Stop the guest at the end of a step and cut its ingress: frames for it are held from here on."""
        ...

    def give_way(self) -> None:
        """What is left to copy takes long: others are not to be kept from the processors meanwhile."""
        ...

    def devices(self) -> Iterator[wire.Device]:
        """Freeze and hand out the device state, a part at a time, while earlier parts are already under
        way."""
        ...

    def silence(self) -> None:
        """Cut the guest's egress too, after :meth:`devices`: what its kernel sent until then counts as
        sent."""
        ...

    def late_devices(self) -> Iterator[wire.Device]:
        """What frames that were on their way when the ingress was cut have altered since :meth:`devices`.

        After :meth:`silence`: a frame that comes later still is acknowledged to nobody, so its sender sends
        it again, to wherever the guest is then.
        """
        ...

    def exposed(self) -> None:
        """What the target needs to run the guest is about to leave: called once, before it does."""
        ...

    def held_frames(self) -> list[bytes]:
        """The frames held since the last call, in order."""
        ...

    def committing(self) -> None:
        """The word that lets the target run the guest is about to leave."""
        ...

    def roll_back(self, returned: Sequence[bytes]) -> None:
        """Undo whatever of the above was done: the guest runs on here, nothing is lost. `returned` are frames
        for it that the target held, to be released here after this host's own. May be called after any step,
        also one that failed half-way."""
        ...

    def give_up_ownership(self) -> None:
        """The target runs the guest: frames that still come here are to go there."""
        ...

    def delete(self) -> None:
        """Remove this host's copy for good."""
        ...


class TraceLike(Protocol):
    def event(self, event: str, *, t_ns: int | None = None, **fields: Any) -> int: ...
    def phase(self, phase: str) -> AbstractContextManager[None]: ...
    def flush(self) -> bool: ...


@dataclass(frozen=True)
class Plan:
    """What one migration needs to know. `nonce` is 16 fresh random bytes, `secret` is the run's.

    `rate_limit` caps the pre-copy rounds in bytes per second, not the switchover. From the pause on the
    target may be silent for `switchover_deadline_s` at most, then the guest is taken back. `whole`: every
    page crosses as data, whether it was ever touched or not, as in a saved state of 2008.
    """

    secret: bytes
    nonce: bytes
    policy: Policy = field(default_factory=Policy)
    precopy: bool = True
    whole: bool = False
    rate_limit: int | None = None
    switchover_deadline_s: float = 3.0


@dataclass(frozen=True)
class SourceOutcome:
    """A migration that completed. `audited` says that the source's frozen RAM, digested once more as a
    whole after the resume, is what was verified before the commit; where it is False a write went unseen.
    `resumed_ns` is None where the guest is the target's and the target's word of it was lost. `left_behind`
    says why the source's copy could not be removed as a whole; None where it is gone.
    """

    rounds: tuple[RoundStatistics, ...]
    verdict: Verdict | None
    final_pages: int
    transferred_bytes: int
    resumed_ns: int | None
    late_frames: int
    audited: bool
    left_behind: str | None = None


class Source:
    """Sends one guest away. :meth:`run` either returns its outcome, or raises with the guest running here as
    if nothing had happened. Two errors mean something else: after :class:`Overtaken` the guest is the
    target's, and deleted here; :class:`CommitInDoubt` leaves it stopped here, which can only happen without
    shared storage.

    The decision that this type embodies: until the guest is the target's, everything the source did is
    suspended, not ended. The guest's process is stopped and kept, its sockets are frozen and kept open, its
    frames are held and kept. So the one unwind site, :meth:`_unwind`, only has to let go.

    With shared storage the guest is the target's when the target has claimed it, which it may do as soon as
    all of its state has left (`StateEnd`). So whatever fails after that, this side claims it too before it
    runs again, and whoever was first has it. Without shared storage there is nobody to ask: the guest is the
    target's when Commit has been sent.
    """

    def __init__(
        self,
        vm: SourceVM,
        channel: Channel,
        plan: Plan,
        clock: Callable[[], int],
        trace: TraceLike,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> None:
        self._vm = vm
        self._channel = channel
        self._plan = plan
        self._clock = clock
        self._trace = trace
        self._cancelled = cancelled
        self._progress = Progress()
        self._digests = PageDigests(vm.ram.pages)
        self._rounds: list[RoundStatistics] = []
        self._verdict: Verdict | None = None
        self._message_pages = FIRST_MESSAGE_PAGES
        self._pending = PageSet.empty()
        self._undigested = PageSet.empty()
        self._sent = PageSet.empty()
        self._sending_ns = 0
        self._final_pages = 0
        self._sent_bytes = 0
        self._frames: list[bytes] = []
        self._ownership = of_source(vm.arbiter.lease if vm.arbiter else None)
        self._left_behind: str | None = None

    def run(self) -> SourceOutcome:
        """The whole migration, in order."""
        try:
            self._phase(Phase.SETUP, self._setup)
            self._phase(Phase.PROVISION, self._provision)
            self._phase(Phase.PRECOPY, self._precopy)
            self._phase(Phase.PAUSE, self._pause)
            root = self._phase(Phase.SWITCHOVER, self._switchover)
            self._phase(Phase.VERIFY, lambda: self._verify(root))
            self._phase(Phase.COMMIT, self._commit)
        except BaseException as error:
            self._unwind(error)
            raise
        # The point of no return: whatever fails from here on, the guest is the target's.
        self._phase(Phase.ANNOUNCE, self._give_up)
        resumed_ns = self._phase(Phase.RESUME, self._resume)
        late = self._forward_late_frames()
        self._trace_last_pages()
        audited = self._phase(Phase.DELETE, self._delete)
        return SourceOutcome(
            tuple(self._rounds),
            self._verdict,
            self._final_pages,
            self._sent_bytes,
            resumed_ns,
            late,
            audited,
            self._left_behind,
        )

    R = TypeVar("R")

    def _phase(self, phase: Phase, step: Callable[[], R]) -> R:
        self._progress.enter(phase)
        with self._trace.phase(phase.value):
            return step()

    def _setup(self) -> None:
        nonce = self._plan.nonce
        self._send(wire.Hello(wire.VERSION, nonce))
        hello = self._receive(wire.Hello)
        if hello.version != wire.VERSION:
            raise ProtocolError(f"the target speaks version {hello.version}, this is {wire.VERSION}")
        self._send(wire.Proof(wire.prove(self._plan.secret, "source", nonce, hello.nonce)))
        wire.check_proof(self._receive(wire.Proof), self._plan.secret, "target", nonce, hello.nonce)

    def _provision(self) -> None:
        ram = self._vm.ram
        self._send(wire.Offer(ram.size, self._vm.describe()))
        self._trace.flush()  # the target is busy for a while
        ram.map_in(ram.touched())  # while the target is busy: the first round is not to fault on each page
        self._receive(wire.Provisioned)

    def _precopy(self) -> None:
        """Rounds until the strategy says to switch; leaves in `_pending` what is still to be sent."""
        ram, tracker = self._vm.ram, self._vm.tracker
        tracker.start()
        self._pending = PageSet.all(ram.pages) if self._plan.whole else ram.touched()
        if self._plan.precopy:
            self._channel.limit_rate(self._plan.rate_limit)
            self._verdict = self._rounds_until_decided()
            self._channel.limit_rate(None)
        self._trace.event("switching-over")
        self._trace.flush()  # now, while the guest runs: whoever draws on this machine is to keep still
        self._send(wire.Prepare(self._vm.foresee_devices()))
        self._receive(wire.Prepared)

    def _rounds_until_decided(self) -> Verdict:
        while True:
            self._heed_cancellation()
            statistics = self._round(len(self._rounds) + 1)
            self._rounds.append(statistics)
            verdict = decide(self._rounds, self._plan.policy)
            self._trace_round(statistics, verdict)
            if verdict.decision is Decision.GIVE_UP:
                raise NotConverging(verdict.reason)
            if verdict.decision is Decision.SWITCH:
                self._settle()
                return verdict

    def _settle(self) -> None:
        """Digest all that was sent, as late as the running guest allows, then send what it wrote meanwhile.

        The target digests what it receives when it receives it. So a page that was altered after it was sent
        and that the tracker did not report has two different digests, and the verification fails; and the
        blackout digests the last round only.
        """
        self._digest()
        self._pending |= self._collect()
        self._rounds.append(self._round(len(self._rounds) + 1))
        self._trace_round(self._rounds[-1])
        self._digest()

    def _digest(self) -> None:
        self._digests.update(self._vm.ram, self._undigested)
        self._undigested = PageSet.empty()

    def _collect(self) -> PageSet:
        """The pages that the target has to be sent again.

        A tracker that is not exact may miss a page that was changed, sent, and changed back. So what was sent
        is digested too, from a copy, and all of RAM is held against it: that costs a pass over RAM, which
        such a tracker costs anyway.
        """
        if self._vm.tracker.exact:
            return self._vm.tracker.collect()
        now = PageDigests(self._vm.ram.pages)
        now.update(self._vm.ram, self._vm.ram.touched())
        return now.differing(self._digests)

    def _copy(self, pages: PageSet) -> Region:
        """RAM of no guest, with `pages` as they are now."""
        copy = Region.create(self._vm.ram.size)
        for start, count in pages.runs:
            copy.array[start : start + count] = self._vm.ram.array[start : start + count]
        return copy

    def _trace_round(self, statistics: RoundStatistics, verdict: Verdict | None = None) -> None:
        fields: dict[str, Any] = asdict(statistics) | self._what_was_sent()
        if verdict is not None:
            fields |= {"decision": verdict.decision.value, "expected_ns": verdict.expected_ns}
            fields |= {"reason": verdict.reason}
        self._trace.event("round", **fields)
        self._trace.flush()

    def _what_was_sent(self) -> dict[str, Any]:
        """When the round's pages began to be sent, and where in RAM they lie (testbed.memory.page_map)."""
        return {"begin_ns": self._sending_ns, "map": page_map.encode(self._sent, self._vm.ram.pages)}

    def _trace_last_pages(self) -> None:
        """The same of the last pages: told when the guest runs again, for a map costs as much as some
        frames."""
        if self._final_pages:
            self._trace.event("pages", number=len(self._rounds) + 1, **self._what_was_sent())

    def _round(self, number: int) -> RoundStatistics:
        pages = self._pending
        begin_ns = self._clock()
        sent, zeros = self._send_pages(number, pages)
        done = self._receive(wire.RoundDone)
        if (done.number, done.pages) != (number, len(pages)):
            raise ProtocolError(
                f"the target took {done.pages} pages of round {done.number}, not {len(pages)} of {number}"
            )
        duration_ns = self._clock() - begin_ns
        self._pending = self._collect()
        return RoundStatistics(number, len(pages), zeros, sent, duration_ns, len(self._pending))

    def _send_pages(self, number: int, pages: PageSet) -> tuple[int, int]:
        """Send one round; returns the bytes on the wire and how many pages went as zeros. Raises Cancelled
        between two messages."""
        ram = self._vm.ram
        self._sent, self._sending_ns = pages, self._clock()
        zeros = PageSet.empty() if self._plan.whole else ram.zero(pages)
        sent = self._channel.send(wire.RoundBegin(number, len(pages)), *wire.zero_messages(_runs(zeros)))
        data = pages - zeros
        if not self._vm.tracker.exact:
            ram = self._copy(data)
            self._digests.update(ram, data)
            self._digests.update(ram, zeros)
        told_ns = self._sending_ns
        for message in wire.page_messages(_runs(data), lambda: self._message_pages):
            self._heed_cancellation()
            begin_ns = self._clock()
            if begin_ns - told_ns >= _TELL_NS:
                told_ns = begin_ns
                self._trace.event("sending", number=number, bytes=sent, of_bytes=len(data) * wire.PAGE)
                self._trace.flush()
            sent += self._channel.send_pages(message, ram)
            self._message_pages = message_pages(self._message_pages, self._clock() - begin_ns)
        sent += self._channel.send(wire.RoundEnd(number, len(pages)))
        self._sent_bytes += sent
        if self._vm.tracker.exact:
            self._undigested |= pages
        return sent, len(zeros)

    def _heed_cancellation(self) -> None:
        if self._cancelled():
            raise Cancelled("the migration was cancelled")

    def _pause(self) -> None:
        self._heed_cancellation()
        self._vm.hold_handshakes()
        self._channel.set_deadline(self._plan.switchover_deadline_s)
        self._vm.pause()

    def _switchover(self) -> bytes:
        """Everything that is left crosses; returns the root digest of the source's RAM."""
        self._pending |= self._collect()
        if takes_long(len(self._pending)):
            self._vm.give_way()
        self._send_pages(len(self._rounds) + 1, self._pending)
        self._final_pages = len(self._pending)
        self._trace.event("mark", name="pages-sent", pages=self._final_pages)
        devices = self._send_devices(self._vm.devices())
        self._vm.silence()
        self._send(wire.Silent())
        devices += self._send_devices(self._vm.late_devices())
        self._trace.event("mark", name="devices-sent", devices=devices)
        self._digest()
        root = self._digests.root()
        self._ownership.note(Event.STATE_SENT)
        self._vm.exposed()
        self._send(wire.StateEnd(devices, root))
        self._trace.event("mark", name="state-sent")
        return root

    def _send_devices(self, devices: Iterator[wire.Device]) -> int:
        count = 0
        for device in devices:
            self._send(device)
            count += 1
        return count

    def _verify(self, root: bytes) -> None:
        ready = self._receive(wire.Ready)
        if ready.root != root:
            raise NotVerified("the target's RAM is not the source's")
        # The switch has relearned by now, so what is held here is all but complete; it goes along with the
        # commit. Taken here, where it can still be given back.
        self._frames = self._vm.held_frames()

    def _commit(self) -> None:
        """Let the target run the guest. With shared storage it claims the guest first, and says so."""
        self._ownership.note(Event.COMMIT_SENT)
        self._vm.committing()
        leaves_ns = self._clock()  # before what follows from it
        self._send(*wire.frame_messages(self._frames), wire.Commit())
        self._trace.event("mark", name="committed", t_ns=leaves_ns)
        if self._vm.arbiter is not None:
            self._receive(wire.Owned)
            self._ownership.note(Event.RESUMED_HEARD)

    def _resume(self) -> int | None:
        try:
            resumed_ns = self._receive(wire.Resumed).t_ns
        except (PeerLost, PeerRefused, ProtocolError) as error:
            self._trace.event("target-lost", reason=str(error))
            self._ownership.note(Event.FAILED)
            self._fail_in_doubt(error)
            return None
        self._ownership.note(Event.RESUMED_HEARD)
        return resumed_ns

    def _give_up(self) -> None:
        """The guest is the target's: what cannot be done for it here does not keep its copy from being
        deleted."""
        try:
            self._vm.give_up_ownership()
        except Exception as error:
            self._trace.event("not-given-up", reason=f"{type(error).__name__}: {error}")

    def _forward_late_frames(self) -> int:
        late: list[bytes] = []
        try:
            late = self._vm.held_frames()
            self._send(*wire.frame_messages(late), wire.Finished())
        except (PeerLost, OSError) as error:
            self._trace.event("late-frames-lost", frames=len(late), reason=str(error))
            return 0
        return len(late)

    def _delete(self) -> bool:
        """Prove the copy once more, without haste, before the original goes; returns whether that held.

        The guest runs at the target by now. So a step that fails does not keep the later ones from being
        taken, and is told beside the success, not in its place.
        """
        audited = False
        try:
            with ExitStack() as stack:
                stack.callback(self._vm.delete)
                stack.callback(self._vm.tracker.stop)
                audited = self._audit()
        except Exception as error:
            self._left_behind = f"{type(error).__name__}: {error}"
            self._trace.event("left-behind", reason=self._left_behind)
        return audited

    def _audit(self) -> bool:
        """Whether the source's RAM, digested once more as a whole, is what was verified."""
        audit = PageDigests(self._vm.ram.pages)
        audit.update(self._vm.ram, self._vm.ram.touched())
        return audit.root() == self._digests.root()

    def _unwind(self, error: BaseException) -> None:
        """The one place where failure is undone: tell the peer, take back the frames, make sure that the
        guest is still ours, let it run on. Raises Overtaken where it is the target's, CommitInDoubt where
        nobody can tell.
        """
        returned = self._abort(error)
        refused = isinstance(error, PeerRefused) or returned is not None
        self._ownership.note(Event.PEER_REFUSED if refused else Event.FAILED)
        self._claim_if_in_doubt()
        self._fail_in_doubt(error)
        if self._ownership.state.may_delete:
            self._give_up()
            with self._trace.phase(Phase.DELETE.value):
                audited = self._delete()
            raise Overtaken(f"the target has taken the guest ({error})", audited) from error
        try:
            self._vm.tracker.stop()
        finally:
            self._vm.roll_back([*self._frames, *(returned or ())])
        self._trace_last_pages()
        self._trace.event("rolled-back", reason=str(error))
        self._trace.flush()

    def _abort(self, error: BaseException) -> Sequence[bytes] | None:
        """Tell the target, and get back the frames that it held; None where it says nothing. Its Abort and
        its Returned are its word that it will never run its copy.
        """
        try:
            self._channel.limit_rate(None)
            if isinstance(error, PeerLost):
                self._channel.set_deadline(LOST_PEER_DEADLINE_S)
            if not isinstance(error, PeerRefused):
                self._send(wire.Abort(f"{type(error).__name__}: {error}"))
            # Both may give up at once: its Abort is then still to come, before the frames.
            due_before = (wire.Abort, wire.Ready, wire.Prepared, wire.RoundDone, wire.Provisioned, wire.Owned)
            return self._receive(wire.Returned, *due_before).frames
        except (MigrationError, OSError) as lost:
            self._trace.event("frames-not-returned", reason=str(lost))
            return None

    def _claim_if_in_doubt(self) -> None:
        """However long the storage takes to answer: meanwhile the guest stands still."""
        arbiter = self._vm.arbiter
        while arbiter is not None and self._ownership.state.must_claim:
            self._ownership.note(ask(arbiter, self._trace))

    def _fail_in_doubt(self, error: BaseException) -> None:
        if self._ownership.state is SourceOwnership.IN_DOUBT:
            raise CommitInDoubt(f"no word from the target after the commit: {error}") from error

    def _send(self, *messages: wire.Message) -> None:
        self._sent_bytes += self._channel.send(*messages)

    def _receive(self, expected: type[M], *skipped: type[wire.Message]) -> M:
        while True:
            message = self._channel.receive()
            if isinstance(message, expected):
                return message
            if isinstance(message, skipped):
                continue
            if isinstance(message, wire.Abort):
                raise PeerRefused(message.reason)
            raise ProtocolError(f"{type(message).__name__} where {expected.__name__} was due")


def _runs(pages: PageSet) -> Iterator[wire.Run]:
    return ((int(start), int(count)) for start, count in pages.runs)
