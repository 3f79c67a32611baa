"""HTTP as a probe of its own, against the guest's web server and against what is none."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from netns import forkserver
from netns.forkserver import ready
from tests.system.guest_agent import running as guest
from tests.system.test_bulk import DEADLINE_S, client, go_on, pause

pytestmark = pytest.mark.universe(preload=("testbed.clients.main", "testbed.guest.machine"))

MS = 1_000_000
KEPT = {"kind": "http", "interval_us": 2000, "connections": 2}
NEW = {**KEPT, "kept": False}
WRONG = (
    *("broken", "resets", "failed_connects", "unanswered"),
    *("bytes_lost", "bytes_duplicated", "bytes_corrupted"),
)


def of_no_protocol(_argument: Any, fds: list[int]) -> int:
    """Answer everything with what is no HTTP."""
    listener = socket.socket(fileno=fds[0])
    ready()
    while True:
        connection, _ = listener.accept()
        connection.recv(65536)
        connection.sendall(b"HELLO WORLD\r\nContent-Length: 0\r\n\r\n")
        connection.recv(1)
        connection.close()


@pytest.mark.parametrize("probe", [KEPT, NEW], ids=["kept", "new"])
@pytest.mark.parametrize(("path", "status"), [("/", "200"), ("/counter", "200"), ("/nowhere", "404")])
def test_every_answer_is_counted_by_its_status(probe: dict[str, Any], path: str, status: str) -> None:
    with guest(program="http") as agent, client({**probe, "path": path}) as control:
        go_on(control, 30)
        window = pause(agent, control, 40)
        go_on(control, 30)
        (seen,) = control.stop([window])["probes"]
        served = agent.ask("stats")
    assert {name: seen[name] for name in WRONG} == dict.fromkeys(WRONG, 0)
    assert seen["kind"] == "http"
    assert seen["statuses"] == {status: seen["requests"]}
    assert served["program"]["requests"] == seen["requests"] >= 60
    assert served["accepted"] == (2 if probe is KEPT else seen["connections"])
    assert seen["during"][0]["longest_ns"] >= 40 * MS
    if probe is KEPT:
        assert sum(row["statuses"][status] for row in seen["per_connection"]) == seen["requests"]


def test_what_is_no_http_is_corrupted() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        entry = "tests.system.test_http_probe:of_no_protocol"
        server = forkserver.spawn(entry, None, namespace=None, fds=[listener.fileno()], name="server")
        port = listener.getsockname()[1]
    with server:
        server.wait_ready(DEADLINE_S)
        with client({**NEW, "port": port}) as control:
            go_on(control, 5)
            (seen,) = control.stop(deadline_s=0.5)["probes"]
    assert seen["bytes_corrupted"] > 0
    assert "200" not in seen["statuses"]
