"""A source and a target without a machine under them: RAM, a dirty pattern and a channel, all in memory."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from testbed.measure.trace import Trace
from testbed.memory.pages import PageSet
from testbed.memory.region import Region
from testbed.migration import wire
from testbed.migration.errors import PeerLost, Undecided
from testbed.migration.ownership import Lease
from testbed.migration.source import Plan, Source, SourceOutcome
from testbed.migration.target import Target

SECRET = b"s" * 32
DEADLINE_S = 20


class MemoryChannel:
    """One end of a channel in memory. The bytes are the real ones: each message is encoded and parsed.

    `tap(bytes) -> bytes | None` may alter what this end sends, or lose it and with it the connection.
    """

    def __init__(self, outgoing: queue.Queue[bytes | None], incoming: queue.Queue[bytes | None]) -> None:
        self._outgoing = outgoing
        self._incoming = incoming
        self._buffer = bytearray()
        self.tap: Callable[[bytes], bytes | None] = lambda data: data
        self.rate_limits: list[int | None] = []
        self.deadlines: list[float] = []

    def _put(self, data: bytes) -> None:
        altered = self.tap(data)
        if altered is None:
            self._outgoing.put(None)
            raise PeerLost("the connection was cut")
        self._outgoing.put(altered)

    def _take(self, size: int) -> bytes:
        while len(self._buffer) < size:
            try:
                data = self._incoming.get(timeout=DEADLINE_S)
            except queue.Empty as error:
                raise PeerLost("silent past the deadline") from error
            if data is None:
                self._incoming.put(None)
                raise PeerLost("the peer closed the connection")
            self._buffer += data
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        return taken

    def send(self, *messages: wire.Message) -> int:
        for message in messages:
            self._put(wire.encode(message))
        return 0

    def send_pages(self, message: wire.Pages, ram: Region) -> int:
        data = b"".join(ram.array[start : start + count].tobytes() for start, count in message.runs)
        self._put(wire.encode(message) + data)
        return len(data)

    def wait(self, timeout_s: float) -> bool:
        return True

    def receive(self) -> wire.Message:
        header = wire.parse_header(self._take(wire.HEADER.size))
        return wire.parse(header, self._take(header.length))

    def receive_pages(self, message: wire.Pages, ram: Region) -> None:
        for start, count in message.runs:
            data = np.frombuffer(self._take(count * wire.PAGE), np.uint8)
            ram.array[start : start + count] = data.reshape(count, wire.PAGE)

    def limit_rate(self, bytes_per_s: int | None) -> None:
        self.rate_limits.append(bytes_per_s)

    def set_deadline(self, deadline_s: float) -> None:
        self.deadlines.append(deadline_s)

    def drain(self) -> None:
        self._outgoing.put(None)

    def close(self) -> None:
        self._outgoing.put(None)


def channel_pair() -> tuple[MemoryChannel, MemoryChannel]:
    there: queue.Queue[bytes | None] = queue.Queue()
    back: queue.Queue[bytes | None] = queue.Queue()
    return MemoryChannel(there, back), MemoryChannel(back, there)


class FakeClock:
    """A clock that moves a millisecond at each look."""

    def __init__(self) -> None:
        self.now_ns = 0

    def __call__(self) -> int:
        self.now_ns += 1_000_000
        return self.now_ns


class FakeTracker:
    """Lets the guest write at each collection: `pattern` holds a list of pages for each, the rest are quiet.

    `blind` pages are written and never reported, as by a tracker that misses a write.
    """

    name = "fake"
    exact = True

    def __init__(self, ram: Region, pattern: Sequence[Sequence[int]], blind: Sequence[int] = ()) -> None:
        self._ram = ram
        self._pattern = list(pattern)
        self._blind = blind
        self._value = 1
        self.running = False

    def start(self) -> None:
        self.running = True

    def collect(self) -> PageSet:
        assert self.running
        pages = self._pattern.pop(0) if self._pattern else []
        for page in (*pages, *self._blind):
            self._value += 1
            self._ram.array[page, self._value % wire.PAGE] ^= 1 + self._value % 255
        return PageSet.from_indices(list(pages)) - PageSet.from_indices(list(self._blind))

    def stop(self) -> None:
        self.running = False


class SharedStorage:
    """Shared storage with one lease: whoever claims first has it. `cut` names those whom it does not answer,
    `deaf` those whose claim is carried out and whose answer is lost, once.
    """

    def __init__(self) -> None:
        self.holder = ""
        self.cut: set[str] = set()
        self.deaf: set[str] = set()
        self.asked: list[str] = []

    def of(self, name: str) -> FakeArbiter:
        return FakeArbiter(self, name)


@dataclass
class FakeArbiter:
    storage: SharedStorage
    name: str

    @property
    def lease(self) -> Lease:
        return Lease("source", 7)

    def claim(self) -> bool:
        self.storage.asked.append(self.name)
        if self.name in self.storage.cut:
            raise Undecided("no answer")
        self.storage.holder = self.storage.holder or self.name
        if self.name in self.storage.deaf:
            self.storage.deaf.discard(self.name)
            raise Undecided("no answer")
        return self.storage.holder == self.name

    def look(self) -> Lease:
        return Lease(self.storage.holder, 8) if self.storage.holder else self.lease


@dataclass
class FakeSource:
    ram: Region
    tracker: FakeTracker
    device_list: list[wire.Device] = field(default_factory=list)
    late_list: list[wire.Device] = field(default_factory=list)
    frames: list[list[bytes]] = field(default_factory=list)
    state: str = "running"
    released: list[bytes] = field(default_factory=list)
    fail_at: str = ""
    calls: list[str] = field(default_factory=list)
    arbiter: FakeArbiter | None = None
    fail_after_commit: bool = False

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if name == self.fail_at:
            raise OSError(f"{name} failed")

    def describe(self) -> Mapping[str, Any]:
        return {"program": "fake"}

    def foresee_devices(self) -> Mapping[str, Any]:
        return {"devices": len(self.device_list)}

    def hold_handshakes(self) -> None:
        self._call("hold_handshakes")

    def pause(self) -> None:
        self.state = "paused"
        self._call("pause")

    def give_way(self) -> None:
        self._call("give_way")

    def devices(self) -> Iterator[wire.Device]:
        self._call("devices")
        yield from self.device_list

    def silence(self) -> None:
        self._call("silence")

    def late_devices(self) -> Iterator[wire.Device]:
        self._call("late_devices")
        yield from self.late_list

    def exposed(self) -> None:
        self._call("exposed")

    def committing(self) -> None:
        self._call("committing")

    def held_frames(self) -> list[bytes]:
        if self.fail_after_commit and "committing" in self.calls:
            raise OSError("no such device")
        self._call("held_frames")
        return self.frames.pop(0) if self.frames else []

    def roll_back(self, returned: Sequence[bytes]) -> None:
        self.state = "running"
        self.released += [*(self.frames.pop(0) if self.frames else []), *returned]

    def give_up_ownership(self) -> None:
        self.state = "given-up"

    def delete(self) -> None:
        self.state = "deleted"


@dataclass
class FakeTarget:
    known: tuple[str, ...] = ("registers",)
    caught: list[bytes] = field(default_factory=list)
    ram: Region | None = None
    loaded: list[wire.Device] = field(default_factory=list)
    released: list[bytes] = field(default_factory=list)
    state: str = "empty"
    fail_at: str = ""
    calls: list[str] = field(default_factory=list)
    arbiter: FakeArbiter | None = None

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if name == self.fail_at:
            raise OSError(f"{name} failed")

    def provision(self, ram_bytes: int, description: Mapping[str, Any]) -> Region:
        assert description == {"program": "fake"}
        self.ram = Region.create(ram_bytes)
        self._call("provision")
        return self.ram

    def prepare(self, devices: Mapping[str, Any]) -> None:
        self._call("prepare")

    def take_network(self) -> None:
        self._call("take_network")

    def give_way(self) -> None:
        self._call("give_way")

    def load(self, device: wire.Device) -> bool:
        self._call("load")
        self.loaded.append(device)
        return device.name in self.known

    def ready(self) -> None:
        self._call("ready")

    def owned(self) -> None:
        self._call("owned")

    def announce(self) -> None:
        self._call("announce")

    def start(self, frames: Sequence[bytes]) -> int:
        self._call("start")
        self.released += [*frames, *self.caught]
        self.state = "running"
        return 42

    def inject(self, frames: Sequence[bytes]) -> None:
        self.released += frames

    def give_back(self) -> list[bytes]:
        return self.caught

    def discard(self) -> None:
        self.state = "discarded"


@dataclass
class Meeting:
    """A source and a target that were run against each other, how each of them ended, and the source's
    events."""

    outcome: SourceOutcome | None
    source_error: BaseException | None
    target_error: BaseException | None
    events: list[dict[str, Any]]


def meet(
    source_vm: FakeSource,
    target_vm: FakeTarget,
    plan: Plan | None = None,
    channels: tuple[MemoryChannel, MemoryChannel] | None = None,
    target_secret: bytes = SECRET,
    cancelled: Callable[[], bool] = lambda: False,
    trace: Trace | None = None,
) -> Meeting:
    """Run one migration in memory, the target in a thread of its own."""
    source_channel, target_channel = channels or channel_pair()
    target_errors: list[BaseException] = []

    def run_target() -> None:
        try:
            Target(target_vm, target_channel, target_secret, b"t" * 16, Trace("target")).run()
        except BaseException as error:
            target_errors.append(error)
        finally:
            target_channel.close()

    thread = threading.Thread(target=run_target)
    thread.start()
    outcome, source_error = None, None
    trace = trace or Trace("source")
    try:
        plan = plan or Plan(SECRET, b"s" * 16)
        outcome = Source(source_vm, source_channel, plan, FakeClock(), trace, cancelled).run()
    except Exception as error:
        source_error = error
    finally:
        source_channel.close()
        thread.join(DEADLINE_S)
    assert not thread.is_alive()
    return Meeting(outcome, source_error, target_errors[0] if target_errors else None, trace.pending)
