"""The guest that a host has: its network, its RAM, its process, and what tracks its writes."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from testbed.host.description import GuestDescription
from testbed.host.guest_process import GuestProcess
from testbed.host.network import GuestNetwork, Site
from testbed.memory.region import Region
from testbed.memory.tracking import Capability, DirtyTracker, Subject, choose


class HostedGuest:
    """A guest in place on a host, not running yet, unplugged and silent. Close it to remove it without a
    trace."""

    def __init__(
        self,
        site: Site,
        description: GuestDescription,
        *,
        fresh: bool,
        trackers: Sequence[Capability],
        import_path: Sequence[str] = (),
    ) -> None:
        """`fresh` for a guest's first boot; else its RAM comes from elsewhere and is populated now, so that
        no page of it is touched for the first time in the blackout. Raises GuestError, OSError,
        TrackerUnavailable; nothing is left then.
        """
        self.site = site
        self.description = description
        with ExitStack() as stack:
            self.ram = stack.enter_context(Region.create(description.ram_bytes))
            if not fresh:
                self.ram.populate()
            self.network = GuestNetwork(site, description)
            stack.callback(self.network.close)
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
            self.process = GuestProcess(argument, self.ram, self.network.namespace)
            stack.callback(self.process.close)
            uffd, self.process.userfaultfd = self.process.userfaultfd, None
            subject = Subject(self.ram, self.process.pid, self.process.address, uffd, self.process.refusal)
            self.choice = choose(description.tracker, subject, trackers)
            stack.callback(self.tracker.close)
            self._stack = stack.pop_all()

    @property
    def tracker(self) -> DirtyTracker:
        return self.choice.tracker

    def boot(self) -> None:
        """First start: the program lays out its state, the guest runs, and is plugged in. Raises
        GuestError."""
        self.process.ask({"do": "start"}, 60.0)
        self.network.port.plug()

    def close(self) -> None:
        """End the guest's process and remove its RAM and its network."""
        self._stack.close()
