"""A guest's disk on a stage without a kernel: requests outlive moves, lost connections, and late answers."""

from __future__ import annotations

import random
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from testbed.guest.disk import Disk, DiskBusy, DiskError, DiskLost
from testbed.guest.program import Program
from testbed.guest.rehearsal import Rehearsal
from testbed.guest.ring import KEPT_MOST, SLOTS
from tests.unit.disk_server import EIO, FLUSH, READ, WRITE, DiskOfTests

DISK_BYTES = 64 << 10
INFINITY = float("inf")


class Notebook(Program):
    """Notes in RAM what its disk tells; tests use the disk for it."""

    port = 7998

    def attach(self) -> None:
        self.told = self.memory.words("told", 1024)
        self.count = self.memory.counter("count")
        self.page = self.memory.bytes("page", 4096)

    def disk_done(self, tag: int, error: str | None, data: memoryview) -> None:
        if data:
            self.page[: len(data)] = data
        self.told[self.count.value] = tag | (1 << 32 if error else 0)
        self.count.add()

    def tags(self) -> list[int]:
        return [word & 0xFFFF_FFFF for word in self.told[: self.count.value]]

    def failed(self) -> list[int]:
        return [word & 0xFFFF_FFFF for word in self.told[: self.count.value] if word >> 32]


def stage_on(disk: DiskOfTests) -> Rehearsal:
    return Rehearsal(Notebook, disk=disk)


def parts(stage: Rehearsal) -> tuple[Disk, Notebook]:
    assert stage.disk is not None
    assert isinstance(stage.program, Notebook)
    return stage.disk, stage.program


def test_write_flush_read() -> None:
    source = DiskOfTests(DISK_BYTES)
    stage = stage_on(source)
    disk, notebook = parts(stage)
    disk.write(1000, b"hello", 1)
    disk.flush(2)
    disk.read(998, 9, 3)
    stage.run()
    assert sorted(notebook.tags()) == [1, 2, 3]
    assert bytes(notebook.page[:9]) == b"\0\0hello\0\0"
    assert source.medium.lasting[1000:1005] == b"hello"
    stats = disk.stats()
    assert stats == {
        "bytes": DISK_BYTES, "in_flight": 0, "written_bytes": 5, "flushes": 1, "resubmitted": 0,
        "connected": True,
    }  # fmt: skip


def test_data_is_copied_and_its_memory_comes_back() -> None:
    stage = stage_on(DiskOfTests(DISK_BYTES))
    disk, _ = parts(stage)
    used = stage.service.table.memory.heap.used_bytes
    data = bytearray(b"first")
    disk.write(0, data, 1)
    data[:] = b"wrong"
    disk.flush(2)
    disk.read(0, 5, 3)
    stage.run()
    assert stage.program.page[:5] == b"first"  # type: ignore[attr-defined]
    assert stage.service.table.memory.heap.used_bytes == used


@pytest.mark.parametrize(("offset", "length"), [(DISK_BYTES, 1), (DISK_BYTES - 4, 5), (-1, 5), (0, 0)])
def test_what_lies_beside_the_disk_is_refused(offset: int, length: int) -> None:
    disk, _ = parts(stage_on(DiskOfTests(DISK_BYTES)))
    with pytest.raises(ValueError, match=f"{length} bytes at {offset} do not lie on a disk of {DISK_BYTES}"):
        disk.write(offset, b"x" * length, 1)
    with pytest.raises(ValueError, match="do not lie"):
        disk.read(offset, length, 1)
    assert disk.stats()["in_flight"] == 0


def test_requests_under_way_move_and_are_sent_again_only_when_the_guest_runs() -> None:
    source = DiskOfTests(DISK_BYTES)
    source.answers = 1
    stage = stage_on(source)
    disk, _ = parts(stage)
    disk.write(0, b"done", 1)
    stage.run()
    disk.write(4096, b"under way", 2)
    disk.flush(3)
    disk.read(0, 4, 4)
    stage.run()
    source.medium.log.clear()
    stage.migrate()
    disk, notebook = parts(stage)
    assert source.medium.log == [], "sent before the guest ran: this host may not own the disk yet"
    assert disk.stats()["in_flight"] == 3
    source.answers = INFINITY
    stage.run()
    assert notebook.tags()[0] == 1
    assert sorted(notebook.tags()) == [1, 2, 3, 4], "each is told once"
    assert source.medium.lasting[4096:4105] == b"under way"
    assert disk.stats()["resubmitted"] == 3, "the write, the read, and the write that no flush has covered"


def test_answer_that_came_to_the_old_connection_is_not_missed() -> None:
    source = DiskOfTests(DISK_BYTES)
    source.answers = 0
    stage = stage_on(source)
    parts(stage)[0].read(0, 512, 7)
    stage.run()
    source.answers = 1
    source.connections[0].events()  # it lies in the old host's socket
    stage.migrate()
    source.answers = INFINITY
    stage.run()
    assert parts(stage)[1].tags() == [7]


