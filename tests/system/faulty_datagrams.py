"""A UDP echo that does one thing wrong, on purpose, and says when. The probes must find it out."""

from __future__ import annotations

import json
import os
import socket
import time
from typing import Any

from netns.forkserver import ready
from testbed.measure.datagram import MARKER, handled, parse


def serve(argument: dict[str, Any], fds: list[int]) -> int:
    """Echo on the bound socket `fds[0]` for ever, stamping as the guest's echo does. With datagram number
    `at` do `fault` instead: `drop`, `drop-rest` (it and all later ones that are counted), `duplicate`, `swap`
    (after the next one), `flip`, `pause` (for `ms`), or `none`. `[begin_ns, end_ns]` is then written to the
    pipe `fds[1]`.
    """
    served = socket.socket(fileno=fds[0])
    fault, at = argument["fault"], argument["at"]
    kept: list[tuple[bytes, Any]] = []
    ready()
    while True:
        data, sender = served.recvfrom(65536)
        seen = parse(data)
        assert seen is not None
        if seen.number == MARKER:
            served.sendto(handled(data, time.monotonic_ns()), sender)
            continue
        begin_ns = time.monotonic_ns()
        answers = [(data, sender)]
        if fault == "drop-rest" and seen.number >= at:
            answers = []
        if seen.number == at:
            match fault:
                case "drop":
                    answers = []
                case "duplicate":
                    answers *= 2
                case "swap":
                    kept, answers = answers, []
                case "flip":
                    answers = [(data[:-1] + bytes([data[-1] ^ 1]), sender)]
                case "pause":
                    time.sleep(argument["ms"] / 1000)
            os.write(fds[1], json.dumps([begin_ns, time.monotonic_ns()]).encode())
        for one, to in answers:
            served.sendto(handled(one, time.monotonic_ns()), to)
        if seen.number == at + 1:
            for one, to in kept:
                served.sendto(handled(one, time.monotonic_ns()), to)
