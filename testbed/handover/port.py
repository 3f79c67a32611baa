"""The guest's port on its host's bridge: where frames for the VM go."""

from __future__ import annotations

import socket

from netns.namespace import Namespace
from testbed.handover.slow_port import SlowPort
from testbed.kernel import netlink
from testbed.kernel.netlink import Request, RouteSocket


class GuestPort:
    """One static forwarding entry, pointed at the guest, at the hold, or away.

    A migration must neither lose a frame for the VM nor deliver one twice. The bridge looks up where to send
    each frame in its forwarding table, once; so a frame goes to whatever the VM's entry points at in that
    instant, and the kernel replaces what an entry points at in one store (net/bridge/br_fdb.c,
    fdb_add_entry). There is no instant in which both the guest and the hold get a frame, or neither::

                          +--------- br0 ---------+
        uplink ---------- |  entry: VM's MAC -> ? |
        local clients --- |                       |
                          +---+--------------+----+
                          port vm0       hold port hold0
                              |              |
                         eth0 (guest)    hold1 (packet socket: FrameHold)

    `plug` points it at the guest, `cut` at the hold, `depart` at the uplink, as if the VM had been heard from
    there.

    The entry is sticky: the announcement that the target host sends comes in by the source host's uplink with
    the VM's MAC as its sender, and would drag an ordinary entry, even a static one, there; what was still on
    its way would be lost, for a bridge does not send a frame back where it came from.

    The port's state does the other half: a disabled port lets nothing out, so the stopped guest's kernel
    cannot answer, and broadcasts do not reach it. In `cut` the entry turns first and the port is disabled
    after, in `plug` the port is opened first and the entry turns after: the other way round a frame would
    meet a closed door.

    Each call takes 4 to 20 us, unless somebody holds the kernel's lock on network configuration, which all
    namespaces of a machine share: making or removing an interface anywhere can delay a cut by milliseconds.

    A frame that has passed the bridge before the turn may still be on its way, on another processor, when the
    call returns. It arrives (at the guest, or at the hold) a little later: whoever freezes sockets must look
    again for what arrived, and whoever opens the port must go on emptying the hold until it is closed.

    Where the network is a slow one (`delay_forwarding`), `open` and `plug` leave the port *learning* for a
    while, and what should pass it is lost.
    """

    def __init__(
        self, host: Namespace, *, bridge: str, port: str, hold: str, uplink: str, mac: bytes
    ) -> None:
        """Look the interfaces up and encode every message; nothing is changed but the hold port's flags.

        OSError when an interface is missing or no port of `bridge`: nothing is left open then.
        """
        self._host = host
        self._slow: SlowPort | None = None
        self._route = _route_socket(host)
        try:
            bridge_index = self._route.link(bridge).index
            guest, held, away = (self._port(name, bridge, bridge_index) for name in (port, hold, uplink))
            flags = netlink.port_flags(held, learning=False, unicast_flood=False, all_multicast=True)
            self._route.request(netlink.prepare(flags))
        except BaseException:
            self._route.close()
            raise
        entry = netlink.forwarding_entry(mac, guest, sticky=True)
        learning = netlink.port_state(guest, netlink.BR_STATE_LEARNING)
        self._plug = netlink.prepare(netlink.port_state(guest, netlink.BR_STATE_FORWARDING), entry)
        self._plug_slowly = netlink.prepare(learning, entry)
        self._open_slowly = netlink.prepare(learning)
        self._cut = netlink.prepare(
            netlink.forwarding_entry(mac, held, sticky=True),
            netlink.port_state(guest, netlink.BR_STATE_DISABLED),
        )
        self._divert = netlink.prepare(netlink.forwarding_entry(mac, held, sticky=True))
        self._depart = netlink.prepare(
            netlink.port_state(guest, netlink.BR_STATE_DISABLED),
            netlink.forwarding_entry(mac, away, sticky=False),
        )
        self._open = netlink.prepare(netlink.port_state(guest, netlink.BR_STATE_FORWARDING))
        self._disable = netlink.prepare(netlink.port_state(guest, netlink.BR_STATE_DISABLED))

    def _port(self, name: str, bridge: str, bridge_index: int) -> int:
        link = self._route.link(name)
        if link.master != bridge_index:
            raise OSError(22, f"not a port of bridge {bridge}", name)
        return link.index

    def delay_forwarding(self, delay_s: float) -> None:
        """The port forwards only `delay_s` after it is opened next, as one that is new to a spanning tree."""
        self._slow = SlowPort(_route_socket(self._host), self._open, delay_s)

    def open(self) -> None:
        """The guest may send from now on, and hears broadcasts; the frames for it go where they went.

        Between this and `plug` held frames are released: what the guest answers must get out. A broadcast of
        that time reaches both the guest and the hold; a question asked twice does no harm, one lost costs a
        second.
        """
        self._opening(self._open, self._open_slowly)

    def plug(self) -> None:
        """The guest gets every frame for it from now on and may send.

        On OSError what was asked may be half done; `cut` makes it whole.
        """
        self._opening(self._plug, self._plug_slowly)

    def _opening(self, at_once: Request, slowly: Request) -> None:
        if self._slow is None:
            self._route.request(at_once)
        else:
            self._slow.open(at_once, slowly)

    def _shut(self) -> None:
        """No late opening any more."""
        if self._slow is not None:
            self._slow.shut()

    def divert(self) -> None:
        """The hold gets every frame for the VM from now on; the guest may still send.

        The source calls it when the guest has stopped and silences it once its sockets are frozen: a segment
        that the guest's kernel sends in between (a paced one, say) must not be lost, for the frozen socket
        counts it as sent.
        """
        self._route.request(self._divert)

    def cut(self) -> None:
        """The hold gets every frame for the VM from now on; the guest gets and sends nothing.

        The source calls it when the guest has stopped, the target before it announces. On OSError what was
        asked may be half done; `plug` makes it whole.
        """
        self._shut()
        self._route.request(self._cut)

    def depart(self) -> None:
        """The VM lives elsewhere: frames for it go to the uplink, until the bridge learns better or forgets
        it."""
        self._shut()
        self._route.request(self._depart)

    def silence(self) -> None:
        """Disable the guest's port and leave the forwarding table alone: a VM that is not here yet."""
        self._shut()
        self._route.request(self._disable)

    def close(self) -> None:
        """Give up the netlink socket. Where frames go stays as it is."""
        if self._slow is not None:
            self._slow.close()
        self._route.close()


def _route_socket(host: Namespace) -> RouteSocket:
    kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC
    return RouteSocket(host.socket(socket.AF_NETLINK, kind, netlink.NETLINK_ROUTE))
