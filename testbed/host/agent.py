"""The agent of a host: one process that obeys commands, and migrates a guest out and in. Where there are
several guests each has its own, as each virtual machine has its own monitor.

Commands (see :mod:`.control` for the framing), their arguments and answers::

    boot      guest: description, import_path        {"tracker", "passed_over": [...]}
    receive   secret: hex, port, import_path         started {"listening": true}, then {"resumed_ns", ...}
    migrate   secret: hex, address, port, plan       started {}, then {"rounds": [...], ...}
    cancel    while a migration is under way         none: the migration ends before its commit, or is over
    stall     duration_ns                            {"paused_ns", "running_ns"}: as GuestProcess.stall
    stats                                            the guest's own figures, or null
    sample    all_ns                                 how the guest dirties its RAM: see .watching
    status                                           {"guest": state or null, "stage", "epoch", "last"}
    resume                                           {}; a guest in doubt goes on here
    release                                          {"counts": {...}}; the guest is removed
    stop                                             {}, and the agent ends

An agent that dies leaves its guest running: see :mod:`.keeper` and :mod:`.recovery`.

Nothing else runs in this process, so nothing is in the way of a migration. While the agent waits for commands
it sends what is left of the announcement schedule and delivers what slipped into the hold.
"""

from __future__ import annotations

import errno
import gc
import os
import resource
import select
import socket
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from netns.forkserver import ready
from netns.namespace import Namespace
from testbed.faults.injection import FaultyTrace, SpoilableChannel
from testbed.faults.kinds import Fault, Side
from testbed.handover.wiring import PortNames
from testbed.host.arriving import ArrivingGuest
from testbed.host.control import Reception
from testbed.host.departing import DepartingGuest
from testbed.host.description import GuestDescription
from testbed.host.faulty import FaultyHost
from testbed.host.guest_process import GuestError
from testbed.host.hosted import HostedGuest
from testbed.host.keeper import Keeper, Kept
from testbed.host.network import Site
from testbed.host.plain_disk import storage_from_json
from testbed.host.recovery import recover, wake
from testbed.host.saved_state import LunReader, LunWriter
from testbed.host.watching import watch
from testbed.measure.trace import Trace
from testbed.memory.tracking import probe
from testbed.migration.channel import Channel
from testbed.migration.errors import CommitInDoubt, LocalError, MigrationError, Overtaken
from testbed.migration.saved_state import RestoringChannel, SavingChannel
from testbed.migration.source import Plan, Source, TraceLike
from testbed.migration.strategy import Policy
from testbed.migration.target import Target
from testbed.migration.wire import NONCE

CONNECT_DEADLINE_S = 10.0
RETRY_S = 0.1
SWITCHOVER_DEADLINE_S = 3.0
"""How long the target may be silent while the guest stands still; a Quick Migration's reads all of RAM."""
LATE_FRAMES_NS = 1_000_000_000
"""How long after a migration stragglers in the hold are still looked for."""
MOST_STALL_NS = 60_000_000_000


