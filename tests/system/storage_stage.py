"""The stage of the storage tests: two hosts on a network with the storage, and a target to start and stop."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from netns.apply import apply
from netns.forkserver import Process, spawn
from netns.namespace import Namespace
from netns.topology import Bridge, End, Link, Node, Spec, plan
from testbed.storage.client import NbdClient
from testbed.storage.lun_client import LunClient

ADDRESS = "10.5.0.10"
NBD, LUN = (ADDRESS, 10809), (ADDRESS, 3260)
SIZE = 64 << 20
KEY_A, KEY_B = "a" * 16, "b" * 16
DEADLINE_S = 20.0
PRELOAD = ("testbed.storage.target",)

_NODES = {"storage": f"{ADDRESS}/24", "host-a": "10.5.0.1/24", "host-b": "10.5.0.2/24"}
_NETWORK = Spec(
    (Node("switch", bridges=(Bridge("br0"),)), *(Node(name) for name in _NODES)),
    tuple(
        Link(End(name, "stor0", addresses=(address,)), End("switch", name, bridge="br0"))
        for name, address in _NODES.items()
    ),
)


class Stage:
    """The network, and the target in `folder`. `target` is its process while one runs."""

    def __init__(self, folder: Path, namespaces: dict[str, Namespace]) -> None:
        self.folder = folder
        self.target: Process | None = None
        self._namespaces = namespaces
        self._open: list[NbdClient | LunClient] = []

    def start(self, **changed: Any) -> Process:
        """A target that is ready; `changed` in its argument."""
        self.target = self.spawn(**changed)
        self.target.wait_ready(DEADLINE_S)
        return self.target

    def spawn(self, **changed: Any) -> Process:
        argument = {
            "folder": str(self.folder), "address": ADDRESS, "nbd_port": NBD[1], "lun_port": LUN[1],
            "luns": {"csv": SIZE}, **changed,
        }  # fmt: skip
        storage = self._namespaces["storage"]
        return spawn("testbed.storage.target:main", argument, namespace=storage, name="storage")

    def stop(self, *, kill: bool = False) -> int:
        """End the target; its exit status."""
        assert self.target is not None
        self.target.kill() if kill else self.target.terminate()
        status = self.target.wait(DEADLINE_S)
        self.target.close()
        self.target = None
        assert status is not None
        return status

    def nbd(self, export: str = "csv", host: str = "host-a") -> NbdClient:
        client = NbdClient.connect(NBD, export, deadline_s=DEADLINE_S, namespace=self._namespaces[host])
        self._open.append(client)
        return client

    def lun(self, host: str = "host-a") -> LunClient:
        client = LunClient.connect(LUN, deadline_s=DEADLINE_S, namespace=self._namespaces[host])
        self._open.append(client)
        return client

    def namespace(self, node: str) -> Namespace:
        return self._namespaces[node]

    def run(self, *command: str, host: str = "host-a") -> subprocess.CompletedProcess[str]:
        """An ordinary program on a host, to its end."""
        with self._namespaces[host].entered():
            return subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=DEADLINE_S
            )

    def close(self) -> None:
        for client in self._open:
            client.close()
        if self.target is not None:
            self.stop(kill=True)


@contextmanager
def standing(folder: Path) -> Iterator[Stage]:
    with apply(plan(_NETWORK)) as network:
        stage = Stage(folder, {name: network.namespace(name) for name in _NODES})
        try:
            yield stage
        finally:
            stage.close()


def bound(key: str, lease: str, epoch: int) -> str:
    """The name under which a host opens its connection for a virtual disk."""
    return f"csv?key={key}&lease={lease}&epoch={epoch}"


def share(lun: LunClient, disk: Sequence[int] = (1 << 20, 1 << 20)) -> None:
    """Both hosts are registered and share the LUN; A coordinates, and has the lease `disk` at epoch 5."""
    for key in (KEY_A, KEY_B):
        lun.register("csv", key)
    lun.reserve("csv", KEY_A, "shared")
    lun.guard("csv", KEY_A, "metadata", [[0, 1 << 20]])
    lun.guard("csv", KEY_A, "disk", [disk], epoch=5)
