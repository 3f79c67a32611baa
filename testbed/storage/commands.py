"""What a host's volume service does when it is told: one method a command, one answer each.

Any host takes any command. What changes the table of disks is the coordinator's to do: another host asks it
over the migration network, and if it does not answer takes the coordination over, which fences the old one
off.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from typing import Any

from testbed.storage.client import NbdRefused
from testbed.storage.layout import EXTENT_BYTES, VolumeError, check_name
from testbed.storage.lun_client import LunRefused
from testbed.storage.mounted import (
    CONTROL_DEADLINE_S,
    EXCLUSIVE,
    SHARED,
    Deposed,
    MountedVolume,
    Owned,
    format_lun,
)
from testbed.storage.nbd import NoSuchExport
from testbed.storage.open_disks import Gate, OpenDisk, OpenDisks
from testbed.storage.paths import Offline, Paths
from testbed.storage.rights import Rights
from testbed.storage.stream import Address
from testbed.storage.volume_client import VolumeClient, VolumeLost, VolumeRefused

PEER_CONNECT_S = 1.0
PEER_ANSWER_S = 3 * CONTROL_DEADLINE_S
_TRIES = 4

Answer = dict[str, Any]


class Refused(Exception):
    """A command that cannot be carried out as things are."""

    def __init__(self, text: str, kind: str) -> None:
        super().__init__(text)
        self.kind = kind


class Commands:
    """The state of a service between commands: whether the volume is mounted, and who has its disks open. For
    any thread. `names` says which host has which key; `peer` is where the other host's service is reached."""

    def __init__(
        self, paths: Paths, rights: Rights, names: Mapping[str, str], peer: Address | None
    ) -> None:
        self.open_disks = OpenDisks()
        self.gate = Gate()
        self._paths = paths
        self._rights = rights
        self._names = dict(names)
        self._peer = peer
        self._mounting = threading.Lock()
        self._mounted: MountedVolume | None = None
        self._known: dict[str, Callable[[Answer], Answer]] = {
            "format": self._format,
            "mount": self._mount,
            "dismount": self._dismount,
            "create": self._create,
            "grow": self._grow,
            "delete": self._delete,
            "disks": self._disks,
            "lease": self._lease,
            "claim": self._claim,
            "prepare": self._prepare,
            "coordinate": self._coordinate,
            "maintenance": self._maintenance,
            "state": self._state,
        }

    def answer(self, request: Mapping[str, Any]) -> Answer:
        """Carry out one request; {"ok": {...}} or {"error": one line, "kind", "detail"}."""
        command = self._known.get(str(request.get("do")))
        try:
            if command is None:
                known = ", ".join(self._known)
                raise Refused(f"unknown command {request.get('do')!r}; known are: {known}", "BadRequest")
            return {"ok": command(dict(request))}
        except (Refused, VolumeError) as error:
            return self._refusal(error, error.kind, {})
        except (LunRefused, VolumeRefused) as error:
            kind = "NoSuchDisk" if error.kind == "NoSuchLease" else error.kind
            return self._refusal(error, kind, error.detail)
        except Owned as error:
            return self._refusal(error, "Busy", {"holder": error.holder})
        except Offline as error:
            return self._refusal(error, "Offline", {})
        except Deposed as error:
            return self._refusal(error, "NotCoordinator", {})
        except NbdRefused as error:
            kind = {"ENOSPC": "Full", "EPERM": "Fenced", "ENOENT": "NoSuchLun"}.get(error.name, "Failed")
            return self._refusal(error, kind, {})

    def _refusal(self, error: Exception, kind: str, detail: dict[str, Any]) -> Answer:
        """The answer that says no, with hosts by their names."""
        text = str(error)
        for key, name in self._names.items():
            text = text.replace(key, name)
        holder = {"holder": self._named(detail["holder"])} if "holder" in detail else {}
        return {"error": text, "kind": kind, "detail": {**detail, **holder}}

    def _named(self, key: str) -> str:
        return self._names.get(key, key)

    def names(self) -> list[str]:
        """The disks there are; none while that cannot be known."""
        try:
            return [disk.name for disk in self._demand_mounted().table().disks]
        except (Refused, VolumeError, Offline, NbdRefused):
            return []

    def open(self, export: str) -> OpenDisk:
        """The disk that an NBD client calls DISK?epoch=N, or DISK, for the epoch that this host owns it at
        now. NoSuchExport, with the reason."""
        name, mark, epoch = export.partition("?epoch=")
        try:
            with ExitStack() as undo:
                check_name(name)
                if mark and not (epoch.isdecimal() and epoch.isascii() and len(epoch) < 20):
                    raise Refused(f"export {export!r}: must be like DISK or DISK?epoch=3", "BadRequest")
                undo.enter_context(self.open_disks.holding(name))  # before we look: nobody deletes it then
                disk = self._opened(name, int(epoch) if mark else None)
                disk.at_its_end(undo.pop_all())
                return disk
        except (Refused, VolumeError, Owned, Offline, LunRefused, NbdRefused) as error:
            raise NoSuchExport(self._refusal(error, "", {})["error"]) from error

    def _opened(self, name: str, epoch: int | None) -> OpenDisk:
        mounted = self._demand_mounted()
        epoch = self._own_epoch(mounted, name) if epoch is None else epoch
        prepared = self.open_disks.take_prepared(name, epoch)
        if prepared is not None:
            return prepared
        return OpenDisk(mounted.volume, mounted.disk(name), mounted.connection(name, epoch), self.gate)

    def _own_epoch(self, mounted: MountedVolume, name: str) -> int:
        lease = mounted.lease(name)
        if lease["holder"] != self._rights.key:
            raise Owned(name, lease["holder"], lease["epoch"])
        return int(lease["epoch"])

    # ---- the volume as a whole

    def _format(self, request: Answer) -> Answer:
        size = _number(request, "bytes") if "bytes" in request else None
        extent = _number(request, "extent_bytes") if "extent_bytes" in request else EXTENT_BYTES
        with self._mounting:
            if self._mounted is not None:
                raise Refused("the volume is mounted here: dismount it first", "Busy")
            return {"bytes": format_lun(self._paths, self._rights, size, extent)}

    def _mount(self, request: Answer) -> Answer:
        mode = request.get("mode", SHARED)
        if mode not in (SHARED, EXCLUSIVE):
            raise Refused(f"mode {mode!r}: must be {SHARED!r} or {EXCLUSIVE!r}", "BadRequest")
        preempt = _flag(request, "preempt", False)
        with self._mounting:
            if self._mounted is not None and self._mounted.mode != mode:
                raise Refused(f"the volume is mounted here already, {self._mounted.mode}", "Busy")
            if self._mounted is None:
                self._mounted = MountedVolume(self._paths, self._rights, mode, preempt)
        return self._state(request)

    def _dismount(self, _: Answer) -> Answer:
        with self._mounting:
            mounted = self._demand_mounted()
            self._demand_closed(None)
            mounted.dismount()
            self._mounted = None
        return {}

    def _maintenance(self, request: Answer) -> Answer:
        if not _flag(request, "on"):
            self.gate.open()
        elif not self.gate.close(CONTROL_DEADLINE_S):
            raise Refused("I/O of guests is still under way: maintenance has not begun", "Busy")
        return {}

    def _state(self, _: Answer) -> Answer:
        path, mounted = self._paths.state, self._mounted
        coordinator = mounted.coordinator() if mounted is not None and path != "offline" else None
        return {
            "volume": "maintenance" if self.gate.closed else path,
            "path": path,
            "mode": None if mounted is None else mounted.mode,
            "coordinator": None if coordinator is None else self._named(coordinator),
            "open": self.open_disks.counts(),
        }

    def _coordinate(self, _: Answer) -> Answer:
        self._demand_mounted().take_coordination()
        return {}

    # ---- disks

    def _disks(self, _: Answer) -> Answer:
        mounted = self._demand_mounted()
        table = mounted.table()
        leases = self._rights.status()["leases"]
        return {
            disk.name: {
                "bytes": disk.size_bytes,
                "holder": self._named(leases[disk.name]["holder"]),
                "epoch": leases[disk.name]["epoch"],
            }
            for disk in table.disks
            if disk.name in leases
        }

    def _create(self, request: Answer) -> Answer:
        name, size = check_name(request.get("disk", "")), _number(request, "bytes")
        identity = _identity(request)
        order = {"disk": name, "bytes": size, "identity": identity.hex}
        answer = self._change(request, order, lambda here: {"epoch": here.create(name, size, identity)})
        if "for" not in request and self._demand_mounted().lease(name)["holder"] != self._rights.key:
            answer = {"epoch": self._rights.claim(name, answer["epoch"])}
        return answer

    def _grow(self, request: Answer) -> Answer:
        name, size = check_name(request.get("disk", "")), _number(request, "bytes")

        def grow(mounted: MountedVolume) -> Answer:
            mounted.grow(name, size)
            return {}

        return self._change(request, {"disk": name, "bytes": size}, grow)

    def _delete(self, request: Answer) -> Answer:
        name = check_name(request.get("disk", ""))
        self._demand_closed(name)  # whoever asked: a reader would go on reading what another disk is made of
        asked_by = str(request.get("for", self._rights.key))

        def delete(mounted: MountedVolume) -> Answer:
            mounted.delete(name, asked_by)
            return {}

        return self._change(request, {"disk": name}, delete)

    def _change(self, request: Answer, order: Answer, do: Callable[[MountedVolume], Answer]) -> Answer:
        """Have a change of the table made: here if this host is the coordinator, else by the peer if that is,
        else here once the coordination has been taken over."""
        mounted = self._demand_mounted()
        for _ in range(_TRIES):
            try:
                return do(mounted)
            except Deposed:
                if "for" in request:
                    raise  # the peer has asked us, and will look again who it is
            answer = self._by_peer(mounted, str(request["do"]), order)
            if answer is not None:
                return answer
            with suppress(Deposed):  # by another host, at this very moment: we look again who it is
                mounted.take_coordination()
        raise Refused("the hosts cannot agree on a coordinator", "Busy")

    def _by_peer(self, mounted: MountedVolume, command: str, order: Answer) -> Answer | None:
        """What the peer answers; None if it is not the coordinator, or cannot be asked."""
        if self._peer is None or mounted.coordinator() in (None, self._rights.key):
            return None
        try:
            with VolumeClient.connect(self._peer, PEER_CONNECT_S) as peer:
                peer.be_patient(PEER_ANSWER_S)
                return peer.ask(command, **order, **{"for": self._rights.key})
        except VolumeLost:
            return None
        except VolumeRefused as refused:
            if refused.kind in ("NotCoordinator", "NotMounted"):
                return None
            raise

    # ---- leases

    def _lease(self, request: Answer) -> Answer:
        lease = self._demand_mounted().lease(check_name(request.get("disk", "")))
        return {"holder": self._named(lease["holder"]), "epoch": lease["epoch"]}

    def _claim(self, request: Answer) -> Answer:
        self._demand_mounted()
        name, expect = check_name(request.get("disk", "")), _number(request, "expect")
        return {"epoch": self._rights.claim(name, expect)}

    def _prepare(self, request: Answer) -> Answer:
        mounted = self._demand_mounted()
        name, epoch = check_name(request.get("disk", "")), _number(request, "epoch")
        self._rights.connect()
        disk = mounted.disk(name)
        nexus = mounted.connection(name, epoch)
        nexus.open()
        self.open_disks.prepare(epoch, OpenDisk(mounted.volume, disk, nexus, self.gate))
        return {"bytes": disk.size_bytes}

    def _demand_closed(self, name: str | None) -> None:
        """Refused "Busy" if the disk `name` (None: any) is open here."""
        self.open_disks.forget_prepared(name)
        open_now = self.open_disks.counts()
        for disk, connections in open_now.items():
            if name in (None, disk):
                here = self._named(self._rights.key)
                raise Refused(f"disk {disk!r} is open at {here} (connections: {connections})", "Busy")

    def _demand_mounted(self) -> MountedVolume:
        if self._mounted is None:
            raise Refused("the volume is not mounted on this host", "NotMounted")
        return self._mounted


def _number(request: Answer, name: str) -> int:
    value = request.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 63:
        raise Refused(f"{name} {value!r}: must be a whole number from 0 on", "BadRequest")
    return value


def _identity(request: Answer) -> uuid.UUID:
    """Who asks again says so by it; a new one for a new disk."""
    try:
        return uuid.UUID(hex=request["identity"]) if "identity" in request else uuid.uuid4()
    except (ValueError, AttributeError) as error:
        text = f"identity {request['identity']!r}: must be 32 hexadecimal digits"
        raise Refused(text, "BadRequest") from error


def _flag(request: Answer, name: str, default: bool | None = None) -> bool:
    value = request.get(name, default)
    if not isinstance(value, bool):
        raise Refused(f"{name} {value!r}: must be true or false", "BadRequest")
    return value

