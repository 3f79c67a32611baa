"""`@pytest.mark.universe` beside tests without it: pytest itself runs on files made for it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from netns import universe
from tests.conftest import require

PYTEST = (sys.executable, "-m", "pytest", "-p", "tests.conftest", "-p", "no:cacheprovider", "-rA")

MIXED = """
import os
import pytest

@pytest.fixture(scope="module")
def wide():
    yield "wide"
    print("wide is over in", os.getpid())

def test_plain(wide):
    assert os.getpid() != 2

@pytest.mark.universe
def test_marked():
    assert os.getpid() == 2
"""
MARKED = """
import os
import pytest

@pytest.mark.universe
def test_marked_too():
    assert os.getpid() == 2
"""


@pytest.mark.parametrize("files", [(MIXED, MARKED), (MARKED, MIXED), (MIXED, MIXED, MARKED)])
def test_marked_and_plain_tests_may_follow_one_another(tmp_path: Path, files: tuple[str, ...]) -> None:
    require("universe", lambda: universe.check() is None)
    for number, text in enumerate(files):
        (tmp_path / f"test_{number}.py").write_text(text)
    done = subprocess.run(
        [*PYTEST, str(tmp_path)], cwd=Path(__file__).parents[2], text=True, capture_output=True
    )
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("wide is over in") == files.count(MIXED)