def test_rollback_goes_on_with_the_old_connection() -> None:
    source = DiskOfTests(DISK_BYTES, window_bytes=10)
    source.answers = 0
    stage = stage_on(source)
    disk, notebook = parts(stage)
    disk.write(0, b"0123456789" * 10, 1)
    disk.read(0, 100, 2)
    stage.step()
    disk.pause()
    disk.write(512, b"queued", 3)
    source.answers = INFINITY
    stage.run()
    assert sorted(notebook.tags()) == [1, 2, 3]
    assert disk.stats()["resubmitted"] == 0


def test_lost_connection_is_waited_for() -> None:
    source = DiskOfTests(DISK_BYTES)
    source.answers = 0
    stage = stage_on(source)
    disk, notebook = parts(stage)
    disk.write(0, b"one", 1)
    stage.run()
    source.lose()
    stage.run()
    assert disk.fd == -1
    assert source.connections[0].closed
    disk.write(512, b"two", 2)
    disk.flush(3)
    stage.run()
    assert notebook.tags() == []
    source.answers = INFINITY
    stage.reconnect_disk()
    stage.run()
    assert sorted(notebook.tags()) == [1, 2, 3]
    assert source.medium.lasting[:3] == b"one"


def test_flush_covers_writes_whose_server_lost_them_before_it() -> None:
    """A server that comes back after a crash has forgotten what it had taken but not flushed."""
    source = DiskOfTests(DISK_BYTES)
    stage = stage_on(source)
    disk, notebook = parts(stage)
    disk.write(0, b"taken", 1)
    stage.run()
    assert notebook.tags() == [1]
    source.answers = 0
    disk.flush(2)
    source.medium.crash()
    source.lose()
    stage.run()
    source.answers = INFINITY
    stage.reconnect_disk()
    stage.run()
    assert notebook.tags() == [1, 2]
    source.medium.crash()
    assert source.medium.seen[:5] == b"taken"


def test_flush_tells_of_a_write_that_failed_the_second_time() -> None:
    source = DiskOfTests(DISK_BYTES)
    stage = stage_on(source)
    disk, notebook = parts(stage)
    disk.write(0, b"taken", 1)
    stage.run()
    source.medium.errors[WRITE] = EIO
    stage.reconnect_disk()
    disk.flush(2)
    stage.run()
    assert notebook.failed() == [2]
    source.medium.errors.clear()
    disk.flush(3)
    stage.run()
    assert notebook.failed() == [2]


def test_flush_waits_for_the_writes_before_it_and_for_no_later_one() -> None:
    source = DiskOfTests(DISK_BYTES)
    source.answers = 0
    stage = stage_on(source)
    disk, _ = parts(stage)
    disk.write(0, b"before", 1)
    disk.flush(2)
    disk.write(512, b"after", 3)
    stage.run()
    assert source.medium.log == [(WRITE, 0, 6), (WRITE, 512, 5)]
    source.answers = INFINITY
    stage.run()
    assert source.medium.log[2:] == [(FLUSH, 0, 0)]


def test_requests_for_the_same_bytes_keep_their_order() -> None:
    source = DiskOfTests(DISK_BYTES, seed=3)
    source.answers = 0
    stage = stage_on(source)
    disk, notebook = parts(stage)
    disk.write(0, b"older", 1)
    disk.write(3, b"newer", 2)
    disk.read(4, 4, 3)
    disk.read(600, 4, 4)
    stage.run()
    assert source.medium.log == [(WRITE, 0, 5), (READ, 600, 4)]
    source.answers = INFINITY
    stage.run()
    assert notebook.page[:4] == b"ewer"
    assert source.medium.seen[:8] == b"oldnewer"


def test_full_table_is_said_and_nothing_is_queued() -> None:
    source = DiskOfTests(DISK_BYTES)
    source.answers = 0
    stage = stage_on(source)
    disk, _ = parts(stage)
    used = 0
    for number in range(SLOTS - 1):
        disk.write(number * 512, b"x", number)
        used = stage.service.table.memory.heap.used_bytes
    with pytest.raises(DiskBusy, match=f"all of the disk's {SLOTS} slots are taken"):
        disk.write(0, b"x", 1)
    with pytest.raises(DiskBusy):
        disk.read(0, 5, 1)
    assert stage.service.table.memory.heap.used_bytes == used


def test_program_that_never_flushes_is_flushed() -> None:
    source = DiskOfTests(DISK_BYTES)
    stage = stage_on(source)
    disk, notebook = parts(stage)
    for number in range(3 * SLOTS):
        disk.write(number % 100 * 512, b"x", number)
        stage.run()
    assert len(notebook.tags()) == 3 * SLOTS
    assert 1 <= disk.stats()["flushes"] <= 3 * SLOTS // KEPT_MOST


def test_eperm_fences_and_the_program_hears_nothing() -> None:
    source = DiskOfTests(DISK_BYTES)
    stage = stage_on(source)
    disk, notebook = parts(stage)
    source.medium.fenced = True
    disk.write(0, b"late", 1)
    stage.run()
    assert stage.fenced is not None
    assert "EPERM" in stage.fenced
    assert notebook.tags() == []
    assert source.connections[0].closed


