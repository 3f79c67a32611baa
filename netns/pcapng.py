"""The pcapng file format, as far as captures here use it: blocks out, blocks in. Pure; bytes in, bytes out.

Specification: draft-ietf-opsawg-pcapng ("PCAP Next Generation Capture File Format"). A file is a section:

    section header      who wrote this, on what system, and a comment
    interface           one: Ethernet, times in nanoseconds
    enhanced packet     many: time (CLOCK_REALTIME), direction, comments, the frame
    statistics          of the interface: how many frames there were and how many found no room

Every block is `type, length, body, length`, each of a multiple of four bytes; an option is `code, length,
value`, padded to four. Numbers are little-endian: the magic in the section header says so.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

SECTION_HEADER = 0x0A0D0D0A
INTERFACE_DESCRIPTION = 1
INTERFACE_STATISTICS = 5
ENHANCED_PACKET = 6

LINKTYPE_ETHERNET = 1
INBOUND, OUTBOUND = 1, 2
"""epb_flags, bits 0 and 1."""

_MAGIC = 0x1A2B3C4D
_OPT_COMMENT = 1
_SHB_OS, _SHB_USERAPPL = 3, 4
_IF_NAME, _IF_DESCRIPTION, _IF_TSRESOL = 2, 3, 9
_EPB_FLAGS = 2
_ISB_STARTTIME, _ISB_ENDTIME, _ISB_IFRECV, _ISB_IFDROP, _ISB_OSDROP = 2, 3, 4, 5, 7
_NANOSECONDS = b"\x09"  # if_tsresol: ten to the minus ninth

_HEAD = struct.Struct("<II")
_OPTION = struct.Struct("<HH")
_SHB = struct.Struct("<IHHq")  # magic, version 1.0, length of the section: not told
_IDB = struct.Struct("<HHI")  # link type, reserved, snap length (0: none)
_EPB = struct.Struct("<IIIII")  # interface, time high and low, captured, original length
_ISB = struct.Struct("<III")  # interface, time high and low
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_LONGEST_OPTION = 0xFFFF


class PcapngError(ValueError):
    """Bytes that are no pcapng, or not of the kind that is written here. The text says where."""


@dataclass(frozen=True)
class Packet:
    """A frame: `t_ns` on CLOCK_REALTIME, `length` what it had on the wire (`data` may be cut short)."""

    t_ns: int
    direction: int
    length: int
    data: bytes
    comments: tuple[str, ...] = ()


@dataclass(frozen=True)
class Statistics:
    """Of the interface from `begun_ns` to `ended_ns` (CLOCK_REALTIME): frames that came by, and of them those
    that are not in the file for want of room."""

    begun_ns: int
    ended_ns: int
    received: int
    dropped: int


@dataclass
class File:
    """What :func:`read` finds."""

    comment: str = ""
    application: str = ""
    interface: str = ""
    description: str = ""
    snap_length: int = 0
    packets: list[Packet] = field(default_factory=list)
    statistics: Statistics | None = None


# ---- writing


def section_header(comment: str, application: str, system: str) -> bytes:
    options = [(_OPT_COMMENT, _text(comment)), (_SHB_OS, _text(system)), (_SHB_USERAPPL, _text(application))]
    return _block(SECTION_HEADER, _SHB.pack(_MAGIC, 1, 0, -1) + _options(options))


def interface_description(name: str, description: str, snap_length: int = 0) -> bytes:
    """The one interface. `snap_length` in bytes, 0: frames are whole."""
    options = [
        (_IF_NAME, _text(name)),
        (_IF_DESCRIPTION, _text(description)),
        (_IF_TSRESOL, _NANOSECONDS),
    ]
    return _block(
        INTERFACE_DESCRIPTION, _IDB.pack(LINKTYPE_ETHERNET, 0, snap_length) + _options(options)
    )


def enhanced_packet(packet: Packet) -> bytes:
    data = packet.data
    head = _EPB.pack(0, packet.t_ns >> 32, packet.t_ns & 0xFFFFFFFF, len(data), packet.length)
    options = [(_OPT_COMMENT, _text(comment)) for comment in packet.comments]
    options.append((_EPB_FLAGS, _U32.pack(packet.direction)))
    return _block(ENHANCED_PACKET, head + _padded(data) + _options(options))


def interface_statistics(figures: Statistics) -> bytes:
    ended = figures.ended_ns
    options = [
        (_ISB_STARTTIME, _time(figures.begun_ns)),
        (_ISB_ENDTIME, _time(ended)),
        (_ISB_IFRECV, _U64.pack(figures.received)),
        (_ISB_IFDROP, _U64.pack(figures.dropped)),
        (_ISB_OSDROP, _U64.pack(figures.dropped)),
    ]
    return _block(INTERFACE_STATISTICS, _ISB.pack(0, ended >> 32, ended & 0xFFFFFFFF) + _options(options))


def _block(kind: int, body: bytes) -> bytes:
    length = len(body) + 12
    return b"".join((_HEAD.pack(kind, length), body, _U32.pack(length)))


def _options(options: Sequence[tuple[int, bytes]]) -> bytes:
    parts = [_OPTION.pack(code, len(value)) + _padded(value) for code, value in options]
    return b"".join((*parts, _OPTION.pack(0, 0)))


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def _text(text: str) -> bytes:
    """UTF-8; what is too long for an option is cut off, at a character."""
    encoded = text.encode()
    if len(encoded) <= _LONGEST_OPTION:
        return encoded
    return encoded[:_LONGEST_OPTION].decode("utf-8", "ignore").encode()


def _time(t_ns: int) -> bytes:
    return _HEAD.pack(t_ns >> 32, t_ns & 0xFFFFFFFF)


# ---- reading


def read(data: bytes) -> File:
    """What a file holds. PcapngError where it is not whole, or not of one section and one interface."""
    found = File()
    for number, (kind, body) in enumerate(_blocks(data)):
        if (number == 0) != (kind == SECTION_HEADER):
            raise PcapngError(f"block {number} is of type {kind:#x}: one section header, and first")
        if kind == SECTION_HEADER:
            if _SHB.unpack_from(body)[0] != _MAGIC:
                raise PcapngError("no pcapng, or one of the other byte order")
            options = dict(_read_options(body[_SHB.size :]))
            found.comment = options.get(_OPT_COMMENT, b"").decode()
            found.application = options.get(_SHB_USERAPPL, b"").decode()
        elif kind == INTERFACE_DESCRIPTION:
            _read_interface(found, body)
        elif kind == ENHANCED_PACKET:
            found.packets.append(_read_packet(body))
        elif kind == INTERFACE_STATISTICS:
            found.statistics = _read_statistics(body)
    return found


def _blocks(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < len(data):
        if at + 12 > len(data):
            raise PcapngError(f"cut short at byte {at}")
        kind, length = _HEAD.unpack_from(data, at)
        if length % 4 or length < 12 or at + length > len(data):
            raise PcapngError(f"byte {at}: a block of {length} bytes, and {len(data) - at} are there")
        if _U32.unpack_from(data, at + length - 4)[0] != length:
            raise PcapngError(f"byte {at}: a block's two lengths differ")
        yield kind, data[at + 8 : at + length - 4]
        at += length


def _read_interface(found: File, body: bytes) -> None:
    link_type, _, found.snap_length = _IDB.unpack_from(body)
    options = dict(_read_options(body[_IDB.size :]))
    if found.interface or link_type != LINKTYPE_ETHERNET or options.get(_IF_TSRESOL) != _NANOSECONDS:
        raise PcapngError("not one Ethernet interface with times in nanoseconds")
    found.interface = options.get(_IF_NAME, b"").decode()
    found.description = options.get(_IF_DESCRIPTION, b"").decode()


def _read_packet(body: bytes) -> Packet:
    _, high, low, captured, length = _EPB.unpack_from(body)
    if _EPB.size + captured > len(body):
        raise PcapngError(f"a packet of {captured} bytes in a block of {len(body)}")
    options = list(_read_options(body[_EPB.size + captured + -captured % 4 :]))
    flags = dict(options).get(_EPB_FLAGS, bytes(4))
    return Packet(
        high << 32 | low,
        _U32.unpack(flags)[0] & 3,
        length,
        body[_EPB.size : _EPB.size + captured],
        tuple(value.decode() for code, value in options if code == _OPT_COMMENT),
    )


def _read_statistics(body: bytes) -> Statistics:
    options = dict(_read_options(body[_ISB.size :]))
    begun, ended = (_HEAD.unpack(options[code]) for code in (_ISB_STARTTIME, _ISB_ENDTIME))
    received, dropped = (_U64.unpack(options[code])[0] for code in (_ISB_IFRECV, _ISB_IFDROP))
    return Statistics(begun[0] << 32 | begun[1], ended[0] << 32 | ended[1], received, dropped)


def _read_options(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + _OPTION.size <= len(data):
        code, length = _OPTION.unpack_from(data, at)
        at += _OPTION.size
        if code == 0:
            return
        if at + length > len(data):
            raise PcapngError(f"option {code} of {length} bytes, and {len(data) - at} are there")
        yield code, data[at : at + length]
        at += length + -length % 4
