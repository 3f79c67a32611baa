"""Programs that know nothing of this testbed, against the target as they are."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed.storage import bench, nbdkit
from testbed.storage.client import NbdClient, NbdRefused
from tests.conftest import require
from tests.system import storage_stage as stage
from tests.system.storage_stage import DEADLINE_S, KEY_A, KEY_B, SIZE, Stage, bound, share

pytestmark = pytest.mark.universe(preload=stage.PRELOAD)

URI = f"nbd://{stage.ADDRESS}/csv"


@pytest.fixture
def standing(tmp_path: Path) -> Iterator[Stage]:
    folder = tmp_path / "luns"
    folder.mkdir()
    with stage.standing(folder) as made:
        made.start()
        yield made


def output(standing: Stage, *command: str, host: str = "host-a") -> str:
    require(command[0], bool(shutil.which(command[0])))
    done = standing.run(*command, host=host)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def uri(export: str) -> str:
    """An export's name in a URI, where "?" would begin something else."""
    return f"nbd://{stage.ADDRESS}/{export.replace('?', '%3F')}"


def test_nbdinfo_sees_what_the_target_can(standing: Stage) -> None:
    (told,) = json.loads(output(standing, "nbdinfo", "--json", URI))["exports"]
    assert told["export-size"] == SIZE
    assert told["is_read_only"] is False
    for can in ("flush", "fua", "multi_conn", "trim", "zero"):
        assert told[f"can_{can}"] is True, can
    assert told["can_fast_zero"] is False
    sizes = [told[f"block_size_{which}"] for which in ("minimum", "preferred", "maximum")]
    assert sizes == [1, 4096, 32 << 20]


def test_nbdinfo_lists_the_exports(standing: Stage) -> None:
    standing.stop()
    standing.start(luns={"csv": SIZE, "second": 1 << 20})
    told = json.loads(output(standing, "nbdinfo", "--list", "--json", f"nbd://{stage.ADDRESS}"))["exports"]
    assert {one["export-name"]: one["export-size"] for one in told} == {"csv": SIZE, "second": 1 << 20}


def test_qemu_img_says_why_an_export_is_not_there(standing: Stage) -> None:
    require("qemu-img", bool(shutil.which("qemu-img")))
    done = standing.run("qemu-img", "info", f"nbd://{stage.ADDRESS}/cvs")
    assert done.returncode != 0
    assert "there is no LUN 'cvs'; there are: csv" in done.stderr


def test_nbdcopy_brings_back_what_it_took(standing: Stage, tmp_path: Path) -> None:
    """Over four connections at once, each with many requests under way."""
    taken, brought = tmp_path / "taken", tmp_path / "brought"
    taken.write_bytes(os.urandom(SIZE))
    output(standing, "nbdcopy", "--flush", str(taken), URI)
    assert (standing.folder / "csv.img").read_bytes() == taken.read_bytes()
    output(standing, "nbdcopy", URI, str(brought), host="host-b")
    assert brought.read_bytes() == taken.read_bytes()


def test_nbdcopy_leaves_holes_where_zeroes_are(standing: Stage, tmp_path: Path) -> None:
    (tmp_path / "full").write_bytes(os.urandom(SIZE))
    output(standing, "nbdcopy", str(tmp_path / "full"), URI)
    with (tmp_path / "empty").open("wb") as empty:
        empty.truncate(SIZE)
    output(standing, "nbdcopy", str(tmp_path / "empty"), URI)
    image = standing.folder / "csv.img"
    assert not any(image.read_bytes())
    assert image.stat().st_blocks * 512 < SIZE


def test_qemu_img_converts_and_compares(standing: Stage, tmp_path: Path) -> None:
    image = tmp_path / "disk.qcow2"
    output(standing, "qemu-img", "create", "-f", "qcow2", str(image), "64M")
    output(standing, "qemu-io", "-f", "qcow2", "-c", "write -P 0x5a 1M 7M", str(image))
    output(standing, "qemu-img", "convert", "-n", "-f", "qcow2", "-O", "raw", str(image), URI)
    assert "Images are identical." in output(
        standing, "qemu-img", "compare", "-f", "qcow2", "-F", "raw", str(image), URI, host="host-b"
    )
    assert json.loads(output(standing, "qemu-img", "info", "--output=json", URI))["virtual-size"] == SIZE


