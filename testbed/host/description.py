"""What a guest is: all that a host must know to put it in place, and nothing of its state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from ipaddress import IPv4Interface, IPv6Interface
from typing import Any

from testbed.handover.filters import Identity
from testbed.handover.neighbours import Policy


class DescriptionError(ValueError):
    """A description that the peer sent is not one."""


@dataclass(frozen=True)
class GuestDescription:
    """`macs` is the guest's MAC address on each host (they are equal under the policy ``keep``); `ipv4` and
    `ipv6` are its addresses with their prefix lengths. `load`, `fill` and `seed` matter at its first boot
    only. `disk` names its virtual disk on the shared volume (None: it has none), and `epoch` is the one at
    which the disk's lease is its host's.
    """

    program: str
    ram_bytes: int
    macs: Mapping[str, str]
    ipv4: str
    ipv6: str
    announce: str = "garp-request"
    hold: bool = True
    tracker: str = "auto"
    max_connections: int = 4096
    fill: float = 0.0
    seed: int = 1
    load: Mapping[str, Any] = field(default_factory=dict)
    neighbours: str = "move"
    disk: str | None = None
    epoch: int = 0

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> GuestDescription:
        """Raises DescriptionError. The value may come from a peer."""
        try:
            description = cls(**value)
            for mac in description.macs.values():
                if len(bytes.fromhex(mac.replace(":", ""))) != 6:
                    raise ValueError(f"{mac!r} is no MAC address")
            Policy(description.neighbours)
            IPv4Interface(description.ipv4)
            IPv6Interface(description.ipv6)
        except (TypeError, ValueError, AttributeError) as error:
            raise DescriptionError(f"not a description of a guest: {error}") from error
        return description

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def mac(self, host: str) -> bytes:
        """The guest's MAC address on `host`: 6 bytes. Raises DescriptionError where it has none there."""
        if host not in self.macs:
            raise DescriptionError(f"the guest has no MAC address on {host}")
        return bytes.fromhex(self.macs[host].replace(":", ""))

    @property
    def identity(self) -> Identity:
        """Who the guest is on the network, wherever it runs."""
        macs = tuple(dict.fromkeys(bytes.fromhex(mac.replace(":", "")) for mac in self.macs.values()))
        return Identity(macs, (IPv4Interface(self.ipv4).ip,), (IPv6Interface(self.ipv6).ip,))
