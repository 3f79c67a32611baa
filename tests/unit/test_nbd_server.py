"""One connection of the server, with its client at the other end of a socket pair, and a disk that counts."""

from __future__ import annotations

import errno
import socket
import struct
import threading
from collections.abc import Iterator

import pytest

from testbed.storage import nbd, server, stream
from testbed.storage.client import NbdClient, NbdLost
from testbed.storage.nbd import Agreed, Error, NbdBroken, NbdRefused, Request
from tests.unit.storage_fakes import DEADLINE_S, FakeStore

SIZE = 1 << 20


class Disk(FakeStore):
    """The fake disk as an export."""

    flags = nbd.WRITABLE

    def flush(self) -> None:
        self.sync()


class Served:
    """A session in a thread of its own; `ours` is its client's socket, `ended()` what it has raised, or
    None."""

    def __init__(self, disk: Disk) -> None:
        self.disk = disk
        self.ours, theirs = socket.socketpair()
        stream.set_deadline(self.ours, DEADLINE_S)
        self._outcome: list[BaseException | None] = []
        self._thread = threading.Thread(target=self._serve, args=(theirs,), daemon=True)
        self._thread.start()

    def _serve(self, theirs: socket.socket) -> None:
        with theirs:
            try:
                server.serve(theirs, self.disk)
                self._outcome.append(None)
            except (NbdBroken, stream.StreamLost) as error:
                self._outcome.append(error)

    def ended(self) -> BaseException | None:
        self._thread.join(DEADLINE_S)
        return self._outcome[0]

    def ask(self, request: Request, data: bytes = b"") -> Error:
        stream.send(self.ours, nbd.encode_request(request), data)
        reply = stream.receive(self.ours, nbd.SIMPLE_REPLY.size)
        magic, error, cookie = nbd.SIMPLE_REPLY.unpack(reply)
        assert (magic, cookie) == (nbd.NBD_SIMPLE_REPLY_MAGIC, request.cookie)
        return Error(error)


@pytest.fixture
def served() -> Iterator[Served]:
    one = Served(Disk(SIZE))
    yield one
    one.ours.close()
    one.ended()


@pytest.fixture
def client(served: Served) -> NbdClient:
    return NbdClient(served.ours, Agreed(SIZE, nbd.WRITABLE, nbd.MOST_PAYLOAD_BYTES))


class Shelf:
    def names(self) -> list[str]:
        return ["csv"]

    def find(self, name: str) -> Disk:
        return Disk(SIZE)


def test_a_client_that_is_silent_in_the_handshake_is_given_up() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, pytest.raises(stream.StreamLost, match="silent past the deadline"):
        server.handshake(theirs, Shelf(), 0.05)


def test_after_the_handshake_a_client_may_be_silent() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.send(struct.pack(">IQII", 3, nbd.IHAVEOPT, nbd.NBD_OPT_EXPORT_NAME, 3) + b"csv")
        assert server.handshake(theirs, Shelf(), DEADLINE_S) is not None
        assert theirs.gettimeout() is None
        assert theirs.getsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, 16) == bytes(16)


def test_what_is_written_is_read(client: NbdClient) -> None:
    client.write(100, b"here")
    assert client.read(98, 8) == b"\0\0here\0\0"
    client.write_zeroes(101, 2)
    assert client.read(100, 4) == b"h\0\0e"


def test_long_requests_are_cut_up(served: Served) -> None:
    client = NbdClient(served.ours, Agreed(SIZE, nbd.WRITABLE, 1000))
    client.write(0, bytes(range(250)) * 10)
    assert served.disk.done == [("write", 0, 1000), ("write", 1000, 1000), ("write", 2000, 500)]
    assert client.read(0, 2500) == bytes(range(250)) * 10


def test_flush_and_fua_sync_before_they_are_answered_and_plain_writes_do_not(
    served: Served, client: NbdClient
) -> None:
    client.write(0, b"x")
    assert ("sync",) not in served.disk.done
    client.flush()
    assert served.disk.done.count(("sync",)) == 1
    client.write(0, b"x", fua=True)
    assert served.disk.done[-2:] == [("write", 0, 1), ("sync",)]
    client.write_zeroes(0, 1, fua=True)
    assert served.disk.done[-2:] == [("zeroes", 0, 1), ("sync",)]
    client.trim(0, 512)
    assert served.disk.done[-1] == ("trim", 0, 512)


