"""What a command that was interrupted says of what it leaves."""

from __future__ import annotations

import pytest

from testbed import cli


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
