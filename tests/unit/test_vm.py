"""What `python -m tests.vm` reads and decides on the host: apt's sources, results, its exit status."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.vm import __main__ as entry
from tests.vm import boot, host, image, selection, verdict
from tests.vm.release import RELEASES, Release

DEBIAN13 = RELEASES["debian13"]
REPORT = """<testsuites><testsuite>
<testcase classname="a" name="passes"/>
<testcase classname="a" name="fails"><failure>no</failure></testcase>
<testcase classname="a" name="fails and cannot clean up"><failure/><error/></testcase>
<testcase classname="a" name="cannot begin"><error/></testcase>
<testcase classname="a" name="skips"><skipped/></testcase>
</testsuite></testsuites>"""


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "sources.list",
            "# deb http://old/debian sid main\ndeb [arch=amd64] http://here/debian/ stable main\n",
        ),
        (
            "sources.list.d/debian.sources",
            "Types: deb\nURIs: http://s/debian-security\nSuites: bookworm-security\nComponents: main\n\n"
            "# comment\nTypes: deb deb-src\nURIs: http://here/debian\nSuites: bookworm bookworm-updates\n"
            "Components: main contrib\n",
        ),
        ("sources.list.d/all.list", "deb http://other/tool any main\ndeb http://here/debian trixie main\n"),
    ],
)
def test_the_mirror_is_the_one_that_apt_uses(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / name).write_text(text)
    assert host.debian_mirror(tmp_path) == "http://here/debian"


def test_a_list_of_mirrors_is_followed(tmp_path: Path) -> None:
    mirrors = tmp_path / "mirrors"
    mirrors.write_text("https://here/debian\n")
    (tmp_path / "sources.list").write_text(f"deb mirror+file:{mirrors} trixie main\n")
    assert host.debian_mirror(tmp_path) == "https://here/debian"


@pytest.mark.parametrize(
    "text", ["", "deb http://here/ubuntu noble main\n", "deb http://here/debian sid contrib\n"]
)
def test_without_a_debian_mirror_it_says_how_to_name_one(tmp_path: Path, text: str) -> None:
    (tmp_path / "sources.list").write_text(text)
    with pytest.raises(host.Unavailable, match="--mirror"):
        host.debian_mirror(tmp_path)


def test_a_missing_tool_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    with pytest.raises(host.Unavailable, match="apt-get install e2fsprogs"):
        host.tool("mke2fs")


def test_cases_are_counted_once(tmp_path: Path) -> None:
    (tmp_path / "junit.xml").write_text(REPORT)
    (tmp_path / "exit").write_text("1\n")
    found = verdict.read(tmp_path, DEBIAN13)
    assert (found.passed, found.failed, found.skipped) == (1, 3, 1)
    assert found.failures == ["a::fails", "a::fails and cannot clean up", "a::cannot begin"]
    assert not found.good


GOOD = {
    "exit": "0\n",
    "demo-exit": "0\n",
    "junit.xml": '<t><testcase name="a"/></t>',
    "doctor.json": '{"findings": [{"name": "netem", "there": true}, {"name": "userfaultfd", "there": true}]}',
}


def test_a_run_is_good_if_tests_passed_the_demo_ended_well_and_the_doctor_told_the_truth(
    tmp_path: Path,
) -> None:
    found = results(tmp_path, GOOD)
    assert found.good
    assert (found.exit_status, found.demo_status, found.passed, found.untruths) == (0, 0, 1, [])


@pytest.mark.parametrize(
    "otherwise",
    [
        pytest.param(dict.fromkeys(GOOD), id="nothing came back"),
        pytest.param({"junit.xml": None}, id="no report"),
        pytest.param({"junit.xml": "<testsuites/>"}, id="nothing was tested"),
        pytest.param({"exit": "124"}, id="out of time"),
        pytest.param({"demo-exit": "1"}, id="a check of the demo failed"),
        pytest.param({"demo-exit": None}, id="no demo"),
        pytest.param({"doctor.json": None}, id="no doctor"),
        pytest.param({"doctor.json": "Traceback"}, id="the doctor fell ill"),
    ],
)
def test_a_run_is_not_good(tmp_path: Path, otherwise: dict[str, str | None]) -> None:
    assert not results(tmp_path, GOOD | otherwise).good


@pytest.mark.parametrize(
    ("there", "untruths"),
    [
        ({"netem": True, "userfaultfd": False}, []),
        ({"netem": True, "userfaultfd": True}, ["userfaultfd is there"]),
        ({"netem": False, "userfaultfd": False}, ["netem is missing"]),
        ({"netem": None, "userfaultfd": None}, ["netem is untried", "userfaultfd is untried"]),
        ({"netem": True}, ["not a word of userfaultfd"]),
    ],
)
def test_the_doctor_is_held_to_what_the_release_is_known_to_lack(
    tmp_path: Path, there: dict[str, bool | None], untruths: list[str]
) -> None:
    report = {"findings": [{"name": name, "there": value} for name, value in there.items()]}
    found = results(tmp_path, GOOD | {"doctor.json": json.dumps(report)}, RELEASES["debian12"])
    assert found.untruths == untruths
    assert found.good == (not untruths)


def results(folder: Path, files: dict[str, str | None], release: Release = DEBIAN13) -> verdict.Verdict:
    for name, text in files.items():
        if text is not None:
            (folder / name).write_text(text)
    return verdict.read(folder, release)


@pytest.mark.parametrize("arguments", [selection.QUICK, selection.FULL], ids=["quick", "full"])
def test_what_is_selected_exists(arguments: tuple[str, ...]) -> None:
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", *arguments]
    told = subprocess.run(command, cwd=image.CHECKOUT, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stdout + told.stderr


@pytest.mark.parametrize("written", [0, 300, 513, 10240])
def test_a_disk_that_was_not_written_whole_gives_no_result(tmp_path: Path, written: int) -> None:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        entry = tarfile.TarInfo("exit")
        entry.size = 2
        tar.addfile(entry, io.BytesIO(b"0\n"))
    disk, folder = tmp_path / "disk", tmp_path / "results"
    disk.write_bytes(archive.getvalue()[:written].ljust(1 << 20, b"\0"))
    folder.mkdir()
    verdict.unpack(disk, folder)
    assert verdict.read(folder, DEBIAN13).exit_status == (0 if written == 10240 else None)


def test_the_archive_holds_the_checkout_and_what_the_run_needs(tmp_path: Path) -> None:
    image.checkout_image(tmp_path / "checkout.tar", {".vm-arguments": "60 root 'a b'"})
    with tarfile.open(tmp_path / "checkout.tar") as archive:
        names = archive.getnames()
        assert archive.extractfile(".vm-arguments").read() == b"60 root 'a b'"  # type: ignore[union-attr]
    assert len(names) == len(set(names))
    assert {"pyproject.toml", "tests/vm/guest.sh", "tests/vm/provision.sh"} <= set(names)
    assert not [name for name in names if name.startswith((".git/", ".venv/"))]


def test_only_the_results_disk_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boot, "tool", lambda name: name)
    root = image.Root(*(tmp_path / name for name in ("vmlinuz", "initrd", "root", "tree")))
    machine = boot.Machine(root, [tmp_path / "checkout,1", tmp_path / "results"], cpus=1, memory_mib=512)
    drives = [word for word in boot.command(machine) if word.startswith("file=")]
    assert [drive.rpartition(",")[2] for drive in drives] == ["snapshot=on", "readonly=on", "readonly=off"]
    assert "checkout,,1" in drives[1]


def test_it_ends_a_machine_that_does_not_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        boot, "command", lambda _: ["sh", "-c", "echo vm: booted; printf half; exec sleep 60"]
    )
    lines: list[str] = []
    monkeypatch.setattr(boot, "time", SimpleNamespace(monotonic=lambda: 60.0 * len(lines)))
    assert not boot.boot(None, tmp_path / "console", 50, lines.append)  # type: ignore[arg-type]
    assert lines == ["vm: booted"]


def test_it_keeps_the_last_line_of_a_machine_that_dies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(boot, "command", lambda _: ["printf", "\\033[0mvm: booted\\r\\nKernel panic"])
    assert boot.boot(None, tmp_path / "console", 10, lambda _: None)  # type: ignore[arg-type]
    assert (tmp_path / "console").read_text() == "vm: booted\nKernel panic\n"


@pytest.mark.parametrize(
    ("verdicts", "status"),
    [
        ({"debian12": verdict.Verdict(0, 0, passed=3), "debian13": verdict.Verdict(0, 0, passed=3)}, 0),
        ({"debian12": verdict.Verdict(0, 0, passed=3), "debian13": verdict.Verdict(1, 0, passed=3)}, 1),
        ({"debian12": verdict.Verdict(), "debian13": verdict.Verdict(0, 0, passed=3)}, 1),
    ],
)
def test_the_exit_status(
    verdicts: dict[str, verdict.Verdict], status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(entry, "run", lambda release, *_: verdicts[release.name])
    assert entry.main(["all"]) == status


def test_only_root_can_build_a_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 65534)
    assert entry.main(["debian13", "--cache", str(tmp_path)]) == 3
    with pytest.raises(host.Unavailable, match="sudo"):
        image.root_image(RELEASES["debian13"], tmp_path, None)


def test_a_failed_build_leaves_no_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(image, "KEYRING", Path("/dev/null"))
    monkeypatch.setattr(image, "tool", lambda _: "false")
    with pytest.raises(host.Unavailable, match="failed with status 1"):
        image.root_image(Release("debian13", "trixie"), tmp_path, "http://here/debian")
    assert list(tmp_path.iterdir()) == []
