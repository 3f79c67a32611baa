"""The guest that a host has: its network, its RAM, its process, and what tracks its writes."""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, Self

from testbed.host.description import GuestDescription
from testbed.host.guest_process import GuestProcess
from testbed.host.keeper import Keeper, Kept
from testbed.host.network import GuestNetwork, Site
from testbed.host.plain_disk import Storage
from testbed.host.shared_storage import DiskArbiter
from testbed.memory.region import Region
from testbed.memory.tracking import Capability, DirtyTracker, Subject, choose
from testbed.migration.errors import LocalError
from testbed.migration.ownership import Lease

REGAIN_DEADLINE_S = 30.0
RETRY_S = 0.1


class HostedGuest:
    """A guest in place on a host. Close it to remove it without a trace.

    :meth:`put_in_place` makes one that does not run yet, unplugged and silent; :meth:`adopt` takes over the
    one of an agent that has died, as it stands. Raises GuestError, OSError, TrackerUnavailable; nothing is
    left then.
    """

    def __init__(
        self,
        site: Site,
        description: GuestDescription,
        ram: Region,
        network: GuestNetwork,
        process: GuestProcess,
        trackers: Sequence[Capability],
    ) -> None:
        """Of parts that are closed with this object; they stay the caller's where this raises."""
        self.site = site
        self.description = description
        self.ram = ram
        self.network = network
        self.process = process
        self.epoch = description.epoch
        """At which the lease of its disk is this host's, or will be; 0 without a disk."""
        uffd, process.userfaultfd = process.userfaultfd, None
        subject = Subject(ram, process.pid, process.address, uffd, process.refusal)
        self.choice = choose(description.tracker, subject, trackers)

    @classmethod
    def put_in_place(
        cls,
        site: Site,
        description: GuestDescription,
        keeper: Keeper,
        *,
        fresh: bool,
        trackers: Sequence[Capability],
        import_path: Sequence[str] = (),
    ) -> Self:
        """`fresh` for a guest's first boot; else its RAM comes from elsewhere and is populated now, so that
        no page of it is touched for the first time in the blackout.
        """
        with ExitStack() as stack:
            ram = stack.enter_context(Region.create(description.ram_bytes))
            if not fresh:
                ram.populate()
            network = GuestNetwork(site, description)
            stack.callback(network.close)
            if not fresh and site.port_delay_s:
                network.port.delay_forwarding(site.port_delay_s)
            argument: dict[str, Any] = {
                "program": description.program,
                "host": site.name,
                "fresh": fresh,
                "populate": not fresh,
                "fill": description.fill,
                "seed": description.seed,
                "load": dict(description.load),
                "import_path": list(import_path),
                "max_connections": description.max_connections,
            }
            process = GuestProcess.start(argument, ram, network.namespace)
            stack.callback(process.close)
            keeper.keep(process.to_keep(description.as_json(), ram))
            stack.callback(keeper.drop)
            guest = cls(site, description, ram, network, process, trackers)
            stack.pop_all()
            return guest

    @classmethod
    def adopt(cls, site: Site, kept: Kept, trackers: Sequence[Capability]) -> Self:
        """Take over the guest that `kept` describes; its descriptors are this object's now."""
        description = GuestDescription.from_json(kept.description)
        with ExitStack() as stack:
            ram = stack.enter_context(Region.from_fd(kept.ram))
            network = GuestNetwork(site, description, adopted=True)
            stack.callback(network.close)
            process = GuestProcess.adopt(kept)
            stack.callback(process.close)
            guest = cls(site, description, ram, network, process, trackers)
            stack.pop_all()
            return guest

    @property
    def tracker(self) -> DirtyTracker:
        return self.choice.tracker

    def boot(self) -> None:
        """First start: the program lays out its state, or finds what its disk holds of it, the guest runs,
        and is plugged in. Raises GuestError, LocalError.
        """
        order: dict[str, Any] = {"do": "start"}
        with ExitStack() as stack:
            fds = []
            if self.description.disk is not None:
                disk, order["disk"] = self.open_disk(self.epoch)
                fds.append(stack.enter_context(disk).fileno())
            self.process.ask(order, 60.0, fds)
        self.network.port.plug()

    def arbiter(self, lease: Lease) -> DiskArbiter | None:
        """Whom to ask whose the guest is, if `lease` is the one that a migration begins with; None without a
        disk, and where its storage knows no leases. Close it after the migration.
        """
        if self.description.disk is None:
            return None
        return self.storage.arbiter(self.description.disk, lease, self.site.name)

    def open_disk(self, epoch: int) -> tuple[socket.socket, dict[str, int]]:
        """A connection of the disk for that epoch, and what the guest is told of it. LocalError."""
        assert self.description.disk is not None
        disk, size_bytes = self.storage.open_disk(self.description.disk, epoch)
        return disk, {"bytes": size_bytes}

    def let_go_of_disk(self) -> None:
        """The guest's requests wait in its RAM until :meth:`regain_disk`. Before it runs under another epoch:
        a write under the old one would be refused, and the guest would take itself for fenced.
        """
        self.process.ask({"do": "disk"})

    def regain_disk(self, epoch: int) -> None:
        """The guest is this host's at `epoch`: give it a connection of its disk that is good for it. A LUN
        that moves is mounted here for that, whoever had it. LocalError where the storage gives none for
        REGAIN_DEADLINE_S.
        """
        self.epoch = epoch
        end_s = time.monotonic() + REGAIN_DEADLINE_S
        while True:
            try:
                if (lun := self.site.moving_lun) is not None:
                    lun.take()
                disk, told = self.open_disk(epoch)
                break
            except LocalError:
                if time.monotonic() > end_s:
                    raise
            select.select([], [], [], RETRY_S)
        with disk:
            self.process.ask({"do": "disk", "disk": told}, fds=[disk.fileno()])

    @property
    def storage(self) -> Storage:
        """What holds the guest's disk. LocalError where this host has no such thing."""
        if self.site.storage is None:
            raise LocalError(f"a guest with a disk, and {self.site.name} has no shared storage")
        return self.site.storage

    def close(self) -> None:
        """End the guest's process and remove its RAM and its network."""
        with ExitStack() as stack:
            stack.callback(self.ram.close)
            stack.callback(self.network.close)
            stack.callback(self.process.close)
            stack.callback(self.tracker.close)
