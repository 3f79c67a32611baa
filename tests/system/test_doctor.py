"""`testbed doctor` on this very kernel, and on one that forbids things."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest

from testbed.commands.ending import CANNOT, PASSED
from testbed.doctor import features
from tests.conftest import require

COMMAND = (sys.executable, "-m", "testbed", "doctor", "--json")
WITHOUT_NETWORK_RIGHTS = ("setpriv", "--bounding-set=-net_admin,-net_raw", "--inh-caps=-all")
FORBIDDEN = (
    *("unshare", "--user", "--map-user=1000", "--keep-caps", "sh", "-c"),
    'echo 0 >/proc/sys/user/max_user_namespaces && exec setpriv --ambient-caps=-all --inh-caps=-all "$@"',
    "sh",
)
"""Makes a user namespace in which there can be no other, and runs a command as an ordinary user in it."""


def test_it_knows_this_machine() -> None:
    done = subprocess.run(COMMAND, capture_output=True, text=True)
    told = json.loads(done.stdout)
    assert done.returncode == (PASSED if told["can_run_demo"] else CANNOT), done.stderr
    assert len(told["findings"]) == 2 + len(features.KERNEL) + len(features.TOOLS)
    assert {one["there"] for one in told["findings"]} <= {True, False}
    tools = {one["name"]: one["there"] for one in told["findings"] if one["group"] == "tool"}
    assert tools == {name: shutil.which(name) is not None for name in tools}


def test_where_user_namespaces_are_forbidden() -> None:
    works = subprocess.run([*FORBIDDEN, "true"], capture_output=True, text=True)
    require("user namespaces", works.returncode == 0)
    done = subprocess.run([*FORBIDDEN, *COMMAND], capture_output=True, text=True)
    assert done.returncode == CANNOT, done.stderr
    (line,) = done.stderr.splitlines()
    assert "user.max_user_namespaces" in line
    assert {one["there"] for one in json.loads(done.stdout)["findings"] if one["name"] == "veth"} == {None}


@pytest.mark.universe
@pytest.mark.parametrize(
    "name", ["veth", "bridge", "packet sockets", "TCP_REPAIR", "tbf", "redirection", "netem"]
)
def test_a_probe_fails_without_the_right_it_needs(name: str) -> None:
    """The probes see what they look for: with the capability gone, so is the feature."""
    (feature,) = [one for one in features.KERNEL if one.name == name]
    call = f"from testbed.doctor import probes; probes.{feature.probe.__name__}()"
    done = subprocess.run(
        [*WITHOUT_NETWORK_RIGHTS, sys.executable, "-c", call], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "not permitted" in done.stderr.splitlines()[-1] or "refuse" in done.stderr.splitlines()[-1]
