"""The argument of a client: what is right becomes data, what is wrong becomes one line that says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from testbed.clients.spec import (
    ChurnSpec,
    ClientSpec,
    ClosedLoopSpec,
    LedgerSpec,
    OpenLoopSpec,
    RampSpec,
    SpecError,
    Target,
    parse,
)

CLOSED = {"kind": "closed-loop", "address": "10.7.0.10"}


def client(**probe: Any) -> dict[str, Any]:
    return {"name": "client1", "probes": [{**CLOSED, **probe}]}


def test_a_client_with_one_probe_of_each_kind() -> None:
    spec = parse(
        {
            "name": "client2",
            "trace": "/run/recorder",
            "samples": None,
            "probes": [
                {**CLOSED, "program": "kv", "connections": 3, "interval_us": 500, "size": 10},
                {"kind": "open-loop", "address": "fd07::10", "rate_per_s": 50},
                {"kind": "ramp", "address": "10.7.0.10", "rate_bytes_per_s": 5000},
                {"kind": "churn", "address": "10.7.0.10", "port": 77, "rate_per_s": 0.5},
                {"kind": "ledger", "address": "10.7.0.10", "keys": 3, "size": 32},
            ],
        }
    )
    guest = "10.7.0.10"
    assert spec == ClientSpec(
        "client2",
        (
            ClosedLoopSpec(Target(guest, 6379), "kv", connections=3, interval_us=500, size=10),
            OpenLoopSpec(Target("fd07::10", 7000), rate_per_s=50),
            RampSpec(Target(guest, 7001), rate_bytes_per_s=5000),
            ChurnSpec(Target(guest, 77), rate_per_s=0.5),
            LedgerSpec(Target(guest, 6379), keys=3, size=32),
        ),
        trace=Path("/run/recorder"),
    )


@pytest.mark.parametrize(
    ("argument", "says"),
    [
        ({"probes": [CLOSED]}, "`name`"),
        ({"name": "c"}, "`probes`"),
        ({"name": "c", "probes": []}, "`probes`"),
        ({"name": "c", "probes": [CLOSED], "colour": 1}, "'colour'"),
        ({"name": "c", "probes": ["x"]}, "`kind`.*closed-loop, open-loop, ramp, churn"),
        ({"name": "c", "probes": [{**CLOSED, "kind": "ping"}]}, "`kind`"),
        ({"name": "c", "probes": [CLOSED], "trace": 7}, "path"),
        (client(address="guest"), "`address`.*'guest'"),
        (client(address=None), "`address`"),
        (client(port=0), "`port`"),
        (client(port="80"), "`port`"),
        (client(program="ramp"), "`program`.*echo, kv, http"),
        (client(connections=0), "`connections`.*from 1"),
        (client(connections=True), "`connections`"),
        (client(connections=2.5), "`connections`"),
        (client(interval_us=-5), "`interval_us`"),
        (client(size=0), "`size`"),
        (client(size=65521), "65521"),
        (client(rate_per_s=5), "no field 'rate_per_s'"),
        (client(path="counter"), "`path`"),
        (client(path="/a b"), "`path`"),
        (client(path="/a\r\nEvil: 1"), "`path`"),
        (client(kind="open-loop", rate_per_s=0), "`rate_per_s`"),
        (client(kind="open-loop", rate_per_s=float("nan")), "`rate_per_s`"),
        (client(kind="open-loop", program="kv"), "`program`"),
        (client(kind="churn", connections=4), "no field 'connections'"),
        (client(kind="ledger", size=31), "`size` of a ledger must be 32 to 524288"),
        (client(kind="ledger", size=(512 << 10) + 1), "`size` of a ledger must be 32 to 524288"),
        (client(kind="ledger", keys=0), "`keys`.*from 1"),
        (client(kind="ledger", program="echo"), "`program`.*kv-durable, kv"),
        (client(kind="http", kept=1), "`kept` must be true or false"),
        (client(kind="http", size=5), "no field 'size'"),
        (client(kind="udp", size=31), "`size` of a packet must be a number from 32 to 65000"),
        (client(kind="udp", program="kv"), "`program`.*echo"),
        (client(kind="icmp", port=7), "no field 'port'"),
        (client(kind="icmp", program="echo"), "no field 'program'"),
        (client(kind="icmp", connections=2), "no field 'connections'"),
        (client(kind="upload", rate_bytes_per_s=10), "`rate_bytes_per_s`.*from 1000"),
        (client(kind="download", program="ramp"), "`program`.*bulk"),
    ],
)
def test_what_is_wrong_is_named_in_one_line(argument: dict[str, Any], says: str) -> None:
    with pytest.raises(SpecError, match=says) as caught:
        parse(argument)
    assert "\n" not in str(caught.value)
