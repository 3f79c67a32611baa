"""The storage of a lab: the target with its LUN, and on each host the service that has the volume mounted.

Or, if that is asked for, nbdkit with one guest's disk and nothing else.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from netns.forkserver import Process, spawn
from netns.namespace import Namespace
from testbed.host.saved_state import largest_state_bytes, remove
from testbed.host.shared_storage import FILLER
from testbed.lab import plan as planned
from testbed.scenario.model import Scenario
from testbed.storage import nbdkit
from testbed.storage.volume_client import VolumeClient, VolumeRefused

FOLDER = Path("/run/storage")
READY_DEADLINE_S = 30.0
ANSWER_DEADLINE_S = 30.0
NBD_PORT, LUN_PORT, RELAY_PORT = 10809, 3260, 10900
LUN = "csv"
OVERHEAD_BYTES = 32 << 20
"""Of a volume, for its own tables and whole extents."""


def keys(scenario: Scenario) -> dict[str, str]:
    """The key with which each host is registered at the LUN: ..aa, ..bb and so on."""
    return {host: f"{0x99 + 0x11 * planned.host_number(scenario, host):016x}" for host in scenario.hosts}


def service_sockets(host: str) -> dict[str, str]:
    """Where the volume service of a host listens."""
    return {"control": str(FOLDER / f"{host}.control"), "nbd": str(FOLDER / f"{host}.nbd")}


def access(host: str, scenario: Scenario) -> dict[str, Any]:
    """What a host's agents are told of the storage (testbed.host.plain_disk.storage_from_json)."""
    address = planned.storage_address(scenario, planned.STORAGE)
    if scenario.storage.server == "nbdkit":
        return {"plain": {"address": address, "port": NBD_PORT}}
    of_hosts = keys(scenario)
    hosts = {key: name for name, key in of_hosts.items()}
    lun = {"address": address, "port": LUN_PORT, "name": LUN, "key": of_hosts[host], "hosts": hosts}
    return service_sockets(host) | {"lun": lun, "moves": scenario.is_quick}


def lun_bytes(scenario: Scenario) -> int:
    """The LUN has room for every guest's disk and, in a Quick Migration, for its saved RAM."""
    disks = sum(vm.disk_bytes for vm in scenario.vms)
    saved = sum(largest_state_bytes(vm.ram_bytes) for vm in scenario.vms) if scenario.is_quick else 0
    return OVERHEAD_BYTES + disks + saved


class PlainServer:
    """nbdkit with the disk of the one guest that has one, started; close it to end it. Raises NbdkitError."""

    def __init__(self, scenario: Scenario, namespaces: Mapping[str, Namespace]) -> None:
        vm = next(vm for vm in scenario.vms if vm.disk_bytes)
        disk = FOLDER / f"{vm.name}.img"
        address = planned.storage_address(scenario, planned.STORAGE)
        with ExitStack() as stack:
            stack.callback(shutil.rmtree, FOLDER, ignore_errors=True)
            FOLDER.mkdir(exist_ok=True)
            disk.touch()
            os.truncate(disk, vm.disk_bytes)
            stack.enter_context(nbdkit.serving(disk, address, NBD_PORT, namespaces[planned.STORAGE]))
            self._stack = stack.pop_all()

    def close(self) -> None:
        self._stack.close()


class Storage:
    """Target and services, started; close it to end them. The data is gone with the universe."""

    def __init__(
        self, scenario: Scenario, namespaces: Mapping[str, Namespace], folder: Path, recorder: Path
    ) -> None:
        self._scenario = scenario
        self._namespaces = namespaces
        self._logs = folder
        self._recorder = recorder
        self.processes: dict[str, Process] = {}
        with ExitStack() as stack:
            stack.callback(shutil.rmtree, FOLDER, ignore_errors=True)
            self.start_target(stack)
            for host in scenario.hosts:
                entry = "testbed.storage.service:main"
                self._spawn(stack, f"{host}-volume", host, entry, self._service(host))
            for process in self.processes.values():
                process.wait_ready(READY_DEADLINE_S)
            self._prepare()
            self._stack = stack.pop_all()

    def start_target(self, stack: ExitStack) -> None:
        """Start the target; what an earlier one has left in the folder is there again."""
        argument = {
            "folder": str(FOLDER / "target"),
            "address": planned.storage_address(self._scenario, planned.STORAGE),
            "nbd_port": NBD_PORT,
            "lun_port": LUN_PORT,
            "luns": {LUN: lun_bytes(self._scenario)},
        }
        (FOLDER / "target").mkdir(parents=True, exist_ok=True)
        self._spawn(stack, planned.STORAGE, planned.STORAGE, "testbed.storage.target:main", argument)
        self.processes[planned.STORAGE].wait_ready(READY_DEADLINE_S)

    def _spawn(self, stack: ExitStack, name: str, node: str, entry: str, argument: dict[str, Any]) -> None:
        log = self._logs / f"{name}.log"
        process = spawn(entry, argument, namespace=self._namespaces[node], name=name, stderr=log)
        self.processes[name] = stack.enter_context(process)

    def _service(self, host: str) -> dict[str, Any]:
        scenario = self._scenario
        of_hosts = keys(scenario)
        (peer,) = (other for other in scenario.hosts if other != host)
        target = planned.storage_address(scenario, planned.STORAGE)
        return service_sockets(host) | {
            "host": host,
            "key": of_hosts[host],
            "hosts": of_hosts,
            "lun": LUN,
            "target": [target, NBD_PORT, LUN_PORT],
            "relay_listen": [planned.migration_address(scenario, host), RELAY_PORT],
            "peer_relay": [planned.migration_address(scenario, peer), RELAY_PORT],
            "recorder": str(self._recorder),
        }

    def _prepare(self) -> None:
        """Format the volume, mount it on whoever may have it, make the guests' disks. A LUN that moves begins
        where its guest does."""
        quick = self._scenario.is_quick
        hosts = self._scenario.hosts
        first = self._scenario.vms[0].host if quick else hosts[0]
        with self.client(first) as client:
            client.format()
            client.mount("exclusive" if quick else "shared")
            for vm in self._scenario.vms:
                if vm.disk_bytes:
                    client.create(vm.name, vm.disk_bytes)
        if not quick:
            for host in hosts[1:]:
                with self.client(host) as client:
                    client.mount("shared")

    def make_room(self) -> None:
        """Delete what a fault has filled the volume with, on a host that has it mounted. One whose LUN was
        taken by the other does not know yet that it has it no more.
        """
        for host in self._scenario.hosts:
            with self.client(host) as client:
                if client.state()["mode"] is None:
                    continue
                try:
                    for disk in client.disks():
                        if disk.startswith(FILLER):
                            remove(client, disk)
                    return
                except VolumeRefused as refused:
                    if refused.kind not in ("Fenced", "NotRegistered"):
                        raise

    def client(self, host: str) -> VolumeClient:
        """A connection to a host's volume service."""
        return VolumeClient.connect(Path(service_sockets(host)["control"]), ANSWER_DEADLINE_S)

    def close(self) -> None:
        self._stack.close()