def test_a_write_whose_data_does_not_come_whole_does_nothing(served: Served) -> None:
    stream.send(served.ours, nbd.encode_request(Request(nbd.NBD_CMD_WRITE, 0, 1000)), b"x" * 999)
    served.ours.close()
    assert isinstance(served.ended(), stream.StreamLost)
    assert served.disk.done == []


def test_a_refused_write_leaves_the_connection_in_step(served: Served, client: NbdClient) -> None:
    assert served.ask(Request(nbd.NBD_CMD_WRITE, SIZE - 1, 1000, cookie=1), b"x" * 1000) is Error.ENOSPC
    assert served.ask(Request(nbd.NBD_CMD_WRITE, 0, 10, flags=1 << 9, cookie=2), b"x" * 10) is Error.EINVAL
    assert served.ask(Request(99, 0, 10, cookie=3)) is Error.EINVAL
    assert served.disk.done == []
    assert client.read(0, 2) == b"\0\0"


def test_a_payload_that_is_too_long_is_refused_and_not_kept(served: Served, client: NbdClient) -> None:
    too_long = nbd.MOST_PAYLOAD_BYTES + 1
    assert served.ask(Request(nbd.NBD_CMD_WRITE, 0, too_long), bytes(too_long)) is Error.EINVAL
    assert served.ask(Request(nbd.NBD_CMD_READ, 0, too_long)) is Error.EINVAL
    assert served.disk.done == []
    assert client.read(0, 2) == b"\0\0"


@pytest.mark.parametrize(
    ("number", "name"),
    [
        (errno.ENOSPC, "ENOSPC"),
        (errno.EDQUOT, "ENOSPC"),
        (errno.EFBIG, "ENOSPC"),
        (errno.EPERM, "EPERM"),
        (errno.EIO, "EIO"),
        (errno.EBADF, "EIO"),
    ],
)
def test_what_the_disk_says_is_answered_in_the_protocols_words(
    served: Served, client: NbdClient, number: int, name: str
) -> None:
    served.disk.fail = OSError(number, "as it says")
    for act in (lambda: client.write(0, b"x"), lambda: client.read(0, 1), lambda: client.trim(0, 1)):
        with pytest.raises(NbdRefused) as refused:
            act()
        assert refused.value.name == name
    served.disk.fail = None
    client.write(0, b"x")


def test_nonsense_ends_the_connection(served: Served) -> None:
    stream.send(served.ours, b"GET / HTTP/1.1\r\nHost: storage\r\n\r\n")
    assert isinstance(served.ended(), NbdBroken)


def test_disc_ends_the_connection_without_an_answer(served: Served) -> None:
    stream.send(served.ours, nbd.encode_request(Request(nbd.NBD_CMD_DISC)))
    assert served.ended() is None
    assert served.ours.recv(1) == b""


def test_a_server_that_ends_is_lost(served: Served, client: NbdClient) -> None:
    stream.send(served.ours, nbd.encode_request(Request(nbd.NBD_CMD_DISC)))
    with pytest.raises(NbdLost, match=r"closed the connection|the connection broke"):
        client.read(0, 1)


def test_a_server_that_is_silent_is_lost() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        stream.set_deadline(ours, 0.05)
        client = NbdClient(ours, Agreed(SIZE, nbd.WRITABLE, nbd.MOST_PAYLOAD_BYTES))
        with pytest.raises(NbdLost, match="silent past the deadline"):
            client.read(0, 1)


def test_a_server_that_answers_something_else_is_lost() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        stream.set_deadline(ours, DEADLINE_S)
        client = NbdClient(ours, Agreed(SIZE, nbd.WRITABLE, nbd.MOST_PAYLOAD_BYTES))
        theirs.send(b"x" * nbd.SIMPLE_REPLY.size)
        with pytest.raises(NbdLost, match="no reply: magic 0x78787878"):
            client.flush()


def test_what_is_detached_is_the_next_ones(served: Served, client: NbdClient) -> None:
    client.write(0, b"x")
    with client:
        connection = client.detach()
    assert NbdClient(connection, Agreed(SIZE, nbd.WRITABLE, 512)).read(0, 1) == b"x"
    connection.close()
