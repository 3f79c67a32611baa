"""UDP and ICMP probes against an echo that misbehaves: each fault is found, and counted where it belongs."""

from __future__ import annotations

import json
import os
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
from testbed.clients.control import ClientControl, ClientFailed

pytestmark = pytest.mark.universe(preload=("testbed.clients.main", "tests.system.faulty_datagrams"))

MS = 1_000_000
DEADLINE_S = 20.0
FATES = ("lost", "duplicated", "reordered", "corrupted", "late")
UDP = {"kind": "udp", "rate_per_s": 500}
ICMP = {"kind": "icmp", "rate_per_s": 500}


class Run:
    """A client, and the echo that it talks to."""

    def __init__(self, control: ClientControl, report: int, server: forkserver.Process) -> None:
        self.control = control
        self.server = server
        self._report = report

    def fault(self) -> tuple[int, int]:
        """Wait until the echo has done its deed; when it began and ended."""
        assert select.select([self._report], [], [], DEADLINE_S)[0], "the echo did not come to its fault"
        begin_ns, end_ns = json.loads(os.read(self._report, 4096))
        return begin_ns, end_ns

    def go_on(self, requests: int) -> None:
        goal = self.requests() + requests
        deadline_s = time.monotonic() + DEADLINE_S
        while self.requests() < goal:
            assert time.monotonic() < deadline_s, "the probe stands still"
            select.select([], [], [], 0.002)

    def requests(self) -> int:
        return int(self.control.heartbeat()["probes"][0]["requests"])

    def stop(self, *windows: tuple[int, int]) -> dict[str, Any]:
        (seen,) = self.control.stop(list(windows))["probes"]
        return dict(seen)


@contextmanager
def running(
    probe: dict[str, Any],
    *,
    fault: str = "none",
    at: int = 50,
    ms: float = 50,
    family: str = "IPv4",
    **client: Any,
) -> Iterator[Run]:
    address = "::1" if family == "IPv6" else "127.0.0.1"
    with ExitStack() as stack:
        echo = socket.socket(socket.AF_INET6 if family == "IPv6" else socket.AF_INET, socket.SOCK_DGRAM)
        echo.bind((address, 0))
        if probe["kind"] == "udp":
            probe = {"port": echo.getsockname()[1], **probe}
        report, report_write = os.pipe()
        stack.callback(os.close, report)
        argument = {"fault": fault, "at": at, "ms": ms}
        fds = [echo.fileno(), report_write]
        entry = "tests.system.faulty_datagrams:serve"
        server = forkserver.spawn(entry, argument, namespace=None, fds=fds, name="echo")
        os.close(report_write)
        echo.close()
        stack.enter_context(server).wait_ready(DEADLINE_S)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            argument = {"name": "client1", "probes": [{"address": address, **probe}], **client}
            entry = "testbed.clients.main:main"
            process = forkserver.spawn(entry, argument, namespace=None, fds=[theirs.fileno()], name="client1")
        stack.enter_context(process).wait_ready(DEADLINE_S)
        control = ClientControl(ours)
        stack.callback(control.close)
        yield Run(control, report, server)


def only(seen: dict[str, Any], **expected: int) -> None:
    """These fates, and no others; and nothing that streams report."""
    assert {name: seen[name] for name in FATES} == {**dict.fromkeys(FATES, 0), **expected}
    assert seen["broken"] == seen["resets"] == seen["failed_connects"] == seen["bytes_lost"] == 0


@pytest.mark.parametrize("family", ["IPv4", "IPv6"])
@pytest.mark.parametrize("probe", [UDP, ICMP], ids=lambda probe: str(probe["kind"]))
def test_nothing_wrong_is_seen_where_nothing_is(probe: dict[str, Any], family: str) -> None:
    with running(probe, family=family) as run:
        assert run.control.start()["connections"] == 1
        run.go_on(200)
        seen = run.stop()
    only(seen)
    assert seen["unanswered"] == 0
    assert seen["requests"] >= 200
    assert seen["waits"]["count"] == seen["requests"] - 1
    assert 0 <= seen["waits"]["p50_ns"] <= seen["waits"]["p99_ns"] <= seen["waits"]["longest_ns"]


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ("drop", {"lost": 1}),
        ("duplicate", {"duplicated": 1}),
        ("swap", {"reordered": 1}),
        ("flip", {"corrupted": 1}),
    ],
)
def test_each_fate_is_counted_where_it_belongs(fault: str, expected: dict[str, int]) -> None:
    with running(UDP, fault=fault) as run:
        run.control.start()
        run.fault()
        run.go_on(50)
        seen = run.stop()
    only(seen, **expected)
    assert seen["unanswered"] == expected.get("lost", 0)
    assert seen["bytes_corrupted"] == expected.get("corrupted", 0)


