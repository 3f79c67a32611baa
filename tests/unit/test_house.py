"""The rules of the house: what every file must keep to, read from the files themselves.

Linters and the type checker are tests here. The rest is what no linter knows: which room may import which,
which modules are pure, and where a sleep is allowed.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

ROWS = (
    ("netns", "testbed.kernel", "testbed.measure"),
    ("testbed.memory", "testbed.tcp", "testbed.udp", "testbed.handover", "testbed.storage"),
    ("testbed.guest",),
    ("testbed.migration",),
    ("testbed.faults",),
    ("testbed.host", "testbed.clients"),
    ("testbed.scenario",),
    ("testbed.lab",),
    ("testbed.experiment",),
    ("testbed.standing",),
    ("testbed.report",),
    ("testbed.doctor", "testbed.bench"),
    ("testbed.commands",),
    ("testbed.cli", "testbed.pytest_plugin"),
    ("testbed.__main__",),
)
"""The rooms, lowest first. A room imports from its own files and from rows below its own; never from a
neighbour in its row, never from above."""

PURE = (
    "netns/capture_file.py",
    "netns/conditions.py",
    "netns/link_figures.py",
    "netns/passage.py",
    "netns/pcapng.py",
    "netns/steps.py",
    "netns/topology.py",
    "testbed/clients/account.py",
    "testbed/clients/packet_log.py",
    "testbed/clients/throughput.py",
    "testbed/guest/programs/log_format.py",
    "testbed/guest/ring.py",
    "testbed/handover/announcement.py",
    "testbed/handover/filters.py",
    "testbed/memory/page_map.py",
    "testbed/experiment/fitting.py",
    "testbed/experiment/foresight.py",
    "testbed/experiment/trials.py",
    "testbed/measure/accuracy.py",
    "testbed/experiment/effects.py",
    "testbed/experiment/measures.py",
    "testbed/measure/continuity.py",
    "testbed/measure/significance.py",
    "testbed/report/comparison_page.py",
    "testbed/report/strip.py",
    "testbed/scenario/changes.py",
    "testbed/measure/datagram.py",
    "testbed/measure/pattern.py",
    "testbed/measure/statistics.py",
    "testbed/measure/wire.py",
    "testbed/memory/dirty_curve.py",
    "testbed/memory/sampling.py",
    "testbed/migration/errors.py",
    "testbed/migration/overheads.py",
    "testbed/migration/prediction.py",
    "testbed/migration/spans.py",
    "testbed/migration/ownership.py",
    "testbed/migration/phases.py",
    "testbed/migration/source.py",
    "testbed/migration/strategy.py",
    "testbed/migration/target.py",
    "testbed/migration/wire.py",
    "testbed/report/page/charts.py",
    "testbed/report/page/dots.py",
    "testbed/report/page/packed.py",
    "testbed/report/page/sieve.py",
    "testbed/report/page/story.py",
    "testbed/report/page/tables.py",
    "testbed/report/page/view.py",
    "testbed/report/page/words.py",
    "testbed/experiment/checks.py",
    "testbed/experiment/comparison.py",
    "testbed/experiment/spans.py",
    "testbed/scenario/fitting.py",
    "testbed/scenario/from_options.py",
    "testbed/scenario/model.py",
    "testbed/scenario/omissions.py",
    "testbed/scenario/options.py",
    "testbed/experiment/marks.py",
    "testbed/scenario/parts.py",
    "testbed/scenario/probing.py",
    "testbed/scenario/quantities.py",
    "testbed/scenario/steps.py",
    "testbed/experiment/outcome.py",
    "testbed/experiment/thresholds.py",
    "testbed/experiment/tables.py",
    "testbed/experiment/link_figures.py",
    "testbed/lab/plan.py",
    "testbed/scenario/pcap.py",
    "testbed/scenario/units.py",
    "testbed/scenario/variants.py",
    "testbed/scenario/words.py",
    "testbed/standing/protocol.py",
    "testbed/standing/wanted.py",
    "testbed/storage/layout.py",
    "testbed/storage/lun.py",
    "testbed/storage/lun_json.py",
    "testbed/storage/nbd.py",
    "testbed/storage/turns.py",
    "testbed/storage/volume.py",
    "testbed/tcp/state.py",
    "testbed/udp/state.py",
)
"""Values in, values out: these import nothing that acts or reads a clock."""

ACTING = {"os", "select", "selectors", "socket", "subprocess", "threading", "time"}

SLEEPS = {
    "netns/apply.py": "looks again for a carrier, 1 ms apart, with a deadline",
    "testbed/tcp/handshakes.py": "counts half-open connections again, with a deadline: the kernel tells none",
    "testbed/tcp/injector.py": "waits for TCP to take an injected segment: the kernel has no event for it",
    "tests/system/faulty_datagrams.py": "being late is the fault that it makes",
    "tests/system/tcp_moves.py": "looks again, with a deadline, for a state that no descriptor tells",
    "tests/system/test_clients.py": "looks again, with a deadline, for a state; keeps a client from running",
    "tests/system/test_tcp_handover.py": "gives a timer of the kernel's its time: it is to send nothing",
}
"""Where `time.sleep` is allowed, and why. Everywhere else one waits on a descriptor or a pidfd."""

UNFINISHED = re.compile(r"\b(?:stub|stubbed|todo|fixme|xxx|hack|placeholder)\b", re.IGNORECASE)


def sources(*folders: str) -> dict[str, str]:
    """The text of every Python file in the folders, by its name from the root."""
    paths = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    return {str(path.relative_to(ROOT)): path.read_text() for path in paths}


def imports(source: str) -> Iterator[tuple[int, str, str | None]]:
    """(line, module, name taken from it or None) of every import, wherever it stands in the file."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import hides which room it goes to"
            yield from ((node.lineno, str(node.module), alias.name) for alias in node.names)


