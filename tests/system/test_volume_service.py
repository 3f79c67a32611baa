"""The volume service of both hosts, over a storage network, with a target that fences."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from testbed.storage.client import NbdClient, NbdLost, NbdRefused
from testbed.storage.volume_client import VolumeClient, VolumeRefused
from tests.conftest import require
from tests.system.guest_agent import eventually
from tests.system.volume_stage import (
    DEADLINE_S,
    KEYS,
    MIB,
    PRELOAD,
    TARGET,
    Stage,
    control,
    mounted,
    nbd,
    refusal,
    stage,
)

pytestmark = pytest.mark.universe(preload=PRELOAD)

Both = tuple[Stage, VolumeClient, VolumeClient]


@pytest.fixture
def both() -> Iterator[Both]:
    with mounted() as made:
        yield made


def fenced(action: Callable[[], object]) -> None:
    with pytest.raises(NbdRefused) as refused:
        action()
    assert refused.value.name == "EPERM"


class Writer:
    """Writes a rising number to one place of a disk, again and again, until it is told to end or is
    refused."""

    def __init__(self, disk: NbdClient) -> None:
        self.acknowledged = 0
        self.refused: NbdRefused | None = None
        self._disk = disk
        self._enough = threading.Event()
        self._beat = threading.Condition()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._enough.is_set() and self.refused is None:
            number = self.acknowledged + 1
            try:
                self._disk.write(0, number.to_bytes(8, "big") * 512)
            except NbdRefused as refused:
                self.refused = refused
            except NbdLost:
                return
            with self._beat:
                self.acknowledged += self.refused is None
                self._beat.notify_all()

    def await_more(self, count: int = 20) -> None:
        """Return when so many more writes have been acknowledged."""
        with self._beat:
            goal = self.acknowledged + count
            assert self._beat.wait_for(lambda: self.acknowledged >= goal, DEADLINE_S), self.refused

    def hang_up(self) -> None:
        """Go, with a write under way."""
        self._disk.socket.shutdown(socket.SHUT_RDWR)

    def end(self) -> int:
        """The last number that was acknowledged."""
        self._enough.set()
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive()
        return self.acknowledged


@contextmanager
def writing(disk: NbdClient) -> Iterator[Writer]:
    writer = Writer(disk)
    try:
        yield writer
    finally:
        writer.end()


def number_on(disk: NbdClient) -> int:
    content = disk.read(0, 4096)
    assert content == content[:8] * 512
    return int.from_bytes(content[:8], "big")


# ---- two hosts, one volume


def test_both_hosts_have_it_mounted_and_each_writes_its_own_disk(both: Both) -> None:
    made, a, b = both
    assert a.state()["mode"] == b.state()["mode"] == "shared"
    assert a.state()["coordinator"] == b.state()["coordinator"] == "host-a"
    for client, host in ((a, "host-a"), (b, "host-b")):
        client.create(f"of-{host}", 3 * MIB)
    assert a.disks() == b.disks()
    holders = {name: one["holder"] for name, one in a.disks().items()}
    assert holders == {"of-host-a": "host-a", "of-host-b": "host-b"}
    for host in ("host-a", "host-b"):
        disk = made.disk(host, f"of-{host}")
        assert disk.size == 3 * MIB
        assert disk.read(0, 3 * MIB) == bytes(3 * MIB)
        disk.write(MIB - 512, host.encode() * 4096)
        disk.flush()
    for reader, writer in (("host-a", "host-b"), ("host-b", "host-a")):
        disk = made.disk(reader, f"of-{writer}?epoch=1")
        assert disk.read(MIB - 512, 6 * 4096) == writer.encode() * 4096


def test_a_disk_is_as_wide_as_it_says_and_no_wider(both: Both) -> None:
    made, a, _ = both
    a.create("one", MIB)
    a.create("two", MIB)
    one, two = made.disk("host-a", "one"), made.disk("host-a", "two")
    one.write(0, b"1" * MIB)
    two.write(0, b"2" * MIB)
    assert one.read(0, MIB) == b"1" * MIB
    with pytest.raises(NbdRefused, match="ENOSPC"):
        one.write(MIB - 512, bytes(1024))
    with pytest.raises(NbdRefused, match="EINVAL"):
        one.read(MIB, 512)
    one.write_zeroes(512, 512)
    assert one.read(0, 1536) == b"1" * 512 + bytes(512) + b"1" * 512
    one.trim(0, MIB)
    assert two.read(0, MIB) == b"2" * MIB


def test_who_does_not_own_a_disk_cannot_write_it(both: Both) -> None:
    made, a, _ = both
    epoch = a.create("d", MIB)
    for export in (f"d?epoch={epoch}", f"d?epoch={epoch + 1}"):
        disk = made.disk("host-b", export)
        fenced(lambda disk=disk: disk.write(0, b"x" * 512))
        fenced(lambda disk=disk: disk.trim(0, 512))
        fenced(lambda disk=disk: disk.write_zeroes(0, 512))
        assert disk.read(0, 512) == bytes(512)


def test_a_claim_moves_a_disk_and_fences_the_old_owner_at_that_instant(both: Both) -> None:
    """What the new owner writes after its claim stays, however busily the old one writes."""
    made, a, b = both
    epoch = a.create("d", MIB)
    theirs = made.disk("host-b", f"d?epoch={epoch + 1}")
    fenced(lambda: theirs.write(0, b"early" * 512))
    with writing(made.disk("host-a", f"d?epoch={epoch}")) as writer:
        writer.await_more()
        assert b.claim("d", epoch) == epoch + 1
        theirs.write(0, b"b" * 4096)
        writer.end()
        assert writer.refused is not None
        assert writer.refused.name == "EPERM"
    assert theirs.read(0, 4096) == b"b" * 4096
    assert a.lease("d") == b.lease("d") == {"holder": "host-b", "epoch": epoch + 1}


def test_a_claim_may_be_repeated_and_only_one_host_gets_an_epoch(both: Both) -> None:
    _, a, b = both
    epoch = a.create("d", MIB)
    assert b.claim("d", epoch) == b.claim("d", epoch) == epoch + 1
    lost = refusal(lambda: a.claim("d", epoch))
    assert (lost.kind, lost.detail) == ("Lost", {"holder": "host-b", "epoch": epoch + 1})
    assert a.claim("d", epoch + 1) == epoch + 2


def test_a_prepared_connection_is_the_one_that_is_used(both: Both) -> None:
    """It is opened while nothing new could be connected, or even looked up."""
    made, a, b = both
    epoch = a.create("d", MIB)
    assert b.prepare("d", epoch + 1) == MIB
    for ifname in ("stor0", "mig0"):
        made.link("host-b", ifname, up=False)
    disk = made.disk("host-b", f"d?epoch={epoch + 1}")
    for ifname in ("stor0", "mig0"):
        made.link("host-b", ifname, up=True)
    b.claim("d", epoch)
    disk.write(0, b"x" * 512)
    assert disk.read(0, 512) == b"x" * 512
    assert b.state()["open"] == {"d": 1}


# ---- disks


def test_a_disk_grows_and_keeps_its_content(both: Both) -> None:
    made, a, b = both
    a.create("d", MIB)
    a.create("behind", MIB)
    a.delete("behind")
    disk = made.disk("host-a", "d")
    disk.write(0, b"d" * MIB)
    b.grow("d", 10 * MIB)
    assert disk.size == MIB
    disk.write(0, b"D" * 512)  # its epoch is as before
    larger = made.disk("host-a", "d")
    assert larger.read(0, 10 * MIB) == b"D" * 512 + b"d" * (MIB - 512) + bytes(9 * MIB)
    larger.write(9 * MIB, b"e" * MIB)
    assert larger.read(9 * MIB, MIB) == b"e" * MIB


def test_what_is_new_reads_as_zeroes_whatever_was_there(both: Both) -> None:
    made, a, _ = both
    a.create("d", MIB)
    address = (TARGET[0], TARGET[1])
    namespace = made.topology.namespace("host-a")
    export = f"csv?key={KEYS['host-a']}"
    with NbdClient.connect(address, export, deadline_s=DEADLINE_S, namespace=namespace) as lun:
        lun.write(8 * MIB, b"left" * (40 * MIB // 4))
    a.grow("d", 16 * MIB)
    assert made.disk("host-a", "d").read(0, 16 * MIB) == bytes(16 * MIB)
    a.create("e", 16 * MIB)
    assert made.disk("host-a", "e").read(0, 16 * MIB) == bytes(16 * MIB)


def test_a_deleted_disk_gives_its_space_back_and_its_epochs_are_not_used_again(both: Both) -> None:
    made, a, b = both
    image = made.folder / "csv.img"
    empty_bytes = image.stat().st_blocks * 512
    first = a.create("d", 8 * MIB)
    with made.disk("host-a", "d") as disk:
        disk.write(0, b"secret!!" * MIB)
    assert image.stat().st_blocks * 512 > 8 * MIB
    _closed(a, "d")
    a.delete("d")
    assert image.stat().st_blocks * 512 < empty_bytes + MIB
    assert b.create("d", 8 * MIB) > first


def test_a_create_that_is_asked_for_again_is_done_once(both: Both) -> None:
    """The peer asks again when the coordinator has died before its answer."""
    _, a, _ = both
    same = {"disk": "d", "bytes": MIB, "identity": "0" * 31 + "1"}
    assert a.ask("create", **same) == a.ask("create", **same)
    other = {**same, "identity": "0" * 31 + "2"}
    assert refusal(lambda: a.ask("create", **other)).kind == "Exists"


def _closed(client: VolumeClient, name: str, *disks: NbdClient) -> None:
    """Close connections, and return when the service has noticed."""
    for disk in disks:
        disk.close()
    eventually(lambda: name not in client.state()["open"])


def test_a_disk_that_is_open_or_another_s_is_not_deleted(both: Both) -> None:
    made, a, b = both
    epoch = a.create("d", MIB)
    disk = made.disk("host-a", "d")
    for client in (a, b):
        busy = refusal(lambda client=client: client.delete("d"))
        assert (busy.kind, str(busy)) == ("Busy", "disk 'd' is open at host-a (connections: 1)")
    _closed(a, "d", disk)
    busy = refusal(lambda: b.delete("d"))
    assert (busy.kind, str(busy)) == ("Busy", f"disk 'd' is host-a's, at epoch {epoch}")
    a.delete("d")
    assert a.disks() == b.disks() == {}


def test_a_disk_of_another_owner_is_opened_by_epoch_only(both: Both) -> None:
    made, a, _ = both
    a.create("d", MIB)
    with pytest.raises(NbdRefused, match="disk 'd' is host-a's, at epoch"):
        made.disk("host-b", "d")
    made.disk("host-b", "d?epoch=7")


def test_programs_that_know_nothing_of_this_open_a_disk_as_it_is(both: Both) -> None:
    _, a, _ = both
    epoch = a.create("d", 3 * MIB)
    uri = f"nbd+unix:///d%3Fepoch={epoch}?socket={nbd('host-a')}"
    (told,) = json.loads(output("nbdinfo", "--json", uri))["exports"]
    assert told["export-size"] == 3 * MIB
    assert all(told[f"can_{can}"] for can in ("flush", "fua", "multi_conn", "trim", "zero"))
    writes = ("-c", "write -P 7 1M 512k", "-c", "flush", "-c", "write -z 1M 4k", "-c", "discard 2M 64k")
    reads = ("-c", "read -P 7 1028k 508k", "-c", "read -P 0 1M 4k")
    said = output("qemu-io", "-f", "raw", *writes, *reads, uri)
    assert "Pattern verification failed" not in said
    assert said.count("read ") == 2
    listed = json.loads(output("nbdinfo", "--list", "--json", f"nbd+unix://?socket={nbd('host-a')}"))
    assert [one["export-name"] for one in listed["exports"]] == ["d"]


def output(*command: str) -> str:
    require(command[0], bool(shutil.which(command[0])))
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
    return done.stdout


# ---- ways


def test_io_goes_on_through_the_peer_while_the_storage_link_is_cut(both: Both) -> None:
    made, a, b = both
    b.create("d", MIB)
    with writing(made.disk("host-b", "d")) as writer:
        writer.await_more()
        made.link("host-b", "stor0", up=False)
        made.await_state("host-b", "redirected")
        writer.await_more()
        assert b.state()["volume"] == "redirected"
        assert b.lease("d")["holder"] == "host-b"
        b.create("made-meanwhile", MIB)
        made.link("host-b", "stor0", up=True)
        made.await_state("host-b", "direct")
        writer.await_more()
        last = writer.end()
        assert writer.refused is None
    assert number_on(made.disk("host-a", "d?epoch=1")) == last
    assert made.states("host-b") == ["direct", "redirected", "direct"]
    assert made.states("host-a") == ["direct"]
    assert b.state()["volume"] == a.state()["volume"] == "direct"


def test_fencing_holds_on_the_redirected_way_as_well(both: Both) -> None:
    made, a, b = both
    epoch = a.create("d", MIB)
    made.link("host-b", "stor0", up=False)
    made.await_state("host-b", "redirected")
    disk = made.disk("host-b", f"d?epoch={epoch + 1}")
    fenced(lambda: disk.write(0, b"x" * 512))
    assert b.claim("d", epoch) == epoch + 1
    disk.write(0, b"x" * 512)
    a.claim("d", epoch + 1)
    fenced(lambda: disk.write(0, b"y" * 512))


def test_while_no_way_works_io_waits_and_then_goes_on(both: Both) -> None:
    made, a, b = both
    b.create("d", MIB)
    with writing(made.disk("host-b", "d")) as writer:
        writer.await_more()
        made.link("host-b", "mig0", up=False)
        made.link("host-b", "stor0", up=False)
        made.await_state("host-b", "offline")
        before = writer.acknowledged
        offline = refusal(lambda: b.lease("d"))
        assert offline.kind == "Offline"
        assert "direct: " in str(offline)
        assert "redirected: " in str(offline)
        assert writer.acknowledged == before
        assert b.state()["volume"] == "offline"
        made.link("host-b", "mig0", up=True)
        made.await_state("host-b", "redirected")
        writer.await_more()
        made.link("host-b", "stor0", up=True)
        made.await_state("host-b", "direct")
        writer.await_more()
        last = writer.end()
        assert writer.refused is None
    assert number_on(made.disk("host-a", f"d?epoch={a.lease('d')['epoch']}")) == last


def test_who_still_waits_on_a_way_that_is_no_longer_the_best_is_not_left_there(both: Both) -> None:
    """Back on the direct way, with a request under way on the redirected one, which is then cut."""
    made, _, b = both
    b.create("d", MIB)
    made.link("host-b", "stor0", up=False)
    made.await_state("host-b", "redirected")
    disk = made.disk("host-b", "d")
    disk.read(0, 512)
    signal.pidfd_send_signal(made.processes["host-a"].pidfd, signal.SIGSTOP)
    request = threading.Thread(target=disk.write, args=(0, b"x" * 4096))
    request.start()
    made.link("host-b", "stor0", up=True)
    made.await_state("host-b", "direct")
    request.join(DEADLINE_S)
    assert not request.is_alive()
    assert disk.read(0, 4096) == b"x" * 4096


def test_a_client_that_goes_while_its_io_waits_is_forgotten(both: Both) -> None:
    made, a, _ = both
    a.create("d", MIB)
    with writing(made.disk("host-a", "d")) as writer:
        writer.await_more()
        made.kill("storage")
        made.await_state("host-a", "offline")
        assert a.state()["open"] == {"d": 1}
        writer.hang_up()
    _closed(a, "d")


def test_a_target_that_is_started_again_is_found_again(both: Both) -> None:
    made, a, b = both
    epoch = a.create("d", MIB)
    with writing(made.disk("host-a", "d")) as writer:
        writer.await_more()
        made.kill("storage")
        made.await_state("host-a", "offline")
        made.start_target()
        made.await_state("host-a", "direct")
        writer.await_more()
        last = writer.end()
        assert writer.refused is None
    assert number_on(made.disk("host-b", f"d?epoch={epoch}")) == last
    assert a.state()["coordinator"] == "host-a"
    assert b.claim("d", epoch) == epoch + 1


def test_a_target_that_cannot_be_reached_at_start_is_told() -> None:
    with stage() as made:
        made.kill("storage")
        made.kill("host-a")
        made.start_service("host-a")
        offline = refusal(made.client("host-a").mount)
        assert offline.kind == "Offline"
        assert "10.5.0.10:3260: Connection refused" in str(offline)
        made.start_target()
        made.await_state("host-a", "direct")
        made.client("host-a").format()


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
        _closed(a, "saved-ram")
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
        _closed(a, "d", disk)
        a.dismount()
        assert refusal(a.mount).kind == "Conflict"


def test_a_volume_with_a_disk_open_is_not_dismounted(both: Both) -> None:
    made, a, _ = both
    a.create("d", MIB)
    disk = made.disk("host-a", "d")
    busy = refusal(a.dismount)
    assert (busy.kind, str(busy)) == ("Busy", "disk 'd' is open at host-a (connections: 1)")
    _closed(a, "d", disk)
    a.dismount()
    assert refusal(a.dismount).kind == "NotMounted"


# ---- bad input


def test_what_is_not_there_or_does_not_fit_is_refused_in_one_line(both: Both) -> None:
    made, a, b = both
    a.create("d", 2 * MIB)
    full = refusal(lambda: b.create("large", 200 * MIB))
    assert full.kind == "Full"
    assert str(full).startswith("volume full: disk 'large' needs")
    assert refusal(lambda: a.grow("d", 200 * MIB)).kind == "Full"
    assert refusal(lambda: a.grow("d", MIB)).kind == "BadRequest"
    assert refusal(lambda: b.create("d", MIB)).kind == "Exists"
    assert refusal(lambda: b.create("e", 100)).kind == "BadRequest"
    assert refusal(lambda: b.create("metadata", MIB)).kind == "BadRequest"
    for action in (
        lambda: b.lease("none"),
        lambda: b.claim("none", 1),
        lambda: b.grow("none", MIB),
        lambda: b.delete("none"),
        lambda: b.prepare("none", 1),
    ):
        assert refusal(action).kind == "NoSuchDisk"
    with pytest.raises(NbdRefused, match="there is no disk 'none'; there are: d"):
        made.disk("host-a", "none?epoch=1")
    for export in ("", "d?epoch=", "d?epoch=x", "d?epoch=-1", "metadata?epoch=1", "d?key=1", "d?epoch=1&x=2"):
        with pytest.raises(NbdRefused):
            made.disk("host-a", export)
    assert a.disks().keys() == {"d"}


def test_a_disk_that_is_not_where_the_table_says_is_not_opened(both: Both) -> None:
    made, a, _ = both
    a.create("d", MIB)
    (start, _), *_ = made.luns("host-a").status("csv")["leases"]["d"]["ranges"]
    with (made.folder / "csv.img").open("r+b") as image:
        image.seek(start)
        image.write(bytes(4096))
    with pytest.raises(NbdRefused, match="its header is not there where the table says"):
        made.disk("host-a", "d")


def test_a_lun_that_holds_no_volume_is_not_mounted() -> None:
    with stage(lun_bytes=4 * MIB) as made:
        a = made.client("host-a")
        assert refusal(a.mount).kind == "NotAVolume"
        assert made.luns("host-a").status("csv")["registrations"] == []
        assert refusal(lambda: a.format(size_bytes=5 * MIB)).kind == "BadRequest"
        assert refusal(lambda: a.format(extent_bytes=12345)).kind == "BadRequest"
        assert refusal(a.disks).kind == "NotMounted"
        assert a.format(extent_bytes=64 << 10) == 3 * MIB
        made.kill("host-a")
        made.start_service("host-a", lun="other")
        assert refusal(made.client("host-a").mount).kind == "NoSuchLun"


@pytest.mark.parametrize(
    ("request_", "kind"),
    [
        ({}, "BadRequest"),
        ({"do": "nothing"}, "BadRequest"),
        ({"do": ["mount"]}, "BadRequest"),
        ({"do": "mount", "mode": "both"}, "BadRequest"),
        ({"do": "mount", "mode": "shared", "preempt": 1}, "BadRequest"),
        ({"do": "create"}, "BadRequest"),
        ({"do": "create", "disk": "d"}, "BadRequest"),
        ({"do": "create", "disk": "d", "bytes": "1"}, "BadRequest"),
        ({"do": "create", "disk": "d", "bytes": -512}, "BadRequest"),
        ({"do": "create", "disk": 5, "bytes": 512}, "BadRequest"),
        ({"do": "create", "disk": "d", "bytes": 512, "identity": "x"}, "BadRequest"),
        ({"do": "claim", "disk": "d", "expect": 1.5}, "BadRequest"),
        ({"do": "claim", "disk": "metadata", "expect": 1}, "BadRequest"),
        ({"do": "lease", "disk": {}}, "BadRequest"),
        ({"do": "maintenance"}, "BadRequest"),
        ({"do": "format", "bytes": True}, "BadRequest"),
        ({"do": "delete", "disk": "d", "for": 7}, "NoSuchDisk"),
    ],
)
def test_nonsense_is_answered_and_nothing_else_happens(both: Both, request_: Any, kind: str) -> None:
    _, a, _ = both
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(control("host-a")))
        client.settimeout(DEADLINE_S)
        client.sendall(json.dumps(request_).encode() + b"\n")
        answer = json.loads(client.makefile("rb").readline())
    assert answer["kind"] == kind
    assert "\n" not in answer["error"]
    assert a.disks() == {}


@pytest.mark.parametrize("path", [control("host-a"), nbd("host-a")])
def test_who_does_not_speak_the_protocol_is_cut_off_alone(both: Both, path: Path) -> None:
    made, a, _ = both
    a.create("d", MIB)
    for nonsense in (b"\xff" * 100_000, b"[]\n", b"{\n", b"GET / HTTP/1.1\r\n\r\n", b"\n"):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            client.settimeout(DEADLINE_S)
            with suppress(ConnectionResetError, BrokenPipeError):  # it did not even read to the end
                client.sendall(nonsense)
                client.shutdown(socket.SHUT_WR)
                while client.recv(1 << 16):
                    pass
    assert made.disk("host-a", "d").read(0, 512) == bytes(512)