def test_a_pause_is_seen_in_its_length_and_on_the_way_there(tmp_path: Path) -> None:
    with running(UDP, fault="pause", ms=200, samples=str(tmp_path / "samples.npz")) as run:
        run.control.start()
        begin_ns, end_ns = run.fault()
        run.go_on(300)
        seen = run.stop((begin_ns, end_ns))
    only(seen)
    saved = np.load(tmp_path / "samples.npz")
    last_ns, apart_ns = saved["received_ns"][49], saved["sent_ns"][50] - saved["sent_ns"][49]
    (during,) = seen["during"]
    assert during["longest_at_ns"] == last_ns, "the pause came with the next"
    assert during["longest_ns"] >= end_ns - last_ns - max(2 * MS, apart_ns)
    assert seen["one_way"]["there"]["max_ns"] >= end_ns - begin_ns >= 200 * MS
    assert seen["one_way"]["there"]["p50_ns"] < 50 * MS
    assert seen["round_trip"]["max_ns"] == max(saved["received_ns"] - saved["sent_ns"])


def test_losses_up_to_the_end_are_known_and_end_the_probe_in_good_time(tmp_path: Path) -> None:
    """A marker that comes back says that nothing more will: no deadline has to be waited out for that."""
    with running(UDP, fault="drop-rest", samples=str(tmp_path / "samples.npz")) as run:
        run.control.start()
        run.fault()
        run.go_on(200)
        began_s = time.monotonic()
        seen = run.control.stop(deadline_s=DEADLINE_S)["probes"][0]
        assert time.monotonic() - began_s < DEADLINE_S / 2
    only(seen, lost=seen["requests"] - 50)
    sent_ns = np.load(tmp_path / "samples.npz")["sent_ns"]
    assert seen["waits"]["longest_ns"] == min(sent_ns[-1] - sent_ns[49], (seen["requests"] - 50) * 2 * MS)


def test_reports_in_between_forget_and_counts_go_on(tmp_path: Path) -> None:
    with running(UDP, fault="drop", samples=str(tmp_path / "last.npz")) as run:
        run.control.start()
        run.fault()
        run.go_on(20)
        first = run.control.report(forget=True, save=tmp_path / "first.npz")["probes"][0]
        run.go_on(50)
        last = run.stop()
    only(first, lost=1)
    only(last, lost=1)
    assert last["requests"] >= first["requests"] + 50
    before, after = np.load(tmp_path / "first.npz"), np.load(tmp_path / "last.npz")
    assert len(before["sent_ns"]) == first["requests"]
    assert list(np.flatnonzero(~before["answered"])) == [50]
    assert len(after["sent_ns"]) == last["requests"] - first["requests"]
    came = before["answered"]
    assert (before["handled_ns"][came] > before["sent_ns"][came]).all()
    assert (before["received_ns"][came] > before["handled_ns"][came]).all()
    assert (before["received_ns"] >= before["sent_ns"]).all()


def test_nobody_at_the_port_is_told_at_the_start() -> None:
    wanted = r"1 of 1 .* not made: refused"
    with running({**UDP, "port": 9}) as run, pytest.raises(ClientFailed, match=wanted):
        run.control.start()


def test_a_heartbeat_sees_a_silence_that_is_not_over() -> None:
    with running(UDP, fault="drop-rest") as run:
        run.control.start()
        run.fault()
        deadline_s = time.monotonic() + DEADLINE_S
        while run.control.heartbeat()["probes"][0]["longest_wait_ns"] < 50 * MS:
            assert time.monotonic() < deadline_s
            select.select([], [], [], 0.002)


def test_pings_have_no_way_there_that_anybody_tells() -> None:
    with running(ICMP) as run:
        run.control.start()
        run.go_on(20)
        seen = run.stop()
    assert seen["one_way"] is None
    assert seen["round_trip"]["max_ns"] >= seen["round_trip"]["p50_ns"] > 0
    assert seen["port"] == 0
