"""The ledger against stores that lose, invent, refuse, break off; and a durable guest that is killed."""

from __future__ import annotations

import select
import socket
from contextlib import ExitStack
from typing import Any

import pytest

from netns import forkserver
from testbed.clients.control import ClientControl, ClientFailed
from tests.system.guest_agent import DEADLINE_S, FakeAgent, eventually
from tests.system.test_clients import only
from tests.system.test_clients import running as running_against
from tests.unit.disk_server import Medium, serving

pytestmark = pytest.mark.universe(
    preload=("testbed.clients.main", "testbed.guest.machine", "testbed.guest.programs.kv_durable")
)

LEDGER = {"kind": "ledger", "connections": 3, "interval_us": 1000, "keys": 4}
WIDE = {**LEDGER, "connections": 1, "keys": 2000}
"""So many keys that none is written again before the end."""
READ_BACK_S = 30.0
"""For so many keys, one after the other, on a machine that does many other things."""
STORE = "tests.system.store_server:serve"
VERDICT = ("writes_lost", "writes_phantom", "writes_refused", "unsettled")


def verdict(probe: dict[str, Any], **expected: int) -> None:
    """The probe found exactly this."""
    assert {name: probe[name] for name in VERDICT} == {**dict.fromkeys(VERDICT, 0), **expected}


def outcome(fault: str) -> dict[str, Any]:
    """What the ledger reports of a store with the fault."""
    with running_against(LEDGER, server=STORE, fault=fault, at=100) as run:
        run.fault()
        run.go_on(run.requests() + 100)
        (seen,) = run.control.stop()["probes"]
        assert run.process.wait(DEADLINE_S) == 0
    assert isinstance(seen, dict)
    return seen


def test_nothing_wrong_is_seen_where_nothing_is() -> None:
    seen = outcome("none")
    only(seen)
    verdict(seen)
    assert (seen["connections"], seen["keys"]) == (3, 12)
    assert 100 < seen["acknowledged"] < seen["requests"], "it reads, too"
    assert seen["waits"]["count"] == seen["requests"]


def test_forgotten_write_is_found() -> None:
    with running_against(WIDE, server=STORE, fault="forget", at=100) as run:
        run.fault()
        (seen,) = run.control.stop(deadline_s=READ_BACK_S)["probes"]
    only(seen)
    verdict(seen, writes_lost=1)
    assert any("acknowledged" in (row["complaint"] or "") for row in seen["per_connection"])


def test_invented_value_is_found() -> None:
    with running_against(WIDE, server=STORE, fault="invent", at=100) as run:
        run.fault()
        (seen,) = run.control.stop(deadline_s=READ_BACK_S)["probes"]
    verdict(seen, writes_phantom=1)


def test_refused_write_is_counted_and_not_missed() -> None:
    verdict(outcome("refuse"), writes_refused=1)


@pytest.mark.parametrize("fault", ["break-before", "break-after"])
def test_connection_that_breaks_is_counted_and_another_goes_on(fault: str) -> None:
    seen = outcome(fault)
    only(seen, broken=1, resets=1, unanswered=1)
    verdict(seen)
    assert (seen["connections"], seen["keys"]) == (4, 13), "the key of the write under way was retired"
    assert [row["connection"] % 100_000 for row in seen["per_connection"] if row["broken"]]


def test_store_that_lost_everything_is_found_out() -> None:
    seen = outcome("lose-all")
    assert seen["broken"] == 3
    assert seen["writes_lost"] >= 90
    assert seen["writes_phantom"] == 0


def test_what_a_client_before_left_in_the_store_is_no_phantom() -> None:
    """A guest that died has other clients afterwards, of the same names, and the same disk."""
    with running_against(WIDE, server=STORE, at=0) as run, ExitStack() as stack:
        run.go_on(1500)
        (first,) = run.control.stop(deadline_s=READ_BACK_S)["probes"]
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            argument = {"name": "client1", "probes": [{**WIDE, **run.target}]}
            entry, fds = "testbed.clients.main:main", [theirs.fileno()]
            process = forkserver.spawn(entry, argument, namespace=None, fds=fds, name="client1")
        stack.enter_context(process).wait_ready(DEADLINE_S)
        control = ClientControl(ours)
        stack.callback(control.close)
        control.start()
        (second,) = control.stop(deadline_s=READ_BACK_S)["probes"]
    assert first["acknowledged"] > second["acknowledged"]
    verdict(second)


def test_store_that_is_gone_leaves_the_question_open() -> None:
    with running_against(LEDGER, server=STORE, at=0) as run:
        run.go_on(100)
        run.server.kill()
        summary = run.control.stop(deadline_s=2)
    (seen,) = summary["probes"]
    verdict(seen, unsettled=3)
    assert seen["failed_connects"] >= 3


def test_ledger_that_could_not_begin_does_not_go_on_trying() -> None:
    with running_against(LEDGER, server=STORE, start=False) as run:
        run.server.kill()
        run.server.wait(DEADLINE_S)
        with pytest.raises(ClientFailed, match="3 of 3 connections not made: refused"):
            run.control.start()
        assert not select.select([run.control], [], [], 0.3)[0]
        assert run.control.heartbeat()["probes"][0]["connections"] == 3


# -- a durable guest -------------------------------------------------------------------------------------

DISK_BYTES = 8 << 20


@pytest.mark.parametrize("flush_works", [True, False])
def test_durable_guest_that_is_killed_and_boots_again(flush_works: bool) -> None:
    """With a disk whose flush does nothing the ledger finds lost writes: the negative control."""
    medium = Medium(DISK_BYTES)
    medium.flush_works = flush_works
    probe = {**LEDGER, "address": "127.0.0.1"}
    with ExitStack() as stack:
        with serving(medium) as server, FakeAgent({"program": "kv-durable"}) as agent:
            agent.ask("start", disk={"bytes": DISK_BYTES}, fds=[server.theirs.fileno()])
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                process = forkserver.spawn(
                    "testbed.clients.main:main", {"name": "client1", "probes": [probe]},
                    namespace=None, fds=[theirs.fileno()], name="client1",
                )  # fmt: skip
            stack.enter_context(process).wait_ready(DEADLINE_S)
            control = ClientControl(ours)
            stack.callback(control.close)
            control.start()
            eventually(lambda: bool(control.heartbeat()["probes"][0]["requests"] > 200))
            agent.process.kill()
            assert agent.process.wait(DEADLINE_S) is not None  # and so its port is free
        medium.crash()
        with serving(medium) as server, FakeAgent({"program": "kv-durable"}) as agent:
            answer = agent.ask("start", disk={"bytes": DISK_BYTES}, fds=[server.theirs.fileno()])
            assert "running" in answer, answer
            before = control.heartbeat()["probes"][0]["requests"]
            eventually(lambda: bool(control.heartbeat()["probes"][0]["requests"] > before + 200))
            (seen,) = control.stop()["probes"]
    assert seen["broken"] == 3
    assert (seen["writes_phantom"], seen["unsettled"]) == (0, 0)
    assert (seen["writes_lost"] == 0) is flush_works
