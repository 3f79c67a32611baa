"""The server of a lab: holds it, keeps it going, and obeys whoever connects (testbed.standing.protocol).

One thread, one wait. What asks for a figure is answered at once, also while a guest migrates: the lab's own
wait has the connections in it. A migration is carried out between two waits, one at a time.
"""

from __future__ import annotations

import json
import socket
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from testbed.standing.inhabitants import inhabitants
from testbed.standing.life import Life
from testbed.standing.protocol import Incoming, Message, ProtocolError, Refused, encode
from testbed.standing.tap import Tap

MOST_CALLERS = 64
MOST_UNSENT_BYTES = 8 << 20
IDLE_S = 3600.0
RETRY_S = 0.05
"""How soon what a caller did not take is offered again."""
_READ_BYTES = 1 << 16
_WRONG_REQUEST, _FAILED = 2, 1


class GoingDown(BaseException):
    """The lab is to go down; `caller` is told when it has, if somebody asked. Not an error: nothing handles
    it but the server, wherever it comes up."""

    def __init__(self, caller: Caller | None = None) -> None:
        super().__init__()
        self.caller = caller


class Caller:
    """One terminal. What it does not take at once waits; too much of it, and it is hung up on. What is said
    to one that is gone is lost, and no error: it need not be there for what it has asked for."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self._socket = connection
        self._incoming = Incoming()
        self._unsent = bytearray()
        self._is_gone = False
        self.told_log: int | None = None
        """How long the journal was when this follower was last told; None for one that does not follow."""

    def fileno(self) -> int:
        return self._socket.fileno()

    @property
    def is_slow(self) -> bool:
        return bool(self._unsent)

    def hear(self) -> list[Message]:
        """What it has said. ConnectionError or ProtocolError if it is to be hung up on."""
        try:
            data = self._socket.recv(_READ_BYTES)
        except BlockingIOError:
            return []
        if not data:
            raise ConnectionResetError
        return self._incoming.feed(data)

    def say(self, message: Message) -> None:
        if not self._is_gone:
            self._unsent += encode(message)
            self.flush()

    def flush(self) -> None:
        """Never raises: that a caller is gone is noticed when it is heard."""
        try:
            while self._unsent:
                del self._unsent[: self._socket.send(self._unsent)]
        except BlockingIOError:
            if len(self._unsent) > MOST_UNSENT_BYTES:
                self._hang_up()
        except OSError:
            self._hang_up()

    def _hang_up(self) -> None:
        """It is noticed as a caller that is gone when it is next heard."""
        self._is_gone = True
        self._unsent.clear()
        with suppress(OSError):  # it has hung up itself
            self._socket.shutdown(socket.SHUT_RDWR)

    def finish(self, timeout_s: float) -> None:
        """The last word has been said: wait until it is sent, for at most so long, and close."""
        try:
            self._socket.settimeout(timeout_s)
            self._socket.sendall(self._unsent)
        except OSError:
            pass  # it is gone, or takes nothing: the lab does not wait for it
        finally:
            self._socket.close()

    def close(self) -> None:
        self._is_gone = True
        self._unsent.clear()
        self._socket.close()


class _Teller:
    """A witness who passes on to a caller what it sees of a migration."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    def say(self, text: str) -> None:
        self._caller.say({"say": text})

    def migration(self, source: str, target: str, number: int, of: int, vm: str | None = None) -> None:
        told = {"source": source, "target": target, "number": number, "of": of, "vm": vm}
        self._caller.say({"migration": told})

    def event(self, event: dict[str, Any]) -> None:
        self._caller.say({"event": event})