def test_other_errors_are_told_by_name() -> None:
    source = DiskOfTests(DISK_BYTES)
    stage = stage_on(source)
    disk, notebook = parts(stage)
    source.medium.errors = {WRITE: 28, READ: EIO, FLUSH: EIO}
    seen: list[tuple[int, str | None]] = []
    notebook.disk_done = lambda tag, error, data: seen.append((tag, error))  # type: ignore[method-assign]
    disk.write(0, b"x", 1)
    disk.read(512, 5, 2)
    disk.flush(3)
    stage.run()
    assert sorted(seen) == [(1, "ENOSPC"), (2, "EIO"), (3, "EIO")]
    assert disk.stats()["in_flight"] == 0


def test_fault_in_the_programs_handler_is_counted() -> None:
    stage = stage_on(DiskOfTests(DISK_BYTES))
    disk, notebook = parts(stage)

    def broken(*_: Any) -> None:
        raise KeyError("what?")

    notebook.disk_done = broken  # type: ignore[method-assign]
    disk.read(0, 5, 1)
    stage.run()
    assert stage.service.faults == ["program Notebook raised in disk_done(): KeyError: 'what?'"]
    assert disk.stats()["in_flight"] == 0


def test_nonsense_from_the_server_ends_the_connection_alone() -> None:
    source = DiskOfTests(DISK_BYTES)
    stage = stage_on(source)
    disk, notebook = parts(stage)
    disk.write(0, b"x", 1)
    source.connections[-1]._answered = b"\xff" * 16
    stage.run()
    assert disk.fd == -1
    stage.reconnect_disk()
    stage.run()
    assert notebook.tags() == [1]


class Reader(Notebook):
    def boot(self) -> None:
        assert self.disk is not None
        self.memory.bytes("found", 16)[:5] = self.disk.read_now(512, 5)


def test_of_the_storage_a_guest_knows_the_protocol_alone() -> None:
    """What else there is, sockets and threads and their imports, it would load in vain at every start."""
    told = "import sys, testbed.guest.machine; print(*(one for one in sys.modules if '.storage.' in one))"
    done = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["testbed.storage.nbd"]


def test_boot_may_read_and_wait_and_nobody_else() -> None:
    source = DiskOfTests(4 << 20, window_bytes=1000)
    source.medium.seen[512:517] = b"there"
    stage = Rehearsal(Reader, disk=source)
    assert bytes(stage.program.memory.bytes("found", 16)[:5]) == b"there"
    disk, _ = parts(stage)
    with pytest.raises(RuntimeError, match="for boot"):
        disk.read_now(0, 5)
    with disk.booting():
        assert len(disk.read_now(0, 3 << 20)) == 3 << 20
        source.medium.errors[READ] = EIO
        with pytest.raises(DiskError, match="5 bytes at 7 cannot be read: EIO"):
            disk.read_now(7, 5)
        source.lose()
        with pytest.raises(DiskLost):
            disk.read_now(7, 5)


@settings(max_examples=60)
@given(data=st.data(), seed=st.integers(0, 1 << 16))
def test_what_was_flushed_is_there_whatever_happened(data: st.DataObject, seed: int) -> None:
    """Writes, flushes, moves, lost connections, crashes, late and reordered answers: what a flush covered is
    there after a crash, and never older bytes."""
    source = DiskOfTests(8 * 512, window_bytes=data.draw(st.sampled_from([7, 700, 1 << 20])), seed=seed)
    stage = stage_on(source)
    chance = random.Random(seed)
    flushed_by: dict[int, list[int]] = {}
    versions = [0] * 8
    steps = st.sampled_from(["write", "write", "flush", "answer", "migrate", "lose", "crash", "step"])
    source.answers = 0
    for tag, step in enumerate(data.draw(st.lists(steps, max_size=40)), 1):
        disk, _ = parts(stage)
        if step == "write":
            sector = chance.randrange(8)
            versions[sector] += 1
            disk.write(sector * 512, bytes([versions[sector]]) * 512, tag)
        elif step == "flush":
            disk.flush(tag)
            flushed_by[tag] = versions.copy()
        elif step == "answer":
            source.answers += 3
            stage.run()
        elif step == "migrate":
            stage.migrate()
        elif step in ("lose", "crash"):
            source.lose()
            if step == "crash":
                source.medium.crash(chance)
            stage.run()
            stage.reconnect_disk()
        else:
            stage.step()
    told = [tag for tag in parts(stage)[1].tags() if tag in flushed_by]
    source.medium.crash(chance)
    for tag in told:
        for sector, version in enumerate(flushed_by[tag]):
            assert source.medium.seen[sector * 512] >= version
    source.lose()
    stage.run()
    stage.reconnect_disk()
    source.answers = INFINITY
    stage.run()
    disk, notebook = parts(stage)
    assert disk.stats()["in_flight"] == 0
    assert len(set(notebook.tags())) == len(notebook.tags()), "told twice"
    stage.service.table.memory.heap.check()
