"""Who has the volume, and who leads: maintenance, the coordinator, one host at a time."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest

from testbed.storage.volume_client import VolumeRefused
from tests.system.volume_stage import (
    KEYS,
    MIB,
    PRELOAD,
    Both,
    closed,
    fenced,
    mounted,
    number_on,
    refusal,
    stage,
    writing,
)

pytestmark = pytest.mark.universe(preload=PRELOAD)

@pytest.fixture
def both() -> Iterator[Both]:
    with mounted() as made:
        yield made


# ---- maintenance


def test_io_waits_while_the_volume_is_in_maintenance(both: Both) -> None:
    made, a, b = both
    a.create("d", MIB)
    with writing(made.disk("host-a", "d")) as writer:
        writer.await_more()
        a.maintenance(True)
        before = number_on(made.disk("host-b", "d?epoch=1"))
        assert a.state()["volume"] == "maintenance"
        assert b.state()["volume"] == "direct"
        assert number_on(made.disk("host-b", "d?epoch=1")) == before
        a.maintenance(False)
        writer.await_more()
    assert a.state()["volume"] == "direct"


# ---- the coordinator


def test_when_the_coordinator_is_gone_the_other_host_takes_over(both: Both) -> None:
    made, a, b = both
    a.create("d", MIB)
    made.kill("host-a")
    b.create("e", MIB)
    assert b.state()["coordinator"] == "host-b"
    assert b.disks().keys() == {"d", "e"}
    assert b.claim("d", b.lease("d")["epoch"])
    made.start_service("host-a")
    again = made.client("host-a")
    again.mount()
    assert again.state()["coordinator"] == "host-b"
    again.create("f", MIB)
    assert b.disks().keys() == {"d", "e", "f"}


def test_the_coordination_is_handed_over_while_both_go_on(both: Both) -> None:
    """The deposed one does not know it: the target tells, and it asks its successor."""
    _, a, b = both
    a.create("before", MIB)
    b.coordinate()
    assert a.state()["coordinator"] == "host-b"
    a.create("after", MIB)
    a.coordinate()
    b.create("back", MIB)
    assert a.disks() == b.disks()
    holders = {name: one["holder"] for name, one in a.disks().items()}
    assert holders == {"before": "host-a", "after": "host-a", "back": "host-b"}


def test_a_coordinator_that_dismounts_leaves_the_coordination_to_the_other(both: Both) -> None:
    _, a, b = both
    a.create("d", MIB)
    a.dismount()
    assert b.state()["coordinator"] is None
    b.create("e", MIB)
    assert b.state()["coordinator"] == "host-b"
    a.mount()
    assert a.state()["coordinator"] == "host-b"
    assert a.disks().keys() == {"d", "e"}


def test_what_a_coordinator_left_half_done_is_mended(both: Both) -> None:
    """A lease without a disk, as it is when the coordinator dies between the two; and one that covers too
    much."""
    made, a, b = both
    a.create("d", MIB)
    luns = made.luns("host-a")
    luns.guard("csv", KEYS["host-a"], "half-made", [[40 * MIB, MIB]])
    (first,) = luns.status("csv")["leases"]["d"]["ranges"]
    luns.guard("csv", KEYS["host-a"], "d", [first, [50 * MIB, MIB]])
    made.kill("host-a")
    b.create("large", 55 * MIB)
    leases = luns.status("csv")["leases"]
    assert leases.keys() == {"metadata", "d", "large"}
    assert leases["d"]["ranges"] == [first]


def test_two_hosts_that_change_the_volume_at_once_lose_nothing(both: Both) -> None:
    made, a, b = both
    made_disks: list[str] = []

    def make(host: str) -> None:
        client = made.client(host)
        for number in range(6):
            if number == 3:
                with suppress(VolumeRefused):  # the other one was the later
                    client.coordinate()
            client.create(f"{host}-{number}", 512)
            made_disks.append(f"{host}-{number}")

    threads = [threading.Thread(target=make, args=(host,)) for host in KEYS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made_disks) == 12
    assert a.disks().keys() == set(made_disks)
    for name, one in b.disks().items():
        assert name.startswith(one["holder"])


# ---- one host at a time


def test_exclusive_is_for_one_host_at_a_time() -> None:
    """Quick Migration: the volume goes from one host to the other, with what was saved on it."""
    with stage() as made:
        a, b = made.client("host-a"), made.client("host-b")
        a.format()
        a.mount("exclusive")
        epoch = a.create("saved-ram", 4 * MIB)
        with made.disk("host-a", "saved-ram") as disk:
            disk.write(0, b"ram!" * MIB)
            disk.flush()
        closed(a, "saved-ram")
        for mode in ("exclusive", "shared"):
            conflict = refusal(lambda mode=mode: b.mount(mode))
            assert conflict.kind == "Conflict"
            assert str(conflict) == "reserved exclusive by host-a"
        assert b.state()["mode"] is None
        assert KEYS["host-b"] not in made.luns("host-b").status("csv")["registrations"]
        a.dismount()
        b.mount("exclusive")
        assert b.claim("saved-ram", epoch) == epoch + 1
        assert made.disk("host-b", "saved-ram").read(0, 4 * MIB) == b"ram!" * MIB
        assert refusal(lambda: a.mount("exclusive")).kind == "Conflict"


def test_a_shared_volume_is_not_taken_exclusively_nor_formatted(both: Both) -> None:
    _, a, b = both
    a.create("d", MIB)
    assert refusal(a.format).kind == "Busy"
    b.dismount()
    assert refusal(lambda: b.mount("exclusive")).kind == "Conflict"
    assert refusal(b.format).kind == "Conflict"
    assert refusal(lambda: a.mount("exclusive")).kind == "Busy"
    assert a.disks().keys() == {"d"}


def test_a_host_that_died_with_the_volume_is_preempted() -> None:
    with stage() as made:
        a, b = made.client("host-a"), made.client("host-b")
        a.format()
        a.mount("exclusive")
        epoch = a.create("d", MIB)
        disk = made.disk("host-a", "d")
        assert refusal(lambda: b.mount("exclusive")).kind == "Conflict"
        b.mount("exclusive", preempt=True)
        fenced(lambda: disk.write(0, b"x" * 512))
        b.claim("d", epoch)
        assert made.disk("host-b", "d").read(0, 512) == bytes(512)
        assert refusal(lambda: a.claim("d", epoch + 1)).kind == "NotRegistered"
        closed(a, "d", disk)
        a.dismount()
        assert refusal(a.mount).kind == "Conflict"


def test_a_volume_with_a_disk_open_is_not_dismounted(both: Both) -> None:
    made, a, _ = both
    a.create("d", MIB)
    disk = made.disk("host-a", "d")
    busy = refusal(a.dismount)
    assert (busy.kind, str(busy)) == ("Busy", "disk 'd' is open at host-a (connections: 1)")
    closed(a, "d", disk)
    a.dismount()
    assert refusal(a.dismount).kind == "NotMounted"