def test_qemu_io_writes_zeroes_discards_and_flushes(standing: Stage) -> None:
    commands = [
        "write -P 0x11 0 8M", "write -f -P 0x22 1000 3000", "write -z 1M 1M", "write -z -u 2M 1M",
        "discard 3M 1M", "flush", "read -P 0x11 0 1000", "read -P 0x22 1000 3000", "read -P 0 1M 2M",
        "read -P 0x11 4M 4M",
    ]  # fmt: skip
    words = [word for command in commands for word in ("-c", command)]
    told = output(standing, "qemu-io", "-f", "raw", *words, URI)
    assert "Pattern verification failed" not in told
    assert told.count("bytes at offset") == len(commands) - 1


def test_qemu_io_is_fenced_as_everyone_is(standing: Stage) -> None:
    require("qemu-io", bool(shutil.which("qemu-io")))
    share(standing.lun())
    command = ["qemu-io", "-f", "raw", "-c", "write -P 0x33 1M 64k"]
    output(standing, *command, uri(bound(KEY_A, "disk", 5)))
    standing.lun("host-b").claim("csv", KEY_B, "disk", 5)
    for export in (bound(KEY_A, "disk", 5), f"csv?key={KEY_A}", "csv"):
        assert "write failed: Operation not permitted" in standing.run(*command, uri(export)).stdout
    output(standing, *command, uri(bound(KEY_B, "disk", 6)), host="host-b")


# ---- nbdkit in the target's place


def test_nbdkit_serves_the_same_file_to_the_same_client(standing: Stage) -> None:
    """Also under a name with a key and a lease; it knows neither."""
    require("nbdkit", bool(shutil.which("nbdkit")))
    standing.nbd().write(0, b"ours")
    standing.stop()
    disk, storage = standing.folder / "csv.img", standing.namespace("storage")
    with nbdkit.serving(disk, *stage.NBD, storage):
        with standing.nbd(bound(KEY_A, "disk", 5)) as client:
            assert (client.size, client.read(0, 4)) == (SIZE, b"ours")
            client.write(0, b"kits", fua=True)
            client.write_zeroes(2, 1)
            client.trim(4096, 4096)
            client.flush()
            with pytest.raises(NbdRefused):
                client.read(SIZE, 1)
    standing.start()
    assert standing.nbd().read(0, 4) == b"ki\0s"


def test_an_nbdkit_that_cannot_listen_says_why(standing: Stage) -> None:
    require("nbdkit", bool(shutil.which("nbdkit")))
    storage = standing.namespace("storage")
    with pytest.raises(nbdkit.NbdkitError, match=r"nbdkit does not listen: .*Address already in use"):
        with nbdkit.serving(standing.folder / "csv.img", *stage.NBD, storage):
            pytest.fail("it said that it listens")
    with NbdClient.connect(stage.NBD, "csv", deadline_s=DEADLINE_S, namespace=storage) as client:
        assert client.size == SIZE


def test_the_bench_has_both_copy_and_times_claims(tmp_path: Path) -> None:
    for program in ("nbdkit", "nbdcopy"):
        require(program, bool(shutil.which(program)))
    with bench.standing(tmp_path, 4 << 20) as host:
        rates = bench.copies(tmp_path, host, 4 << 20, 2)
        assert [len(one) for one in vars(rates).values()] == [2, 2, 2, 2]
        assert [len(one) for one in rates.ratios()] == [2, 2]
        assert len(bench.claims(host, 3)) == 3
    assert (tmp_path / "bench.img").read_bytes() == (tmp_path / "noise").read_bytes()


def test_the_bench_does_without_nbdkit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copier = shutil.which("nbdcopy")
    require("nbdcopy", bool(copier))
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "nbdcopy").symlink_to(str(copier))
    with bench.standing(tmp_path, 4 << 20) as host:
        rates = bench.copies(tmp_path, host, 4 << 20, 1)
    assert [len(one) for one in vars(rates).values()] == [1, 0, 1, 0]
    assert rates.ratios() == ([], [])
