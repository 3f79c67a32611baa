"""The machine: the guest's one process, a loop that can stop between two steps and go on elsewhere.

A step is one handler of the program, or one burst of the memory load: well under a millisecond each. After
every step the machine looks at a byte that it shares with the agent, so a pause never waits for more than
one step. What a paused machine remembers is in RAM, save for the *registers* (:meth:`Machine.registers`)
that travel in the pause message, and the sockets. The messages are specified in
:mod:`testbed.guest.control`.
"""

from __future__ import annotations

import gc
import mmap
import os
import resource
import select
import socket
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from enum import Enum
from typing import Any

from testbed.guest.control import SOCKETS_A_MESSAGE, Control, ControlClosed, ControlError
from testbed.guest.datagrams import Datagrams, udp_socket
from testbed.guest.disk import Disk, DiskLost, Fenced
from testbed.guest.heap import HeapError
from testbed.guest.load import Load, fill
from testbed.guest.memory import Memory
from testbed.guest.program import GuestFault, ProgramError, load_program
from testbed.guest.ring import Ring
from testbed.guest.service import COUNTERS, Service
from testbed.guest.spec import BACKLOG, MachineSpec, datagram_socket, listening_socket, tcp_socket
from testbed.memory.region import Region
from testbed.memory.userfaultfd import open_for_tracking

ACCEPTS_A_STEP = 8
QUEUED_A_TURN = 16
SWEEP_S = 1.0
REGISTERS_VERSION = 1

Listeners = dict[int, socket.socket]


class State(Enum):
    """What the machine is doing; which orders it obeys in which state is the table below."""

    NEW = "new"
    RUNNING = "running"
    PAUSED = "paused"
    ATTACHED = "attached"
    FENCED = "fenced"
    FAILED = "failed"
    STOPPED = "stopped"


ORDERS: dict[str, tuple[State, ...]] = {
    "start": (State.NEW,),
    "pause": (State.RUNNING,),
    "continue": (State.PAUSED,),
    "attach": (State.NEW,),
    "resume": (State.ATTACHED,),
    "sockets": (State.PAUSED, State.ATTACHED),
    "disk": (State.RUNNING, State.PAUSED, State.ATTACHED),
    "stats": tuple(State),
    "sync": tuple(State),
    "stop": tuple(State),
}


