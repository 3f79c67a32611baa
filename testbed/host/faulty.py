"""A host as the victim of a fault."""

from __future__ import annotations

from collections.abc import Callable

from netns.namespace import Namespace
from testbed.faults.injection import SpoilableChannel
from testbed.host.hosted import HostedGuest
from testbed.host.shared_storage import SharedStorage


class FaultyHost:
    """Implements :class:`testbed.faults.injection.Victim`; `guest` tells the guest that is here just now."""

    def __init__(
        self,
        channel: SpoilableChannel,
        namespace: Namespace,
        guest: Callable[[], HostedGuest | None],
        orchestrator: Callable[[], int | None],
    ) -> None:
        self.channel = channel
        self.namespace = namespace
        self._guest = guest
        self.orchestrator_pid = orchestrator

    def guest_pid(self) -> int | None:
        guest = self._guest()
        return None if guest is None else guest.process.pid

    def lose_announcement(self) -> None:
        guest = self._guest()
        if guest is not None:
            guest.network.announcer.lose_next = True

    def speak_early(self) -> None:
        guest = self._guest()
        if guest is not None:
            announcer = guest.network.announcer
            first = not announcer.rounds
            announcer.announce()
            if first:
                announcer.restart()  # the schedule belongs to the announcements that are meant

    def fill_lun(self) -> None:
        guest = self._guest()
        if guest is not None and isinstance(guest.site.storage, SharedStorage):
            guest.site.storage.fill()
