"""The target as a process on its network: it fences, survives its own end, and bears nonsense."""

from __future__ import annotations

import json
import os
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from netns import syscalls
from testbed.storage import nbd, stream
from testbed.storage.client import NbdClient, NbdLost, NbdRefused
from testbed.storage.lun_client import LunClient, LunLost, LunRefused
from testbed.storage.target import MOST_CONNECTIONS
from tests.system import storage_stage as stage
from tests.system.storage_stage import KEY_A, KEY_B, SIZE, Stage, bound, share

pytestmark = pytest.mark.universe(preload=stage.PRELOAD)

DISK = 1 << 20
"""Where the leased bytes begin."""


@pytest.fixture
def standing(tmp_path: Path) -> Iterator[Stage]:
    with stage.standing(tmp_path) as made:
        made.start()
        yield made


# ---- fencing, over the network


def test_a_disk_moves_from_host_to_host_by_a_claim(standing: Stage) -> None:
    """The connection for the epoch to come is open beforehand; at the claim the old one's writes fail."""
    share(standing.lun())
    old, new = standing.nbd(bound(KEY_A, "disk", 5)), standing.nbd(bound(KEY_B, "disk", 6), "host-b")
    old.write(DISK, b"old")
    with pytest.raises(NbdRefused, match="EPERM"):
        new.write(DISK, b"too early")
    assert standing.lun("host-b").claim("csv", KEY_B, "disk", 5) == 6
    with pytest.raises(NbdRefused, match="EPERM"):
        old.write(DISK, b"too late")
    assert new.read(DISK, 3) == b"old"
    new.write(DISK, b"new")
    assert old.read(DISK, 3) == b"new"


def test_of_two_hosts_that_claim_one_gets_it(standing: Stage) -> None:
    share(standing.lun())
    assert standing.lun("host-b").claim("csv", KEY_B, "disk", 5) == 6
    assert standing.lun("host-b").claim("csv", KEY_B, "disk", 5) == 6, "asked again on another connection"
    with pytest.raises(LunRefused) as refused:
        standing.lun().claim("csv", KEY_A, "disk", 5)
    assert (refused.value.kind, refused.value.detail) == ("Lost", {"epoch": 6, "holder": KEY_B})


def test_a_preempted_host_is_cut_off(standing: Stage) -> None:
    share(standing.lun())
    victim = standing.nbd(bound(KEY_A, "disk", 5))
    victim.write(DISK, b"x")
    standing.lun("host-b").preempt("csv", KEY_B, KEY_A)
    with pytest.raises(NbdLost):
        victim.read(DISK, 1)
    back = standing.nbd(bound(KEY_A, "disk", 5))
    with pytest.raises(NbdRefused, match="EPERM"):
        back.write(DISK, b"x")


def test_an_exclusive_reservation_keeps_others_out(standing: Stage) -> None:
    lun = standing.lun()
    lun.register("csv", KEY_A)
    lun.reserve("csv", KEY_A, "exclusive")
    other = standing.nbd(f"csv?key={KEY_B}", "host-b")
    for act in (lambda: other.read(0, 1), lambda: other.write(0, b"x")):
        with pytest.raises(NbdRefused, match="EPERM"):
            act()
    standing.nbd(f"csv?key={KEY_A}").write(0, b"x")
    lun.release("csv", KEY_A)
    assert other.read(0, 1) == b"x"


# ---- its own end


@pytest.mark.parametrize("kill", [False, True])
def test_a_restart_finds_everything_again(standing: Stage, kill: bool) -> None:
    share(standing.lun())
    standing.lun("host-b").claim("csv", KEY_B, "disk", 5)
    standing.nbd(bound(KEY_B, "disk", 6), "host-b").write(DISK, b"kept", fua=True)
    before = standing.lun().status("csv")
    assert standing.stop(kill=kill) == (-9 if kill else 0)
    standing.start()
    assert standing.lun().status("csv") == before
    assert standing.nbd().read(DISK, 4) == b"kept"
    with pytest.raises(NbdRefused, match="EPERM"):
        standing.nbd(bound(KEY_A, "disk", 5)).write(DISK, b"fenced off before the restart")
    standing.nbd(bound(KEY_B, "disk", 6), "host-b").write(DISK, b"goes on")


