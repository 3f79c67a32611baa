"""The control connection: any message arrives whole, and nothing else passes for one."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator

import pytest

from testbed.clients.control import (
    PIECE_CHARACTERS,
    ClientControl,
    ClientFailed,
    ControlError,
    receive_message,
    send_message,
)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        ours.settimeout(10)
        theirs.settimeout(10)
        yield ours, theirs


@pytest.mark.parametrize("size", [0, 10, PIECE_CHARACTERS - 8, PIECE_CHARACTERS, 2_000_000])
def test_a_message_of_any_length_arrives_whole(pair: tuple[socket.socket, socket.socket], size: int) -> None:
    ours, theirs = pair
    message = {"text": '"\\é'[size % 3] * size}
    sender = threading.Thread(target=send_message, args=(ours, message))
    sender.start()
    assert receive_message(theirs) == message
    sender.join()


def test_hanging_up_is_no_message(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    ours.close()
    assert receive_message(theirs) is None
    with pytest.raises(ControlError):
        send_message(theirs, {"do": "start"})


@pytest.mark.parametrize(
    "datagrams",
    [
        [b"{"],
        [b"[1]"],
        [b"\xff\xfe"],
        [b'{"piece": 1, "of": 2, "text": ""}'],
        [b'{"piece": 0, "of": 2, "text": "a"}', b'{"piece": 0, "of": 2, "text": "a"}'],
        [b'{"piece": 0, "of": 2, "text": "a"}', b'{"piece": 1, "of": 3, "text": "a"}'],
        [b'{"piece": 0, "of": 1000000000, "text": "a"}'],
        [b'{"piece": 0, "of": "x", "text": "a"}'],
        [b'{"piece": 0, "of": 1, "text": 5}'],
        [b'{"piece": 0, "of": 1, "text": "5"}'],
    ],
)
def test_what_is_no_message_is_refused(
    pair: tuple[socket.socket, socket.socket], datagrams: list[bytes]
) -> None:
    ours, theirs = pair
    for datagram in datagrams:
        ours.send(datagram)
    with pytest.raises(ControlError):
        receive_message(theirs)


def test_hanging_up_in_the_middle_is_an_error(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    ours.send(json.dumps({"piece": 0, "of": 2, "text": "{"}).encode())
    ours.close()
    with pytest.raises(ControlError, match="middle"):
        receive_message(theirs)


def test_the_answers_of_a_client(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    control = ClientControl(ours)
    send_message(theirs, {"started": {"t_ns": 5, "connections": 8}})
    assert control.start() == {"t_ns": 5, "connections": 8}
    send_message(theirs, {"error": "client1: is started already"})
    with pytest.raises(ClientFailed, match="client1: is started already"):
        control.start()
    send_message(theirs, {"started": {}})
    with pytest.raises(ControlError, match="no answer to heartbeat"):
        control.heartbeat()
    for _ in range(3):
        receive_message(theirs)
    theirs.close()
    with pytest.raises(ControlError):
        control.stop()
