"""The migration protocol, version 2: messages to bytes and back, without any I/O.

A message is a header, a payload and, for :class:`Pages` alone, page data::

     0       2      3      4              8                      16                16+length
     +-------+------+------+--------------+----------------------+-----------------+- - - - - - - -+
     | "LM"  | kind | zero | length (u32) | digest (u64)         | payload         | page data     |
     +-------+------+------+--------------+----------------------+-----------------+- - - - - - - -+

All integers are big-endian. `digest` is XXH3-64 over the first eight bytes and the payload, so a flipped bit
in a header or a payload is found at once. Page data carries no digest of its own: it is read straight into
guest RAM, and RAM as a whole is proved equal before the commit (:mod:`testbed.memory.digests`). Every length
and count is bounded (:data:`MAX_PAYLOAD`, :data:`MAX_DEVICE`, :data:`MAX_RUNS`, :data:`MAX_PAGES_A_MESSAGE`,
:data:`MAX_FRAMES`) and checked before anything is allocated. A kind that is not known ends the migration.

The conversation (S source, T target; `data` is any number of Zero and Pages)::

    S Hello    T Hello    S Proof    T Proof      each proves to hold the run's secret
    S Offer    T Provisioned
    S RoundBegin, data, RoundEnd    T RoundDone   once a round
    S Prepare  T Prepared                         the guest still runs
    S RoundBegin, data, RoundEnd                  the guest is paused: the last round; T does not answer it
    S Device*  S Silent                           T announces once and holds the frames that then come
    S StateEnd T Ready
    S Frames*  S Commit   T Owned     T Resumed   Owned with shared storage only: T has claimed the guest
    S Frames*  S Finished                         what came to the source after all
    either     Abort                              any time before Commit
    T Returned                                    answers Abort: frames that the target had caught

In a Quick Migration what follows the pause, up to StateEnd, is written to a file on shared storage instead,
and the source says where in its stead (S Saved).
"""

from __future__ import annotations

import hashlib
import hmac
import json
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import xxhash

from testbed.migration.errors import ProtocolError

VERSION = 2
MAGIC = b"LM"
PAGE = 4096

MAX_PAYLOAD = 16 << 20
MAX_DEVICE = 256 << 20  # one connection's three queues, each of up to 64 MiB (testbed.tcp.state)
MAX_RUNS = 512  # IOV_MAX is 1024, include/uapi/linux/uio.h
MAX_PAGES_A_MESSAGE = 4096
MAX_FRAMES = 65536
MAX_FRAME = 70000  # a 64 KiB GSO frame, its Ethernet and its virtio-net header
MAX_TEXT = 4096
NONCE = 16
PROOF = 32
ROOT = 16

HEADER = struct.Struct(">2sBxIQ")
_HEAD = struct.Struct(">2sBxI")
_RUN = struct.Struct(">QI")
_U32 = struct.Struct(">I")
_U64 = struct.Struct(">Q")

Run = tuple[int, int]


class Message:
    """Base of all messages: `kind` is the number on the wire."""

    kind: ClassVar[int]
    most_payload: ClassVar[int] = MAX_PAYLOAD

    def payload(self) -> bytes:
        return b""

    @classmethod
    def parse(cls, payload: memoryview) -> Message:
        _expect(len(payload) == 0, f"{cls.__name__} carries no payload")
        return cls()


_KINDS: dict[int, type[Message]] = {}
M = TypeVar("M", bound=type[Message])


def _kind(number: int) -> Callable[[M], M]:
    def register(cls: M) -> M:
        cls.kind = number
        _KINDS[number] = cls
        return cls

    return register


def _expect(true: bool, text: str) -> None:
    if not true:
        raise ProtocolError(text)


@_kind(1)
@dataclass(frozen=True)
class Hello(Message):
    """Opens the conversation: the protocol's version and a fresh nonce."""

    version: int
    nonce: bytes

    def payload(self) -> bytes:
        return struct.pack(">H", self.version) + self.nonce

    @classmethod
    def parse(cls, payload: memoryview) -> Hello:
        _expect(len(payload) == 2 + NONCE, "Hello has the wrong length")
        return cls(int.from_bytes(payload[:2], "big"), bytes(payload[2:]))


@_kind(2)
@dataclass(frozen=True)
class Proof(Message):
    """:func:`prove` of the run's secret, the sender's role and both nonces."""

    proof: bytes

    def payload(self) -> bytes:
        return self.proof

    @classmethod
    def parse(cls, payload: memoryview) -> Proof:
        _expect(len(payload) == PROOF, "Proof has the wrong length")
        return cls(bytes(payload))