def test_without_what_it_has_kept_a_restart_forgets(standing: Stage) -> None:
    """The negative control of the test above: it is the state's file that it knows it from."""
    share(standing.lun())
    standing.stop()
    (standing.folder / "csv.lun").unlink()
    standing.start()
    assert standing.lun().status("csv")["leases"] == {}
    standing.nbd(bound(KEY_A, "disk", 5).partition("?")[0]).write(DISK, b"whoever comes")


def test_a_client_of_a_target_that_ended_is_told(standing: Stage) -> None:
    client, lun = standing.nbd(), standing.lun()
    standing.stop()
    with pytest.raises(NbdLost):
        client.read(0, 1)
    with pytest.raises(LunLost):
        lun.luns()
    with pytest.raises(NbdLost, match=r"cannot connect to 10\.5\.0\.10:10809: Connection refused"):
        standing.nbd()


# ---- what is in the folder


def test_every_image_in_the_folder_is_an_export(standing: Stage) -> None:
    standing.stop()
    (standing.folder / "plain.img").write_bytes(b"plain" + bytes(507))
    (standing.folder / "folder.img").mkdir()
    standing.start(luns={"csv": 2 * SIZE, "second": SIZE})
    sizes = {name: one["bytes"] for name, one in standing.lun().luns().items()}
    assert sizes == {"csv": SIZE, "plain": 512, "second": SIZE}
    assert standing.nbd("plain").read(0, 5) == b"plain"
    with pytest.raises(NbdRefused, match=r"ENOENT: .* there is no LUN 'no'; there are: csv, plain, second"):
        standing.nbd("no")
    with pytest.raises(NbdRefused, match=r"ENOENT: .* must be like NAME"):
        standing.nbd("csv?key=1")


def test_of_one_lun_nothing_is_a_name_too(standing: Stage) -> None:
    assert standing.nbd("").size == SIZE
    standing.stop()
    standing.start(luns={"csv": SIZE, "second": SIZE})
    with pytest.raises(NbdRefused, match="there is no LUN ''"):
        standing.nbd("")


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Stage]:
    """A target whose file system holds 8 MiB, under a LUN of 64 MiB."""
    syscalls.mount("small", str(tmp_path), "tmpfs", 0, "size=8m")
    with stage.standing(tmp_path) as made:
        made.start()
        yield made


def test_a_full_file_system_is_told_and_harms_nothing(small: Stage) -> None:
    client, lun = small.nbd(), small.lun()
    lun.register("csv", KEY_A)
    client.write(0, b"first")
    with pytest.raises(NbdRefused, match="ENOSPC"):
        client.write(1 << 20, b"x" * (16 << 20))
    assert client.read(0, 5) == b"first"
    lun.register("csv", KEY_B)  # what is kept of the rights has its room from the beginning
    client.trim(1 << 20, SIZE - (1 << 20))
    client.write(1 << 20, b"room again")


def test_rights_that_there_is_no_room_to_keep_are_refused(small: Stage) -> None:
    client, lun = small.nbd(), small.lun()
    with pytest.raises(NbdRefused, match="ENOSPC"):
        client.write(1 << 20, b"x" * (16 << 20))
    with pytest.raises(LunRefused) as refused:
        lun.register("csv", KEY_A)
    assert refused.value.kind == "Full"
    assert lun.status("csv")["registrations"] == []
    client.trim(1 << 20, SIZE - (1 << 20))
    lun.register("csv", KEY_A)


# ---- what it is asked to be


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"folder": "/no/such"}, "there is no folder /no/such"),
        ({"address": "10.99.0.1"}, "cannot listen on 10.99.0.1:10809: "),
        ({"luns": {"../up": 512}}, "not a target: LunError: LUN '../up': a name is "),
        ({"luns": {"new": -1}}, "LUN 'new' of -1 bytes: cannot make "),
        ({"nbd_port": None}, "not a target: TypeError: "),
    ],
)
def test_what_it_cannot_be_it_says_in_one_line(
    standing: Stage, changed: dict[str, object], words: str
) -> None:
    standing.stop()
    with standing.spawn(**changed) as process:
        assert process.wait(stage.DEADLINE_S) == 2
        assert process.stderr_tail().startswith(words)
        assert process.stderr_tail().count("\n") == 1
    assert not (standing.folder / "new.img").exists()


