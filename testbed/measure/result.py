"""The result of a run: the models behind ``result.json`` and its JSON Schema.

Times are milliseconds, sizes bytes, rates Mbit/s. The top level describes the run as a whole. With several
migrations the figures of one migration (`blackout_ms`, `rounds` and so on) are those of the one with the
longest blackout, counts are sums, and `migrations` holds one entry for each.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

SCHEMA_VERSION = 2
SCHEMA_FILE = Path(__file__).with_name("result.schema.json")

Outcome = Literal["completed", "rolled-back", "failed"]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", json_schema_serialization_defaults_required=True, frozen=True)


class Round(_Model):
    """One pre-copy round: pages sent (of them `zero_pages` as zeros), and pages that the guest dirtied
    meanwhile."""

    number: int
    pages: int
    zero_pages: int
    bytes: int
    duration_ms: float
    rate_mbit: float
    dirty_pages: int


class Ram(_Model):
    """`verified`: both copies were proved equal before the commit, and the source's copy once more before it
    was deleted."""

    bytes: int
    transferred_bytes: int
    final_pages: int
    verified: bool


class Gap(_Model):
    """The distribution over connections of the longest wait of each, in ms."""

    p50: float | None
    p99: float | None
    max: float | None


class Network(_Model):
    """What the network saw. `switch_relearned_ms` counts from the pause; None where the MAC address did not
    move."""

    announcements_sent: int
    announcements_seen: int
    frames_held: int
    frames_released: int
    frames_dropped: int
    switch_relearned_ms: float | None


class Span(_Model):
    """A predicted figure: `likely`, from `low` to `high`."""

    low: float
    likely: float
    high: float


class Errors(_Model):
    """How far each likely figure was off, as a share of what was measured: 0.1 is a tenth too much. None
    where the migration had no such figure. `rounds` is a difference of counts."""

    rounds: int | None
    transferred_bytes: float | None
    total_ms: float | None
    blackout_ms: float | None


class Predicted(_Model):
    """What was predicted before anything moved (testbed.migration.prediction). `basis` is where the guest's
    dirty behaviour is known from: `sampled` from it while it ran, or only from the load that `options` ask
    for, and `why` says why no more was known. `dirty_pages` is the curve: [interval in ms, distinct pages
    written within it]. `converges` is None where there is no pre-copy that could. `error` compares with what
    was measured; None where the migration did not complete."""

    basis: Literal["sampled", "options"]
    why: str | None
    rounds: Span
    transferred_bytes: Span
    total_ms: Span
    blackout_ms: Span
    converges: bool | None
    sentence: str
    dirty_pages: list[tuple[float, float]]
    error: Errors | None


class TableChange(_Model):
    """What a node believed anew during a migration. In a `neighbour` table (a client's) `key` is the guest's
    IP address and `now` the MAC address at which it is believed to be; in a `forwarding` table (a bridge's)
    `key` is the guest's MAC address and `now` the port behind which. None: no entry. `at_ms` counts from the
    pause."""

    node: str
    table: Literal["neighbour", "forwarding"]
    key: str
    was: str | None
    now: str | None
    at_ms: float


class Migration(_Model):
    """One migration of the guest `vm`. `blackout_parts_ms` add up to `blackout_ms`; both are None where the
    guest never stopped. `reason` says what kept it from completing, or its source from being deleted as a
    whole. `owner` is the host on which the guest ran afterwards, and `deleted` says whether the source had
    nothing of it then; `fault` was made on purpose."""

    outcome: Outcome
    reason: str | None
    source: str
    target: str
    owner: str | None
    deleted: bool
    fault: str | None
    total_ms: float
    blackout_ms: float | None
    blackout_parts_ms: dict[str, float]
    network_gap_ms: float | None
    rounds: list[Round]
    decision: str | None
    ram: Ram
    network: Network
    gap_ms: Gap
    phases_ms: dict[str, float]
    tables: list[TableChange] = []
    predicted: Predicted | None = None
    vm: str = "vm1"
    mode: str = "live"
    begun_ms: float = 0.0
    """When it was ordered, since the first one of the run was: several may be under way at once."""


class Rate(_Model):
    """What a bulk transfer reached before, during and after the migrations (bytes by time), and its median
    over milliseconds; in Mbit/s. None where there was no such time."""

    before: float | None
    during: float | None
    after: float | None
    median: float | None


class Connection(_Model):
    """One probe's connection (or, for churn, all of that client's) to the guest `vm`, as its client saw it.

    What its kind does not know is null. Of numbered packets: how long they took until they were back
    (`round_trip_ms`), of it `one_way_there_ms` (until the service had them) and `one_way_back_ms`; how many
    were `lost`, came twice (`duplicated`) or after a later one (`reordered`). Of a bulk transfer: its
    `rate_mbit`, and `stalled_ms`, the longest time without a byte. Of HTTP: how often each `statuses` came.

    `asked_late_ms` is how late the probe itself was at most to send what was due, since it began, because
    this machine did not let it run. Of a guest that paused meanwhile it can have seen less than there was.
    """

    client: str
    probe: str
    address: str
    requests: int
    longest_wait_ms: float | None
    longest_wait_at_ms: float | None
    baseline_wait_ms: float | None
    retransmits: int
    broken: str | None
    vm: str = "vm1"
    round_trip_ms: Gap | None = None
    one_way_there_ms: Gap | None = None
    one_way_back_ms: Gap | None = None
    lost: int | None = None
    duplicated: int | None = None
    reordered: int | None = None
    rate_mbit: Rate | None = None
    stalled_ms: float | None = None
    statuses: dict[str, int] | None = None
    asked_late_ms: float | None = None


class Clients(_Model):
    """All clients together. `retransmits` is what their kernels sent again (TCP_INFO); `retransmits_needless`
    those of them of which the guest had the first copy already (D-SACK, RFC 2883): tail probes and late
    acknowledgements. Of the ledgers of a durable store: writes `acknowledged`, of them `writes_lost`, values
    that were never sent (`writes_phantom`), and ledgers that could not be read back in the end
    (`ledgers_unsettled`). `packets_…` are of UDP and ICMP, of which nobody promises that none is lost.
    """

    connections: int
    requests: int
    broken: int
    resets: int
    failed_connects: int
    bytes_lost: int
    bytes_duplicated: int
    bytes_corrupted: int
    retransmits: int
    retransmits_needless: int
    acknowledged: int
    writes_lost: int
    writes_phantom: int
    ledgers_unsettled: int
    packets_lost: int = 0
    packets_duplicated: int = 0
    packets_reordered: int = 0
    gap_ms: Gap
    baseline_gap_ms: Gap
    each: list[Connection]


class ProgramRun(_Model):
    """An ordinary program that ran in a node. It has an `exit_status`, or the `signal` that ended it, or,
    while it runs, neither. `ended_by`: the program itself, its deadline, or the end of the lab. `begun_ns` is
    on the events' clock; the tails are the last 4096 bytes of what the files in the run's folder hold."""

    name: str
    node: str
    command: list[str]
    exit_status: int | None
    signal: str | None
    ended_by: Literal["itself", "deadline", "lab"] | None
    begun_ns: int
    duration_ms: float | None
    output_file: str
    error_file: str
    output_tail: str
    error_tail: str


class CaptureFile(_Model):
    """What passed over a link: a pcapng file, by its name in the run's folder. `dropped` frames found no room
    and are not in it; `stopped` says why nothing was taken from some moment on, null where all was. `bytes`
    are those of the frames in it, of a frame that was cut short of what is there."""

    link: str
    file: str
    frames: int
    bytes: int
    dropped: int
    stopped: str | None


class Check(_Model):
    """One thing that had to hold, and a sentence that says how it came out. A `waived` one has passed
    whatever came out: the scenario shows a failure, and `detail` says whether it did."""

    name: str
    passed: bool
    detail: str
    waived: bool = False


class Guest(_Model):
    """What a guest says of itself at the end of the run. `steps` is 0 where it does not run any more."""

    vm: str = "vm1"
    owner: str | None = None
    """The host on which it runs."""
    program: str
    steps: int
    faults: list[str]
    dirty_rate_pages_per_s: float | None
    program_stats: dict[str, Any]
    """What the program says of itself (testbed.guest.program.Program.stats)."""


class Instrument(_Model):
    """The instrument's own error, from the last calibration of this machine and this version
    (``testbed calibrate``): over pauses of known length, a client's longest wait less the same wait as its
    network card saw it. `gap_error_ms` is the median with its sign, `gap_error_p95_ms` of the magnitude.
    `gap_bound_ms` is the median against the guest's word alone, its first steps and the way back included.
    `holds`: everything in it was within what is promised."""

    calibrated_at: str
    host: str
    processor: str
    kernel: str
    version: str
    gap_error_ms: float
    gap_error_p95_ms: float
    gap_bound_ms: float
    holds: bool


class LinkConditions(_Model):
    """What was asked of one direction of a link. `loss`, `duplicate` and `reorder` are shares of the frames;
    None: no rate, or no queue of a length that was asked for."""

    rate_mbit: float | None
    delay_ms: float
    jitter_ms: float
    distribution: str
    loss: float
    duplicate: float
    reorder: float
    queue_frames: int | None
    queue_bytes: int | None
    lost_announcements: int


class LinkSounding(_Model):
    """One direction of a link as it was measured from its two ends before the run, whoever conditions it:
    frames sent and arrived, what they took, and the throughput where a rate was asked for. `asked` is what
    was asked of it then; a step may have asked for something else since."""

    asked: LinkConditions | None = None
    sent: int
    arrived: int
    delay_p50_ms: float | None
    delay_p99_ms: float | None
    loss: float | None
    throughput_mbit: float | None


class LinkDirection(_Model):
    """One direction of a link: what was asked of it, what was measured of it before the run, and what whoever
    conditions it tells of the run.

    Frames are those of a wire where `wire_frames`; else an offloaded frame of up to 64 KiB counts, and is
    lost, as one. `delay_...` is from arrival to departure, queue included, `late_...` how much of it was not
    meant. `overrun` frames were lost by the relay and not by what was asked. None: not told.
    """

    asked: LinkConditions
    measured: LinkSounding | None
    wire_frames: bool
    received_frames: int | None
    passed_frames: int | None
    passed_bytes: int | None
    lost: int | None
    announcements_lost: int | None
    queue_dropped: int | None
    overrun: int | None
    duplicated: int | None
    reordered: int | None
    delay_p50_ms: float | None
    delay_p99_ms: float | None
    late_p50_ms: float | None
    late_p99_ms: float | None
    loss: float | None
    throughput_mbit: float | None


class LinkFigures(_Model):
    """A link under conditions. `forward` is from the node that it is named after. `backend` is who brings
    them about (tbf, netem, relay), and `why` says why that one. `round_trip_ms` is the median of the
    measurement before the run, `asked_round_trip_ms` the two delays that were asked for then (of a link that
    was not measured: at the end)."""

    name: str
    backend: str
    why: str
    asked_round_trip_ms: float
    round_trip_ms: float | None
    forward: LinkDirection
    backward: LinkDirection


class Result(_Model):
    schema_version: int = SCHEMA_VERSION
    name: str
    started_at: str
    outcome: Outcome
    mode: str
    total_ms: float
    blackout_ms: float | None
    blackout_parts_ms: dict[str, float]
    network_gap_ms: float | None
    rounds: list[Round]
    ram: Ram
    clients: Clients
    network: Network
    guest: Guest
    """The first guest."""
    guests: list[Guest] = []
    checks: list[Check]
    migrations: list[Migration]
    programs: list[ProgramRun] = []
    links: list[LinkFigures] = []
    captures: list[CaptureFile] = []
    scenario: dict[str, Any] | None = None
    """What was asked for, in the words of a scenario file (testbed/scenario/scenario.schema.json)."""
    options: dict[str, Any]
    """The same as the options of a command, where it was one; empty where it was a scenario file."""
    environment: dict[str, Any]
    instrument: Instrument | None = None
    """None where it was never calibrated as it is now."""


def schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of ``result.json``, as it ships in :data:`SCHEMA_FILE`."""
    made = Result.model_json_schema(mode="serialization")  # what is written: defaults too
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **made}


if __name__ == "__main__":
    SCHEMA_FILE.write_text(json.dumps(schema(), indent=2) + "\n")
