"""iperf3, which others have made, as the measure of what a wire carries."""

from __future__ import annotations

import json
import subprocess
from contextlib import ExitStack

from netns.namespace import Namespace

PROGRAM = "iperf3"
DEADLINE_S = 30.0
"""How long it may take besides the time for which it is to send."""


class YardstickFailed(Exception):
    """It measured nothing: one line says why."""


def bulk_mbit(source: Namespace, target: Namespace, address: str, seconds: int) -> float:
    """What one TCP connection carries from `source` to `target`, which has `address`, in so many seconds
    (Mbit/s). YardstickFailed where that is not known in time; nothing of it is left then."""
    with ExitStack() as stack:
        server = _started(stack, target, "--server", "--one-off", "--forceflush")
        assert server.stdout is not None
        if not any(b"listening" in line for line in server.stdout):
            raise YardstickFailed(f"{PROGRAM} --server did not begin to listen")
        client = _started(stack, source, "--client", address, "--time", str(seconds), "--json")
        try:
            output, _ = client.communicate(timeout=seconds + DEADLINE_S)
        except subprocess.TimeoutExpired as error:
            raise YardstickFailed(f"{PROGRAM} was not done after {error.timeout:g} s") from error
    if not output:
        raise YardstickFailed(f"{PROGRAM} said nothing and ended with {client.returncode}")
    told = json.loads(output)
    if "error" in told:
        raise YardstickFailed(f"{PROGRAM}: {told['error']}")
    return float(told["end"]["sum_received"]["bits_per_second"]) / 1e6


def _started(stack: ExitStack, node: Namespace, *words: str) -> subprocess.Popen[bytes]:
    """The program in that node; it is killed at the end of `stack`, if it has not ended."""
    with node.entered():
        process = stack.enter_context(
            subprocess.Popen([PROGRAM, *words], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)
        )
    stack.callback(process.kill)
    return process