def test_it_does_not_start_over_a_state_that_it_cannot_read(standing: Stage) -> None:
    share(standing.lun())
    standing.stop()
    kept = standing.folder / "csv.lun"
    kept.write_text(json.dumps({"version": 1}))
    with standing.spawn() as process:
        assert process.wait(stage.DEADLINE_S) == 2
        assert f"{kept} does not say who may write" in process.stderr_tail()


def test_two_targets_do_not_share_a_port(standing: Stage) -> None:
    with standing.spawn() as second:
        assert second.wait(stage.DEADLINE_S) == 2
        assert "cannot listen on 10.5.0.10:10809: Address already in use" in second.stderr_tail()
    assert standing.nbd().size == SIZE


# ---- nonsense

_REQUEST_AFTER_GO = nbd.encode_request(nbd.Request(nbd.NBD_CMD_WRITE, 0, nbd.MOST_PAYLOAD_BYTES))


def nonsense() -> list[bytes]:
    flags = struct.pack(">I", 3)
    option = struct.Struct(">QII")
    go = option.pack(nbd.IHAVEOPT, nbd.NBD_OPT_EXPORT_NAME, 3) + b"csv"
    return [
        b"GET / HTTP/1.1\r\n\r\n",
        flags + os.urandom(1000),
        flags + option.pack(nbd.IHAVEOPT, nbd.NBD_OPT_GO, 0xFFFFFFFF),
        flags + go + os.urandom(64),
        flags + go + _REQUEST_AFTER_GO + bytes(1 << 20),  # and never the rest
        b"",
    ]


def test_nonsense_ends_its_own_connection_alone_and_costs_little(standing: Stage) -> None:
    assert standing.target is not None
    target = psutil.Process(standing.target.pid)
    client, before = standing.nbd(), target.memory_full_info().uss
    client.write(0, b"here")
    for _ in range(20):
        for address in (stage.NBD, stage.LUN):
            for data in nonsense():
                with stream.connect(address, stage.DEADLINE_S, standing.namespace("host-b")) as connection:
                    try:
                        stream.send(connection, data)
                    except stream.StreamLost:
                        continue  # cut off before it was through
        assert client.read(0, 4) == b"here"
    lun = standing.lun()
    with pytest.raises(LunRefused, match="unknown command None"):
        lun._ask(do=None, lun="csv", key=KEY_A)
    assert target.memory_full_info().uss - before < 2 * nbd.MOST_PAYLOAD_BYTES
    assert target.is_running()


def test_a_line_that_is_no_command_is_answered_once(standing: Stage) -> None:
    connection = stream.connect(stage.LUN, stage.DEADLINE_S, standing.namespace("host-b"))
    with connection, connection.makefile("rb") as answers:
        connection.sendall(b"hello\n")
        assert json.loads(answers.readline())["kind"] == "BadRequest"
        assert answers.readline() == b""


def test_connections_are_bounded(standing: Stage) -> None:
    host = standing.namespace("host-b")
    crowd = [stream.connect(stage.NBD, stage.DEADLINE_S, host) for _ in range(MOST_CONNECTIONS)]
    for connection in crowd:
        stream.receive(connection, 18)  # the greeting: it has been taken in
    with pytest.raises(NbdLost):
        standing.nbd()
    for connection in crowd:
        connection.close()
    assert _until_taken_in(standing).size == SIZE


def _until_taken_in(standing: Stage) -> NbdClient:
    """The first client that there is room for; the threads of those that went need a moment."""
    end_s = time.monotonic() + stage.DEADLINE_S
    while time.monotonic() < end_s:
        try:
            return standing.nbd()
        except NbdLost:
            continue
    pytest.fail("no room again")


def test_an_address_where_nobody_is_is_lost_within_the_deadline(standing: Stage) -> None:
    with pytest.raises(LunLost, match=r"cannot connect to 10\.5\.0\.77:3260: "):
        LunClient.connect(("10.5.0.77", 3260), deadline_s=0.2, namespace=standing.namespace("host-a"))


def test_a_silent_target_is_lost_within_the_deadline(standing: Stage) -> None:
    with standing.namespace("storage").socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.bind((stage.ADDRESS, 9999))
        listener.listen()
        with pytest.raises(NbdLost, match="silent past the deadline"):
            NbdClient.connect(
                (stage.ADDRESS, 9999), "csv", deadline_s=0.2, namespace=standing.namespace("host-a")
            )
