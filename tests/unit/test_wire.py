"""The wire format: what goes in comes out, and nothing that comes from outside breaks it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.migration import wire
from testbed.migration.errors import ProtocolError

U32 = st.integers(0, 2**32 - 1)
U64 = st.integers(0, 2**64 - 1)
JSON = st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5), max_size=3)
FRAMES = st.lists(st.binary(min_size=1, max_size=80), max_size=5).map(tuple)


@st.composite
def runs(draw: st.DrawFn, most: int = 20, longest: int = 40) -> tuple[wire.Run, ...]:
    result, end = [], 0
    for gap, count in draw(
        st.lists(st.tuples(st.integers(0, 9), st.integers(1, longest)), min_size=1, max_size=most)
    ):
        result.append((end + gap, count))
        end += gap + count
    return tuple(result)


MESSAGES = st.one_of(
    st.builds(wire.Hello, st.integers(0, 65535), st.binary(min_size=16, max_size=16)),
    st.builds(wire.Proof, st.binary(min_size=32, max_size=32)),
    st.builds(wire.Offer, st.integers(1, 2**40).map(lambda pages: pages * 4096), JSON),
    st.builds(wire.RoundBegin, U32, U64),
    st.builds(wire.RoundEnd, U32, U64),
    st.builds(wire.RoundDone, U32, U64),
    st.builds(wire.Zero, runs()),
    st.builds(wire.Pages, runs()),
    st.builds(wire.Prepare, JSON),
    st.builds(wire.Device, st.text(max_size=20), st.integers(0, 65535), st.binary(max_size=200)),
    st.builds(wire.Frames, FRAMES),
    st.builds(wire.StateEnd, U32, st.binary(min_size=16, max_size=16)),
    st.builds(wire.Ready, st.binary(min_size=16, max_size=16)),
    st.builds(wire.Resumed, U64),
    st.builds(wire.Abort, st.text(max_size=50)),
    st.builds(wire.Returned, FRAMES),
    st.sampled_from([wire.Provisioned(), wire.Prepared(), wire.Silent(), wire.Commit(), wire.Finished()]),
)


def decode(data: bytes) -> wire.Message:
    return wire.parse(wire.parse_header(data[: wire.HEADER.size]), data[wire.HEADER.size :])


@given(MESSAGES)
def test_a_message_survives_the_wire(message: wire.Message) -> None:
    assert decode(wire.encode(message)) == message


@given(MESSAGES, st.data())
def test_any_flipped_bit_is_refused(message: wire.Message, data: st.DataObject) -> None:
    encoded = bytearray(wire.encode(message))
    bit = data.draw(st.integers(0, len(encoded) * 8 - 1))
    encoded[bit // 8] ^= 1 << bit % 8
    with pytest.raises(ProtocolError):
        decode(bytes(encoded))


@given(MESSAGES, st.data())
def test_a_truncated_message_is_refused(message: wire.Message, data: st.DataObject) -> None:
    encoded = wire.encode(message)
    with pytest.raises(ProtocolError):
        decode(encoded[: data.draw(st.integers(0, len(encoded) - 1))])


@given(st.binary(min_size=16, max_size=16))
def test_alien_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        wire.parse_header(data)


@given(st.sampled_from(sorted(wire._KINDS)), st.binary(max_size=300))
def test_any_payload_parses_or_is_refused(kind: int, payload: bytes) -> None:
    """Past the digest, as a peer that means it can: still nothing but the protocol's own error."""
    try:
        message = wire._KINDS[kind].parse(memoryview(payload))
    except ProtocolError:
        return
    assert isinstance(message, wire.Message)


@pytest.mark.parametrize("kind", [wire.Frames, wire.Device])
def test_an_oversized_payload_is_refused_before_it_is_read(kind: type[wire.Message]) -> None:
    most = wire.MAX_DEVICE if kind is wire.Device else wire.MAX_PAYLOAD
    assert wire.parse_header(wire.HEADER.pack(wire.MAGIC, kind.kind, most, 0)).length == most
    header = wire.HEADER.pack(wire.MAGIC, kind.kind, most + 1, 0)
    with pytest.raises(ProtocolError, match="over"):
        wire.parse_header(header)


@pytest.mark.parametrize(
    "bad", [((3, 2), (4, 1)), ((5, 1), (2, 1)), ((0, 0),), ((0, wire.MAX_PAGES_A_MESSAGE + 1),)]
)
def test_runs_that_overlap_are_out_of_order_empty_or_too_long_are_refused(bad: tuple[wire.Run, ...]) -> None:
    with pytest.raises(ProtocolError):
        decode(wire.encode(wire.Pages(bad)))


@given(runs(most=600, longest=3000), st.integers(1000, wire.MAX_PAGES_A_MESSAGE))
def test_cutting_runs_into_messages_keeps_every_page_in_order(
    all_runs: tuple[wire.Run, ...], most: int
) -> None:
    pages = [page for start, count in all_runs for page in range(start, start + count)]
    messages = [decode(wire.encode(message)) for message in wire.page_messages(all_runs, lambda: most)]
    assert all(message.pages <= most for message in messages)  # type: ignore[attr-defined]
    cut = [page for m in messages for start, count in m.runs for page in range(start, start + count)]  # type: ignore[attr-defined]
    assert cut == pages


def test_a_proof_is_bound_to_role_and_nonces() -> None:
    proofs = {
        wire.prove(b"k", role, a, b)
        for role in ("source", "target")
        for a, b in ((b"1" * 16, b"2" * 16), (b"2" * 16, b"1" * 16))
    }
    assert len(proofs) == 4
    with pytest.raises(ProtocolError, match="secret"):
        wire.check_proof(wire.Proof(bytes(32)), b"k", "source", b"1" * 16, b"2" * 16)
