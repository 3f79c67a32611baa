"""What terminals and servers say to each other: bytes to messages, and a server's callers."""

from __future__ import annotations

import json
import socket
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.standing.client import Conversation
from testbed.standing.protocol import MOST_BYTES, Incoming, LabGone, ProtocolError, Refused, encode
from testbed.standing.server import MOST_UNSENT_BYTES, Caller

MESSAGES = st.lists(st.dictionaries(st.text(), st.integers() | st.text() | st.none(), max_size=4), max_size=6)


@given(MESSAGES, st.data())
def test_messages_come_whole_and_in_order_however_the_bytes_are_cut(
    messages: list[dict[str, Any]], data: st.DataObject
) -> None:
    stream = b"".join(encode(message) for message in messages)
    incoming, found = Incoming(), []
    while stream:
        cut = data.draw(st.integers(1, len(stream)))
        found += incoming.feed(stream[:cut])
        stream = stream[cut:]
    assert found == messages


@given(st.binary(max_size=200))
def test_what_is_no_message_is_a_protocol_error_and_nothing_else(data: bytes) -> None:
    try:
        for message in Incoming().feed(data):
            assert isinstance(message, dict)
    except ProtocolError:
        pass  # that is what it is for


@pytest.mark.parametrize("line", [b"[1]\n", b"17\n", b"{\n", b"[" * 100_000 + b"\n", b"\xff\n"])
def test_lines_that_are_no_object(line: bytes) -> None:
    with pytest.raises(ProtocolError):
        Incoming().feed(line)


def test_a_line_without_end_is_bounded() -> None:
    incoming = Incoming()
    assert incoming.feed(b"x" * MOST_BYTES) == []
    with pytest.raises(ProtocolError, match="more than"):
        incoming.feed(b"x")


def talking() -> tuple[Conversation, socket.socket]:
    ours, theirs = socket.socketpair()
    return Conversation(ours), theirs


def test_progress_is_handed_on_until_the_answer() -> None:
    conversation, theirs = talking()
    theirs.sendall(encode({"say": "a"}) + encode({"say": "b"}) + encode({"ok": {"x": 1}}))
    heard: list[dict[str, Any]] = []
    assert conversation.ask({"do": "ps"}, 5, heard.append) == {"x": 1}
    assert heard == [{"say": "a"}, {"say": "b"}]
    assert json.loads(theirs.recv(100)) == {"do": "ps"}


def test_a_refusal_has_its_status_and_a_lab_that_is_gone_is_told() -> None:
    conversation, theirs = talking()
    theirs.sendall(encode({"error": "no such host", "status": 2}))
    with pytest.raises(Refused, match="no such host") as refused:
        conversation.ask({"do": "migrate"}, 5)
    assert refused.value.status == 2
    with pytest.raises(TimeoutError):
        conversation.ask({"do": "ps"}, 0.01)
    theirs.close()
    with pytest.raises(LabGone):
        conversation.ask({"do": "ps"}, 5)


def test_a_caller_that_takes_nothing_is_waited_for_and_then_hung_up_on() -> None:
    ours, theirs = socket.socketpair()
    caller = Caller(theirs)
    text = "x" * (MOST_BYTES // 2)
    said = 0
    while not caller.is_slow:
        caller.say({"say": text})
        said += 1
    taken = b""
    while caller.is_slow:
        taken += ours.recv(1 << 16)
        caller.flush()
    ours.settimeout(5)
    while taken.count(b"\n") < said:  # nothing is lost
        taken += ours.recv(1 << 16)
    for _ in range(2 * MOST_UNSENT_BYTES // len(text)):
        caller.say({"say": text})
    assert not caller.is_slow
    with pytest.raises(ConnectionError):
        caller.hear()


def test_what_is_said_to_a_caller_that_is_gone_is_no_error() -> None:
    ours, theirs = socket.socketpair()
    caller = Caller(theirs)
    ours.close()
    for _ in range(3):
        caller.say({"say": "anybody?"})
    caller.close()
    caller.say({"say": "anybody?"})
    caller.finish(1.0)
