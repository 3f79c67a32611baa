"""The table of TCP_REPAIR against the kernel's own headers, where a compiler and they are there."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from testbed.kernel import inet_diag
from testbed.kernel import tcp_repair as kernel
from tests.conftest import require

_IOCTLS = "#include <asm/ioctls.h>\n#include <linux/sockios.h>\n"
_HEADERS = "#include <linux/tcp.h>\n#include <asm/socket.h>\n" + _IOCTLS
_DIAG = "#include <linux/inet_diag.h>\n#include <linux/sock_diag.h>\n#include <linux/netlink.h>\n"
_STD = "#include <stdio.h>\n#include <stddef.h>\n"

_NAMES = [
    "TCP_NODELAY", "TCP_MAXSEG", "TCP_CORK", "TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT", "TCP_LINGER2",
    "TCP_DEFER_ACCEPT", "TCP_WINDOW_CLAMP", "TCP_INFO", "TCP_CONGESTION", "TCP_USER_TIMEOUT", "TCP_REPAIR",
    "TCP_REPAIR_QUEUE", "TCP_QUEUE_SEQ", "TCP_REPAIR_OPTIONS", "TCP_FASTOPEN", "TCP_TIMESTAMP",
    "TCP_NOTSENT_LOWAT", "TCP_REPAIR_WINDOW", "TCP_REPAIR_ON", "TCP_REPAIR_OFF", "TCP_REPAIR_OFF_NO_WP",
    "TCP_NO_QUEUE", "TCP_RECV_QUEUE", "TCP_SEND_QUEUE", "TCPI_OPT_TIMESTAMPS", "TCPI_OPT_SACK",
    "TCPI_OPT_WSCALE", "SO_SNDBUFFORCE", "SO_RCVBUFFORCE", "SO_BUF_LOCK", "SO_MAX_PACING_RATE", "SIOCINQ",
    "SIOCOUTQ", "SIOCOUTQNSD",
]  # fmt: skip
_OFFSETS = {
    "tcpi_options": 5,
    "tcpi_unacked": 24,
    "tcpi_sacked": 28,
    "tcpi_total_retrans": 100,
    "tcpi_bytes_acked": 120,
    "tcpi_bytes_received": 128,
    "tcpi_segs_out": 136,
    "tcpi_segs_in": 140,
    "tcpi_notsent_bytes": 144,
}


@pytest.mark.parametrize("name", _NAMES)
def test_number(name, tmp_path):
    assert _ask(tmp_path, _HEADERS, name) == getattr(kernel, name)


@pytest.mark.parametrize(("field", "offset"), _OFFSETS.items())
def test_tcp_info_is_laid_out_as_we_read_it(field, offset, tmp_path):
    assert _ask(tmp_path, _HEADERS, f"offsetof(struct tcp_info, {field})") == offset


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("sizeof(struct tcp_repair_opt)", kernel._REPAIR_OPTION.size),
        ("sizeof(struct tcp_repair_window)", kernel._REPAIR_WINDOW.size),
    ],
)
def test_size(expression, value, tmp_path):
    assert _ask(tmp_path, _HEADERS, expression) == value


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("sizeof(struct inet_diag_req_v2)", inet_diag.REQUEST_BYTES),
        ("sizeof(struct inet_diag_msg)", inet_diag.MESSAGE_BYTES),
        ("offsetof(struct inet_diag_msg, id.idiag_dport)", 6),
        ("NETLINK_SOCK_DIAG", inet_diag.NETLINK_SOCK_DIAG),
        ("SOCK_DIAG_BY_FAMILY", inet_diag.SOCK_DIAG_BY_FAMILY),
        ("NLM_F_DUMP", inet_diag.NLM_F_DUMP),
    ],
)
def test_inet_diag(expression, value, tmp_path):
    assert _ask(tmp_path, _DIAG, expression) == value


def _ask(folder, headers: str, expression: str) -> int:
    require("C compiler", shutil.which("gcc") is not None)
    program, probe = folder / "probe.c", folder / "probe"
    program.write_text(f'{headers}{_STD}int main(void) {{ printf("%lld", (long long)({expression})); }}\n')
    built = subprocess.run(["gcc", "-o", probe, program], capture_output=True, text=True, check=False)
    require(f"kernel header that knows {expression}", built.returncode == 0)
    return int(subprocess.run([probe], capture_output=True, text=True, check=True).stdout)