class Agent:
    """One host's agent. :meth:`run` obeys until told to stop."""

    def __init__(
        self, site: Site, reception: Reception, keeper: Keeper, trace: Trace, deadline_s: float
    ) -> None:
        self._site = site
        self._reception = reception
        self._keeper = keeper
        self._trace = trace
        self._deadline_s = deadline_s
        self._trackers = probe()
        self._hosted: HostedGuest | None = None
        self._guest_is_gone = False
        self._arrived: ArrivingGuest | None = None
        """How the guest that is here came, if it came."""
        self._import_path: list[str] = []
        self._late_until_ns = 0
        self._last: dict[str, Any] = {}
        self._counts: dict[str, int] = {}
        """This host's part of the network in a migration that failed."""
        self._commands: dict[str, Callable[[dict[str, Any]], Any]] = {
            "boot": self._boot,
            "receive": self._receive,
            "migrate": self._migrate,
            "stall": self._stall,
            "stats": self._stats,
            "sample": self._sample,
            "status": self._status,
            "resume": self._resume,
            "release": self._release,
        }

    def recover(self, kept: Kept) -> None:
        """Take the place of an agent that died: bring its guest to the one state that is right."""
        self._last = {"do": "recover"}
        try:
            self._guest, what = recover(self._site, kept, self._keeper, self._trackers, self._trace)
            self._last |= {"ok": {"recovered": what}}
        except Exception as error:
            self._last |= self._explained(error)
        self._trace.event("recovered", **self._last)
        self._trace.flush()

    def run(self) -> int:
        try:
            while True:
                message = self._next_command()
                if message["do"] == "stop":
                    self._release({})
                    self._reception.send({"ok": {}})
                    return 0
                self._obey(message)
        finally:
            self._trace.close()

    def _obey(self, message: dict[str, Any]) -> None:
        if message["do"] == "cancel":
            return  # too late: the migration's own answer has said so
        command = self._commands.get(message["do"])
        self._counts = {}
        try:
            if command is None:
                raise LocalError(f"no command {message['do']!r}")
            answer: dict[str, Any] = {"ok": command(message)}
        except Exception as error:
            answer = self._explained(error)
        if message["do"] in ("receive", "migrate"):
            self._last = {"do": message["do"], **answer}
        self._trace.flush()
        self._reception.send(answer)

    def _explained(self, error: Exception) -> dict[str, Any]:
        fault = error.fault if isinstance(error, MigrationError) else "local"
        answer: dict[str, Any] = {"error": str(error), "kind": type(error).__name__, "fault": fault}
        if isinstance(error, Overtaken):
            answer["audited"] = error.audited
        return answer | {"in_doubt": isinstance(error, CommitInDoubt), "counts": self._counts}

    def _next_command(self) -> dict[str, Any]:
        """Wait for a command, meanwhile announcing on schedule and delivering stragglers."""
        while True:
            sources = self._reception.sources()
            timeout_s = None
            if self._guest is not None and not self._guest_is_gone:
                sources.append(self._guest.process)
            if self._guest is not None:
                sources += self._stragglers_to_watch(self._guest)
                timeout_s = self._announce_if_due(self._guest)
            if not self._reception.pending:
                select.select(sources, [], [], timeout_s)
            if (message := self._reception.poll()) is not None:
                return message
            if self._guest is not None:
                self._guest.network.deliver_late()
                self._listen_to(self._guest)

    def _listen_to(self, guest: HostedGuest) -> None:
        """What a guest says unasked: its disk was lost, and it gets another connection; or it is fenced, for
        it is another host's, and is removed.
        """
        if self._guest_is_gone:
            return
        try:
            for said in guest.process.hear():
                self._trace.event("guest-said", **said)
                if "fenced" in said:
                    guest.network.port.cut()
                    self._guest = None
                    self._remove(guest)
                    return
                guest.regain_disk(guest.epoch)
        except (GuestError, LocalError) as error:
            self._trace.event("guest-lost", reason=str(error))
            self._guest_is_gone = guest.process.process.wait(0) is not None
        self._trace.flush()

    @property
    def _guest(self) -> HostedGuest | None:
        return self._hosted

    @_guest.setter
    def _guest(self, guest: HostedGuest | None) -> None:
        self._hosted = guest
        self._guest_is_gone = False
        self._arrived = None

    def _stragglers_to_watch(self, guest: HostedGuest) -> tuple[int, ...]:
        return guest.network.late_descriptors() if time.monotonic_ns() < self._late_until_ns else ()

    def _announce_if_due(self, guest: HostedGuest) -> float | None:
        """Send the announcement that is due, if one is; returns the seconds until the next, None if all were
        sent."""
        announcer = guest.network.announcer
        if not announcer.rounds:
            return None
        while (due_ns := announcer.due_ns()) is not None:
            left_ns = due_ns - time.monotonic_ns()
            if left_ns > 0:
                return left_ns / 1e9
            self._trace.event("announced", t_ns=announcer.announce())
            self._trace.flush()
        return None

    def _put_in_place(self, description: GuestDescription, *, fresh: bool = False) -> HostedGuest:
        if self._guest is not None:
            raise LocalError(f"{self._site.name} has a guest already")
        return HostedGuest.put_in_place(
            self._site,
            description,
            self._keeper,
            fresh=fresh,
            trackers=self._trackers,
            import_path=self._import_path,
        )

    def _boot(self, message: dict[str, Any]) -> dict[str, Any]:
        description = self._owned(GuestDescription.from_json(message["guest"]))
        self._import_path = message.get("import_path", [])
        guest = self._put_in_place(description, fresh=True)
        try:
            guest.boot()
        except BaseException:
            self._remove(guest)
            raise
        self._keeper.settle(guest.epoch)
        self._guest = guest
        passed_over = [asdict(one) for one in guest.choice.passed_over]
        return {"tracker": guest.tracker.name, "passed_over": passed_over}

    def _owned(self, description: GuestDescription) -> GuestDescription:
        """A guest about to boot here: the lease of its disk is claimed, whosever it was."""
        storage, disk = self._site.storage, description.disk
        if disk is None:
            return description
        if storage is None:
            raise LocalError(f"a guest with a disk, and {self._site.name} has no shared storage")
        return replace(description, epoch=storage.own(disk, self._site.name))

    def _receive(self, message: dict[str, Any]) -> dict[str, Any]:
        self._import_path = message.get("import_path", self._import_path)
        secret = bytes.fromhex(message["secret"])
        arriving = ArrivingGuest(self._put_in_place, self._keeper, self._trace)
        deadline_s = message.get("deadline_s", self._deadline_s)
        fault = _fault(message, Side.TARGET)
        with socket.create_server(("0.0.0.0", message["port"])) as listener:
            listener.settimeout(deadline_s)
            self._reception.send({"started": {"listening": True}})
            connection, _ = listener.accept()
            channel = SpoilableChannel(connection, deadline_s)
            trace = self._trace_with(fault, channel, lambda: arriving.hosted)
            gc.disable()
            try:
                taking = self._restoring(channel)
                resumed_ns = Target(arriving, taking, secret, os.urandom(NONCE), trace).run()
                self._guest = arriving.settle()
                self._keeper.settle(self._guest.epoch)
            except Exception as error:
                if not arriving.is_owned:
                    raise
                resumed_ns = self._live_on(arriving.settle(), error)
            finally:
                arriving.urgency.lower()
                self._counts = arriving.counts
                channel.close()
                gc.enable()
        assert self._guest is not None
        self._arrived = arriving
        self._late_until_ns = time.monotonic_ns() + LATE_FRAMES_NS
        return {"resumed_ns": resumed_ns, "counts": self._guest.network.counts}

    def _live_on(self, guest: HostedGuest, error: Exception) -> int:
        """Something failed after the guest had become this host's: it lives all the same, unless it is dead.
        Returns when (CLOCK_MONOTONIC). GuestError where it is; nothing of it is left then.
        """
        self._trace.event("failed-after-commit", reason=f"{type(error).__name__}: {error}")
        try:
            wake(guest, self._keeper)
        except Exception:
            self._remove(guest)
            raise
        self._guest = guest
        return time.monotonic_ns()

    def _migrate(self, message: dict[str, Any]) -> dict[str, Any]:
        if self._guest is None:
            raise LocalError(f"{self._site.name} has no guest")
        address = (message["address"], message["port"])
        plan = _plan(message)
        connection = _connect(address)
        channel = SpoilableChannel(connection, message.get("deadline_s", self._deadline_s))
        trace = self._trace_with(_fault(message, Side.SOURCE), channel, lambda: self._guest)
        self._reception.send({"started": {}})
        departing = DepartingGuest(self._guest, self._keeper, self._trace)
        gc.collect()
        gc.disable()
        try:
            giving = self._saving(channel, self._guest, departing)
            clock, cancelled = time.monotonic_ns, self._reception.cancelled
            outcome = Source(departing, giving, plan, clock, trace, cancelled).run()
        finally:
            if departing.deleted:
                self._guest = None
            departing.let_go()
            departing.urgency.lower()
            self._counts = departing.counts
            channel.close()
            gc.enable()
        return {
            "rounds": [asdict(one) for one in outcome.rounds],
            "decision": outcome.verdict.reason if outcome.verdict else None,
            "final_pages": outcome.final_pages,
            "transferred_bytes": outcome.transferred_bytes,
            "resumed_ns": outcome.resumed_ns,
            "late_frames": outcome.late_frames,
            "audited": outcome.audited,
            "left_behind": outcome.left_behind,
            "refrozen": departing.refrozen,
            "urgent": departing.urgency.granted and not departing.urgency.given_up,
            "last_heard_ns": departing.last_heard_ns,
            "counts": departing.counts,
        }

    def _saving(self, channel: Channel, guest: HostedGuest, departing: DepartingGuest) -> Channel:
        """The way to the target: over a LUN that moves, if that is how storage is shared here."""
        storage = self._site.moving_lun
        if storage is None:
            return channel
        relieve = departing.take_in_frames
        return SavingChannel(channel, lambda: LunWriter(guest, storage, self._trace, relieve), relieve)

    def _restoring(self, channel: Channel) -> Channel:
        storage = self._site.moving_lun
        if storage is None:
            return channel
        return RestoringChannel(channel, lambda saved: LunReader(saved, storage, self._trace))

    def _trace_with(
        self, fault: Fault | None, channel: SpoilableChannel, guest: Callable[[], HostedGuest | None]
    ) -> TraceLike:
        if fault is None:
            return self._trace
        host = FaultyHost(channel, self._site.namespace, guest, lambda: self._reception.peer_pid)
        return FaultyTrace(self._trace, fault, host)

    def _stall(self, message: dict[str, Any]) -> dict[str, int]:
        """Stop the guest, or the way to it, for a known time where it is: what clients measure can be held
        against that."""
        if self._guest is None:
            raise LocalError(f"{self._site.name} has no guest")
        duration_ns = message["duration_ns"]
        if not isinstance(duration_ns, int) or not 0 <= duration_ns <= MOST_STALL_NS:
            raise LocalError(f"a guest is stalled for 0 to {MOST_STALL_NS} ns, not for {duration_ns!r}")
        if message["what"] == "way":
            paused_ns, running_ns = self._guest.network.hold_up(duration_ns)
            self._late_until_ns = running_ns + LATE_FRAMES_NS
        else:
            paused_ns, running_ns = self._guest.process.stall(duration_ns)
        return {"paused_ns": paused_ns, "running_ns": running_ns}

    def _stats(self, _: dict[str, Any]) -> dict[str, Any] | None:
        if self._guest is None:
            return None
        stats = self._guest.process.ask({"do": "stats"})
        first_ns = None if self._arrived is None else self._arrived.first_heard_ns()
        return {"guest": stats, "counts": self._guest.network.counts, "first_heard_ns": first_ns}

    def _sample(self, message: dict[str, Any]) -> dict[str, Any]:
        """Watch how the guest writes; whatever else is asked meanwhile ends it early."""
        if self._guest is None:
            raise LocalError(f"{self._site.name} has no guest")

        def wait(duration_ns: int) -> bool:
            return not select.select(self._reception.sources(), [], [], duration_ns / 1e9)[0]

        return watch(self._guest, message["all_ns"], time.monotonic_ns, wait)

    def _status(self, _: dict[str, Any]) -> dict[str, Any]:
        journal = self._keeper.journal
        state = None
        if self._guest is not None:
            state = self._guest.process.state()
        stage = journal.stage.name.lower()
        return {"guest": state, "stage": stage, "epoch": journal.epoch, "last": self._last}

    def _resume(self, _: dict[str, Any]) -> dict[str, Any]:
        """Somebody who knows says that a guest in doubt runs nowhere else: it goes on here."""
        if self._guest is None:
            raise LocalError(f"{self._site.name} has no guest")
        wake(self._guest, self._keeper)
        return {}

    def _release(self, _: dict[str, Any]) -> dict[str, Any]:
        if self._guest is None:
            return {}
        guest, self._guest = self._guest, None
        counts = guest.network.counts
        self._remove(guest)
        return {"counts": counts}

    def _remove(self, guest: HostedGuest) -> None:
        guest.close()
        self._keeper.drop()


