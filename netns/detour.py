"""A way out of a link and back into it, so that somebody in the middle can do something to its frames.

A detour can be put into a live link and taken out again at any moment: neither interface is touched, no
address, route or bridge port changes, and a link without one costs nothing. For the direction from A to B:

      node A                      relay's namespace                    node B
    eth0 ==============  the link as it was, not used now  ============= eth0
      | egress hook: redirect                               redirect: ^
      v                                                   ingress hook |
    via-eth0 ----------> a   [whoever moves frames]   b ---------> via-eth0

What leaves by eth0 is led (clsact, act_mirred) to a second interface, `via-eth0`, whose other end is in the
relay's namespace as `a`; what is put into `b` comes in by B's `via-eth0` and is led to where it would have
come in, B's eth0. The second interface bears the first one's MAC address, for the kernel looks a frame's
address up where it comes in (eth_type_trans), and one for somebody else is dropped by the first for good.

Consequences, all of frames that are led around: a token bucket on eth0 does not see them; nor does a packet
socket on eth0 as they leave (it sees them arrive); eth0's counters stand still, those of `via-eth0` run.
A packet socket that bypasses the queues (PACKET_QDISC_BYPASS) is not led around.
"""

from __future__ import annotations

import hashlib
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from netns.apply import await_carrier, write_sysctl
from netns.links import Links
from netns.namespace import Namespace
from netns.topology import mac_for

_LONGEST_IFNAME = 15
_PREFIX = "via-"


@dataclass(frozen=True, slots=True)
class Place:
    """One end of a link: an interface in a namespace."""

    namespace: Namespace
    ifname: str

    def __str__(self) -> str:
        return f"{self.namespace.name}/{self.ifname}"


class Detour:
    """Leads frames of the link between two places through `middle`, where its ends are called `a` and `b`.

    Made, it leads nothing yet: `lead` does. A context manager: closed, the link is as it was. LinkError,
    TopologyError or OSError if it cannot be made; nothing is left then.
    """

    def __init__(self, a: Place, b: Place, middle: Namespace) -> None:
        self._ends: list[_End] = []
        with ExitStack() as undo:
            undo.callback(self.close)
            with suppress(FileNotFoundError):  # a kernel without IPv6 is silent
                write_sysctl(middle, "net.ipv6.conf.default.disable_ipv6", "1")
            for name, place in (("a", a), ("b", b)):
                self._ends.append(_End(place, middle, name))
            undo.pop_all()

    def lead(self, *, forward: bool, backward: bool) -> None:
        """Lead around what goes from the first place to the second, and back, or not."""
        for end, leads in zip(self._ends, (forward, backward), strict=True):
            end.lead(leads)

    def cut_up(self, *, forward: bool, backward: bool) -> None:
        """Whether frames of up to 64 KiB are cut into a wire's before they get to the middle."""
        for end, cut in zip(self._ends, (forward, backward), strict=True):
            end.cut_up(cut)

    def close(self) -> None:
        """Take it out. What is inside is lost."""
        while self._ends:
            self._ends.pop().close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _End:
    """One end's second interface, and its redirections."""

    def __init__(self, place: Place, middle: Namespace, name: str) -> None:
        self._place = place
        self._via = via(place.ifname)
        self._leads = False
        with ExitStack() as stack:
            self._links = stack.enter_context(Links(place.namespace))
            self._make(stack, middle, name)
            await_carrier(place.namespace, self._via)
            await_carrier(middle, name)
            self._stack = stack.pop_all()

    def _make(self, stack: ExitStack, middle: Namespace, name: str) -> None:
        links, ifname = self._links, self._place.ifname
        mac, mtu = links.hardware(ifname)
        links.hook_up(ifname)
        stack.callback(links.unhook, ifname)
        links.add_veth(self._via, mac, middle, name, mac_for(middle.name, name), mtu)
        stack.callback(links.delete, self._via, gone_is_fine=True)
        with suppress(FileNotFoundError):  # a kernel without IPv6 is silent
            write_sysctl(self._place.namespace, f"net.ipv6.conf.{self._via}.disable_ipv6", "1")
        links.hook_up(self._via)
        links.redirect(self._via, "ingress", ifname)
        links.set_up(self._via)
        with Links(middle) as inside:
            inside.set_up(name)

    def lead(self, leads: bool) -> None:
        if leads and not self._leads:
            self._links.redirect(self._place.ifname, "egress", self._via)
        elif self._leads and not leads:
            self._links.stop_redirecting(self._place.ifname, "egress")
        self._leads = leads

    def cut_up(self, cut: bool) -> None:
        self._links.set_segmentation(self._via, not cut)

    def close(self) -> None:
        self._stack.close()


def via(ifname: str) -> str:
    """The name of an interface's second one: `via-` and its name, or so much of it as there is room for and a
    hash.
    """
    plain = _PREFIX + ifname.replace(".", "-")
    if len(plain) <= _LONGEST_IFNAME and "." not in ifname:
        return plain
    return plain[: _LONGEST_IFNAME - 5] + "-" + hashlib.blake2b(ifname.encode(), digest_size=2).hexdigest()
