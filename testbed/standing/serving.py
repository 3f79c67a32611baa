"""The life of a server's process: bring the lab up, say so, serve it until it is to go down, bring it
down."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable
from typing import Any

from testbed.experiment.capturing import Capturing
from testbed.standing.background import Voice
from testbed.standing.life import Life
from testbed.standing.server import GoingDown, Server
from testbed.standing.wanted import Wanted


def serve(
    wanted: Wanted, listener: socket.socket, voice: Voice, on_standing: Callable[[Life], None]
) -> None:
    """Serve the lab on `listener`, from when it stands until somebody wants it down, or SIGTERM comes.

    `voice` hears what is done, and then, after `on_standing`, that it stands: its folder, its nodes, links
    and guests. StarterGone if nobody hears it any more: then it has gone down again. Raises what a run raises
    that cannot be brought up.
    """

    def go_down(_number: int, _frame: Any) -> None:
        raise GoingDown

    def say(text: str) -> None:
        voice.say({"say": text})

    with Capturing(wanted.pcap, wanted.folder) as capturing:
        with Life(wanted, say, capturing) as life:
            server = Server(life, listener)
            on_standing(life)
            guests = {vm.name: {"ipv4": vm.ipv4, "ipv6": vm.ipv6} for vm in life.scenario.vms}
            told = {"folder": str(wanted.folder), "nodes": life.nodes, "links": life.links, "guests": guests}
            voice.say({"ok": told})
            voice.close()
            signal.signal(signal.SIGTERM, go_down)
            last = server.serve()
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it is going down already
            server.end_captures()
            result = life.finish()
            capturing.stop()
        life.write_captures(capturing)
    outcome = None if result is None else result.outcome
    server.close(last, {"ok": {"folder": str(wanted.folder), "outcome": outcome}})