@_kind(3)
@dataclass(frozen=True)
class Offer(Message):
    """What is to be provisioned: the size of RAM in bytes and the guest's description (JSON)."""

    ram_bytes: int
    description: Mapping[str, Any]

    def payload(self) -> bytes:
        return _U64.pack(self.ram_bytes) + json.dumps(self.description).encode()

    @classmethod
    def parse(cls, payload: memoryview) -> Offer:
        _expect(len(payload) >= 8, "Offer is too short")
        ram_bytes = _U64.unpack_from(payload)[0]
        _expect(ram_bytes > 0 and ram_bytes % PAGE == 0, "Offer: RAM is not whole pages")
        try:
            description = json.loads(bytes(payload[8:]))
        except (ValueError, RecursionError) as error:
            raise ProtocolError("Offer: the description is not JSON") from error
        _expect(isinstance(description, dict), "Offer: the description is not an object")
        return cls(ram_bytes, description)


@_kind(4)
@dataclass(frozen=True)
class Provisioned(Message):
    """The target has RAM, NIC and process in place, and is silent."""


@dataclass(frozen=True)
class _Round(Message):
    number: int
    pages: int

    def payload(self) -> bytes:
        return _RUN.pack(self.pages, self.number)

    @classmethod
    def parse(cls, payload: memoryview) -> _Round:
        _expect(len(payload) == _RUN.size, f"{cls.__name__} has the wrong length")
        pages, number = _RUN.unpack(payload)
        return cls(number, pages)


@_kind(5)
@dataclass(frozen=True)
class RoundBegin(_Round):
    """Round `number` (from 1) begins and will carry `pages` pages, zero pages included."""


@_kind(6)
@dataclass(frozen=True)
class RoundEnd(_Round):
    """Round `number` is complete: `pages` pages were sent."""


@_kind(7)
@dataclass(frozen=True)
class RoundDone(_Round):
    """The target has all of round `number` in its RAM."""


@dataclass(frozen=True)
class _Runs(Message):
    runs: tuple[Run, ...]

    @property
    def pages(self) -> int:
        return sum(count for _, count in self.runs)

    def payload(self) -> bytes:
        return b"".join(_RUN.pack(start, count) for start, count in self.runs)

    @classmethod
    def parse(cls, payload: memoryview) -> _Runs:
        _expect(0 < len(payload) <= MAX_RUNS * _RUN.size, f"{cls.__name__}: too many runs or none")
        _expect(len(payload) % _RUN.size == 0, f"{cls.__name__}: torn run")
        runs = tuple(_RUN.iter_unpack(payload))
        end = 0
        for start, count in runs:
            _expect(
                count > 0 and start >= end, f"{cls.__name__}: runs are empty, overlap or are out of order"
            )
            end = start + count
        return cls(runs)


@_kind(8)
@dataclass(frozen=True)
class Zero(_Runs):
    """Pages that hold nothing but zeros: `runs` of (first page, pages)."""


@_kind(9)
@dataclass(frozen=True)
class Pages(_Runs):
    """`runs` of (first page, pages), ascending; their data follows, ``4096 * pages`` bytes."""

    @classmethod
    def parse(cls, payload: memoryview) -> Pages:
        message = super().parse(payload)
        _expect(message.pages <= MAX_PAGES_A_MESSAGE, f"{cls.__name__}: too many pages")
        return cls(message.runs)


@_kind(10)
@dataclass(frozen=True)
class Prepare(Message):
    """The switchover is near: `devices` says what to get ready (JSON, for instance how many connections)."""

    devices: Mapping[str, Any]

    def payload(self) -> bytes:
        return json.dumps(self.devices).encode()

    @classmethod
    def parse(cls, payload: memoryview) -> Prepare:
        try:
            devices = json.loads(bytes(payload))
        except (ValueError, RecursionError) as error:
            raise ProtocolError("Prepare is not JSON") from error
        _expect(isinstance(devices, dict), "Prepare is not an object")
        return cls(devices)


@_kind(11)
@dataclass(frozen=True)
class Prepared(Message):
    """The target can take the guest's state at once."""


@_kind(12)
@dataclass(frozen=True)
class Silent(Message):
    """The guest can neither hear nor speak at the source any more: the network may be told that it is
    elsewhere."""


