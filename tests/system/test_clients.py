"""Probes against a server that misbehaves: each fault is found, and counted where it belongs and nowhere
else."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from netns import forkserver
from testbed.clients.control import ClientControl, ClientFailed
from testbed.measure.trace import Recorder

pytestmark = pytest.mark.universe(preload=("testbed.clients.main", "tests.system.faulty_server"))

MS = 1_000_000
DEADLINE_S = 20.0
WRONG = (
    "broken", "resets", "failed_connects", "unanswered", "unclosed",
    "bytes_lost", "bytes_duplicated", "bytes_corrupted",
)


@dataclass
class Run:
    """A client and the server that it talks to."""

    control: ClientControl
    report: int
    release: int
    process: forkserver.Process
    server: forkserver.Process
    target: dict[str, Any]

    def fault(self) -> tuple[int, int]:
        """Wait until the server has done its deed; when it began and ended."""
        _, begin_ns, end_ns = self.told()
        return begin_ns, end_ns

    def told(self) -> list[Any]:
        assert select.select([self.report], [], [], DEADLINE_S)[0], "the server did not come to its fault"
        told: list[Any] = json.loads(os.read(self.report, 4096))
        return told

    def begun(self) -> int:
        """Wait until the server is at a deed that lasts until it is let go; when that began."""
        _, begin_ns = self.told()
        return int(begin_ns)

    def let_go(self) -> int:
        """End that deed; when it ended."""
        os.write(self.release, b"\0")
        return self.fault()[1]

    def stand_still(self, ms: float) -> None:
        """Until the client has asked nothing more for so long, by its own clock, and then once more: what was
        due meanwhile has been asked by now."""
        asked, since_ns, before_ns = -1, 0, 0
        deadline_s = time.monotonic() + DEADLINE_S
        while True:
            beat = self.control.heartbeat()
            requests = sum(probe["requests"] for probe in beat["probes"])
            if requests != asked:
                asked, since_ns = requests, beat["t_ns"]
            elif before_ns - since_ns >= ms * MS:
                return
            before_ns = beat["t_ns"]
            assert time.monotonic() < deadline_s, "the probes go on asking"
            time.sleep(0.001)

    def go_on(self, requests: int) -> None:
        """Until so many more requests have been made in all."""
        goal = self.requests() + requests
        deadline_s = time.monotonic() + DEADLINE_S
        while self.requests() < goal:
            assert time.monotonic() < deadline_s, "the probes stand still"
            time.sleep(0.001)

    def requests(self) -> int:
        return sum(probe["requests"] for probe in self.control.heartbeat()["probes"])


@contextmanager
def running(
    *probes: dict[str, Any],
    fault: str = "none",
    at: int = 100,
    count: int = 0,
    family: int = socket.AF_INET,
    server: str = "tests.system.faulty_server:serve",
    start: bool = True,
    **client: Any,
) -> Iterator[Run]:
    with ExitStack() as stack:
        address = "::1" if family == socket.AF_INET6 else "127.0.0.1"
        listener = stack.enter_context(socket.create_server((address, 0), family=family, backlog=1000))
        report, report_write = os.pipe()
        stack.callback(os.close, report)
        release_read, release = os.pipe()
        stack.callback(os.close, release)
        served = forkserver.spawn(
            server,
            {"fault": fault, "at": at, "count": count},
            namespace=None, fds=[listener.fileno(), report_write, release_read], name="server",
        )
        os.close(report_write)
        os.close(release_read)
        stack.enter_context(served).wait_ready(DEADLINE_S)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        target = {"address": address, "port": listener.getsockname()[1]}
        listener.close()
        with theirs:
            process = forkserver.spawn(
                "testbed.clients.main:main",
                {"name": "client1", "probes": [{**target, **probe} for probe in probes], **client},
                namespace=None, fds=[theirs.fileno()], name="client1",
            )
        stack.enter_context(process).wait_ready(DEADLINE_S)
        control = ClientControl(ours)
        stack.callback(control.close)
        if start:
            control.start()
        yield Run(control, report, release, process, served, target)


def only(probe: dict[str, Any], **expected: int) -> None:
    """The probe counted exactly this as wrong, and nothing else."""
    assert {name: probe[name] for name in WRONG} == {**dict.fromkeys(WRONG, 0), **expected}


CLOSED = {"kind": "closed-loop", "connections": 4, "interval_us": 1000}
OPEN = {"kind": "open-loop", "connections": 2, "rate_per_s": 500}
CHURN = {"kind": "churn", "rate_per_s": 300}
PAUSE_MS = 200
"""Longer than a busy machine keeps anybody waiting. OPEN asks so often meanwhile."""


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6], ids=["IPv4", "IPv6"])
@pytest.mark.parametrize("probe", [CLOSED, OPEN, CHURN], ids=lambda probe: str(probe["kind"]))
def test_nothing_wrong_is_seen_where_nothing_is(probe: dict[str, Any], family: int) -> None:
    with running(probe, family=family) as run:
        run.go_on(300)
        summary = run.control.stop()
        assert run.process.wait(DEADLINE_S) == 0
    (seen,) = summary["probes"]
    only(seen)
    assert seen["requests"] >= 300
    assert seen["waits"]["count"] >= 290
    assert 0 <= seen["waits"]["p50_ns"] <= seen["waits"]["p99_ns"] <= seen["waits"]["longest_ns"]
    # Several messages under way, and Linux probes for a lost tail when the server is slow (RFC 8985):
    # needless.
    assert seen["retransmits"] <= (seen["retransmits_needless"] if probe is OPEN else 0)


def kept_waiting_ns(samples: dict[str, Any], connection: int, end_ns: int) -> int:
    """How long a connection of OPEN waited up to `end_ns`, at least, for what came after: from the delivery
    before, less what lay between the sending of both."""
    mine = samples["connection"] == connection
    sent, received = samples["sent_ns"][mine], samples["received_ns"][mine]
    first = np.searchsorted(received, end_ns)
    return int(end_ns - received[first - 1] - max(2 * MS, sent[first] - sent[first - 1]))


@pytest.mark.parametrize("probe", [CLOSED, OPEN, CHURN], ids=lambda probe: str(probe["kind"]))
def test_a_pause_is_seen_in_its_whole_length_and_in_its_window(probe: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "samples.npz"
    with running(probe, fault="pause", at=150, samples=str(path)) as run:
        begin_ns = run.begun()
        if probe is OPEN:
            run.go_on(PAUSE_MS)
        else:
            run.stand_still(PAUSE_MS)
        end_ns = run.let_go()
        run.go_on(100)
        (seen,) = run.control.stop([(begin_ns, end_ns)])["probes"]
    only(seen)
    saved = np.load(path)
    least_ns, apart_ns = end_ns - begin_ns, 0
    if probe is OPEN:
        least_ns = max(kept_waiting_ns(saved, connection, end_ns) for connection in range(2))
        apart_ns = 2 * MS + seen["latest_ns"]
    (during,) = seen["during"]
    before, after = seen["quiet"]
    assert during["longest_ns"] >= least_ns
    assert seen["waits"]["longest_ns"] == max(part["longest_ns"] for part in (before, during, after))
    assert during["gap_ns"]["max"] == during["longest_ns"]
    assert during["longest_at_ns"] < end_ns <= during["longest_at_ns"] + during["longest_ns"] + apart_ns
    for row in seen["per_connection"]:
        least_ns = kept_waiting_ns(saved, row["connection"], end_ns) if probe is OPEN else PAUSE_MS * MS
        assert row["during_ns"][0] >= least_ns, "every connection was kept waiting"


def test_turns_missed_are_skipped_and_counted_not_made_up_for() -> None:
    with running(CLOSED, fault="pause", at=150) as run:
        run.begun()
        run.stand_still(50)
        run.let_go()
        run.go_on(100)
        summary = run.control.stop()
    (seen,) = summary["probes"]
    assert seen["skipped"] >= 4 * 40
    turns = 4 * ((summary["ended_ns"] - summary["begun_ns"]) // MS + 1)
    assert seen["requests"] + seen["skipped"] <= turns


@pytest.mark.parametrize("probe", [CLOSED, OPEN, CHURN], ids=lambda probe: str(probe["kind"]))
def test_a_client_that_could_not_run_says_how_late_it_asked(probe: dict[str, Any]) -> None:
    """What the guest did meanwhile it cannot know. Who is stopped while all its replies are due is late with
    nothing: then it is stopped again."""
    with running(probe) as run:
        run.go_on(100)
        latest_ns, stops = 0, 0
        while latest_ns < 90 * MS and stops < 20:
            signal.pidfd_send_signal(run.process.pidfd, signal.SIGSTOP)
            time.sleep(0.1)
            signal.pidfd_send_signal(run.process.pidfd, signal.SIGCONT)
            run.go_on(20)
            (seen,) = run.control.report()["probes"]
            latest_ns, stops = seen["latest_ns"], stops + 1
    assert latest_ns >= 90 * MS


def test_a_report_while_the_server_pauses_leaves_the_wait_to_the_next() -> None:
    with running({**CLOSED, "connections": 1}, fault="pause", at=50) as run:
        begin_ns = run.begun()
        between = run.control.report(deadline_s=0.01)["probes"][0]
        end_ns = run.let_go()
        run.go_on(50)
        (seen,) = run.control.stop()["probes"]
    only(between)
    assert between["waits"]["count"] == between["requests"] - 1
    only(seen)
    assert seen["waits"]["longest_ns"] >= end_ns - begin_ns
    assert seen["waits"]["count"] == seen["requests"]


def test_without_the_pause_no_such_gap_is_seen() -> None:
    with running(CLOSED, at=150) as run:
        begin_ns, _ = run.fault()
        run.go_on(100)
        (seen,) = run.control.stop([(begin_ns, time.monotonic_ns())])["probes"]
    assert seen["during"][0]["p50_ns"] < 50 * MS
    assert seen["during"][0]["count"] > 50


def test_a_reply_dropped_in_a_closed_loop_is_never_answered() -> None:
    with running(CLOSED, fault="drop") as run:
        begin_ns, _ = run.fault()
        run.go_on(100)
        summary = run.control.stop(deadline_s=1)
    (seen,) = summary["probes"]
    only(seen, broken=1, unanswered=1, bytes_lost=64)
    assert seen["reasons"] == {"unanswered": 1}
    (row,) = [row for row in seen["per_connection"] if row["broken"]]
    assert row["broken"] == "unanswered"
    assert row["longest_at_ns"] <= begin_ns
    assert row["longest_at_ns"] + row["longest_ns"] >= row["broken_at_ns"] - MS


def test_a_message_dropped_in_an_open_loop_is_lost_bytes_and_the_connection_lives_on() -> None:
    with running({**OPEN, "connections": 1}, fault="drop") as run:
        run.fault()
        run.go_on(100)
        (seen,) = run.control.stop()["probes"]
    assert seen["bytes_lost"] % 64 == 0
    only(seen, bytes_lost=seen["bytes_lost"] or -1)


@pytest.mark.parametrize("probe", [CLOSED, OPEN, CHURN], ids=lambda probe: str(probe["kind"]))
def test_a_flipped_bit_is_one_corrupted_byte(probe: dict[str, Any]) -> None:
    with running(probe, fault="flip") as run:
        run.fault()
        run.go_on(100)
        (seen,) = run.control.stop()["probes"]
    only(seen, bytes_corrupted=1)


@pytest.mark.parametrize("probe", [CLOSED, {**OPEN, "connections": 1}], ids=lambda probe: str(probe["kind"]))
def test_a_reply_sent_twice_is_duplicated_bytes(probe: dict[str, Any]) -> None:
    with running(probe, fault="duplicate") as run:
        run.fault()
        run.go_on(100)
        (seen,) = run.control.stop()["probes"]
    assert seen["bytes_duplicated"] % 64 == 0
    only(seen, bytes_duplicated=seen["bytes_duplicated"] or -1)


@pytest.mark.parametrize(("fault", "resets"), [("reset", 1), ("close", 0)])
def test_a_connection_that_the_server_ends_is_broken(fault: str, resets: int, tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "recorder")
    with running(CLOSED, fault=fault, trace=str(tmp_path / "recorder")) as run:
        run.fault()
        run.go_on(100)
        (seen,) = run.control.stop()["probes"]
    reason = "reset" if resets else "closed"
    only(seen, broken=1, resets=resets, unanswered=1, bytes_lost=64)
    assert seen["reasons"] == {reason: 1}
    (told,) = [event for event in recorder.receive() if event["event"] == "broken"]
    (row,) = [row for row in seen["per_connection"] if row["broken"]]
    assert (told["source"], told["connection"]) == ("client1", row["connection"])
    assert (told["reason"], told["t_ns"]) == (reason, row["broken_at_ns"])


def test_a_reset_while_visiting_is_counted_by_the_churn() -> None:
    with running(CHURN, fault="reset") as run:
        run.fault()
        run.go_on(50)
        (seen,) = run.control.stop()["probes"]
    only(seen, broken=1, resets=1, unanswered=1, bytes_lost=64)
    (failure,) = seen["failures"]
    assert failure["reason"] == "reset"
    assert failure["established"]


def test_a_heartbeat_tells_of_the_visits_under_way_and_not_of_all_that_ever_were() -> None:
    with running(CHURN) as run:
        run.go_on(100)
        (beat,) = run.control.heartbeat()["probes"]
        (seen,) = run.control.stop()["probes"]
    assert beat["connections"] < 100 <= beat["requests"] <= seen["connections"]


def test_visits_to_a_closed_port_are_failed_connects() -> None:
    with running(CHURN, fault="die", at=50) as run:
        run.fault()
        run.go_on(300)
        (seen,) = run.control.stop()["probes"]
    assert seen["failed_connects"] > 40
    assert seen["reasons"]["refused"] >= seen["failed_connects"] - seen["reasons"].get("reset", 0)
    assert seen["connect"]["waits"]["count"] == seen["connections"] - seen["failed_connects"]


def test_packets_lost_on_the_way_are_retransmits_of_the_connection_that_lost_them(tmp_path: Path) -> None:
    with running({**CLOSED, "connections": 3}, fault="deaf") as run:
        run.begun()
        run.stand_still(120)
        run.let_go()
        run.go_on(50)
        (seen,) = run.control.stop()["probes"]
    only(seen)
    assert seen["retransmits"] == 0, "nothing was on its way to that connection: it waited for its reply"
    path = tmp_path / "samples.npz"
    with running({**OPEN, "connections": 1}, fault="deaf", samples=str(path)) as run:
        begin_ns = run.begun()
        run.go_on(60)
        end_ns = run.let_go()
        run.go_on(50)
        (seen,) = run.control.stop([(begin_ns, end_ns)])["probes"]
    only(seen)
    assert seen["retransmits"] >= 1
    assert seen["per_connection"][0]["retransmits"] == seen["retransmits"]
    assert seen["during"][0]["longest_ns"] >= kept_waiting_ns(np.load(path), 0, end_ns)


RAMP = {"kind": "ramp", "rate_bytes_per_s": 20_000_000}


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ("none", {}),
        ("skip", {"bytes_lost": 4096}),
        ("repeat", {"bytes_duplicated": 4096}),
        ("flip", {"bytes_corrupted": 1}),
    ],
)
def test_the_ramp_knows_what_became_of_each_byte(fault: str, expected: dict[str, int]) -> None:
    ramp = "tests.system.faulty_server:serve_ramp"
    with running(RAMP, server=ramp, fault=fault, at=1_000_003, count=4096) as run:
        run.go_on(150)
        (seen,) = run.control.stop()["probes"]
        received, mismatches = run.told()
    only(seen, **expected)
    assert seen["bytes_received"] > 1_100_000
    assert (received, mismatches) == (seen["bytes_sent"], 0)


def test_a_server_that_is_not_there_is_told_at_the_start() -> None:
    with running({**CLOSED, "port": 9}, start=False) as run:
        with pytest.raises(ClientFailed, match=r"client1: 4 of 4 connections not made: refused"):
            run.control.start()


def test_a_heartbeat_sees_a_wait_that_is_not_over() -> None:
    with running(CLOSED, fault="pause", at=50) as run:
        run.begun()
        assert run.requests() >= 50  # of the waits that were over this heartbeat has told, and no other will
        deadline_s = time.monotonic() + DEADLINE_S
        while run.control.heartbeat()["probes"][0]["longest_wait_ns"] < 100 * MS:
            assert time.monotonic() < deadline_s
            time.sleep(0.001)


def test_reports_in_between_forget_what_they_told_and_counters_go_on(tmp_path: Path) -> None:
    with running(CLOSED, samples=str(tmp_path / "last.npz")) as run:
        run.go_on(200)
        first = run.control.report(forget=True, save=tmp_path / "first.npz")["probes"][0]
        run.go_on(200)
        last = run.control.stop()["probes"][0]
    assert first["waits"]["count"] == first["requests"]
    assert last["requests"] >= first["requests"] + 200
    assert last["waits"]["count"] == last["requests"] - first["requests"]
    only(last)
    saved = np.load(tmp_path / "first.npz")
    assert len(saved["sent_ns"]) == first["requests"]
    assert saved["answered"].all()
    assert np.load(tmp_path / "last.npz")["sent_ns"].min() > saved["received_ns"].max()


def test_samples_are_saved_as_they_were_taken(tmp_path: Path) -> None:
    path = tmp_path / "samples.npz"
    with running(CLOSED, OPEN, CHURN, fault="drop", samples=str(path)) as run:
        run.fault()
        run.go_on(100)
        summary = run.control.stop(deadline_s=1)
    saved = np.load(path)
    for number, probe in enumerate(summary["probes"]):
        mine = saved["probe"] == number
        assert mine.sum() == probe["requests"]
        assert (~saved["answered"][mine]).sum() == probe["unanswered"]
        assert (saved["received_ns"][mine] >= saved["sent_ns"][mine]).all()
    assert sorted(set(saved["connection"].tolist())) == list(range(7))


@pytest.mark.parametrize("probe", [CLOSED, CHURN], ids=lambda probe: str(probe["kind"]))
def test_a_sample_that_was_given_up_says_so(probe: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "samples.npz"
    with running(probe, fault="drop", samples=str(path)) as run:
        begin_ns, _ = run.fault()
        run.go_on(50)
        run.control.stop(deadline_s=1)
    saved = np.load(path)
    (given_up,) = np.flatnonzero(~saved["answered"])
    assert saved["sent_ns"][given_up] <= begin_ns
    assert saved["received_ns"][given_up] >= begin_ns + 1000 * MS


@pytest.mark.parametrize("kind", ["closed-loop", "open-loop"])
def test_messages_that_the_kernel_does_not_take_at_once_go_out_whole(kind: str) -> None:
    Path("/proc/sys/net/ipv4/tcp_wmem").write_text("4096 16384 65536")  # of this universe alone
    rate = {"interval_us": 1000} if kind == "closed-loop" else {"rate_per_s": 50}
    with running({"kind": kind, "connections": 1, "size": 1 << 20, **rate}, at=-1) as run:
        run.go_on(20)
        (seen,) = run.control.stop()["probes"]
    only(seen)
    assert seen["requests"] >= 20


def test_the_client_ends_when_nobody_controls_it_any_more() -> None:
    with running(CLOSED) as run:
        run.control.close()
        assert run.process.wait(DEADLINE_S) == 0


def test_a_summary_of_many_connections_passes_the_control_connection() -> None:
    with running({**CLOSED, "connections": 400, "interval_us": 50_000}) as run:
        run.go_on(800)
        (seen,) = run.control.stop()["probes"]
    only(seen)
    assert len(seen["per_connection"]) == 400
    assert len({row["local_port"] for row in seen["per_connection"]}) == 400


def test_a_beat_takes_nothing_from_a_heartbeat(tmp_path: Path) -> None:
    """A stall of the server is in some beat, and as long in the heartbeat after many beats."""
    path = tmp_path / "recorder"
    recorder = Recorder(path)
    try:
        with running(CLOSED, fault="pause", at=150, trace=str(path)) as run:
            run.control.beat(10)
            beats: list[dict[str, Any]] = []

            def hear_until(t_ns: int) -> None:
                while not beats or beats[-1]["t_ns"] < t_ns:
                    assert select.select([recorder], [], [], DEADLINE_S)[0], "no beat any more"
                    beats.extend(event for event in recorder.receive() if event["event"] == "beat")

            hear_until(run.begun() + 60 * MS)
            hear_until(run.let_go() + 100 * MS)
            longest = [beat["longest_wait_ns"] for beat in beats]
            assert max(longest) >= 60 * MS
            assert min(longest) < 60 * MS
            assert run.control.heartbeat()["probes"][0]["longest_wait_ns"] >= max(longest)
            with pytest.raises(ClientFailed, match="every_ms"):
                run.control.beat(5)
    finally:
        recorder.close()