def _connect(address: tuple[str, int]) -> socket.socket:
    """A connection to the target's agent. A wire that has just been mended may say for a moment yet that
    there is no way: that is asked again. OSError.
    """
    end_s = time.monotonic() + CONNECT_DEADLINE_S
    while True:
        try:
            return socket.create_connection(address, CONNECT_DEADLINE_S)
        except OSError as error:
            if error.errno not in (errno.EHOSTUNREACH, errno.ENETUNREACH) or time.monotonic() > end_s:
                raise
        select.select([], [], [], RETRY_S)


def _fault(message: dict[str, Any], side: Side) -> Fault | None:
    """The fault of an order to migrate, if `side` is to make it."""
    text = message.get("fault")
    fault = None if text is None else Fault.parse(text)
    return fault if fault is not None and side in fault.sides else None


def _plan(message: dict[str, Any]) -> Plan:
    plan = message["plan"]
    return Plan(
        secret=bytes.fromhex(message["secret"]),
        nonce=os.urandom(NONCE),
        policy=Policy(**plan["policy"]),
        precopy=plan["precopy"],
        whole=plan.get("whole", False),
        rate_limit=plan["rate_limit"],
        switchover_deadline_s=message.get("deadline_s", 0.0) if plan.get("whole") else SWITCHOVER_DEADLINE_S,
    )


