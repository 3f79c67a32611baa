"""The LUN control service: commands in, answers out (see :mod:`testbed.storage.lun_client` for the
conversation)."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from typing import Any

from testbed.storage import lun_json
from testbed.storage.fencing import Lun
from testbed.storage.lun import Kind, LunError, LunState


def answer(luns: Mapping[str, Lun], request: Mapping[str, Any]) -> dict[str, Any]:
    """Carry out one request; its answer, {"ok": {...}} or {"error", "kind", "detail"}."""
    try:
        return {"ok": _carry_out(luns, request)}
    except LunError as error:
        return refusal(error)
    except OSError as error:  # the new state could not be kept, so it does not hold
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        kind = str(Kind.FULL) if full else "Failed"
        return {"error": f"the state cannot be kept: {error.strerror}", "kind": kind, "detail": {}}


def refusal(error: LunError) -> dict[str, Any]:
    """The answer that says why not."""
    return {"error": str(error), "kind": str(error.kind), "detail": error.detail}


def _carry_out(luns: Mapping[str, Lun], request: Mapping[str, Any]) -> dict[str, Any]:
    if request.get("do") == "luns":
        return {name: {"bytes": one.store.size_bytes} for name, one in sorted(luns.items())}
    name = request.get("lun")
    if not isinstance(name, str) or name not in luns:
        raise LunError(Kind.NO_SUCH_LUN, f"there is no LUN {name!r}; there are: {', '.join(sorted(luns))}")
    unit = luns[name]
    if request.get("do") == "status":
        return unit.state.as_dict()
    state = unit.change(lun_json.command(request))
    if request["do"] == "preempt" and request.get("abort"):
        unit.cut(lun_json.parse_key(request["victim"]))
    return _told(state, request)


def _told(state: LunState, request: Mapping[str, Any]) -> dict[str, Any]:
    """What an answer says besides "done": the lease that a command was about."""
    lease = state.leases.get(str(request.get("lease")))
    if lease is None:
        return {}
    return lease.as_dict() if request["do"] == "guard" else {"holder": lease.holder, "epoch": lease.epoch}