def room(module: str) -> str | None:
    """The room to which a dotted name belongs; None for what is not ours (or is the bare package)."""
    parts = module.split(".")
    if parts[0] == "netns":
        return "netns"
    return ".".join(parts[:2]) if parts[0] == "testbed" and len(parts) > 1 else None


def row(name: str) -> int:
    for number, rooms in enumerate(ROWS):
        if name in rooms:
            return number
    pytest.fail(f"{name} has no place in the table of rooms: give it one, in {Path(__file__).name}")


def arrows_up(own_room: str, source: str) -> list[str]:
    """Each import of another room that does not lie in a row below."""
    found = []
    for line, module, name in imports(source):
        goal = room(f"{module}.{name}" if module == "testbed" else module)
        if goal is not None and goal != own_room and row(goal) >= row(own_room):
            found.append(f"line {line}: {own_room} -> {goal}")
    return found


def acting_imports(source: str) -> list[str]:
    """Each import from a module that acts: of a constant too, which then belongs to a raw room."""
    return [
        f"line {line}: {module}.{name or '*'}"
        for line, module, name in imports(source)
        if module.split(".")[0] in ACTING
    ]


def swallowed(source: str) -> list[int]:
    """Lines where everything is caught and nothing done about it."""
    everything = {"Exception", "BaseException"}
    lines = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ExceptHandler):
            catches_all = node.type is None or ast.unparse(node.type) in everything
            if catches_all and {ast.unparse(one) for one in node.body} <= {"pass", "...", "continue"}:
                lines.append(node.lineno)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("suppress"):
            lines += [node.lineno for one in node.args if ast.unparse(one) in everything]
    return lines


def sleeps(source: str) -> list[int]:
    """Lines that call `time.sleep`, under whatever name it was imported."""
    tree = ast.parse(source)
    taken = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "time"
        for alias in node.names
        if alias.name == "sleep"
    } | {"time.sleep"}
    return [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) in taken
    ]


# ---- linters


def run(*command: str) -> None:
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, text=True, capture_output=True)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"


