"""The target's side of a migration."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from testbed.memory.digests import PageDigests
from testbed.memory.pages import PageSet
from testbed.memory.region import Region
from testbed.migration import wire
from testbed.migration.arbiter import Arbiter, ask
from testbed.migration.channel import Channel
from testbed.migration.errors import (
    LocalError,
    MigrationError,
    NotVerified,
    Overtaken,
    PeerLost,
    PeerRefused,
    ProtocolError,
)
from testbed.migration.ownership import Event, of_target
from testbed.migration.phases import Phase, Progress
from testbed.migration.source import TraceLike
from testbed.migration.strategy import takes_long

M = TypeVar("M", bound=wire.Message)


class TargetVM(Protocol):
    """What the engine asks of the host to which the guest comes. Nothing of it can be seen from outside
    before :meth:`take_network`, and the guest does not run before :meth:`start`.
    """

    @property
    def arbiter(self) -> Arbiter | None:
        """After :meth:`provision`: whom to ask whose the guest is; None where no storage is shared."""
        ...

    def provision(self, ram_bytes: int, description: Mapping[str, Any]) -> Region:
        """Put process, RAM (zero-filled, populated) and NIC in place, silent and unplugged."""
        ...

    def prepare(self, devices: Mapping[str, Any]) -> None:
        """Make ready for that device state: what is slow is done here, while the guest still runs at the
        source."""
        ...

    def take_network(self) -> None:
        """The guest is paused and cut off at the source: announce once, hold the frames that now arrive
        here."""
        ...

    def give_way(self) -> None:
        """What is left to copy takes long: others are not to be kept from the processors meanwhile."""
        ...

    def load(self, device: wire.Device) -> bool:
        """Take one part of the device state; False where nothing here knows it."""
        ...

    def ready(self) -> None:
        """All state is here: complete whatever is left. Raises where something is missing."""
        ...

    def owned(self) -> None:
        """The guest is this host's for good; it is about to run."""
        ...

    def announce(self) -> None:
        """The guest is this host's: send the schedule's first announcement now, the later ones once it
        runs."""
        ...

    def start(self, frames: Sequence[bytes]) -> int:
        """Plug in, release `frames` (the source's) and then those held here, run. Returns CLOCK_MONOTONIC,
        ns."""
        ...

    def inject(self, frames: Sequence[bytes]) -> None:
        """Deliver frames that reached the source after it had sent its state."""
        ...

    def give_back(self) -> list[bytes]:
        """The guest stays at the source, which waits for this: returns the frames that were held. May be
        called after any step."""
        ...

    def discard(self) -> None:
        """Then, without haste: remove whatever of the above was made."""
        ...


