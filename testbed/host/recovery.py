"""An agent in the place of one that died: its guest is found, and brought to the one state that is right.

What an agent leaves behind stands where it stood: a running guest runs, a paused one waits, frozen sockets
are frozen, and what its supervisor kept (:mod:`testbed.host.keeper`) says how far a migration had come::

    stage      the guest is    then
    HOSTED     running         nothing was begun that anybody saw: it runs on
    HOSTED     paused          its state had not left: it goes on here
    EXPOSED    paused          with a lease: claimed, and it goes on here or is the other host's. Without one:
                               it goes on here, for the other host discards what was never committed
    YIELDED    paused          without a lease nobody can tell whether it runs there: it stays paused, until
                               somebody who knows says ``resume`` or ``release``
    ARRIVING   any             with a lease that is ours: as ARRIVED. Else it is removed, for it is another's
    ARRIVED    attached        it is ours: its sockets are completed, and it goes on here
    any        dead            it is removed: what is left of it is its disk

Frames that the dead agent held are lost, and sent again by their senders.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from contextlib import ExitStack

from testbed.host import devices
from testbed.host.guest_process import GuestError
from testbed.host.hosted import HostedGuest
from testbed.host.keeper import Keeper, Kept, Stage
from testbed.host.network import Site
from testbed.kernel import tcp_repair
from testbed.memory.tracking import Capability
from testbed.migration.arbiter import Arbiter, ask
from testbed.migration.errors import Undecided
from testbed.migration.ownership import (
    SOURCE,
    TARGET,
    Event,
    Lease,
    Ownership,
    SourceOwnership,
    TargetOwnership,
    seen,
)
from testbed.migration.source import TraceLike
from testbed.tcp.handshakes import let_in
from testbed.tcp.state import ConnectionState
from testbed.tcp.thaw import release


def recover(
    site: Site, kept: Kept, keeper: Keeper, trackers: Sequence[Capability], trace: TraceLike
) -> tuple[HostedGuest | None, str]:
    """The guest that `kept` describes, if this host has one now, and a sentence on what was found.

    While the storage that decides cannot be asked this waits. GuestError where the guest is dead: nothing of
    it is left here then.
    """
    try:
        guest = HostedGuest.adopt(site, kept, trackers)
    except GuestError:
        keeper.drop()
        raise
    stage, found = keeper.journal.stage, guest.process.found
    if stage is Stage.YIELDED and found != "running":
        return guest, f"{stage.name.lower()} and {found}: in doubt, it may run elsewhere"
    guest.epoch = keeper.journal.epoch
    with ExitStack() as stack:
        arriving = stage in (Stage.ARRIVING, Stage.ARRIVED)
        begun = Lease("source", guest.epoch - 1) if arriving else Lease(site.name, guest.epoch)
        arbiter = guest.arbiter(begun)
        if arbiter is not None:
            stack.callback(arbiter.close)
        if not _is_ours(stage, found, arbiter, site.name, trace):
            guest.close()
            keeper.drop()
            return None, f"{stage.name.lower()} and {found}: another host's, removed here"
        regain = None if arbiter is None or arriving else arbiter.epoch
    if regain is None:
        wake(guest, keeper)
    else:
        guest.epoch = regain
        guest.let_go_of_disk()
        wake(guest, keeper)
        guest.regain_disk(regain)
    return guest, f"{stage.name.lower()} and {found}: runs here"


def _is_ours(stage: Stage, found: str, arbiter: Arbiter | None, site_name: str, trace: TraceLike) -> bool:
    if stage is Stage.ARRIVED:
        return True
    if stage is Stage.ARRIVING:
        return arbiter is not None and found == "attached" and _was_claimed(arbiter, site_name, trace)
    if found == "running" or stage is Stage.HOSTED:
        return True
    if arbiter is None:
        return True
    say = Ownership(SOURCE, SourceOwnership.DOUBT, arbiter.lease.epoch)
    while say.state.must_claim:
        say.note(ask(arbiter, trace))
    return say.state.may_run


def _was_claimed(arbiter: Arbiter, site_name: str, trace: TraceLike) -> bool:
    """Whether the agent that died had claimed the guest: its claim may still be under way, so this looks
    until the lease has moved. It does, for the source claims a guest whose target fell silent.
    """
    say = Ownership(TARGET, TargetOwnership.LOOKING, arbiter.lease.epoch)
    while say.state is TargetOwnership.LOOKING:
        try:
            say.note(seen(arbiter.look(), site_name, arbiter.lease.epoch))
        except Undecided as undecided:
            trace.event("undecided", reason=str(undecided))
            trace.flush()
            say.note(Event.UNANSWERED)
    return say.state.may_run


def wake(guest: HostedGuest, keeper: Keeper) -> None:
    """Let a guest live that is this host's, however far its last agent had come: may be done twice."""
    process, network = guest.process, guest.network
    network.port.open()
    running = process.state() == "running"
    if running:
        _let_in(guest, process.ask({"do": "stats"})["listeners"])
    else:
        sockets = process.sockets()
        _let_in(guest, [fd for _, fd, kind in sockets if kind == "listener"])
        came = dict(devices.decode_sockets(keeper.connections()))
        for slot, fd, kind in sockets:
            if kind == "connection":
                state = came.get(slot)
                _release(guest, fd, state if isinstance(state, ConnectionState) else None)
    network.deliver(())
    keeper.settle(guest.epoch)
    if not running:
        network.announcer.announce()
        process.unpause()


def _let_in(guest: HostedGuest, listeners: Sequence[int]) -> None:
    with ExitStack() as stack:
        let_in([stack.enter_context(guest.process.borrow(fd)) for fd in listeners])


def _release(guest: HostedGuest, fd: int, state: ConnectionState | None) -> None:
    """Out of repair mode, if it is in it. `state` is what came with a guest that was on its way in."""
    with guest.process.borrow(fd) as sock:
        if not tcp_repair.in_repair(sock):
            return
        if state is not None:
            release(sock, state, probe=False)
        else:
            tcp_repair.repair_off(sock, probe=False)
            # Repair mode has hidden it; every connection of a guest has it, from its listener.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
