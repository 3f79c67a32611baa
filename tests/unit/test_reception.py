"""Who may give an agent orders, and who gets the answer."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed.host.control import ControlError, Line, Reception

DEADLINE_S = 5.0


@pytest.fixture
def listening(tmp_path: Path) -> Iterator[tuple[Reception, Path]]:
    path = tmp_path / "agent"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen()
        yield Reception(listener), path


def taken(reception: Reception) -> dict[str, object]:
    message = reception.poll()
    while message is None:
        message = reception.poll()
    return message


def test_an_order_is_answered_to_the_one_who_gave_it(listening: tuple[Reception, Path]) -> None:
    reception, path = listening
    line = Line.connect(path)
    line.send({"do": "stats"})
    assert taken(reception) == {"do": "stats"}
    assert reception.send({"ok": 1})
    assert line.receive(DEADLINE_S) == {"ok": 1}
    assert reception.peer_pid == os.getpid()


def test_an_answer_goes_to_nobody_else(listening: tuple[Reception, Path]) -> None:
    """Another orchestrator that came meanwhile would take it for the answer to its own first question."""
    reception, path = listening
    first = Line.connect(path)
    first.send({"do": "migrate"})
    taken(reception)
    second = Line.connect(path)
    second.send({"do": "status"})
    while not reception.pending:
        reception.cancelled()
    assert not reception.send({"ok": "of the migration"})
    assert reception.peer_pid is None
    assert taken(reception) == {"do": "status"}
    assert reception.send({"ok": "of the status"})
    assert second.receive(DEADLINE_S) == {"ok": "of the status"}
    with pytest.raises(ControlError):
        first.receive(DEADLINE_S)


def test_what_comes_during_a_command_waits_and_a_cancel_does_not(listening: tuple[Reception, Path]) -> None:
    reception, path = listening
    line = Line.connect(path)
    line.send({"do": "stats"})
    line.send({"do": "cancel"})
    while not reception.cancelled():
        continue
    assert taken(reception) == {"do": "stats"}
    assert reception.poll() is None


def test_an_orchestrator_that_is_gone_is_forgotten_and_the_next_is_heard(
    listening: tuple[Reception, Path],
) -> None:
    reception, path = listening
    gone = Line.connect(path)
    gone.send({"do": "migrate"})
    taken(reception)
    gone.close()
    assert reception.poll() is None
    assert not reception.send({"ok": 1})
    line = Line.connect(path)
    line.send({"do": "status"})
    assert taken(reception) == {"do": "status"}
