"""What the target reaches, beside nbdkit: ``python -m testbed.storage.bench [MIB]``.

One link between two namespaces, one file, nbdcopy at the other end; the target and nbdkit take turns. Rates
are medians over the copies of a run, in MiB/s. Then what a claim costs that a host waits for, in us.
"""

from __future__ import annotations

import os
import secrets
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from netns import universe
from netns.apply import apply
from netns.forkserver import spawn
from netns.namespace import Namespace
from netns.topology import End, Link, Node, Spec, plan
from testbed.storage import nbdkit
from testbed.storage.lun_client import LunClient
from testbed.storage.target import DISK_SUFFIX

LUN = "bench"
ADDRESS = "10.5.0.10"
NBD_PORT, LUN_PORT, NBDKIT_PORT = 10809, 3260, 10810
COPIES = 5
CLAIMS = 200
DEADLINE_S = 60.0
_NETWORK = Spec(
    (Node("storage"), Node("host-a")),
    (
        Link(
            End("storage", "stor0", addresses=(f"{ADDRESS}/24",)),
            End("host-a", "stor0", addresses=("10.5.0.1/24",)),
        ),
    ),
)


@dataclass(frozen=True)
class Rates:
    """MiB/s of each copy, to and from the target and nbdkit; of nbdkit there are none where it is not
    installed."""

    to_target: list[float]
    to_nbdkit: list[float]
    from_target: list[float]
    from_nbdkit: list[float]

    def ratios(self) -> tuple[list[float], list[float]]:
        """The target's rate over nbdkit's, of each pair of copies: to, and from."""
        to = [our / their for our, their in zip(self.to_target, self.to_nbdkit, strict=False)]
        back = [our / their for our, their in zip(self.from_target, self.from_nbdkit, strict=False)]
        return to, back


@contextmanager
def standing(folder: Path, size_bytes: int) -> Iterator[Namespace]:
    """A network with a target that has one LUN in `folder`, full of noise; the client's namespace. It needs a
    universe."""
    disk = folder / f"{LUN}{DISK_SUFFIX}"
    _fill(disk, size_bytes)
    argument = {"folder": str(folder), "address": ADDRESS, "nbd_port": NBD_PORT, "lun_port": LUN_PORT}
    with apply(plan(_NETWORK)) as network:
        storage, host = network.namespace("storage"), network.namespace("host-a")
        with spawn("testbed.storage.target:main", argument, namespace=storage, name="storage") as target:
            target.wait_ready(DEADLINE_S)
            yield host


def copies(folder: Path, host: Namespace, size_bytes: int, repeats: int = COPIES) -> Rates:
    """Copy a file of noise to the target's LUN and back, `repeats` times, in turn with nbdkit on the same
    file if it is installed.

    NbdkitError, or FileNotFoundError where there is no nbdcopy.
    """
    noise = folder / "noise"
    _fill(noise, size_bytes)
    rates = Rates([], [], [], [])
    servers = [(NBD_PORT, rates.to_target, rates.from_target)]
    with ExitStack() as stack:
        if shutil.which("nbdkit"):
            storage = stack.enter_context(Namespace.open("storage"))
            disk = folder / f"{LUN}{DISK_SUFFIX}"
            stack.enter_context(nbdkit.serving(disk, ADDRESS, NBDKIT_PORT, storage))
            servers.append((NBDKIT_PORT, rates.to_nbdkit, rates.from_nbdkit))
        for _ in range(repeats):
            for port, to, back in servers:
                export = f"nbd://{ADDRESS}:{port}/{LUN}"
                to.append(_copy(host, str(noise), export, size_bytes))
                back.append(_copy(host, export, "null:", size_bytes))
    return rates


def claims(host: Namespace, repeats: int = CLAIMS) -> list[float]:
    """How long each claim of a lease took, in us: one round trip, and the state on stable storage."""
    key = secrets.token_hex(8)
    times_us = []
    with LunClient.connect((ADDRESS, LUN_PORT), deadline_s=DEADLINE_S, namespace=host) as client:
        client.register(LUN, key)
        epoch = client.guard(LUN, key, "disk", [[0, 1 << 20]])["epoch"]
        for _ in range(repeats):
            began_ns = time.perf_counter_ns()
            epoch = client.claim(LUN, key, "disk", epoch)
            times_us.append((time.perf_counter_ns() - began_ns) / 1e3)
    return times_us


def _fill(path: Path, size_bytes: int) -> None:
    with path.open("wb") as file:
        for start in range(0, size_bytes, 1 << 20):
            file.write(os.urandom(min(1 << 20, size_bytes - start)))


def _copy(host: Namespace, source: str, target: str, size_bytes: int) -> float:
    with host.entered():
        began_ns = time.perf_counter_ns()
        subprocess.run(["nbdcopy", source, target], check=True, timeout=DEADLINE_S)
        return size_bytes / 2**20 / ((time.perf_counter_ns() - began_ns) / 1e9)


def _bench(size_bytes: int) -> int:
    with tempfile.TemporaryDirectory() as name, standing(Path(name), size_bytes) as host:
        rates = copies(Path(name), host, size_bytes)
        to, back = rates.ratios()
        _row("to the target", rates.to_target, "MiB/s")
        _row("to nbdkit", rates.to_nbdkit, "MiB/s")
        _row("ratio, to", to, "")
        _row("from the target", rates.from_target, "MiB/s")
        _row("from nbdkit", rates.from_nbdkit, "MiB/s")
        _row("ratio, from", back, "")
        _row("claim", claims(host), "us")
    return 0


def _row(name: str, values: list[float], unit: str) -> None:
    if values:
        print(f"{name:20} {statistics.median(values):9.2f} {unit:6} ({min(values):.2f} to {max(values):.2f})")


def main(mib: int = 512) -> int:
    """Run the bench with a LUN of `mib` MiB, in a universe, and print its table; 0."""
    return universe.run(lambda: _bench(mib << 20), preload=("testbed.storage.target",))


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
