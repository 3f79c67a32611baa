"""A guest's disk from an NBD server that others have made, as nbdkit: one export, and no leases of it.

Nobody is fenced then. Who has the guest is settled between the two hosts alone, as for a guest without a
disk; and a write that is still on its way to the server when the guest moves may be carried out after the
guest's later ones. See :mod:`testbed.host.shared_storage` for storage that knows whose a disk is.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from testbed.host.shared_storage import CONNECT_DEADLINE_S, SharedStorage
from testbed.migration.errors import LocalError
from testbed.migration.ownership import Lease
from testbed.storage.client import NbdClient, NbdLost, NbdRefused

NO_EPOCH = 0


@dataclass(frozen=True)
class PlainDisk:
    """Where the server listens. It has the same methods as shared storage, as far as they have a meaning."""

    address: str
    port: int

    def own(self, _disk: str, _host: str) -> int:
        """Nobody is asked."""
        return NO_EPOCH

    def arbiter(self, _disk: str, _lease: Lease, _host: str) -> None:
        """There is none."""

    def open_disk(self, disk: str, _epoch: int) -> tuple[socket.socket, int]:
        """A connection of the disk, in NBD's transmission phase, and the disk's size in bytes. LocalError."""
        try:
            client = NbdClient.connect((self.address, self.port), disk, deadline_s=CONNECT_DEADLINE_S)
        except (NbdLost, NbdRefused) as error:
            raise LocalError(f"disk {disk!r} cannot be opened: {error}") from error
        return client.detach(), client.size


Storage = SharedStorage | PlainDisk
"""What may hold a guest's disk."""


def storage_from_json(value: Mapping[str, Any] | None) -> Storage | None:
    """From {"plain": {"address", "port"}}, or as of :meth:`SharedStorage.from_json`."""
    if value is not None and "plain" in value:
        return PlainDisk(**value["plain"])
    return SharedStorage.from_json(None if value is None else dict(value))
