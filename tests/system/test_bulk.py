"""Download and upload against a guest's bulk program, and against one that alters a byte."""

from __future__ import annotations

import json
import select
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from netns import forkserver
from netns.forkserver import ready
from testbed.clients.control import ClientControl
from tests.system.guest_agent import FakeAgent
from tests.system.guest_agent import running as guest

pytestmark = pytest.mark.universe(preload=("testbed.clients.main", "testbed.guest.machine"))

DEADLINE_S = 20.0
MS = 1_000_000
DOWNLOAD, UPLOAD = {"kind": "download"}, {"kind": "upload"}


def alter(_argument: dict[str, Any], fds: list[int]) -> int:
    """Take an upload and say that all is well but three bytes, of the last ten of which nothing is known."""
    listener = socket.socket(fileno=fds[0])
    ready()
    connection, _ = listener.accept()
    total = -1
    while data := connection.recv(65536):
        total += len(data)
        connection.sendall(max(total - 10, 0).to_bytes(8, "little") + (3).to_bytes(8, "little"))
    connection.close()
    return 0


@contextmanager
def client(*probes: dict[str, Any], **argument: Any) -> Iterator[ClientControl]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ExitStack() as stack:
        described = [{"address": "127.0.0.1", **probe} for probe in probes]
        with theirs:
            process = forkserver.spawn(
                "testbed.clients.main:main",
                {"name": "client1", "probes": described, **argument},
                namespace=None, fds=[theirs.fileno()], name="client1",
            )  # fmt: skip
        stack.enter_context(process).wait_ready(DEADLINE_S)
        control = ClientControl(ours)
        stack.callback(control.close)
        control.start()
        yield control


def go_on(control: ClientControl, requests: int) -> None:
    deadline_s = time.monotonic() + DEADLINE_S
    goal = control.heartbeat()["probes"][0]["requests"] + requests
    while control.heartbeat()["probes"][0]["requests"] < goal:
        assert time.monotonic() < deadline_s, "no more bytes come"
        select.select([], [], [], 0.002)


def pause(agent: FakeAgent, control: ClientControl, ms: float) -> tuple[int, int]:
    """Stop the guest until the client has waited for it so long, and for most of the time: what was under way
    has been read by then. When that was."""
    begin_ns = agent.pause()["t_ns"]
    control.heartbeat()  # which tells of waits that were over
    deadline_s = time.monotonic() + DEADLINE_S
    waited_ns, past_ns = 0, 1
    while waited_ns < max(ms * MS, 0.8 * past_ns):
        assert time.monotonic() < deadline_s, "nobody waits for the guest"
        select.select([], [], [], 0.002)
        beat = control.heartbeat()
        waited_ns, past_ns = beat["probes"][0]["longest_wait_ns"], beat["t_ns"] - begin_ns
    return begin_ns, int(agent.ask("continue")["running"])


@pytest.mark.parametrize("kind", [DOWNLOAD, UPLOAD], ids=["download", "upload"])
@pytest.mark.parametrize("rate", [{}, {"rate_bytes_per_s": 5_000_000}], ids=["unlimited", "limited"])
def test_every_byte_arrives_as_it_was_sent_and_a_pause_is_seen(
    kind: dict[str, Any], rate: dict[str, int], tmp_path: Path
) -> None:
    path = tmp_path / "samples.npz"
    with guest(program="bulk") as agent, client({**kind, **rate}, samples=str(path)) as control:
        go_on(control, 300)
        if kind is DOWNLOAD and rate:
            begin_ns = agent.pause()["t_ns"]
            go_on(control, 20)
            window = begin_ns, int(agent.ask("continue")["running"])
        else:
            window = pause(agent, control, 500)
        go_on(control, 50)
        (seen,) = control.stop([window])["probes"]
        program = agent.ask("stats")["program"]
    assert seen["broken"] == seen["bytes_lost"] == seen["bytes_duplicated"] == seen["bytes_corrupted"] == 0
    assert program["bytes_wrong"] == 0
    assert seen["bytes"] == program["bytes_received" if kind is UPLOAD else "bytes_sent"]
    (row,) = seen["per_connection"]
    assert row["rate_mbit"]["before"] > 10
    if kind is DOWNLOAD and rate:
        assert row["rate_mbit"]["during"] > 10, "what the client had received already was enough"
    else:  # what was under way at the pause arrives in its beginning
        assert row["rate_mbit"]["during"] < row["rate_mbit"]["before"]
        assert row["stalled_ns"] >= row["during_ns"][0] >= 500 * MS
    saved = np.load(path)
    assert saved["bytes_per_ms_0"].sum() == seen["bytes"]
    first = saved["sent_ns"].min()
    assert abs(int(saved["bytes_per_ms_begin_ns_0"]) - int(first)) < 1000 * MS
    if rate:
        assert row["rate_mbit"]["before"] < 2 * 40


def test_an_upload_that_is_not_taken_as_it_was_sent_says_so() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        entry = "tests.system.test_bulk:alter"
        server = forkserver.spawn(entry, None, namespace=None, fds=[listener.fileno()], name="server")
        port = listener.getsockname()[1]
    with server:
        server.wait_ready(DEADLINE_S)
        with client({**UPLOAD, "port": port, "rate_bytes_per_s": 5_000_000}) as control:
            go_on(control, 20)
            (seen,) = control.stop(deadline_s=2)["probes"]
    assert seen["bytes_corrupted"] == 3
    assert seen["bytes_lost"] == 10
    assert "3 of" in seen["per_connection"][0]["complaint"]


def test_reports_in_between_forget_and_the_total_goes_on(tmp_path: Path) -> None:
    with guest(program="bulk"), client({**DOWNLOAD, "rate_bytes_per_s": 20_000_000}) as control:
        go_on(control, 20)
        first = control.report(forget=True, save=tmp_path / "first.npz")["probes"][0]
        go_on(control, 20)
        last = control.stop()["probes"][0]
    assert last["bytes"] > first["bytes"] > 0
    assert np.load(tmp_path / "first.npz")["bytes_per_ms_0"].sum() == first["bytes"]
    assert json.dumps(last)
    assert first["broken"] == last["broken"] == last["bytes_lost"] == 0


def test_who_chooses_neither_is_hung_up_on() -> None:
    with guest(program="bulk"), socket.create_connection(("127.0.0.1", 7002), DEADLINE_S) as connection:
        connection.sendall(b"X")
        assert connection.recv(1) == b""
