"""What the doctor makes of what its probes say. The probes themselves: tests/system/test_doctor.py."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from dataclasses import replace

import pytest
from rich.console import Console
from typer.testing import CliRunner

from netns import universe
from testbed import cli
from testbed.commands.ending import CANNOT, INTERRUPTED
from testbed.doctor import examination, features
from testbed.doctor.examination import Finding, as_json, examine, missing
from testbed.doctor.table import show


@pytest.fixture(autouse=True)
def without_universe(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here needs privilege: probes run in this process."""
    monkeypatch.setattr(universe, "run", lambda main: main())


def healthy() -> str:
    return ""


def ill() -> str:
    raise OSError(1, "Operation not permitted")


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make the named features' probes fail, and all others succeed."""

    monkeypatch.setattr(features, "DEMO_BYTES", 0)  # what is free meanwhile is not what this is about

    def make(*lacking: str) -> None:
        assert set(lacking) <= {one.name for one in features.KERNEL}
        patched = tuple(
            replace(one, probe=ill if one.name in lacking else healthy) for one in features.KERNEL
        )
        monkeypatch.setattr(features, "KERNEL", patched)

    return make


def test_a_probe_that_raises_is_a_finding_with_its_reason(kernel: Callable[..., None]) -> None:
    kernel("TCP_REPAIR")
    found = {one.name: one for one in examine()}
    assert found["TCP_REPAIR"].there is False
    assert "Operation not permitted" in found["TCP_REPAIR"].detail
    assert found["bridge"].there is True


def test_what_is_needed_decides_and_what_is_optional_does_not(kernel: Callable[..., None]) -> None:
    kernel("soft-dirty", "netem", "tbf", "userfaultfd", "cubic")
    assert missing(examine()) == []


@pytest.mark.parametrize("name", [one.name for one in features.KERNEL if one.group == "needed"])
def test_each_needed_feature_is_missed(kernel: Callable[..., None], name: str) -> None:
    kernel(name)
    done = CliRunner().invoke(cli.app, ["doctor", "--json"])
    assert done.exit_code == CANNOT
    assert name in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert json.loads(done.stdout)["can_run_demo"] is False


def test_without_a_universe_nothing_is_claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: object) -> int:
        raise universe.UniverseUnavailable("a new user namespace was refused", "none", "sysctl it")

    monkeypatch.setattr(universe, "run", refuse)
    found = examine()
    assert {one.there for one in found if one.name in {k.name for k in features.KERNEL}} == {None}
    assert missing(found)[0].name == features.UNIVERSE
    done = CliRunner().invoke(cli.app, ["doctor"])
    assert done.exit_code == CANNOT
    assert "sysctl it" in done.stderr


def test_a_probe_that_takes_its_process_along_is_not_taken_for_success(
    kernel: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel()
    monkeypatch.setattr(universe, "run", lambda _: 128 + 9)
    found = examine()
    assert {one.there for one in found if one.name == "veth"} == {None}
    assert missing(found)


def test_ctrl_c_is_not_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(universe, "run", lambda _: INTERRUPTED)
    with pytest.raises(KeyboardInterrupt):
        examine()


def test_too_little_memory(kernel: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    kernel()
    monkeypatch.setattr(features, "DEMO_BYTES", 1 << 60)
    assert [one.name for one in missing(examine())] == [features.MEMORY]


def test_tools_are_looked_for_in_path(
    kernel: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    kernel()
    (tmp_path / "wrk").touch(0o755)  # type: ignore[operator]
    monkeypatch.setenv("PATH", os.fspath(tmp_path))  # type: ignore[arg-type]
    found = {one.name: one.there for one in examine() if one.group == "tool"}
    assert found.pop("wrk") is True
    assert set(found.values()) == {False}


def test_json_is_what_was_found(kernel: Callable[..., None]) -> None:
    kernel()
    found = examine()
    told = json.loads(json.dumps(as_json(found)))
    assert [Finding(**one) for one in told["findings"]] == found


def test_every_feature_says_what_is_lost_and_how_to_get_it(kernel: Callable[..., None]) -> None:
    kernel(*[one.name for one in features.KERNEL])
    assert all(one.lost and one.remedy for one in examine() if not one.there)
    assert len({one.name for one in examine()}) == len(examine())


def test_the_table_fits_a_terminal(kernel: Callable[..., None]) -> None:
    kernel(*[one.name for one in features.KERNEL])
    written = io.StringIO()
    show(Console(file=written, width=80), examine())
    lines = written.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    for one in (*features.KERNEL, *features.TOOLS):
        assert one.name in written.getvalue()
    assert "…" not in written.getvalue()  # rich's sign for what it cut off
    assert examination.missing(examine())