def main(argument: dict[str, Any], fds: list[int]) -> int:
    """Entry of the agent's process. `argument`: {"name", "host", "number" (of the guest, from 0, which has
    its own ports), "vm" (its name, where there are several), "bridge", "uplink", "port_delay_s",
    "recorder", "deadline_s", "storage", "kept"}; `fds` are the listening control socket, the keeper's line,
    journal and store, and the descriptors of the guest that an agent before this one left, described in
    ``argument["kept"]``. See :class:`Agent`.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    import testbed.handover.announcement  # noqa: F401 - scapy takes a quarter of a second: before, not in, a migration

    control, line, journal, store, *kept = fds
    host, storage = argument["host"], storage_from_json(argument["storage"])
    site = Site(
        host,
        Namespace.open(host),
        argument["bridge"],
        argument["uplink"],
        storage,
        argument["name"],
        PortNames.numbered(argument["number"]),
        argument["port_delay_s"],
    )
    of_all = {} if argument["vm"] is None else {"vm": argument["vm"]}
    trace = Trace(site.agent, Path(argument["recorder"]), of_all)
    keeper = Keeper(socket.socket(fileno=line), journal, store)
    reception = Reception(socket.socket(fileno=control))
    agent = Agent(site, reception, keeper, trace, argument["deadline_s"])
    if argument["kept"] is not None:
        agent.recover(Kept(**argument["kept"], fds=tuple(kept)))
    gc.collect()
    gc.freeze()
    ready()
    return agent.run()
