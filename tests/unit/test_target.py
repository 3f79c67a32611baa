"""What a client has open at the target while it negotiates."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from testbed.storage import nbd
from testbed.storage.nbd import NoSuchExport
from testbed.storage.target import Target, TargetSpec, _AskedFor
from tests.unit.storage_fakes import DEADLINE_S

EXPORT = f"csv?key={'a' * 16}&session={'5' * 16}&turn="
GO, INFO = nbd.NBD_OPT_GO, nbd.NBD_OPT_INFO


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Target]:
    with Target(TargetSpec(tmp_path, "127.0.0.1", 0, 0, {"csv": 1 << 20})) as made:
        yield made


class Client:
    """A client that asks for one export, and does not hear the answer yet."""

    def __init__(self, target: Target) -> None:
        self.ours, theirs = socket.socketpair()
        self.ours.settimeout(DEADLINE_S)
        self._stack = ExitStack()
        self._stack.enter_context(self.ours)
        self._stack.enter_context(theirs)
        self.asked_for = self._stack.enter_context(_AskedFor(target, theirs))
        self._talk = nbd.server_handshake(self.asked_for)
        next(self._talk)
        self._talk.send(struct.pack(">I", nbd.NBD_FLAG_FIXED_NEWSTYLE))

    def ask(self, option: int, export: str) -> bytes:
        """What the target is about to answer."""
        name = export.encode()
        data = struct.pack(">I", len(name)) + name + bytes(2)
        self._talk.send(struct.pack(">QII", nbd.IHAVEOPT, option, len(data)))
        return self._talk.send(data).send

    def close(self) -> None:
        self._stack.close()


@pytest.fixture
def clients(target: Target) -> Iterator[tuple[Client, Client]]:
    with ExitStack() as stack:
        made = Client(target), Client(target)
        for client in made:
            stack.callback(client.close)
        yield made


def test_a_turn_is_open_before_its_client_hears_of_it(clients: tuple[Client, Client]) -> None:
    """For it may write as soon as it has heard; the session must not have been forgotten by then."""
    old, new = clients
    assert nbd.NBD_REP_ERR_UNKNOWN not in replies(old.ask(GO, EXPORT + "1"))
    assert nbd.NBD_REP_ERR_UNKNOWN not in replies(new.ask(GO, EXPORT + "2"))
    assert old.ours.recv(1) == b"", "it has been ended"


def test_an_older_turn_is_refused_in_one_line(clients: tuple[Client, Client]) -> None:
    new, old = clients
    new.ask(INFO, EXPORT + "2")
    answer = old.ask(GO, EXPORT + "1")
    assert replies(answer) == [nbd.NBD_REP_ERR_UNKNOWN]
    assert answer.endswith(f"turn 1 of session {'5' * 16} is over: it is at 2".encode())


def test_what_a_client_does_not_go_on_with_it_has_not_open(
    target: Target, clients: tuple[Client, Client]
) -> None:
    client, other = clients
    lun = target.luns["csv"]
    for turn in range(1, 9):
        client.asked_for.find(f"{EXPORT}{turn}")
    assert (len(lun._turns), len(lun._doors)) == (1, 1)
    client.asked_for.find("csv")
    assert nbd.NBD_REP_ERR_UNKNOWN not in replies(other.ask(GO, EXPORT + "1"))
    with pytest.raises(NoSuchExport, match="there is no LUN 'no'"):
        client.asked_for.find("no")
    other.close()
    assert (len(lun._turns), len(lun._doors)) == (0, 0)


def replies(answer: bytes) -> list[int]:
    """The kind of each reply to an option."""
    kinds = []
    while answer:
        _, _, kind, length = struct.unpack_from(">QIII", answer)
        kinds.append(kind)
        answer = answer[20 + length :]
    return kinds
