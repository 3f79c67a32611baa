"""What a command that was interrupted says of what it leaves."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from testbed import cli


@pytest.fixture(autouse=True)
def ctrl_c_is_heard_again() -> Iterator[None]:
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    ("command", "said"), [("demo", True), ("up", True), ("capture", False), ("exec", False)]
)
def test_of_a_lab_that_stands_on_nobody_says_that_it_is_gone(
    command: str, said: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`capture`, interrupted before it had begun, said that nothing of the lab was left."""

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "app", interrupted)
    monkeypatch.setattr("sys.argv", ["testbed", command])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    told = capsys.readouterr().err
    assert ended.value.code == cli.INTERRUPTED
    assert told.startswith("testbed: ended by Ctrl-C")
    assert ("nothing of the lab is left" in told) is said


def test_ctrl_c_once_more_when_the_end_is_being_told_changes_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(*_: object, **__: object) -> int:
        raise KeyboardInterrupt

    told: list[str] = []

    def tell(text: str) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        told.append(text)

    monkeypatch.setattr(cli, "app", interrupted)
    monkeypatch.setattr(cli, "tell", tell)
    monkeypatch.setattr("sys.argv", ["testbed", "demo"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == cli.INTERRUPTED
    assert told == ["ended by Ctrl-C; nothing of the lab is left"]