class Target:
    """Receives one guest. :meth:`run` returns when the guest runs here, or raises with nothing of it left
    here."""

    def __init__(self, vm: TargetVM, channel: Channel, secret: bytes, nonce: bytes, trace: TraceLike) -> None:
        self._vm = vm
        self._channel = channel
        self._secret = secret
        self._nonce = nonce
        self._trace = trace
        self._progress = Progress()
        self._ram: Region | None = None
        self._digests = PageDigests(0)
        self._devices = 0
        self._frames: list[bytes] = []
        self._ownership = of_target(None)

    def run(self) -> int:
        """The whole migration, in order; returns when the guest resumed (CLOCK_MONOTONIC, ns)."""
        try:
            self._phase(Phase.SETUP, self._setup)
            self._phase(Phase.PROVISION, self._provision)
            self._phase(Phase.PRECOPY, self._precopy)
            last = self._phase(Phase.PAUSE, lambda: self._receive(wire.RoundBegin))
            end = self._phase(Phase.SWITCHOVER, lambda: self._switchover(last))
            self._phase(Phase.VERIFY, lambda: self._verify(end))
            self._phase(Phase.COMMIT, self._commit)
        except BaseException as error:
            self._unwind(error)
            raise
        # The point of no return: the guest is ours.
        self._vm.owned()
        self._phase(Phase.ANNOUNCE, self._take_over)
        resumed_ns = self._phase(Phase.RESUME, self._resume)
        self._phase(Phase.DELETE, self._take_late_frames)
        return resumed_ns

    R = TypeVar("R")

    def _phase(self, phase: Phase, step: Callable[[], R]) -> R:
        self._progress.enter(phase)
        with self._trace.phase(phase.value):
            return step()

    def _setup(self) -> None:
        hello = self._receive(wire.Hello)
        if hello.version != wire.VERSION:
            raise ProtocolError(f"the source speaks version {hello.version}, this is {wire.VERSION}")
        self._channel.send(wire.Hello(wire.VERSION, self._nonce))
        wire.check_proof(self._receive(wire.Proof), self._secret, "source", hello.nonce, self._nonce)
        self._channel.send(wire.Proof(wire.prove(self._secret, "target", hello.nonce, self._nonce)))

    def _provision(self) -> None:
        offer = self._receive(wire.Offer)
        self._ram = self._vm.provision(offer.ram_bytes, offer.description)
        self._digests = PageDigests(self._ram.pages)
        self._ownership = of_target(self._vm.arbiter.lease if self._vm.arbiter else None)
        self._channel.send(wire.Provisioned())

    def _precopy(self) -> None:
        """Take rounds until the source says to prepare."""
        while True:
            message = self._receive(wire.RoundBegin, wire.Prepare)
            if isinstance(message, wire.Prepare):
                self._vm.prepare(message.devices)
                self._trace.flush()
                self._channel.send(wire.Prepared())
                return
            assert isinstance(message, wire.RoundBegin)
            pages = self._take_round(message)
            self._channel.send(wire.RoundDone(message.number, len(pages)))
            self._digests.update(self._memory, pages)

    def _take_round(self, begin: wire.RoundBegin) -> PageSet:
        """Read one round into RAM; returns its pages."""
        ram = self._memory
        runs: list[wire.Run] = []
        while True:
            message = self._receive(wire.Pages, wire.Zero, wire.RoundEnd)
            if isinstance(message, wire.RoundEnd):
                break
            assert isinstance(message, wire.Pages | wire.Zero)
            last, count = message.runs[-1]
            if last + count > ram.pages:
                raise ProtocolError(f"page {last + count - 1} of a guest that has {ram.pages}")
            if isinstance(message, wire.Pages):
                self._channel.receive_pages(message, ram)
            else:
                for start, count in message.runs:
                    ram.array[start : start + count] = 0
            runs.extend(message.runs)
        pages = PageSet.from_runs(runs)
        if not (begin.number == message.number and begin.pages == message.pages == len(pages)):
            raise ProtocolError(
                f"round {begin.number} announced {begin.pages} pages and carried {len(pages)}"
            )
        return pages

    def _switchover(self, last: wire.RoundBegin) -> wire.StateEnd:
        if takes_long(last.pages):
            self._vm.give_way()
        final = self._take_round(last)
        self._digests.update(self._memory, final)
        self._trace.event("mark", name="pages-received", pages=len(final))
        while True:
            message = self._receive(wire.Device, wire.Silent, wire.StateEnd)
            if isinstance(message, wire.StateEnd):
                return message
            if isinstance(message, wire.Silent):
                self._vm.take_network()
                self._trace.event("mark", name="announced")
            else:
                assert isinstance(message, wire.Device)
                if not self._vm.load(message):
                    raise ProtocolError(
                        f"nothing here takes the device {message.name!r}, version {message.version}"
                    )
                self._devices += 1

    def _verify(self, end: wire.StateEnd) -> None:
        if end.devices != self._devices:
            raise ProtocolError(f"{self._devices} devices arrived, {end.devices} were sent")
        self._vm.ready()
        self._trace.event("mark", name="devices-loaded", devices=self._devices)
        root = self._digests.root()
        if root != end.root:
            raise NotVerified("RAM arrived altered, or a write went unseen")
        self._trace.event("mark", name="verified")
        self._ownership.note(Event.VERIFIED)
        self._channel.send(wire.Ready(root))

    def _commit(self) -> None:
        """Wait until the guest is ours. With shared storage it is once it is claimed; a source that is lost
        when all is ready here may be dead, so its guest is claimed too: the survivor decides.
        """
        try:
            self._await_commit()
            self._ownership.note(Event.COMMIT_HEARD)
        except PeerLost as lost:
            self._trace.event("source-lost", reason=str(lost))
            if not self._ownership.note(Event.PEER_LOST).must_claim:
                raise
        arbiter = self._vm.arbiter
        while arbiter is not None and self._ownership.state.must_claim:
            self._ownership.note(ask(arbiter, self._trace))
        if self._ownership.state.may_delete:
            raise Overtaken("the source has taken its guest back")
        if arbiter is not None:
            self._trace.event("mark", name="claimed")

    def _await_commit(self) -> None:
        while not isinstance(message := self._receive(wire.Frames, wire.Commit), wire.Commit):
            assert isinstance(message, wire.Frames)
            self._frames.extend(message.frames)

    def _take_over(self) -> None:
        if self._vm.arbiter is not None:
            self._tell(wire.Owned())
        self._vm.announce()

    def _tell(self, message: wire.Message) -> None:
        """The guest is ours: a source that cannot be told any more changes nothing of that."""
        try:
            self._channel.send(message)
        except PeerLost as lost:
            self._trace.event("source-not-told", what=type(message).__name__, reason=str(lost))

    def _resume(self) -> int:
        resumed_ns = self._vm.start(self._frames)
        self._tell(wire.Resumed(resumed_ns))
        return resumed_ns

    def _take_late_frames(self) -> None:
        """The source may die here without harm: the guest runs, and nothing that it lacks is missing."""
        try:
            while True:
                message = self._receive(wire.Frames, wire.Finished)
                if isinstance(message, wire.Finished):
                    return
                assert isinstance(message, wire.Frames)
                self._vm.inject(message.frames)
        except (PeerLost, PeerRefused, ProtocolError) as error:
            self._trace.event("late-frames-lost", reason=str(error))

    def _unwind(self, error: BaseException) -> None:
        """The one place where failure is undone: give the frames back and say why, then discard the copy.

        In this order because the guest stands still at the source until it has the frames.
        """
        if not self._ownership.state.may_delete:
            event = Event.ABORT_HEARD if isinstance(error, PeerRefused) else Event.FAILED
            self._ownership.note(Event.PEER_LOST if isinstance(error, PeerLost) else event)
        try:
            frames = self._vm.give_back()
            if isinstance(error, PeerRefused):
                self._channel.send(wire.Returned(tuple(frames)))
            elif not isinstance(error, PeerLost):
                self._channel.send(
                    wire.Abort(f"{type(error).__name__}: {error}"), wire.Returned(tuple(frames))
                )
        except (MigrationError, OSError) as lost:
            self._trace.event("peer-not-told", reason=str(lost))
        finally:
            self._vm.discard()
        self._trace.event("discarded", reason=str(error))
        try:
            self._channel.drain()
        except (MigrationError, OSError) as lost:
            self._trace.event("peer-not-told", reason=str(lost))
        self._trace.flush()

    @property
    def _memory(self) -> Region:
        if self._ram is None:
            raise LocalError("a round before RAM was provisioned")
        return self._ram

    def _receive(self, *expected: type[M]) -> M:
        message = self._channel.receive()
        if isinstance(message, expected):
            return message
        if isinstance(message, wire.Abort):
            raise PeerRefused(message.reason)
        names = " or ".join(kind.__name__ for kind in expected)
        raise ProtocolError(f"{type(message).__name__} where {names} was due")