class Machine:
    """Runs one guest for one agent. :meth:`run` returns when it is stopped or the agent has gone."""

    def __init__(self, spec: MachineSpec, control: Control, region: Region, flag: memoryview) -> None:
        """Load the program, map nothing new and serve nothing yet. Raises ProgramError."""
        self.spec = spec
        self.region = region
        self.state = State.NEW
        self.program_class = load_program(spec.program)
        self._control = control
        self._flag = flag
        self._epoll = select.epoll()
        self._epoll.register(control.fileno(), select.EPOLLIN)
        self._listeners: Listeners = {}
        self._service: Service | None = None
        self._datagrams: Datagrams | None = None
        self._load: Load | None = None
        self._disk: Disk | None = None
        self._attached: list[int] = []
        self._registers: dict[str, Any] = {}
        self._steps = 0
        self._ran_ns = 0
        self._running_since_ns = 0
        self._next_sweep_s = 0.0

    def run(self) -> int:
        """Obey orders and run between them. Returns 0 when told to stop, 1 when the agent went without a
        word.
        """
        try:
            while self.state is not State.STOPPED:
                if self.state is State.RUNNING:
                    self._loop()
                else:
                    self._obey(wait=True)
        except ControlClosed:
            return 1
        return 0

    # -- the loop ----------------------------------------------------------------------------------------

    def _loop(self) -> None:
        """Serve until the state is no longer RUNNING. The hot path: keep it short."""
        service, load = self._running_parts()
        poll, connections, queue, flag = self._epoll.poll, service.connections, service.queue, self._flag
        ready, monotonic_ns = service.ready, time.monotonic_ns
        loading, ends_turns = load.active, service.ends_turns
        load_due_ns = 0
        datagrams = self._datagrams.sockets if self._datagrams is not None else {}
        while True:
            if ends_turns:
                service.end_turn()
            timeout_s = -1.0
            if queue:
                timeout_s = 0.0
            elif loading:
                timeout_s = max(0.0, load_due_ns - monotonic_ns()) / 1e9
            elif service.lingering:
                timeout_s = SWEEP_S
            for fd, events in poll(timeout_s, 64):
                connection = connections.get(fd)
                if connection is not None:
                    ready(connection, events)
                    self._steps += 1
                elif fd in service.dormant:
                    ready(service.wake(fd), events)
                    self._steps += 1
                elif fd in datagrams and self._datagrams is not None:
                    self._steps += self._datagrams.ready(fd, flag)
                elif fd in self._listeners:
                    self._accept(self._listeners[fd], ACCEPTS_A_STEP)
                elif fd == self._control.fileno():
                    self._obey(wait=False)
                    break  # whatever it was: nothing of this batch may run after a pause
                elif self._disk is not None and fd == self._disk.fd:
                    self._serve_disk(self._disk, service, events)
                    if self.state is not State.RUNNING:
                        return
                if flag[0]:
                    break
            if flag[0]:
                self._obey(wait=False)
            if self.state is not State.RUNNING:
                return
            # With the flag still up no order has come: one more step. A flag that was forgotten slows a
            # guest, it does not stop it.
            ran_queued = bool(queue)
            for _ in range(min(len(queue), QUEUED_A_TURN)):
                service.run_queued()
                self._steps += 1
                if flag[0]:
                    break
            if loading and not (ran_queued and flag[0]) and (now_ns := monotonic_ns()) >= load_due_ns:
                still_due = load.run(now_ns)
                self._steps += 1
                load_due_ns = now_ns if still_due else now_ns + load.wait_ns(now_ns)
            if service.lingering:
                self._sweep(service)

    def _running_parts(self) -> tuple[Service, Load]:
        if self._service is None or self._load is None:
            raise RuntimeError("the machine has not been started or attached")
        return self._service, self._load

    def _serve_disk(self, disk: Disk, service: Service, events: int) -> None:
        """Take an answer of the disk. One that fences this guest is the last that it does."""
        self._steps += 1
        try:
            disk.ready(events, service.disk_done)
        except Fenced as error:
            self.state = State.FENCED
            self._ran_ns += time.monotonic_ns() - self._running_since_ns
            self._control.send({"fenced": str(error)})
        except DiskLost:
            self._control.send({"disk": "lost"})

    def _sweep(self, service: Service) -> None:
        now_s = time.monotonic()
        if now_s >= self._next_sweep_s:
            self._next_sweep_s = now_s + SWEEP_S
            service.sweep()

    def _accept(self, listener: socket.socket, most: int) -> int:
        """Accept up to `most` connections; returns how many there were."""
        service, _ = self._running_parts()
        for count in range(most):
            try:
                fd, _ = listener._accept()  # type: ignore[attr-defined] # what accept() wraps at twice the cost
            except (BlockingIOError, ConnectionAbortedError):
                return count
            service.accept(fd)
        return most

    # -- orders ------------------------------------------------------------------------------------------

    def _obey(self, *, wait: bool) -> None:
        """Carry out one order, if there is one. Whatever is wrong with it is answered; the machine is as
        before then.
        """
        try:
            received = self._control.receive(wait=wait)
        except ControlError as error:
            self._control.send({"error": str(error)})
            return
        if received is None:
            return
        message, fds = received
        order = message.get("do")
        allowed = ORDERS.get(order) if isinstance(order, str) else None
        try:
            if allowed is None:
                raise ControlError(f"no order {order!r}: one of {', '.join(ORDERS)}")
            if self.state not in allowed:
                raise ControlError(f"cannot {order} while {self.state.value}")
            if order in ("start", "attach", "disk"):
                answer = getattr(self, f"_order_{order}")(message, fds)
            elif order == "sync":
                answer = {"token": message.get("token"), "state": self.state.value}
            else:
                answer = getattr(self, f"_order_{order}")()
        except (ControlError, GuestFault, HeapError, OSError, ValueError) as error:
            for fd in fds:
                if fd not in self._owned():
                    os.close(fd)
            answer = {"error": f"{order}: {error}"}
        if answer is not None:
            self._control.send(answer)

    def _order_start(self, message: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        self.state = State.FAILED
        memory = Memory(self.region.view)
        fill(memory, self.spec.fill, self.spec.seed)
        if "disk" in message:
            self._disk = Disk(memory, self._epoll, _disk_bytes(message, fds))
            self._disk.connect(_disk_socket(fds[0]))
        self._assemble(memory, fresh=True)
        for address in self.spec.addresses:
            self._listen(listening_socket(address, self.program_class))
            if self._datagrams is not None:
                self._datagrams.adopt(udp_socket(datagram_socket(address, self.program_class)))
        return self._go()

    def _order_pause(self) -> None:
        self._flag[0] = 0
        self.state = State.PAUSED
        paused_ns = time.monotonic_ns()
        if self._disk is not None:
            self._disk.pause()
        for listener in self._listeners.values():
            while self._accept(listener, BACKLOG) == BACKLOG:
                pass
        self._ran_ns += paused_ns - self._running_since_ns
        self._tell_sockets({"paused": True, "t_ns": paused_ns, "registers": self.registers()})

    def _order_sockets(self) -> None:
        self._tell_sockets({})

    def _tell_sockets(self, head: dict[str, Any]) -> None:
        service, _ = self._running_parts()
        sockets: list[list[int | str]] = [[i, fd, "listener"] for i, fd in enumerate(self._listeners)]
        sockets += [[i, fd, "datagrams"] for i, fd in enumerate(self._datagram_fds())]
        sockets += [[slot, fd, "connection"] for slot, fd in service.bound()]
        for start in range(0, max(1, len(sockets)), SOCKETS_A_MESSAGE):
            part = sockets[start : start + SOCKETS_A_MESSAGE]
            self._control.send({**head, "sockets": part, "last": start + SOCKETS_A_MESSAGE >= len(sockets)})
            head = {}

    def _order_continue(self) -> dict[str, Any]:
        return self._go()

    def _order_attach(self, message: dict[str, Any], fds: list[int]) -> dict[str, Any] | None:
        """Failing leaves the machine FAILED: it can only be stopped, with every socket that it got."""
        self.state = State.FAILED
        if self._service is None:
            self._restore_registers(message.get("registers"))
            memory = Memory(self.region.view)
            if Ring.in_ram(memory):
                self._disk = Disk(memory, self._epoll)
            self._assemble(memory, fresh=False)
        service, _ = self._running_parts()
        sockets = message.get("sockets", [])
        if len(sockets) != len(fds):
            raise ControlError(f"{len(sockets)} sockets were named and {len(fds)} descriptors came")
        for (slot, kind), fd in zip(sockets, fds, strict=True):
            if kind == "connection":
                service.adopt(slot, fd)
                self._attached.append(slot)
            elif kind == "listener":
                self._listen(socket.socket(fileno=fd))
            elif kind == "datagrams":
                self._adopt_datagrams(fd)
            elif kind == "disk":
                self._reconnect_disk(message, fd)
            else:
                raise ControlError(f"no kind of socket {kind!r}")
        for slot in message.get("gone", []):
            service.lose(slot)
        if not message.get("last", True):
            self.state = State.NEW
            return None
        missing = set(service.table.slots()) - set(self._attached)
        if missing:
            raise ControlError(f"{len(missing)} connections came without a socket: slot {min(missing)} ...")
        if self._datagrams is not None and not self._datagrams.sockets:
            raise ControlError("the program has a UDP port, and no socket of it came")
        if self._disk is not None and self._disk.fd < 0:
            raise ControlError("the guest has a disk, and no socket of it came")
        self.state = State.ATTACHED
        return {"attached": True}

    def _order_resume(self) -> dict[str, Any]:
        return self._go()

    def _order_disk(self, message: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        if len(fds) > 1:
            raise ControlError(f"{len(fds)} descriptors came with a disk: one is needed")
        if fds:
            self._reconnect_disk(message, fds[0])
        elif self._disk is not None:
            self._disk.disconnect()
        return {"connected": bool(fds)}

    def _order_stats(self) -> dict[str, Any]:
        return self.stats()

    def _order_stop(self) -> dict[str, Any]:
        self.state = State.STOPPED
        return {"stopped": True}

    # -- parts of orders ---------------------------------------------------------------------------------

    def _assemble(self, memory: Memory, *, fresh: bool) -> None:
        """Put program, connections and load on top of RAM. GuestFault when the program's boot or attach
        raises.
        """
        program = self.program_class(memory)
        program.host, program.disk = self.spec.host, self._disk
        service = Service(
            program, memory, self._epoll, tcp_socket, time.monotonic_ns,
            max_connections=self.spec.max_connections, linger_ns=self.spec.linger_ns,
        )  # fmt: skip
        if self.program_class.udp_port:
            self._datagrams = program.datagrams = Datagrams(memory, self._epoll, service.datagram)
        load = Load(memory, self.spec.load)
        handler = "boot"
        try:
            if fresh:
                with self._disk.booting() if self._disk is not None else nullcontext():
                    program.boot()
            handler = "attach"
            program.attach()
        except Exception as error:
            raise GuestFault(self.spec.program, handler, error) from error
        service.faults.extend(self._registers.get("faults", []))
        self._service, self._load = service, load

    def _listen(self, listener: socket.socket) -> None:
        listener.setblocking(False)
        self._listeners[listener.fileno()] = listener
        self._epoll.register(listener.fileno(), select.EPOLLIN)

    def _adopt_datagrams(self, fd: int) -> None:
        """Serve the UDP socket `fd`. ControlError where the program has no UDP port."""
        if self._datagrams is None:
            raise ControlError("a UDP socket came, and the program has no UDP port")
        self._datagrams.adopt(udp_socket(socket.socket(fileno=fd)))

    def _datagram_fds(self) -> list[int]:
        return list(self._datagrams.sockets) if self._datagrams is not None else []

    def _reconnect_disk(self, message: dict[str, Any], fd: int) -> None:
        """Give the disk the connection `fd`; it may have grown. ControlError where there is no disk."""
        if self._disk is None:
            raise ControlError("a socket of a disk came, and the guest has no disk")
        if "disk" in message:
            self._disk.grow(_disk_bytes(message, [fd]))
        self._disk.connect(_disk_socket(fd))

    def _go(self) -> dict[str, Any]:
        self.state = State.RUNNING
        self._running_since_ns = time.monotonic_ns()
        if self._load is not None:
            self._load.resume(self._running_since_ns)
        if self._disk is not None:
            self._disk.resume()
        return {"running": self._running_since_ns}

    def _owned(self) -> set[int]:
        bound = self._service.bound() if self._service is not None else []
        disk = self._disk.fd if self._disk is not None else -1
        return {*self._listeners, *self._datagram_fds(), *(fd for _, fd in bound), disk}

    def registers(self) -> dict[str, Any]:
        """What the machine remembers outside RAM; JSON-able."""
        service, _ = self._running_parts()
        return {
            "version": REGISTERS_VERSION,
            "program": self.spec.program,
            "steps": self._steps,
            "ran_ns": self._ran_ns,
            "faults": service.faults,
        }

    def _restore_registers(self, registers: Any) -> None:
        if not isinstance(registers, dict) or registers.get("version") != REGISTERS_VERSION:
            raise ControlError(f"registers of version {REGISTERS_VERSION} are needed, not {registers!r:.80}")
        if registers.get("program") != self.spec.program:
            raise ControlError(f"registers of {registers.get('program')!r}, not of {self.spec.program!r}")
        self._registers = registers
        self._steps, self._ran_ns = int(registers["steps"]), int(registers["ran_ns"])

    def stats(self) -> dict[str, Any]:
        """What is known of the guest now; JSON-able.

        `listeners` and `datagram_sockets` are descriptors; `faults` counts the program's, `fault_lines` has
        the first of them; `refused` are connections for which there was no slot or memory, `lingered` those
        whose peer never ended; `disk` is there where the guest has one, see Disk.stats.
        """
        answer: dict[str, Any] = {"state": self.state.value, "host": self.spec.host, "steps": self._steps}
        if self._service is None or self._load is None:
            return answer
        running = self.state is State.RUNNING
        ran_ns = self._ran_ns + (time.monotonic_ns() - self._running_since_ns if running else 0)
        heap = self._service.table.memory.heap
        try:
            program = self._service.program.stats()
        except Exception as error:
            program = {"error": str(GuestFault(self.spec.program, "stats", error))}
        return {
            **answer,
            "listeners": list(self._listeners),
            "datagram_sockets": self._datagram_fds(),
            "connections": self._service.table.in_use,
            **dict(zip(COUNTERS, self._service.counters.tolist(), strict=True)),
            "fault_lines": self._service.faults,
            "ran_ns": ran_ns,
            "load": self._load.stats(ran_ns),
            "heap": {"used_bytes": heap.used_bytes, "free_bytes": heap.free_bytes},
            "program": program,
            **({"datagrams": self._datagrams.stats()} if self._datagrams is not None else {}),
            **({"disk": self._disk.stats()} if self._disk is not None else {}),
        }


def _disk_bytes(message: dict[str, Any], fds: list[int]) -> int:
    """How large the message says that the disk is. Raises ControlError."""
    described = message["disk"]
    size = described.get("bytes") if isinstance(described, dict) else None
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise ControlError(f'a disk is described by {{"bytes": N}}, not by {described!r:.80}')
    if len(fds) != 1:
        raise ControlError(f"{len(fds)} descriptors came with a disk: one is needed")
    return size


def _disk_socket(fd: int) -> socket.socket:
    connection = socket.socket(fileno=fd)
    connection.setblocking(False)
    return connection


def main(argument: dict[str, Any], fds: Sequence[int]) -> int:
    """The guest's process: `fds` are the control socket, the memfd of RAM and the memfd of the flag page;
    all are ours now.

    Returns 0 when stopped, 1 when the agent is gone, 2 when there is nothing to run (which is told first).
    """
    control = Control(socket.socket(fileno=fds[0]))
    try:
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        spec = MachineSpec.from_json(argument)
        sys.path[:0] = spec.import_path
        region = Region.from_fd(fds[1])
        flag = memoryview(mmap.mmap(fds[2], mmap.PAGESIZE))
        machine = Machine(spec, control, region, flag)
        if spec.populate:
            region.populate()
    except (ProgramError, ValueError, OSError) as error:
        control.send({"error": str(error)})
        return 2
    ready: dict[str, Any] = {
        "ready": True,
        "pid": os.getpid(),
        "address": region.address,
        "ram_bytes": region.size,
        "program": spec.program,
        "port": machine.program_class.port,
        "tracking_error": None,
    }
    tracking: list[int] = []
    try:
        tracking.append(open_for_tracking(region.address, region.size))
    except OSError as error:
        ready["tracking_error"] = str(error)
    control.send(ready, tracking)
    for fd in tracking:
        os.close(fd)
    gc.collect()
    gc.freeze()  # what is imported is never garbage: later collections are short
    return machine.run()
