"""A connection's state as bytes: there and back unharmed, and nothing else is taken for one."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from testbed.tcp import state as states
from testbed.tcp.state import (
    UNPACED,
    ConnectionState,
    Endpoint,
    ListenerState,
    SocketOptions,
    StateError,
    Window,
    decode,
    encode,
)

u32 = st.integers(0, 0xFFFFFFFF)
ints = st.integers(-(2**31), 2**31 - 1)
families = st.sampled_from([states.INET, states.INET6])
names = st.text("abcdefghijklmnopqrstuvwxyz_0123456789", max_size=15)
INTS = len(SocketOptions._fields) - 1
options = st.tuples(*[ints] * INTS, st.integers(0, UNPACED)).map(SocketOptions._make)
windows = st.tuples(*[u32] * 5).map(Window._make)


def endpoints(family):
    width = 4 if family == states.INET else 16
    return st.builds(Endpoint, st.binary(min_size=width, max_size=width), st.integers(0, 65535), u32, u32)


@st.composite
def connections(draw):
    family = draw(families)
    state = draw(st.sampled_from(sorted(states.STATES)))
    fin_unsent = state in states.OUR_FIN_STATES and draw(st.booleans())
    never_unsent = state in states.OUR_FIN_STATES and not fin_unsent
    scale = st.integers(0, 14)
    return ConnectionState(
        family, state, draw(endpoints(family)), draw(endpoints(family)), draw(u32), draw(u32), draw(windows),
        draw(st.integers(0, 255)), draw(scale), draw(scale), draw(u32), draw(u32), fin_unsent, draw(u32),
        draw(options), draw(names), draw(st.binary()), draw(st.binary()),
        b"" if never_unsent else draw(st.binary()),
    )  # fmt: skip


@st.composite
def listeners(draw):
    family = draw(families)
    return ListenerState(
        family, draw(endpoints(family)), draw(u32), draw(st.booleans()), draw(u32), draw(u32), draw(u32),
        draw(options), draw(names),
    )  # fmt: skip


@given(connections() | listeners())
def test_what_is_encoded_is_decoded(state):
    assert decode(encode(state)) == state
    assert decode(memoryview(encode(state))) == state


@given(connections() | listeners(), st.data())
def test_no_part_of_an_encoding_is_an_encoding(state, data):
    encoded = encode(state)
    with pytest.raises(StateError):
        decode(encoded[: data.draw(st.integers(0, len(encoded) - 1))])
    with pytest.raises(StateError):
        decode(encoded + data.draw(st.binary(min_size=1)))


@settings(max_examples=500)
@given(connections() | listeners(), st.lists(st.tuples(st.integers(0), st.integers(0, 255)), max_size=8))
def test_damage_is_refused_or_gives_a_state_that_encodes_to_it(state, changes):
    damaged = bytearray(encode(state))
    for place, value in changes:
        damaged[place % len(damaged)] = value
    try:
        found = decode(damaged)
    except StateError:
        return
    assert encode(found) == damaged


@given(st.binary(max_size=600))
def test_alien_bytes_are_refused(data):
    with pytest.raises(StateError):
        decode(data)


def test_a_length_beyond_the_bytes_is_refused_before_it_is_believed():
    encoded = encode(EXAMPLE)
    first_length = states._CONNECTION.size + 1 + len(EXAMPLE.congestion_control)
    for length in (len(encoded), states.QUEUE_LIMIT_BYTES + 1, 0xFFFFFFFF):
        damaged = bytearray(encoded)
        damaged[first_length : first_length + 4] = length.to_bytes(4, "little")
        with pytest.raises(StateError, match="queue"):
            decode(damaged)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"congestion_control": "ä"}, "cannot be encoded"),
        ({"rcv_nxt": 1 << 32}, "cannot be encoded"),
        ({"unread": bytes(states.QUEUE_LIMIT_BYTES + 1)}, "limit"),
    ],
)
def test_what_has_no_place_in_the_bytes_is_not_encoded(change, says):
    with pytest.raises(StateError, match=says):
        encode(replace(EXAMPLE, **change))


def test_a_fin_cannot_have_left_before_the_bytes_in_front_of_it():
    with pytest.raises(StateError, match="FIN that was sent before"):
        decode(encode(replace(EXAMPLE, state=states.FIN_WAIT1)))


@pytest.mark.parametrize(
    ("state", "receive_start", "send_start"),
    [
        (states.ESTABLISHED, 1000 - 3, 5000 - 9),
        (states.CLOSE_WAIT, 1000 - 1 - 3, 5000 - 9),
        (states.FIN_WAIT1, 1000 - 3, 5000 - 1 - 9),
        (states.LAST_ACK, 1000 - 1 - 3, 5000 - 1 - 9),
    ],
)
def test_a_fin_takes_one_number_at_the_end_of_its_queue(state, receive_start, send_start):
    example = replace(EXAMPLE, state=state)
    assert (example.receive_start, example.send_start) == (receive_start, send_start)


def test_sequence_numbers_wrap():
    example = replace(EXAMPLE, rcv_nxt=1, write_seq=2)
    assert (example.receive_start, example.send_start) == (2**32 - 2, 2**32 - 7)


EXAMPLE = ConnectionState(
    family=states.INET,
    state=states.ESTABLISHED,
    local=Endpoint(bytes((10, 7, 0, 10)), 7000),
    remote=Endpoint(bytes((10, 7, 0, 2)), 40000),
    rcv_nxt=1000,
    write_seq=5000,
    window=Window(997, 64000, 64000, 65000, 1000),
    handshake_options=7,
    peer_scale=7,
    our_scale=10,
    maximum_segment=1460,
    timestamp=12345,
    our_fin_unsent=False,
    segments_in=17,
    options=SocketOptions._make(range(len(SocketOptions._fields))),
    congestion_control="cubic",
    unread=b"abc",
    sent=b"defgh",
    unsent=b"ijkl",
)