def test_ruff() -> None:
    run("ruff", "check", "--no-cache", "--output-format=concise", "netns", "testbed", "tests")


@pytest.mark.timeout(1200)
def test_types() -> None:
    """A first run reads the libraries' types too: a minute on two busy cores."""
    cache = ROOT / ".mypy_cache" if os.access(ROOT, os.W_OK) else Path(os.devnull)
    run("mypy", "--strict", f"--cache-dir={cache}", "-p", "netns", "-p", "testbed")


# ---- imports


def test_imports_go_down() -> None:
    found = {}
    for name, source in sources("netns", "testbed").items():
        own_room = room(name.removesuffix(".py").replace("/", "."))
        if own_room is not None and own_room != "testbed.__init__":
            found[name] = arrows_up(own_room, source)
    assert {name: arrows for name, arrows in found.items() if arrows} == {}


def test_pure_modules_do_not_act() -> None:
    found = {name: acting_imports((ROOT / name).read_text()) for name in PURE}
    assert {name: lines for name, lines in found.items() if lines} == {}


@pytest.mark.parametrize(
    ("own_room", "source", "found"),
    [
        ("testbed.memory", "from testbed.kernel import pagemap", 0),
        ("testbed.memory", "from testbed.memory.pages import PageSet", 0),
        ("testbed.memory", "from testbed.guest.heap import Heap", 1),
        ("testbed.memory", "from testbed import guest", 1),
        ("testbed.memory", "def late():\n    import testbed.tcp.state", 1),
        ("netns", "import testbed.kernel.checked", 1),
        ("testbed.kernel", "import netns", 1),
    ],
)
def test_arrows_up_are_seen(own_room: str, source: str, found: int) -> None:
    assert len(arrows_up(own_room, source)) == found


def test_acting_imports_are_seen() -> None:
    source = "import os.path, json\nfrom socket import AF_INET\ndef late():\n    from time import time_ns"
    assert len(acting_imports(source)) == 3


# ---- habits


def test_nothing_is_unfinished() -> None:
    found = [
        f"{name}:{number}: {line.strip()}"
        for name, source in sources("netns", "testbed").items()
        for number, line in enumerate(source.splitlines(), 1)
        if UNFINISHED.search(line)
    ]
    assert found == []


def test_nothing_is_swallowed() -> None:
    found = {name: swallowed(source) for name, source in sources("netns", "testbed", "tests").items()}
    assert {name: lines for name, lines in found.items() if lines} == {}


def test_sleeps_are_known() -> None:
    """Both ways: a sleep needs its reason, and a reason that is no longer needed goes."""
    sleeping = {name for name, source in sources("netns", "testbed", "tests").items() if sleeps(source)}
    assert sleeping - SLEEPS.keys() == set(), "wait on a descriptor, or give the reason in SLEEPS"
    assert SLEEPS.keys() - sleeping == set(), "does not sleep any more: take it out of SLEEPS"


def test_every_package_says_what_it_is() -> None:
    packages = {n: s for n, s in sources("netns", "testbed").items() if n.endswith("__init__.py")}
    assert [name for name, source in packages.items() if not ast.get_docstring(ast.parse(source))] == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("while True:\n    try:\n        f()\n    except BaseException:\n        continue", 1),
        ("try:\n    f()\nexcept:\n    pass", 1),
        ("try:\n    f()\nexcept Exception:\n    ...", 1),
        ("with suppress(BaseException):\n    f()", 1),
        ("try:\n    f()\nexcept ProcessLookupError:\n    pass", 0),
        ("try:\n    f()\nexcept Exception as error:\n    raise SystemExit(1) from error", 0),
    ],
)
def test_what_is_swallowed_is_seen(source: str, found: int) -> None:
    assert len(swallowed(source)) == found


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import time\ntime.sleep(1)", 1),
        ("from time import sleep as nap\nnap(1)", 1),
        ("import time\ntime.monotonic()", 0),
    ],
)
def test_sleeps_are_seen(source: str, found: int) -> None:
    assert len(sleeps(source)) == found
