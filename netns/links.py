"""Interfaces of one namespace, through pyroute2: make, join, address, shape, bring up.

A `Links` is one netlink socket and remembers the index of every interface that it has met. pyroute2 is
imported when the first one is opened (a quarter of a second), not before.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import ipaddress
import random
import socket
import struct
from types import TracebackType
from typing import Any, Literal, Self

from netns.namespace import Namespace
from netns.netem import Netem, put
from netns.topology import token_bucket

_IFA_F_NODAD = 0x02  # <linux/if_addr.h>
_TC_H_ROOT = 0xFFFFFFFF  # <linux/pkt_sched.h>
_TC_H_CLSACT = 0xFFFFFFF1  # the same
_HOOKS = {"ingress": 0xFFFFFFF2, "egress": 0xFFFFFFF3}  # TC_H_MIN_INGRESS, TC_H_MIN_EGRESS of clsact
_NUD_NOARP, _NTF_MASTER, _NTF_STICKY = 0x40, 0x04, 0x40  # <linux/neighbour.h>
_ETH_P_ALL = 3  # <linux/if_ether.h>
_ANY_CLASS = 0x10001  # wanted by pyroute2; the action takes the frame before there is a class to choose
_SIOCETHTOOL = 0x8946  # <linux/sockios.h>
_ETHTOOL_STSO = 0x1F  # <linux/ethtool.h>
_GSO_MAX_SEGS = 65535  # <linux/netdevice.h>
_ETHTOOL_VALUE = struct.Struct("=II")  # struct ethtool_value: cmd, data
_IFREQ_POINTER = struct.Struct("@16sP16x")  # struct ifreq with ifr_data

Hook = Literal["ingress", "egress"]


class LinkError(Exception):
    """The kernel refused. The message says what was asked for and why it was not done."""


class Links:
    """The interfaces of `namespace`. Each method raises LinkError and has changed nothing if it cannot be
    done.
    """

    def __init__(self, namespace: Namespace) -> None:
        from pyroute2 import IPRoute

        self._namespace = namespace
        with namespace.entered():
            self._route: Any = IPRoute()
        self._index: dict[str, int] = {}

    def add_veth(
        self,
        ifname: str,
        mac: str,
        peer: Namespace,
        peer_ifname: str,
        peer_mac: str,
        mtu: int,
        index: int | None = None,
    ) -> None:
        """A veth pair, one end here, the other in `peer`; both down. `mtu` in bytes, of a frame's payload.

        The near end gets the number `index` (None: a high one by chance), which must differ from the far
        end's, for which the kernel takes the next free one. Were they equal, the kernel would take the
        interface for one that is nobody's peer, and tell its carrier to a bridge and to us up to a second
        late (net/core/link_watch.c, linkwatch_urgent_event). In two fresh namespaces they are equal as a
        rule.
        """
        index = index if index is not None else random.randrange(1 << 16, 1 << 30)
        far_end = {"ifname": peer_ifname, "address": peer_mac, "mtu": mtu, "net_ns_fd": peer.fd}
        near_end = {"index": index, "ifname": ifname, "address": mac, "mtu": mtu}
        self._ask(f"veth {ifname}", "link", "add", kind="veth", peer=far_end, **near_end)

    def add_bridge(self, ifname: str, mac: str, mtu: int, ageing_ns: int | None = None) -> None:
        """A bridge, down: no spanning tree, multicast flooded. The kernel counts ageing in hundredths of a
        second, and looks for what has aged now and then."""
        ageing = {} if ageing_ns is None else {"br_ageing_time": max(1, ageing_ns // 10_000_000)}
        self._ask(
            f"bridge {ifname}", "link", "add", ifname=ifname, kind="bridge", address=mac, mtu=mtu,
            br_stp_state=0, br_forward_delay=0, br_mcast_snooping=0, **ageing,
        )

    def enslave(self, ifname: str, bridge: str) -> None:
        """Make `ifname` a port of `bridge`."""
        index, master = self.index(ifname), self.index(bridge)
        self._ask(f"{ifname} into {bridge}", "link", "set", index=index, master=master)

    def add_address(self, ifname: str, address: str) -> None:
        """Add "10.0.0.1/24", or an IPv6 one: at once usable, never probed for duplicates."""
        interface = ipaddress.ip_interface(address)
        options: dict[str, Any] = {"address": str(interface.ip), "prefixlen": interface.network.prefixlen}
        if interface.version == 6:
            options |= {"family": socket.AF_INET6, "flags": _IFA_F_NODAD}
        self._ask(f"{address} on {ifname}", "addr", "add", index=self.index(ifname), **options)

    def limit_rate(self, ifname: str, rate_mbit: float | None) -> None:
        """Let `ifname` send at most `rate_mbit` (SpecError if that is none); None: no limit. Also changes
        one.
        """
        index = self.index(ifname)
        if rate_mbit is None:
            self._delete_queue(ifname, index)
            return
        bucket = token_bucket(rate_mbit)
        self._ask(
            f"rate {rate_mbit:g} Mbit/s on {ifname}", "tc", "replace", "tbf", index=index,
            rate=bucket.rate_bytes_per_s, burst=bucket.burst_bytes, limit=bucket.limit_bytes,
        )

    def netem(self, ifname: str, asked: Netem) -> None:
        """netem on what `ifname` sends. Also changes one."""
        index = self.index(ifname)
        with self._namespace.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as route:
            try:
                put(route, index, asked)
            except OSError as error:
                raise LinkError(f"{self._namespace.name}: netem on {ifname}: {error.strerror}") from error

    def queue_counts(self, ifname: str) -> dict[str, int]:
        """What the root queue of the interface has counted: packets, bytes, drops; zeros where there is
        none.
        """
        counts = {"packets": 0, "bytes": 0, "drops": 0}
        for queue in self._ask(f"queues of {ifname}", "get_qdiscs", index=self.index(ifname)):
            if queue["parent"] == _TC_H_ROOT and (stats := queue.get_attr("TCA_STATS")) is not None:
                counts |= {"packets": stats["packets"], "bytes": stats["bytes"], "drops": stats["drop"]}
        return counts

    def hardware(self, ifname: str) -> tuple[str, int]:
        """The MAC address and the MTU (bytes) of the interface."""
        (link,) = self._ask(f"what {ifname} is", "link", "get", index=self.index(ifname))
        return link.get_attr("IFLA_ADDRESS"), link.get_attr("IFLA_MTU")

    def redirect(self, ifname: str, hook: Hook, to: str) -> None:
        """From now on every frame that leaves by (hook "egress") or has come in by ("ingress") `ifname` goes
        out by `to`, or as if it had come in by `to`, instead. `hook_up` first.
        """
        action = {
            "kind": "mirred", "direction": hook, "action": "redirect", "ifindex": self.index(to),
        }
        self._ask(
            f"redirection from {ifname} to {to}", "tc", "add-filter", "u32", index=self.index(ifname),
            parent=_HOOKS[hook], prio=1, protocol=_ETH_P_ALL, target=_ANY_CLASS, keys=["0x0/0x0+0"],
            action=[action],
        )

    def stop_redirecting(self, ifname: str, hook: Hook) -> None:
        """Take every redirection at the hook away."""
        what = f"end of the redirection from {ifname}"
        index = self.index(ifname)
        self._ask(what, "tc", "del-filter", index=index, parent=_HOOKS[hook], prio=1, protocol=_ETH_P_ALL)

    def hook_up(self, ifname: str) -> None:
        """Make the place to which redirections are attached: the queue `clsact`."""
        self._ask(f"clsact on {ifname}", "tc", "add", "clsact", index=self.index(ifname))

    def unhook(self, ifname: str) -> None:
        """Take that place away, with all redirections."""
        index = self.index(ifname)
        self._ask(f"clsact off {ifname}", "tc", "del", "clsact", index=index, parent=_TC_H_CLSACT)

    def set_segmentation(self, ifname: str, offloaded: bool) -> None:
        """Whether frames of up to 64 KiB leave by `ifname` as they are (as a veth does), or cut up as for a
        wire. ETHTOOL_STSO for TCP; a most of one segment for all kinds, UDP's among them (gso_features_check
        in net/core/dev.c).
        """
        segments = _GSO_MAX_SEGS if offloaded else 1
        what = f"segmentation of {ifname}"
        self._ask(what, "link", "set", index=self.index(ifname), gso_max_segs=segments)
        value = ctypes.create_string_buffer(_ETHTOOL_VALUE.pack(_ETHTOOL_STSO, int(offloaded)))
        request = _IFREQ_POINTER.pack(ifname.encode(), ctypes.addressof(value))
        with self._namespace.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
            try:
                fcntl.ioctl(any_socket, _SIOCETHTOOL, request)
            except OSError as error:
                raise LinkError(f"{self._namespace.name}: {what}: {error}") from error

    def pin(self, mac: str, port: str) -> None:
        """Have the bridge of `port` believe that `mac` is behind it, whatever it hears, until `unpin`."""
        self._ask(
            f"pinning {mac} to {port}", "fdb", "replace", ifindex=self.index(port), lladdr=mac,
            state=_NUD_NOARP, flags=_NTF_MASTER | _NTF_STICKY,
        )

    def unpin(self, mac: str, port: str) -> None:
        """Have the bridge forget that `mac` is behind `port`."""
        what = f"forgetting {mac} at {port}"
        self._ask(what, "fdb", "del", ifindex=self.index(port), lladdr=mac, flags=_NTF_MASTER)

    def set_up(self, ifname: str, up: bool = True) -> None:
        """Up, or down."""
        state = "up" if up else "down"
        self._ask(f"{ifname} {state}", "link", "set", index=self.index(ifname), state=state)

    def delete(self, ifname: str, *, gone_is_fine: bool = False) -> None:
        """Delete an interface; of a veth pair that is both. With `gone_is_fine` it may be gone already, as
        one is whose other end's namespace has ended.
        """
        try:
            self._ask(f"deletion of {ifname}", "link", "del", index=self.index(ifname))
        except LinkError as error:
            if not (gone_is_fine and getattr(error.__cause__, "code", None) == errno.ENODEV):
                raise
        del self._index[ifname]

    def index(self, ifname: str) -> int:
        """The kernel's number of the interface."""
        if ifname not in self._index:
            found = self._route.link_lookup(ifname=ifname)
            if not found:
                raise LinkError(f"{self._namespace.name}: there is no interface {ifname}")
            self._index[ifname] = found[0]
        return self._index[ifname]

    def close(self) -> None:
        self._route.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _delete_queue(self, ifname: str, index: int) -> None:
        from pyroute2 import NetlinkError

        try:
            self._route.tc("del", index=index, parent=_TC_H_ROOT)
        except NetlinkError as error:
            if error.code != errno.ENOENT:  # there was none
                raise LinkError(f"{self._namespace.name}: no limit on {ifname}: {error}") from error

    def _ask(self, what: str, method: str, *words: str, **options: Any) -> Any:
        from pyroute2 import NetlinkError

        try:
            return getattr(self._route, method)(*words, **options)
        except (NetlinkError, OSError) as error:
            raise LinkError(f"{self._namespace.name}: {what}: {error}") from error
