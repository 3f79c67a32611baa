"""What a run's results disk says."""

from __future__ import annotations

import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree


@dataclass(frozen=True)
class Verdict:
    """The outcome of one run. `exit_status` is pytest's, None where it never got to its end."""

    exit_status: int | None = None
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    environment: str = ""
    failures: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        return self.exit_status == 0 and self.passed > 0

    def describe(self) -> str:
        if self.exit_status is None:
            return "no result"
        counts = f"{self.passed} passed, {self.failed} failed, {self.skipped} skipped"
        return f"{counts}, pytest's status {self.exit_status}"


def unpack(disk: Path, folder: Path) -> None:
    """Unpack the files of the archive that the machine wrote to `disk`: empty or torn where that died.

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


def read(folder: Path) -> Verdict:
    """The verdict of what was unpacked into `folder`."""
    status, report = folder / "exit", folder / "junit.xml"
    environment = folder / "environment"
    known = environment.read_text() if environment.exists() else ""
    exit_status = int(told) if status.exists() and (told := status.read_text().strip()).isdigit() else None
    if exit_status is None or not report.exists():
        return Verdict(exit_status, environment=known)
    return _count(report, exit_status, known)


def _count(report: Path, exit_status: int, environment: str) -> Verdict:
    """Count the cases of a JUnit report; one that failed may hold several reasons, and counts once."""
    cases = list(ElementTree.parse(report).iter("testcase"))
    failed = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    skipped = [case for case in cases if case.find("skipped") is not None]
    names = [f"{case.get('classname')}::{case.get('name')}" for case in failed]
    passed = len(cases) - len(failed) - len(skipped)
    return Verdict(exit_status, passed, len(failed), len(skipped), environment, names)
