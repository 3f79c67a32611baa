"""The numbers of testbed.kernel.netlink and netns.packet against the headers that are installed."""

from __future__ import annotations

import shutil
import subprocess
from types import ModuleType

import pytest

from netns import block_ring, packet
from testbed.kernel import netlink
from tests.conftest import require

HEADERS = (
    "sys/socket.h",
    "linux/netlink.h",
    "linux/rtnetlink.h",
    "linux/if_link.h",
    "linux/if_bridge.h",
    "linux/neighbour.h",
    "linux/if_packet.h",
    "linux/if_ether.h",
    "linux/filter.h",
    "linux/virtio_net.h",
    "linux/udp.h",
    "linux/if.h",
)
OURS_ALONE = {"WHOLE_FRAME", "VNET_HEADER_BYTES", "NLA_TYPE_MASK"}
INSTRUCTIONS = {
    "BPF_LD_W_ABS": "BPF_LD | BPF_W | BPF_ABS",
    "BPF_LD_H_ABS": "BPF_LD | BPF_H | BPF_ABS",
    "BPF_LD_B_ABS": "BPF_LD | BPF_B | BPF_ABS",
    "BPF_LD_B_IND": "BPF_LD | BPF_B | BPF_IND",
    "BPF_LD_W_LEN": "BPF_LD | BPF_W | BPF_LEN",
    "BPF_LDX_B_MSH": "BPF_LDX | BPF_B | BPF_MSH",
    "BPF_AND_K": "BPF_ALU | BPF_AND | BPF_K",
    "BPF_JA": "BPF_JMP | BPF_JA",
    "BPF_JEQ_K": "BPF_JMP | BPF_JEQ | BPF_K",
    "BPF_JGT_K": "BPF_JMP | BPF_JGT | BPF_K",
    "BPF_JSET_K": "BPF_JMP | BPF_JSET | BPF_K",
    "BPF_RET_K": "BPF_RET | BPF_K",
}
SIZES = {
    "struct nlmsghdr": netlink._NLMSGHDR.size,
    "struct nlattr": netlink._NLATTR.size,
    "struct ifinfomsg": netlink._IFINFOMSG.size,
    "struct ndmsg": netlink._NDMSG.size,
    "struct sock_filter": packet._SOCK_FILTER.size,
    "struct sock_fprog": packet._SOCK_FPROG.size,
    "struct tpacket_req": packet._TPACKET_REQ.size,
    "struct tpacket_stats": packet._TPACKET_STATS.size,
    "struct tpacket_req3": block_ring._TPACKET_REQ3.size,
    "struct tpacket_stats_v3": block_ring._TPACKET_STATS_V3.size,
    "struct tpacket3_hdr": block_ring._TPACKET3_HDR.size,
    "struct virtio_net_hdr": packet.VNET_HEADER.size,
}


def constants(module: ModuleType) -> dict[str, int]:
    return {
        name: value
        for name, value in vars(module).items()
        if name.isupper() and isinstance(value, int) and not name.startswith("_") and name not in OURS_ALONE
    }


OURS = {**constants(netlink), **constants(packet), **SIZES, "tp_nsec": 20, "tp_mac": 12}
OURS |= {"v3 tp_mac": 24, "v3 hv1.tp_vlan_tci": 32, "block block_status": 8, "block blk_len": 20}


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """What the headers say, by name."""
    require("a C compiler", shutil.which("cc") is not None)
    folder = tmp_path_factory.mktemp("probe")
    lines = [f"#include <{header}>" for header in HEADERS]
    lines += ["#include <stddef.h>", "#include <stdio.h>", "int main(void) {"]
    for name in OURS:
        expression = INSTRUCTIONS.get(name, name)
        if name.startswith("struct "):
            expression = f"sizeof({name})"
        elif name.startswith("v3 "):
            expression = f"offsetof(struct tpacket3_hdr, {name.removeprefix('v3 ')})"
        elif name.startswith("block "):
            expression = f"offsetof(struct tpacket_block_desc, hdr.bh1.{name.removeprefix('block ')})"
        elif name.startswith("tp_"):
            expression = f"offsetof(struct tpacket2_hdr, {name})"
        lines.append(f'printf("{name}=%lu\\n", (unsigned long) (unsigned int) ({expression}));')
    source = folder / "probe.c"
    source.write_text("\n".join([*lines, "return 0;", "}"]))
    built = subprocess.run(
        ["cc", "-o", folder / "probe", source], capture_output=True, text=True, check=False
    )
    require("headers that know all of it", built.returncode == 0 or _raise(built.stderr))
    output = subprocess.run([folder / "probe"], check=True, capture_output=True, text=True).stdout
    return {name: int(value) for name, _, value in (line.rpartition("=") for line in output.splitlines())}


def _raise(text: str) -> bool:
    raise RuntimeError(text)


def test_what_the_headers_say_is_what_we_say(known: dict[str, int]) -> None:
    assert len(known) > 70
    assert known == OURS
