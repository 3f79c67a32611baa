"""The volume service of both hosts, over a storage network, with a target that fences."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed.storage.client import NbdRefused
from testbed.storage.volume_client import VolumeClient
from tests.system.volume_stage import MIB, PRELOAD, Stage, mounted, refusal, stage

pytestmark = pytest.mark.universe(preload=PRELOAD)

Both = tuple[Stage, VolumeClient, VolumeClient]


@pytest.fixture
def both(tmp_path: Path) -> Iterator[Both]:
    with mounted(tmp_path) as made:
        yield made


def test_both_hosts_have_it_mounted_and_each_writes_its_own_disk(both: Both) -> None:
    made, a, b = both
    assert a.state()["mode"] == b.state()["mode"] == "shared"
    assert a.state()["coordinator"] == b.state()["coordinator"] == "host-a"
    for client, host in ((a, "host-a"), (b, "host-b")):
        client.create(f"of-{host}", 3 * MIB)
    assert a.disks() == b.disks()
    assert {name: one["holder"] for name, one in a.disks().items()} == {
        "of-host-a": "host-a",
        "of-host-b": "host-b",
    }
    for host in ("host-a", "host-b"):
        epoch = a.lease(f"of-{host}")["epoch"]
        disk = made.disk(host, f"of-{host}?epoch={epoch}")
        assert disk.size == 3 * MIB
        assert disk.read(0, 3 * MIB) == bytes(3 * MIB)
        disk.write(MIB - 512, host.encode() * 4096)
        disk.flush()
    for reader, writer in (("host-a", "host-b"), ("host-b", "host-a")):
        disk = made.disk(reader, f"of-{writer}?epoch=1")
        assert disk.read(MIB - 512, 6) == writer.encode()[:6]
