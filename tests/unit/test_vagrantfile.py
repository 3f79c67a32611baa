"""The Vagrantfile is one that Vagrant accepts, and its machines are the releases that we test on."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import require
from tests.vm.image import CHECKOUT, HERE
from tests.vm.release import RELEASES


def validated(vagrantfile: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Let Vagrant judge a Vagrantfile. It keeps its own files under `folder` and asks no network."""
    require("vagrant", shutil.which("vagrant") is not None)
    (folder / "Vagrantfile").write_text(vagrantfile)
    (folder / "tests").symlink_to(CHECKOUT / "tests")
    homes = {"VAGRANT_HOME": str(folder / "home"), "VAGRANT_CHECKPOINT_DISABLE": "1"}
    return subprocess.run(
        ["vagrant", "validate", "--ignore-provider"],
        cwd=folder, env=os.environ | homes, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_vagrant_accepts_it(tmp_path: Path) -> None:
    told = validated((CHECKOUT / "Vagrantfile").read_text(), tmp_path)
    assert told.returncode == 0, told.stdout + told.stderr


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        pytest.param('path: "tests/vm/provision.sh"', 'path: "tests/vm/missing.sh"', id="script"),
        pytest.param("machine.vm.box =", "machine.vm.bax =", id="setting"),
    ],
)
def test_vagrant_would_refuse_a_wrong_one(tmp_path: Path, right: str, wrong: str) -> None:
    vagrantfile = (CHECKOUT / "Vagrantfile").read_text()
    assert right in vagrantfile
    assert validated(vagrantfile.replace(right, wrong), tmp_path).returncode != 0


def test_its_machines_are_the_releases_that_we_test_on() -> None:
    machines = re.findall(r'^  "(\w+)" => ', (CHECKOUT / "Vagrantfile").read_text(), re.MULTILINE)
    assert sorted(machines) == sorted(RELEASES)


def test_provisioning_knows_every_release() -> None:
    known = re.findall(r"^(\w+)\) # Linux", (HERE / "provision.sh").read_text(), re.MULTILINE)
    assert sorted(known) == sorted(release.suite for release in RELEASES.values())
