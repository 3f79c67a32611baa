"""The volume service of both hosts, over a storage network, with a target that fences."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from testbed.storage.client import NbdClient, NbdRefused
from tests.conftest import require
from tests.system.volume_stage import (
    DEADLINE_S,
    KEYS,
    MIB,
    PRELOAD,
    TARGET,
    Both,
    closed,
    control,
    fenced,
    mounted,
    nbd,
    refusal,
    stage,
    writing,
)

pytestmark = pytest.mark.universe(preload=PRELOAD)

@pytest.fixture
def both() -> Iterator[Both]:
    with mounted() as made:
        yield made


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
        assert writer.await_refusal().name == "EPERM"
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
    closed(a, "d")
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


def test_a_disk_that_is_open_or_another_s_is_not_deleted(both: Both) -> None:
    made, a, b = both
    epoch = a.create("d", MIB)
    disk = made.disk("host-a", "d")
    for client in (a, b):
        busy = refusal(lambda client=client: client.delete("d"))
        assert (busy.kind, str(busy)) == ("Busy", "disk 'd' is open at host-a (connections: 1)")
    closed(a, "d", disk)
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
