"""Pcapng files: what is written is read, by ours and by another's reader; what is not whole is refused."""

from __future__ import annotations

import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netns import pcapng
from netns.pcapng import INBOUND, OUTBOUND, Packet, PcapngError, Statistics

PACKETS = st.builds(
    Packet,
    t_ns=st.integers(0, (1 << 63) - 1),
    direction=st.sampled_from([INBOUND, OUTBOUND]),
    length=st.integers(0, 1 << 17),
    data=st.binary(max_size=300),
    comments=st.lists(st.text(st.characters(codec="utf-8"), max_size=20), max_size=3).map(tuple),
)


def whole(packets: list[Packet], comment: str = "of the section") -> bytes:
    parts = [pcapng.section_header(comment, "a test", "Linux")]
    parts += [pcapng.interface_description("eth0", "a link")]
    parts += [pcapng.enhanced_packet(packet) for packet in packets]
    return b"".join([*parts, pcapng.interface_statistics(Statistics(1 << 40, 2 << 40, len(packets) + 3, 3))])


@settings(max_examples=50)
@given(st.lists(PACKETS, max_size=5), st.text(st.characters(codec="utf-8"), max_size=50))
def test_what_is_written_is_read(packets: list[Packet], comment: str) -> None:
    found = pcapng.read(whole(packets, comment))
    assert found.packets == packets
    assert (found.comment, found.application) == (comment, "a test")
    assert (found.interface, found.description) == ("eth0", "a link")
    assert found.statistics == Statistics(1 << 40, 2 << 40, len(packets) + 3, 3)


def test_scapy_reads_it_to_the_nanosecond() -> None:
    from scapy.utils import RawPcapNgReader

    at_ns = 1_795_555_777_123_456_789
    written = [Packet(at_ns, INBOUND, 60, bytes(range(60)), ("pause",))]
    written += [Packet(at_ns + 1, OUTBOUND, 99, b"ab")]
    found = list(RawPcapNgReader(io.BytesIO(whole(written))))
    assert [data for data, _ in found] == [one.data for one in written]
    assert [(meta.tshigh << 32 | meta.tslow, meta.wirelen) for _, meta in found] == [
        (at_ns, 60), (at_ns + 1, 99)
    ]  # fmt: skip
    assert all(meta.tsresol == 1_000_000_000 for _, meta in found)


def test_a_comment_that_is_too_long_is_cut_at_a_character() -> None:
    found = pcapng.read(whole([Packet(1, INBOUND, 0, b"", ("ü" * 40_000,))]))
    assert found.packets[0].comments == ("ü" * 32_767,)


@settings(max_examples=100)
@given(st.data())
def test_a_file_that_is_cut_short_is_refused_or_a_beginning(data: st.DataObject) -> None:
    packets = [Packet(number, INBOUND, 60, bytes(60)) for number in range(3)]
    file = whole(packets)
    cut = file[: data.draw(st.integers(0, len(file) - 1))]
    try:
        found = pcapng.read(cut)
    except PcapngError:
        return
    assert found.packets == packets[: len(found.packets)]
    assert found.statistics is None


@pytest.mark.parametrize(
    "file",
    [
        pytest.param(whole([])[28:], id="no section first"),
        pytest.param(whole([]) * 2, id="two sections"),
        pytest.param(bytes(64), id="zeros"),
        pytest.param(whole([]).replace(b"\x4d\x3c\x2b\x1a", b"\x1a\x2b\x3c\x4d"), id="big-endian"),
        pytest.param(b"\x0a\x0d\x0d\x0a\x1d\x00\x00\x00" + bytes(32), id="not of fours"),
    ],
)
def test_what_is_no_such_file_is_refused(file: bytes) -> None:
    with pytest.raises(PcapngError):
        pcapng.read(file)
