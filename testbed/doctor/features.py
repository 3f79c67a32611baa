"""What a run needs, as data: each feature with what is lost without it and how to get it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from testbed.doctor import probes
from testbed.scenario.options import Options

Group = Literal["needed", "optional", "tool"]


@dataclass(frozen=True)
class Feature:
    """Something that `probe` can try. A demo can run only if every `needed` one is there."""

    name: str
    group: Group
    probe: Callable[[], str]
    lost: str
    remedy: str


@dataclass(frozen=True)
class Tool:
    """A program that is looked for in PATH."""

    name: str
    package: str
    lost: str


UNIVERSE = "user namespaces, or root"
UNIVERSE_LOST = "everything: nothing would be sure to go away"
MEMORY = "memory for a demo"
MEMORY_LOST = "the demo: two hosts hold the guest's RAM"
MEMORY_REMEDY = "free some, or give the guest less: testbed migrate --ram 64MiB"
DEMO_BYTES = 2 * Options().ram_bytes


def _module(name: str, option: str) -> str:
    return f"modprobe {name} as root, or a kernel with {option}"


KERNEL = (
    Feature(
        "network namespaces", "needed", probes.namespaces,
        "the lab: each host and client is one", "a kernel with CONFIG_NET_NS",
    ),
    Feature(
        "veth", "needed", probes.veth, "the lab: each wire is a pair", _module("veth", "CONFIG_VETH"),
    ),
    Feature(
        "bridge", "needed", probes.bridge,
        "the lab: the switch and each host's own", _module("bridge", "CONFIG_BRIDGE"),
    ),
    Feature(
        "packet sockets", "needed", probes.packet_sockets,
        "holding frames, announcing, seeing it arrive", _module("af_packet", "CONFIG_PACKET"),
    ),
    Feature(
        "IPv6", "needed", probes.ipv6,
        "the guest's second address", "boot without ipv6.disable=1; CONFIG_IPV6",
    ),
    Feature(
        "TCP_REPAIR", "needed", probes.connections_in_repair,
        "moving connections: clients would be cut off", "a kernel with CONFIG_CHECKPOINT_RESTORE",
    ),
    Feature(
        "inet_diag", "needed", probes.half_open_list,
        "seeing handshakes half done at the pause", _module("tcp_diag", "CONFIG_INET_TCP_DIAG"),
    ),
    Feature(
        "pidfd_getfd", "needed", probes.borrowed_descriptors,
        "the agent's hold on its guest's sockets",
        "Linux 5.6; allow it and ptrace in the container's seccomp profile; kernel.yama.ptrace_scope below 2",
    ),
    Feature(
        "page digests", "needed", probes.page_digests,
        "the tracker that works everywhere", "a kernel with CONFIG_MEMFD_CREATE",
    ),
    Feature(
        "userfaultfd", "optional", probes.userfaultfd,
        "the quick tracker: another would do, slowly", "Linux 6.7 or later, CONFIG_USERFAULTFD",
    ),
    Feature(
        "soft-dirty", "optional", probes.soft_dirty,
        "the tracker for kernels without the quick one", "a kernel with CONFIG_MEM_SOFT_DIRTY",
    ),
    Feature(
        "tbf", "optional", probes.token_bucket,
        "--bandwidth", _module("sch_tbf", "CONFIG_NET_SCH_TBF"),
    ),
    Feature(
        "redirection", "optional", probes.redirection,
        "conditions on links where there is no netem, and lost announcements",
        "a kernel with CONFIG_NET_SCH_INGRESS, CONFIG_NET_CLS_U32 and CONFIG_NET_ACT_MIRRED",
    ),
    Feature(
        "cubic", "optional", probes.cubic,
        "figures that compare with other machines'",
        "modprobe tcp_cubic and sysctl net.ipv4.tcp_allowed_congestion_control='reno cubic', as root",
    ),
    Feature(
        "netem", "optional", probes.netem,
        "links' delays by the kernel: a relay does it instead",
        _module("sch_netem", "CONFIG_NET_SCH_NETEM"),
    ),
)

TOOLS = (
    Tool("iperf3", "iperf3", "the bench's yardstick for the copy rate"),
    Tool("nbdkit", "nbdkit", "--storage-server nbdkit, the bench's yardstick"),
    Tool("nbdcopy", "libnbd-bin", "the bench of the storage target"),
    Tool("nbdinfo", "libnbd-bin", "tests of the target with a real client"),
    Tool("qemu-io", "qemu-utils", "tests of the target with another one"),
    Tool("redis-cli", "redis-tools", "tests of kv with the real client"),
    Tool("redis-benchmark", "redis-tools", "tests of kv under the real load"),
    Tool("curl", "curl", "tests of http with a real client"),
    Tool("wrk", "wrk", "http under load by hand"),
    Tool("tcpdump", "tcpdump", "looking into a lab by hand"),
)
