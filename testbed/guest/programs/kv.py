"""A key-value server on port 6379 that speaks RESP: redis-cli, redis-benchmark and redis-py work with it
unchanged.

The commands are those of :data:`COMMANDS`, and MULTI, EXEC, DISCARD (but no WATCH). Requests come as arrays
of bulk strings or as inline lines, pipelined as the client likes; values have up to 512 KiB. When RAM is
full, a write is answered with -OOM and the rest goes on. Protocol:
https://redis.io/docs/latest/develop/reference/protocol-spec/
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Any

from testbed.guest.connections import Connection
from testbed.guest.heap import OutOfMemory
from testbed.guest.program import Program
from testbed.guest.programs.resp import RESP2, RESP3, Dialect, ProtocolError, parse
from testbed.guest.programs.store import Store
from testbed.guest.programs.transaction import STATE_BYTES, Session

BATCH = 32
"""Commands carried out in one step."""
BATCH_REPLY_BYTES = 256 << 10
GLANCE_BYTES = 8 << 10
"""Of the inbox, so much is looked at first: most commands are short."""

OK = b"+OK\r\n"
WRONG_NUMBER = b"-ERR wrong number of arguments for '%b' command\r\n"
OUT_OF_MEMORY = b"-OOM command not allowed when used memory > 'maxmemory'.\r\n"
NOT_AN_INTEGER = b"-ERR value is not an integer or out of range\r\n"


class Then(Enum):
    """What follows once the commands at hand are carried out."""

    WAIT = "for the rest of a command"
    MORE = "commands are there"
    CLOSE = "the client said so"


class KeyValue(Program):
    port = 6379
    inbox_limit_bytes = 4 << 20
    connection_state_bytes = STATE_BYTES

    def attach(self) -> None:
        self.store = self.make_store(self.reserve_bytes)
        self.commands = self.memory.counter("kv.commands")
        self.max_bytes = len(self.memory.view) - self.reserve_bytes

    @property
    def reserve_bytes(self) -> int:
        """An eighth of RAM stays for the connections: their inboxes hold requests before they are stored."""
        return max(256 << 10, len(self.memory.view) // 8)

    def make_store(self, reserve: int) -> Store:
        return Store(self.memory, reserve)

    def stats(self) -> dict[str, Any]:
        return {"keys": len(self.store), "commands": self.commands.value}

    # -- the protocol ------------------------------------------------------------------------------------

    def received(self, connection: Connection) -> None:
        if connection.congested:
            return
        replies: list[bytes] = []
        at, then = 0, Then.CLOSE
        try:
            at, then = self._carry_out(connection, replies)
            if then is Then.WAIT:
                self._check_wait(len(connection.inbox) - at)
        except ProtocolError as error:
            replies.append(b"-%b\r\n" % str(error).encode("latin-1"))
            then = Then.CLOSE
        self.commands.add(len(replies))
        if replies:
            connection.send(b"".join(replies))
        if then is Then.CLOSE:
            connection.close()
            return
        connection.consume(at)
        if then is Then.MORE and not connection.congested:
            connection.again()

    def closed(self, connection: Connection) -> None:
        Session(self.memory, connection.state).discard()

    def _carry_out(self, connection: Connection, replies: list[bytes]) -> tuple[int, Then]:
        """Execute up to a batch of commands; returns how much of the inbox they took, and what follows."""
        inbox, session = connection.inbox, Session(self.memory, connection.state)
        data, at, reply_bytes = bytes(inbox[:GLANCE_BYTES]), 0, 0
        for _ in range(BATCH):
            if at >= len(inbox):
                return at, Then.WAIT
            command = parse(data, at) if at < len(data) else None
            if command is None and len(data) < len(inbox):
                data = bytes(inbox)
                command = parse(data, at)
            if command is None:
                return at, Then.WAIT
            start, (words, at) = at, command
            if not words:
                continue
            name = words[0].upper()
            reply = self._answer(name, words, session, data[start:at])
            replies.append(reply)
            reply_bytes += len(reply)
            if name == b"QUIT":
                return at, Then.CLOSE
            if self.enough_done(reply_bytes):
                break
        return at, Then.MORE if at < len(inbox) else Then.WAIT

    def enough_done(self, reply_bytes: int) -> bool:
        """Whether a batch ends here, its replies having come to so many bytes."""
        return reply_bytes >= BATCH_REPLY_BYTES

    def _answer(self, name: bytes, words: list[bytes], session: Session, raw: bytes) -> bytes:
        """Answer one command, which may be kept for EXEC instead of being executed."""
        if name in SESSION_COMMANDS:
            return WRONG_NUMBER % name.lower() if len(words) > 1 else self._transact(name, session)
        if name == b"HELLO" and words[1:2] in ([b"2"], [b"3"]):
            session.dialect = RESP3 if words[1] == b"3" else RESP2
        if not session.queueing:
            return self._execute(name, words, session.dialect)
        refusal = self._refusal(name, words)
        if refusal is None:
            try:
                session.add(raw)
                return b"+QUEUED\r\n"
            except OutOfMemory:
                refusal = OUT_OF_MEMORY
        session.spoil()
        return refusal

    def _transact(self, name: bytes, session: Session) -> bytes:
        """MULTI, EXEC, DISCARD. What EXEC carries out is one step, however long: nobody may see half of it.
        """
        if name == b"MULTI":
            if session.queueing:
                return b"-ERR MULTI calls can not be nested\r\n"
            session.begin()
            return OK
        if not session.queueing:
            return b"-ERR %b without MULTI\r\n" % name
        if name == b"DISCARD":
            session.discard()
            return OK
        spoilt = session.spoilt
        count, commands = session.take()
        if spoilt:
            return b"-EXECABORT Transaction discarded because of previous errors.\r\n"
        replies, at = [b"*%d\r\n" % count], 0
        while at < len(commands):
            command = parse(commands, at)
            if command is None:
                raise ProtocolError("ERR a kept command has no end")  # it was whole when it was kept
            words, at = command
            replies.append(self._execute(words[0].upper(), words, session.dialect))
        return b"".join(replies)

    def _check_wait(self, waiting_bytes: int) -> None:
        """Refuse a command that is longer than an inbox, or than memory, can become."""
        if waiting_bytes > self.inbox_limit_bytes - (64 << 10):
            raise ProtocolError("ERR Protocol error: too big request")
        heap = self.memory.heap
        if waiting_bytes > GLANCE_BYTES and heap.free_bytes < 3 * waiting_bytes:
            self.store.reclaim()
            if heap.free_bytes < 3 * waiting_bytes:
                raise ProtocolError("OOM no memory for a request of this size")

    def _execute(self, name: bytes, words: list[bytes], dialect: Dialect) -> bytes:
        refusal = self._refusal(name, words)
        if refusal is not None:
            return refusal
        try:
            return COMMANDS[name][1](self, words, dialect)
        except OutOfMemory:
            return OUT_OF_MEMORY

    def _refusal(self, name: bytes, words: list[bytes]) -> bytes | None:
        """Why these words are no command, or None."""
        if name not in COMMANDS:
            shown = " ".join(f"'{_shown(word)}'" for word in words[1:4])
            text = f"-ERR unknown command '{_shown(words[0])}', with args beginning with: {shown}\r\n"
            return text.encode("latin-1")
        arity = COMMANDS[name][0]
        if len(words) != arity if arity > 0 else len(words) < -arity:
            return WRONG_NUMBER % name.lower()
        return None

    # -- the commands ------------------------------------------------------------------------------------

    def _ping(self, words: list[bytes], dialect: Dialect) -> bytes:
        return b"+PONG\r\n" if len(words) == 1 else dialect.bulk(words[1])

    def _echo(self, words: list[bytes], dialect: Dialect) -> bytes:
        return dialect.bulk(words[1])

    def _set(self, words: list[bytes], _dialect: Dialect) -> bytes:
        if len(words) > 3:
            return b"-ERR syntax error\r\n"
        self.store.set(words[1], words[2])
        return OK

    def _get(self, words: list[bytes], dialect: Dialect) -> bytes:
        return dialect.bulk(self.store.get(words[1]))

    def _strlen(self, words: list[bytes], _dialect: Dialect) -> bytes:
        return b":%d\r\n" % len(self.store.get(words[1]) or b"")

    def _del(self, words: list[bytes], _dialect: Dialect) -> bytes:
        return b":%d\r\n" % sum(self.store.delete(key) for key in words[1:])

    def _exists(self, words: list[bytes], _dialect: Dialect) -> bytes:
        return b":%d\r\n" % sum(self.store.get(key) is not None for key in words[1:])

    def _incr(self, words: list[bytes], _dialect: Dialect) -> bytes:
        return self._add(words[1], 1)

    def _decr(self, words: list[bytes], _dialect: Dialect) -> bytes:
        return self._add(words[1], -1)

    def _incrby(self, words: list[bytes], _dialect: Dialect) -> bytes:
        amount = _integer(words[2])
        return NOT_AN_INTEGER if amount is None else self._add(words[1], amount)

    def _add(self, key: bytes, amount: int) -> bytes:
        old = self.store.get(key)
        value = 0 if old is None else _integer(bytes(old[:32]))
        if value is None or not -(1 << 63) <= value + amount < 1 << 63:
            return NOT_AN_INTEGER
        self.store.set(key, b"%d" % (value + amount))
        return b":%d\r\n" % (value + amount)

    def _mset(self, words: list[bytes], _dialect: Dialect) -> bytes:
        if len(words) % 2 == 0:
            return WRONG_NUMBER % b"mset"
        self.store.set_all(list(zip(words[1::2], words[2::2], strict=True)))
        return OK

    def _mget(self, words: list[bytes], dialect: Dialect) -> bytes:
        values = b"".join(dialect.bulk(self.store.get(key)) for key in words[1:])
        return b"*%d\r\n%b" % (len(words) - 1, values)

    def _dbsize(self, _words: list[bytes], _dialect: Dialect) -> bytes:
        return b":%d\r\n" % len(self.store)

    def _flush(self, _words: list[bytes], _dialect: Dialect) -> bytes:
        self.store.clear()
        return OK

    def _info(self, _words: list[bytes], dialect: Dialect) -> bytes:
        heap = self.memory.heap
        lines = [
            "# Server", "redis_version:7.0.0", "redis_mode:standalone", f"tcp_port:{self.port}",
            f"host:{self.host}",
            "", "# Memory", f"used_memory:{heap.used_bytes}", f"maxmemory:{self.max_bytes}",
            "maxmemory_policy:noeviction",
            "", "# Stats", f"total_commands_processed:{self.commands.value}",
            "", "# Keyspace",
        ]  # fmt: skip
        if len(self.store):
            lines.append(f"db0:keys={len(self.store)},expires=0,avg_ttl=0")
        return dialect.bulk("\r\n".join([*lines, ""]).encode())

    def _command(self, words: list[bytes], dialect: Dialect) -> bytes:
        """What clients ask when they connect. `COMMAND DOCS` is a map, empty here: redis-cli then gives no
        hints.
        """
        what = words[1].upper() if len(words) > 1 else b""
        if what == b"COUNT":
            return b":%d\r\n" % len(COMMANDS)
        return dialect.map([]) if what == b"DOCS" else b"*0\r\n"

    def _config(self, words: list[bytes], dialect: Dialect) -> bytes:
        if words[1].upper() != b"GET" or len(words) < 3:
            return b"-ERR only CONFIG GET is known here\r\n"
        known = {b"save": b"", b"appendonly": b"no", b"maxmemory": b"%d" % self.max_bytes, b"databases": b"1"}
        asked = known if b"*" in words[2:] else {word.lower() for word in words[2:]}
        return dialect.map([(dialect.bulk(k), dialect.bulk(v)) for k, v in known.items() if k in asked])

    def _select(self, words: list[bytes], _dialect: Dialect) -> bytes:
        return OK if words[1] == b"0" else b"-ERR DB index is out of range\r\n"

    def _client(self, words: list[bytes], _dialect: Dialect) -> bytes:
        if words[1].upper() in (b"SETNAME", b"SETINFO"):
            return OK  # taken and forgotten: nothing here shows it
        return b"-ERR unknown subcommand '%b'\r\n" % _shown(words[1]).encode("latin-1")

    def _hello(self, words: list[bytes], dialect: Dialect) -> bytes:
        if len(words) > 1 and words[1] not in (b"2", b"3"):
            return b"-NOPROTO unsupported protocol version\r\n"
        facts = {b"server": b"redis", b"version": b"7.0.0", b"mode": b"standalone", b"role": b"master"}
        pairs = [(dialect.bulk(key), dialect.bulk(value)) for key, value in facts.items()]
        return dialect.map([*pairs, (dialect.bulk(b"proto"), b":%d\r\n" % dialect.version)])

    def _quit(self, _words: list[bytes], _dialect: Dialect) -> bytes:
        return OK


def _integer(digits: bytes) -> int | None:
    """The signed 64-bit number that `digits` spell, or None."""
    unsigned = digits[1:] if digits[:1] == b"-" else digits
    if not unsigned.isdigit() or len(digits) > 20 or not -(1 << 63) <= int(digits) < 1 << 63:
        return None
    return int(digits)


def _shown(word: bytes) -> str:
    return word[:128].decode("latin-1").replace("\r", " ").replace("\n", " ")


SESSION_COMMANDS = (b"MULTI", b"EXEC", b"DISCARD")
COMMANDS: dict[bytes, tuple[int, Callable[[KeyValue, list[bytes], Dialect], bytes]]] = {
    b"PING": (-1, KeyValue._ping),
    b"ECHO": (2, KeyValue._echo),
    b"SET": (-3, KeyValue._set),
    b"GET": (2, KeyValue._get),
    b"STRLEN": (2, KeyValue._strlen),
    b"DEL": (-2, KeyValue._del),
    b"EXISTS": (-2, KeyValue._exists),
    b"INCR": (2, KeyValue._incr),
    b"DECR": (2, KeyValue._decr),
    b"INCRBY": (3, KeyValue._incrby),
    b"MSET": (-3, KeyValue._mset),
    b"MGET": (-2, KeyValue._mget),
    b"DBSIZE": (1, KeyValue._dbsize),
    b"FLUSHALL": (-1, KeyValue._flush),
    b"FLUSHDB": (-1, KeyValue._flush),
    b"INFO": (-1, KeyValue._info),
    b"COMMAND": (-1, KeyValue._command),
    b"CONFIG": (-2, KeyValue._config),
    b"SELECT": (2, KeyValue._select),
    b"CLIENT": (-2, KeyValue._client),
    b"HELLO": (-1, KeyValue._hello),
    b"QUIT": (-1, KeyValue._quit),
}
"""By name: how many words (the name too; negative: at least so many), and what carries it out."""
