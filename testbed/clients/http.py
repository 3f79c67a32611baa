"""HTTP requests: GET of one path, on connections that are kept or on a new one each time; statuses counted.

A kept connection asks in a closed loop, a new one each time is churn whose visits ask in HTTP. An answer of
any status is an answer, and counted; corrupted is one that is no HTTP, or a counter of the guest's that did
not grow (:class:`testbed.clients.codecs.HttpCodec`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from testbed.clients.churn import Churn
from testbed.clients.closed_loop import ClosedLoop
from testbed.clients.codecs import Codec, HttpCodec
from testbed.clients.loop import Loop
from testbed.clients.probe import Probe
from testbed.clients.spec import ClosedLoopSpec, HttpSpec
from testbed.measure.continuity import Window
from testbed.measure.trace import Trace


def http_probe(spec: HttpSpec, loop: Loop, trace: Trace, client: str, first_connection: int) -> Probe:
    """The probe that `spec` asks for."""
    if spec.kept:
        return KeptHttp(spec, loop, trace, client, first_connection)
    return NewHttp(spec, loop, trace, first_connection)


class KeptHttp(ClosedLoop):
    """Each connection asks again when it has its answer and its turn."""

    kind = "http"

    def __init__(
        self, spec: HttpSpec, loop: Loop, trace: Trace, client: str, first_connection: int
    ) -> None:
        self._path = spec.path
        self._codecs: list[HttpCodec] = []
        asking = ClosedLoopSpec(spec.target, "http", spec.connections, spec.interval_us, path=spec.path)
        super().__init__(asking, loop, trace, client, first_connection)

    def codec(self, spec: ClosedLoopSpec, _client: str, _number: int) -> Codec:
        self._codecs.append(HttpCodec(spec.target.address, self._path, Counter()))
        return self._codecs[-1]

    def report(self, windows: Sequence[Window]) -> dict[str, Any]:
        """As of every probe, and `statuses`: how often each came, in all and of each connection."""
        told = super().report(windows)
        for codec, row in zip(self._codecs, told["per_connection"], strict=True):
            row["statuses"] = _told(codec.statuses)
        return {**told, "statuses": _told(sum((codec.statuses for codec in self._codecs), Counter()))}


class NewHttp(Churn):
    """Each request on a connection of its own: connect, ask, read, close."""

    kind = "http"

    def __init__(self, spec: HttpSpec, loop: Loop, trace: Trace, number: int) -> None:
        self._path = spec.path
        self._statuses: Counter[str] = Counter()
        rate_per_s = spec.connections * 1e6 / spec.interval_us
        super().__init__(spec.target, rate_per_s, 0, loop, trace, number)

    def codec(self, _offset: int) -> Codec:
        return HttpCodec(self.target.address, self._path, self._statuses)

    def report(self, windows: Sequence[Window]) -> dict[str, Any]:
        """As of churn, and `statuses`: how often each came."""
        return {**super().report(windows), "statuses": _told(self._statuses)}


def _told(statuses: Counter[str]) -> dict[str, int]:
    return dict(sorted(statuses.items()))