@_kind(13)
@dataclass(frozen=True)
class Device(Message):
    """One part of the guest's device state. A device that nobody takes ends the migration."""

    most_payload: ClassVar[int] = MAX_DEVICE

    name: str
    version: int
    data: bytes

    def payload(self) -> bytes:
        name = self.name.encode()
        return struct.pack(">BH", len(name), self.version) + name + self.data

    @classmethod
    def parse(cls, payload: memoryview) -> Device:
        _expect(len(payload) >= 3, "Device is too short")
        length, version = struct.unpack_from(">BH", payload)
        _expect(len(payload) >= 3 + length, "Device: the name is cut short")
        return cls(_text(payload[3 : 3 + length]), version, bytes(payload[3 + length :]))


@dataclass(frozen=True)
class _FrameList(Message):
    frames: tuple[bytes, ...]

    def payload(self) -> bytes:
        return b"".join(_U32.pack(len(frame)) + frame for frame in self.frames)

    @classmethod
    def parse(cls, payload: memoryview) -> _FrameList:
        frames: list[bytes] = []
        at = 0
        while at < len(payload):
            _expect(len(payload) - at >= 4, "Frames: torn length")
            length = _U32.unpack_from(payload, at)[0]
            at += 4
            _expect(0 < length <= MAX_FRAME and length <= len(payload) - at, "Frames: bad length")
            _expect(len(frames) < MAX_FRAMES, "Frames: too many")
            frames.append(bytes(payload[at : at + length]))
            at += length
        return cls(tuple(frames))


@_kind(14)
@dataclass(frozen=True)
class Frames(_FrameList):
    """Frames for the guest that the source held, in their order, each with its virtio-net header."""


@_kind(15)
@dataclass(frozen=True)
class StateEnd(Message):
    """All state was sent: how many devices, and the root digest of the source's RAM."""

    devices: int
    root: bytes

    def payload(self) -> bytes:
        return _U32.pack(self.devices) + self.root

    @classmethod
    def parse(cls, payload: memoryview) -> StateEnd:
        _expect(len(payload) == 4 + ROOT, "StateEnd has the wrong length")
        return cls(_U32.unpack_from(payload)[0], bytes(payload[4:]))


@_kind(16)
@dataclass(frozen=True)
class Ready(Message):
    """The target's RAM has this root digest, its sockets are rebuilt: it could run."""

    root: bytes

    def payload(self) -> bytes:
        return self.root

    @classmethod
    def parse(cls, payload: memoryview) -> Ready:
        _expect(len(payload) == ROOT, "Ready has the wrong length")
        return cls(bytes(payload))


@_kind(17)
@dataclass(frozen=True)
class Commit(Message):
    """The guest is the target's from here."""


@_kind(18)
@dataclass(frozen=True)
class Resumed(Message):
    """The guest runs at the target since `t_ns` (CLOCK_MONOTONIC, which both hosts share)."""

    t_ns: int

    def payload(self) -> bytes:
        return _U64.pack(self.t_ns)

    @classmethod
    def parse(cls, payload: memoryview) -> Resumed:
        _expect(len(payload) == 8, "Resumed has the wrong length")
        return cls(_U64.unpack(payload)[0])


@_kind(19)
@dataclass(frozen=True)
class Finished(Message):
    """The source sends nothing more."""


@_kind(20)
@dataclass(frozen=True)
class Abort(Message):
    """The sender gives up before the commit; the text says why."""

    reason: str

    def payload(self) -> bytes:
        return self.reason.encode()[:MAX_TEXT]

    @classmethod
    def parse(cls, payload: memoryview) -> Abort:
        _expect(len(payload) <= MAX_TEXT, "Abort: the reason is too long")
        return cls(bytes(payload).decode(errors="replace"))


@_kind(21)
@dataclass(frozen=True)
class Returned(_FrameList):
    """The target's answer to Abort: the frames for the guest that it had caught, for the source to
    release."""


@_kind(22)
@dataclass(frozen=True)
class Owned(Message):
    """The target has claimed the guest on the shared storage: it is the target's, whatever happens."""


@_kind(23)
@dataclass(frozen=True)
class Saved(Message):
    """The guest's state, the messages from the last RoundBegin to StateEnd, lies on shared storage: the first
    `size_bytes` bytes of the file `name`."""

    name: str
    size_bytes: int

    def payload(self) -> bytes:
        return _U64.pack(self.size_bytes) + self.name.encode()

    @classmethod
    def parse(cls, payload: memoryview) -> Saved:
        _expect(8 < len(payload) <= 8 + MAX_TEXT, "Saved has the wrong length")
        return cls(_text(payload[8:]), _U64.unpack_from(payload)[0])


