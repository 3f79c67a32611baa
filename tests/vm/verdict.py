"""What a run's results disk says."""

from __future__ import annotations

import json
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

from tests.vm.release import Release


@dataclass(frozen=True)
class Verdict:
    """The outcome of one run: of its tests, of its demo, and of what the doctor said.

    `exit_status` is pytest's and `demo_status` the demo's, None where it never got to its end. `untruths` is
    what the doctor said that is not so.
    """

    exit_status: int | None = None
    demo_status: int | None = None
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    environment: str = ""
    failures: list[str] = field(default_factory=list)
    untruths: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        return self.exit_status == 0 and self.passed > 0 and self.demo_status == 0 and not self.untruths

    def describe(self) -> str:
        demo = "no end" if self.demo_status is None else f"status {self.demo_status}"
        others = f"demo: {demo}, doctor: {'; '.join(self.untruths) or 'truthful'}"
        if self.exit_status is None:
            return f"no result of the tests; {others}"
        counts = f"{self.passed} passed, {self.failed} failed, {self.skipped} skipped"
        return f"{counts}, pytest's status {self.exit_status}; {others}"


def unpack(disk: Path, folder: Path) -> None:
    """Unpack the files of the archive that the machine wrote to `disk`; one that died leaves it torn.

    By hand: Debian 12's Python cannot filter what extractall() unpacks.
    """
    try:
        with tarfile.open(disk, "r:") as archive:
            for member in archive:
                content = archive.extractfile(member)
                if content is not None:
                    (folder / Path(member.name).name).write_bytes(content.read())
    except tarfile.ReadError:
        return


def read(folder: Path, release: Release) -> Verdict:
    """The verdict of what was unpacked into `folder` after a run on `release`."""
    environment = folder / "environment"
    passed, skipped, failures = _counted(folder / "junit.xml")
    return Verdict(
        exit_status=_status(folder / "exit"),
        demo_status=_status(folder / "demo-exit"),
        passed=passed,
        failed=len(failures),
        skipped=skipped,
        environment=environment.read_text() if environment.exists() else "",
        failures=failures,
        untruths=_untruths(folder / "doctor.json", release.lacks),
    )


def _status(path: Path) -> int | None:
    told = path.read_text().strip() if path.exists() else ""
    return int(told) if told.isdigit() else None


def _counted(report: Path) -> tuple[int, int, list[str]]:
    """How many cases of a JUnit report passed and skipped, and the names of those that failed.

    One that failed may hold several reasons, and counts once.
    """
    if not report.exists():
        return 0, 0, []
    cases = list(ElementTree.parse(report).iter("testcase"))
    failed = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    skipped = [case for case in cases if case.find("skipped") is not None]
    names = [f"{case.get('classname')}::{case.get('name')}" for case in failed]
    return len(cases) - len(failed) - len(skipped), len(skipped), names


def _untruths(report: Path, lacks: frozenset[str]) -> list[str]:
    """Where the doctor errs: everything is there but what the release is known to lack."""
    try:
        findings = json.loads(report.read_text())["findings"]
    except (FileNotFoundError, json.JSONDecodeError):
        return ["it said nothing"]
    told = {one["name"]: one["there"] for one in findings}
    unheard = [f"not a word of {name}" for name in sorted(lacks - told.keys())]
    words = {True: "there", False: "missing", None: "untried"}
    return unheard + [
        f"{name} is {words[there]}" for name, there in told.items() if there is not (name not in lacks)
    ]