class Server:
    """Serves `life` on `listener` until it is told to bring it down."""

    def __init__(self, life: Life, listener: socket.socket) -> None:
        listener.setblocking(False)
        self._life = life
        self._listener = listener
        self._callers: list[Caller] = []
        self._taps: dict[Caller, Tap] = {}
        self._spans = 0
        self._waiting: deque[tuple[Caller, Message]] = deque()
        self._at_once: dict[str, Callable[[Caller, Message], Message | None]] = {
            "ps": self._ps,
            "node": self._node,
            "follow": self._follow,
            "link": self._link,
            "figures": self._figures,
            "capture": self._capture,
            "stop": self._stop,
            "clients": self._clients,
            "evidence": lambda _caller, _message: {"folder": str(self._life.evidence())},
            "down": self._down,
        }
        life.attend(listener, self._accept)
        life.on_event = self.tell_followers

    def serve(self) -> Caller | None:
        """Until the lab is to go down; returns who asked for that, to be told when it has."""
        try:
            while True:
                self._life.wait(RETRY_S if any(one.is_slow for one in self._callers) else IDLE_S)
                self.tell_followers()
                for caller in self._callers:
                    caller.flush()
                while self._waiting:
                    self._migrate(*self._waiting.popleft())
        except GoingDown as going:
            return going.caller

    def tell_followers(self) -> None:
        """Those who follow are told how long the journal is. Who has not taken the last word has time."""
        length = self._life.journal.length
        for caller in self._callers:
            if caller.told_log not in (None, length) and not caller.is_slow:
                caller.told_log = length
                caller.say({"log": length})

    def close(self, last: Caller | None, answer: Message) -> None:
        """The lab is gone: `last` is answered, and everybody hung up on."""
        for caller in self._callers:
            if caller is last:
                caller.say(answer)
            elif caller.told_log is not None:
                caller.say({"ok": {"log": self._life.journal.length}})
            caller.finish(1.0)

    # ---- callers

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except BlockingIOError:
            return
        caller = Caller(connection)
        if len(self._callers) >= MOST_CALLERS:
            caller.say(_error(f"{MOST_CALLERS} terminals are connected already", _FAILED))
            caller.close()
            return
        self._callers.append(caller)
        self._life.attend(caller, lambda: self._hear(caller))

    def _hear(self, caller: Caller) -> None:
        try:
            messages = caller.hear()
        except (OSError, ProtocolError):
            if caller in self._taps:
                self._obey(caller, {"do": "stop"})
            self._life.dismiss(caller)
            self._callers.remove(caller)
            self._waiting = deque(one for one in self._waiting if one[0] is not caller)
            caller.close()
            return
        for message in messages:
            self._obey(caller, message)

    def _obey(self, caller: Caller, message: Message) -> None:
        what = message.get("do")
        try:
            if what == "migrate":
                if self._life.busy or self._waiting:
                    raise Refused(self._is_busy(), _FAILED)
                self._waiting.append((caller, message))
                return
            obey = self._at_once.get(str(what))
            if obey is None:
                known = ", ".join((*self._at_once, "migrate"))
                raise Refused(f"unknown request {what!r}; known are {known}", _WRONG_REQUEST)
            answer = obey(caller, message)
        except Refused as refused:
            caller.say(_error(str(refused), refused.status))
        else:
            if answer is not None:
                caller.say({"ok": answer})

    def _is_busy(self) -> str:
        return f"{self._life.busy or 'a guest is about to migrate'}; wait until it is there"

    # ---- requests

    def _ps(self, _caller: Caller, message: Message) -> Message:
        """Guests and clients; the processes only if they are asked for, which takes a while."""
        life = self._life
        told: Message = {
            "title": life.scenario.name,
            "hosts": list(life.scenario.hosts),
            "ram": {vm.name: vm.ram_bytes for vm in life.scenario.vms},
            "asking": [client.name for client in life.scenario.clients],
            "programs": {vm.name: vm.guest_program for vm in life.scenario.vms},
            "started_at": life.started_at,
            "folder": str(life.folder),
            "owners": life.owners,
            "busy": life.busy,
            "migrations": len(life.results),
            "gone": life.gone,
            # a client that is asked in a blackout is late for its own requests
            "clients": life.heartbeats() if life.busy is None else None,
        }
        if message.get("processes"):
            told["processes"] = inhabitants({node: life.namespace(node) for node in life.nodes})
        return told

    def _node(self, _caller: Caller, message: Message) -> Message:
        return {"namespace": self._life.namespace(str(message.get("node")))}

    def _follow(self, caller: Caller, _message: Message) -> None:
        caller.told_log = self._life.journal.length
        caller.say({"log": caller.told_log})

    def _link(self, _caller: Caller, message: Message) -> Message:
        return {"links": [one.model_dump() for one in self._life.change_link(_step_in(message))]}

    def _figures(self, _caller: Caller, message: Message) -> Message:
        link = None if message.get("link") is None else str(message["link"])
        return {"links": [one.model_dump() for one in self._life.figures(link)]}

    def _capture(self, caller: Caller, message: Message) -> None:
        """Captures until the caller says "stop", or is gone."""
        if caller in self._taps:
            raise Refused(f"{self._taps[caller].link} is being captured for you already", _WRONG_REQUEST)
        link, file, snap = str(message.get("link")), Path(str(message.get("file"))), message.get("snap_bytes")
        limit = int(message.get("limit_bytes") or 0)
        self._taps[caller] = self._life.tap(link, file, None if snap is None else int(snap), limit)
        caller.say({"say": f"capturing {link}"})

    def _stop(self, caller: Caller, _message: Message) -> Message:
        if caller not in self._taps:
            raise Refused("nothing is being captured for you", _WRONG_REQUEST)
        return self._life.untap(self._taps.pop(caller))

    def end_captures(self) -> None:
        """The lab goes down: what has been captured is written."""
        for caller in list(self._taps):
            self._obey(caller, {"do": "stop"})

    def _clients(self, _caller: Caller, message: Message) -> Message:
        """Into a file, for it may be long: `so_far`, and with `begin_ns` a span ends, and there is
        `since`."""
        life, begin_ns = self._life, message.get("begin_ns")
        if life.busy is not None:
            raise Refused(self._is_busy(), _FAILED)
        if begin_ns is None:
            told = {"so_far": life.look().model_dump()}
        else:
            so_far, since = life.span_since(int(begin_ns))
            told = {"so_far": so_far.model_dump(), "since": since.model_dump()}
        self._spans += 1
        file = life.folder / f"clients-{self._spans}.json"
        file.write_text(json.dumps(told) + "\n")
        return {"file": str(file)}

    def _down(self, caller: Caller, _message: Message) -> None:
        raise GoingDown(caller)

    def _migrate(self, caller: Caller, message: Message) -> None:
        try:
            beat_ms = message.get("beat_ms", 0)
            if not isinstance(beat_ms, int) or beat_ms < 0:
                raise Refused(f"beat_ms: {beat_ms!r} is no number of milliseconds", _WRONG_REQUEST)
            result, folder = self._life.migrate(_step_in(message), _Teller(caller), beat_ms)
        except Refused as refused:
            caller.say(_error(str(refused), refused.status))
        else:
            caller.say({"ok": {"folder": str(folder), "outcome": result.outcome}})


def _step_in(message: Message) -> Message:
    step = message.get("step")
    if not isinstance(step, dict):
        raise Refused("a step is an object", _WRONG_REQUEST)
    return step


def _error(text: str, status: int) -> Message:
    return {"error": text, "status": status}
