"""``python -m tests.vm [debian12|debian13|all] [options] [-- PYTEST-ARGUMENTS]``"""

from __future__ import annotations

import argparse
import shlex
import shutil
import sys
import time
from pathlib import Path

from tests.vm.boot import Machine, boot
from tests.vm.host import Unavailable
from tests.vm.image import checkout_image, root_image, wheelhouse_image
from tests.vm.release import RELEASES, Release
from tests.vm.selection import FULL, FULL_S, QUICK, QUICK_S
from tests.vm.verdict import Verdict, read, unpack

DEFAULT_CACHE = Path("~/.cache/live-migration-testbed")
UNTIL_TESTS_S = 1200  # boot, provision, doctor, demo
RESULTS_DISK_BYTES = 64 << 20
ALL_GOOD, SOMETHING_FAILED, CANNOT = 0, 1, 3


def main(argv: list[str]) -> int:
    options, pytest_arguments = _parse(argv)
    chosen = list(RELEASES.values()) if options.release == "all" else [RELEASES[options.release]]
    try:
        verdicts = {release: run(release, options, pytest_arguments) for release in chosen}
    except Unavailable as error:
        print(f"tests.vm: {error}", file=sys.stderr)
        return CANNOT
    print()
    for release, verdict in verdicts.items():
        print(f"{release.name}: {verdict.describe()}")
        for name in verdict.failures:
            print(f"  failed: {name}")
    return ALL_GOOD if all(verdict.good for verdict in verdicts.values()) else SOMETHING_FAILED


def run(release: Release, options: argparse.Namespace, pytest_arguments: list[str]) -> Verdict:
    """One run on `release`. Leaves in the cache's results/`release` console.txt, output.txt, junit.xml, what
    the doctor said in doctor.txt, what the demo said in demo.txt, and the files of the demo's run."""
    cache = options.cache.expanduser().resolve()
    tell = _Clock(release.name)
    tell("images")
    root = root_image(release, cache, options.mirror)
    wheelhouse = wheelhouse_image(release, root, cache)

    results = cache / "results" / release.name
    shutil.rmtree(results, ignore_errors=True)
    results.mkdir(parents=True)
    checkout, results_disk = results / "checkout.tar", results / "results.img"
    arguments = [str(options.timeout), options.user, *pytest_arguments]
    checkout_image(checkout, {".vm-arguments": shlex.join(arguments)})
    results_disk.touch()
    with results_disk.open("r+b") as disk:
        disk.truncate(RESULTS_DISK_BYTES)

    def on_line(line: str) -> None:
        if line.startswith("vm: "):
            tell(line.removeprefix("vm: "))
        elif options.verbose:
            print(line, flush=True)

    tell("booting")
    machine = Machine(root, [checkout, wheelhouse, results_disk], options.cpus, options.memory)
    if not boot(machine, results / "console.txt", options.timeout + UNTIL_TESTS_S, on_line):
        tell("out of time, killed")
    unpack(results_disk, results)
    results_disk.unlink()
    verdict = read(results, release)
    tell(verdict.describe())
    if not verdict.good:
        _show_evidence(results)
    return verdict


class _Clock:
    """Says what goes on, and since how many seconds."""

    def __init__(self, name: str) -> None:
        self._name, self._begin = name, time.monotonic()

    def __call__(self, what: str) -> None:
        print(f"{self._name} {time.monotonic() - self._begin:6.1f} s  {what}", flush=True)


def _show_evidence(results: Path) -> None:
    output = results / "output.txt"
    shown = output if output.exists() else results / "console.txt"
    print(f"--- the end of {shown}")
    print("\n".join(shown.read_text(errors="replace").splitlines()[-40:]))


def _parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    ours, separator, theirs = _split(argv)
    parser = argparse.ArgumentParser(
        prog="python -m tests.vm",
        description="Run the tests on Debian's kernels, under QEMU's software emulation.",
        epilog=f"After -- come pytest's arguments; without them: {shlex.join(QUICK)}",
    )
    parser.add_argument("release", nargs="?", default="all", choices=[*RELEASES, "all"])
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE, help="where images stay (%(default)s)")
    parser.add_argument("--mirror", help="the Debian mirror to build from (default: the one that apt uses)")
    parser.add_argument("--full", action="store_true", help="all kernel, system and fault tests")
    limits = f"pytest's limit in seconds ({QUICK_S}; with --full {FULL_S})"
    parser.add_argument("--timeout", type=int, help=limits)
    parser.add_argument("--user", default="root", help="the user who tests, made if need be (%(default)s)")
    parser.add_argument("--cpus", type=int, default=2, help="of the emulated machine (%(default)s)")
    parser.add_argument("--memory", type=int, default=4096, help="MiB of the emulated machine (%(default)s)")
    parser.add_argument("-v", "--verbose", action="store_true", help="show the machine's whole console")
    options = parser.parse_args(ours)
    if options.full and separator:
        parser.error("--full chooses the tests; so do the arguments after --")
    if options.timeout is None:
        options.timeout = FULL_S if options.full else QUICK_S
    return options, theirs if separator else list(FULL if options.full else QUICK)


def _split(argv: list[str]) -> tuple[list[str], bool, list[str]]:
    if "--" not in argv:
        return argv, False, []
    at = argv.index("--")
    return argv[:at], True, argv[at + 1 :]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
