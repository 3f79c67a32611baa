"""The shelf: every scenario that ships runs, and shows what it says; and what it shows is not there where the
mechanism behind it is put right (or wrong), so none passes by itself.
"""

from __future__ import annotations

import shutil
import tomllib
from pathlib import Path

import pytest

from testbed.experiment.run import run
from testbed.measure.result import Result
from testbed.scenario import shelf
from testbed.scenario.files import load, parse
from testbed.scenario.model import Scenario
from tests.conftest import require
from tests.system.labs import PRELOAD, REPOSITORY, Witness, failed_checks

LONG = frozenset(
    {
        "announcements",
        "drain-a-host",
        "redirected-io",
        "restart-instead-of-migration",
        "shared-network",
        "stale-neighbour",
        "stuck-migration",
        "there-and-back",
        "wan",
    }
)
"""Those that take more than ten seconds where other tests run beside them."""

AT_ONCE = ("switch-that-does-not-relearn", "target-speaks-early")
"""Whose mechanism is taken out in every run of the tests; the others' where slow tests are run."""

STOP_AND_COPY = '[migration]\nmode = "stop-and-copy"\n[network]\n'
"""No pre-copy; with a wire on which RAM takes seconds."""

MUTATIONS = {
    "switch-that-does-not-relearn": ("relearn = false", "relearn = true", "clients.gap_ms.max"),
    "target-speaks-early": ('fault = "precopy:target-speaks-early"', "", "clients.gap_ms.max"),
    "announced-too-early": (
        'port_delay = "600ms"\ndrop_announcements = 2\n',
        "",
        "clients.gap_ms.max",
    ),
    "announcements": ('announce = "rarp"', 'announce = "garp-request"', "migrations.2.gap_ms.max"),
    "stale-neighbour": ('neighbours = "stale"', 'neighbours = "move"', "clients.each.0.longest_wait_ms"),
    "downtime-leaves-the-network-out": ("hold = false", "hold = true", "migrations.1.gap_ms.max"),
    "udp-stream": ("hold = false", "hold = true", "clients.each.1.lost"),
    "shared-network": ('max_bandwidth = "6mbit"', "", "migrations.1.gap_ms.max"),
    "silent-target": (
        "[migration]",
        '[[step]]\nmigrate = "vm1"\nfault = "precopy:target-speaks-early"\n[migration]',
        "migrations.0.network.switch_relearned_ms",
    ),
    "dirty-guest": ("dirty_rate = 3000", "dirty_rate = 10", "migrations.0.rounds.0.dirty_pages"),
    "lossy-access": ("loss = 0.02", "", "links.0.forward.lost"),
    "hot-guest": ("dirty_rate = 20000", "dirty_rate = 10", "migrations.0.outcome"),
    "live-against-stop-and-copy": (
        'mode = "stop-and-copy"',
        'mode = "live"',
        "migrations.1.blackout_ms",
    ),
    "agent-killed": ('fault = "verify:target-agent-killed"', "", "migrations.0.outcome"),
    "restart-instead-of-migration": ('fault = "precopy:guest-killed"', "", "clients.broken"),
    "demo": ("[[step]]", f'{STOP_AND_COPY}bandwidth = "500mbit"\n[[step]]', "clients.gap_ms.max"),
    "bulk-transfers": ("[[vm]]", f'{STOP_AND_COPY}bandwidth = "50mbit"\n[[vm]]', "clients.each.*.stalled_ms"),
    "three-places": ("[[vm]]", '[[vm]]\nmac = "per-host"\nannounce = "none"', "clients.gap_ms.max"),
    "agent-killed-at-commit": ('durable = true\ndisk = "8MiB"\n', "", "migrations.0.owner"),
    "redirected-io": ("storage-cut-source", "storage-cut-both", "clients.gap_ms.max"),
    "verify-then-delete": ('fault = "switchover:message-corrupted"', "", "migrations.0.outcome"),
    "stuck-migration": ('fault = "precopy:link-black-hole"', "", "migrations.0.total_ms"),
    "quick-migration": ('mode = "quick"', 'mode = "live"', "migrations.0.blackout_ms"),
    "wan": ('delay = "150ms"', 'delay = "5ms"', "migrations.0.blackout_ms"),
    "two-vms-at-once": (
        'migrate = ["vm1", "vm2"]',
        'migrate = "vm1"\n[[step]]\nmigrate = "vm2"',
        "migrations.1.begun_ms",
    ),
    "drain-a-host": ('drain = "host-a"', 'migrate = ["vm1", "vm2"]', "migrations.2.source"),
    "there-and-back": ("times = 4", "times = 3", "migrations.3.owner"),
    "ordinary-programs": ("counter?[1-200]", "nowhere?[1-200]", "programs.*.exit_status"),
}
"""What a scenario says, what is said in its place, and a figure whose check must fail then."""


def ran(scenario: Scenario, folder: Path) -> Result:
    for client in scenario.clients:
        for program in client.programs:
            require(program.command[0], bool(shutil.which(program.command[0])))
    return run(scenario, folder, Witness(), [str(REPOSITORY)])


@pytest.mark.parametrize("path", shelf.paths(), ids=shelf.names())
def test_each_says_what_it_shows_and_asserts_it(path: Path) -> None:
    scenario = load(path)
    assert scenario.name == path.stem
    for said in (scenario.shows, scenario.expect):
        assert said.endswith(".")
        assert len(said) > 40
    assert scenario.checks, "it would pass whatever came out"


@pytest.mark.universe(preload=PRELOAD)
@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, id=path.stem, marks=[pytest.mark.slow] if path.stem in LONG else [])
        for path in shelf.paths()
    ],
)
def test_each_shows_what_it_says(path: Path, tmp_path: Path) -> None:
    result = ran(load(path), tmp_path)
    assert failed_checks(result) == []
    assert all(one.owner is not None for one in result.migrations)


@pytest.mark.universe(preload=PRELOAD)
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in AT_ONCE else [pytest.mark.slow]) for name in MUTATIONS],
)
def test_none_shows_it_without_the_mechanism(name: str, tmp_path: Path) -> None:
    said, instead, figure = MUTATIONS[name]
    text = (shelf.FOLDER / f"{name}.toml").read_text()
    assert said in text
    scenario = parse(text.replace(said, instead).encode(), f"{name}.toml", name)
    failed = failed_checks(ran(scenario, tmp_path))
    assert any(line.startswith(f"{figure} ") for line in failed), failed


def test_what_is_said_to_be_long_or_changed_is_there() -> None:
    names = set(shelf.names())
    assert names >= LONG
    assert names == set(MUTATIONS)
    for name in names:
        assert "name" not in tomllib.loads((shelf.FOLDER / f"{name}.toml").read_text()), "it is the file's"