@dataclass(frozen=True)
class Header:
    """A header that was found to be well-formed: `length` bytes of payload follow."""

    kind: int
    length: int
    digest: int


def encode(message: Message) -> bytes:
    """The header and the payload of `message`; the page data of Pages is the channel's to add."""
    payload = message.payload()
    if len(payload) > message.most_payload:
        raise ProtocolError(
            f"{type(message).__name__} of {len(payload)} bytes is over {message.most_payload}"
        )
    head = _HEAD.pack(MAGIC, message.kind, len(payload))
    return HEADER.pack(MAGIC, message.kind, len(payload), xxhash.xxh3_64_intdigest(head + payload)) + payload


def parse_header(data: bytes | bytearray | memoryview) -> Header:
    """Read the 16 bytes of a header. Raises ProtocolError."""
    if len(data) != HEADER.size:
        raise ProtocolError("truncated header")
    magic, kind, length, digest = HEADER.unpack(data)
    _expect(magic == MAGIC, "not this protocol (bad magic)")
    _expect(data[3] == 0, "reserved byte is not zero")
    _expect(kind in _KINDS, f"unknown kind of message {kind}")
    most = _KINDS[kind].most_payload
    _expect(length <= most, f"payload of {length} bytes is over {most}")
    return Header(kind, length, digest)


def parse(header: Header, payload: bytes | bytearray | memoryview) -> Message:
    """Make the message of a header and its payload. Raises ProtocolError."""
    _expect(len(payload) == header.length, "truncated payload")
    head = _HEAD.pack(MAGIC, header.kind, header.length)
    digest = xxhash.xxh3_64(head)
    digest.update(payload)
    _expect(digest.intdigest() == header.digest, "digest of the message does not match")
    return _KINDS[header.kind].parse(memoryview(payload))


def prove(secret: bytes, role: str, source_nonce: bytes, target_nonce: bytes) -> bytes:
    """HMAC-SHA256 (RFC 2104) of the role and both nonces under the run's secret: 32 bytes."""
    return hmac.digest(
        secret, b"live-migration-testbed/1 " + role.encode() + source_nonce + target_nonce, hashlib.sha256
    )


def check_proof(proof: Proof, secret: bytes, role: str, source_nonce: bytes, target_nonce: bytes) -> None:
    """Raises ProtocolError where the peer does not hold the secret."""
    if not hmac.compare_digest(proof.proof, prove(secret, role, source_nonce, target_nonce)):
        raise ProtocolError("the peer does not know the secret of this run")


def page_messages(runs: Iterable[Run], most: Callable[[], int] | None = None) -> Iterable[Pages]:
    """Cut `runs` into Pages messages within the bounds; order is kept, no page is lost.

    `most` is asked before each message how many pages it may carry, at most MAX_PAGES_A_MESSAGE.
    """
    batch: list[Run] = []
    most = most or (lambda: MAX_PAGES_A_MESSAGE)
    room = most()
    for start, count in runs:
        while count:
            part = min(count, room)
            batch.append((start, part))
            start, count, room = start + part, count - part, room - part
            if not room or len(batch) == MAX_RUNS:
                yield Pages(tuple(batch))
                batch, room = [], most()
    if batch:
        yield Pages(tuple(batch))


def zero_messages(runs: Iterable[Run]) -> Iterable[Zero]:
    """Cut `runs` into Zero messages within the bounds."""
    batch: list[Run] = []
    for run in runs:
        batch.append(run)
        if len(batch) == MAX_RUNS:
            yield Zero(tuple(batch))
            batch = []
    if batch:
        yield Zero(tuple(batch))


def frame_messages(frames: Iterable[bytes]) -> Iterable[Frames]:
    """Cut `frames` into Frames messages within the bounds, in order."""
    batch: list[bytes] = []
    size = 0
    for frame in frames:
        if batch and size + len(frame) + 4 > MAX_PAYLOAD // 2:
            yield Frames(tuple(batch))
            batch, size = [], 0
        batch.append(frame)
        size += len(frame) + 4
    if batch:
        yield Frames(tuple(batch))


def _text(data: memoryview) -> str:
    try:
        return bytes(data).decode()
    except UnicodeDecodeError as error:
        raise ProtocolError("text is not UTF-8") from error
