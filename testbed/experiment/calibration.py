"""Calibrates the instrument: does known things to a guest, and holds against them what each probe says.

No guest migrates. Runs inside a universe; what each error means is said in :mod:`testbed.measure.accuracy`.
Frames are not held during a pause, as a migration would: the guest's kernel takes and acknowledges them, as
for a process that got SIGSTOP. So nothing is sent again, and what is measured is the probe, not the handover.
Pings are the exception, for they are answered by that kernel: for them frames *are* held.

Pauses of one length do not come one after the other but shuffled in each repeat, so that what changes on the
machine strikes all lengths alike, and at a random moment, so that their phase against the probes' turns is
random too. Each probe is alone with its guest: what others ask would stand in the queue before it.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from testbed.experiment.machine import this_machine
from testbed.experiment.stand import CLIENT, Stand
from testbed.experiment.trials import (
    CONDITIONS,
    COUNTS,
    PAUSES,
    PAUSES_NS,
    ConditionTrial,
    CountTrial,
    PauseTrial,
    Reading,
)
from testbed.measure import calibration as model
from testbed.measure.accuracy import Deviation, Sight, Spread, Stall, deviation, spread
from testbed.measure.wire import Wire
from testbed.scenario.parts import Conditions

WARM_S = 0.3
"""From the first request to the first pause: connections have found their pace by then."""
CALM_S = 0.05
"""From the end of a pause to the next, at least: what has piled up is served, and a window without a pause
is over."""
PHASE_S = 0.02
"""Up to so much more, at random: several turns of the slowest probe."""
COUNTING_S = 0.8
"""For so long wrong is done to a probe."""

PLAIN_S = 0.4
CONDITIONED_S = 1.5
"""How long a link is as it is, and then as it is made."""
SETTLING_S = 0.4
"""From the change of a link until its measure is taken: what was in buffers and queues has been read."""
NEARLY_NOTHING = Conditions(delay_ns=100_000)
"""Before a loss is counted: a frame may be lost while a link is led through a relay, by nobody's count."""


class Witness(Protocol):
    """Is told of a calibration while it goes on."""

    def say(self, text: str) -> None: ...
    def advance(self, done: int, of: int) -> None: ...


@dataclass(frozen=True)
class Request:
    """What is to be calibrated: trials (all there are), how often each pause, and the seed of their order and
    phase. `client` is the entry of a client's process: the instrument itself."""

    pauses: Sequence[PauseTrial] = PAUSES
    counts: Sequence[CountTrial] = COUNTS
    conditions: Sequence[ConditionTrial] = CONDITIONS
    repeats: int = 10
    lengths_ns: Sequence[int] = PAUSES_NS
    seed: int = 1
    client: str = CLIENT

    def only(self, kinds: Collection[str]) -> Request:
        """With the trials of these kinds of probe alone; all of them if none is named."""
        if not kinds:
            return self
        return replace(
            self,
            pauses=tuple(one for one in self.pauses if one.kind in kinds),
            counts=tuple(one for one in self.counts if one.kind in kinds),
            conditions=tuple(one for one in self.conditions if one.kind in kinds),
        )

    @property
    def is_whole(self) -> bool:
        """Whether it says all that later runs want to know of the instrument."""
        return (self.pauses, self.counts, self.conditions) == (PAUSES, COUNTS, CONDITIONS)


def calibrate(request: Request, name: str, folder: Path, witness: Witness) -> model.Calibration:
    """Do all that is asked; leaves ``calibration.json`` in `folder`. Raises what brings a lab down."""
    started_at = datetime.now().astimezone().isoformat(timespec="seconds")
    surroundings: dict[str, Any] = {}
    pauses: list[model.Pauses] = []
    deviations: list[Deviation] = []
    for pause_trial in request.pauses:
        seen, surroundings = _pause(pause_trial, request, folder, witness)
        pauses.append(pauses_of(pause_trial, seen))
        deviations += [one for one in seen if one.stall.asked_ns]
    counts: list[model.Count] = []
    for count_trial in request.counts:
        counts += _count(count_trial, request, folder, witness)
    conditions: list[model.Condition] = []
    left_out: list[str] = []
    for condition_trial in request.conditions:
        conditions += _condition(condition_trial, request, folder, witness, left_out)
    calibration = model.Calibration(
        name=name,
        started_at=started_at,
        machine=this_machine(),
        repeats=request.repeats,
        seed=request.seed,
        gap_error_ms=errors(_own(deviations)),
        gap_bound_ms=errors(_known(deviations)),
        pauses=pauses,
        counts=counts,
        conditions=conditions,
        left_out=left_out,
        holds=all(one.holds for part in (pauses, counts, conditions) for one in part),
        environment=surroundings,
    )
    (folder / "calibration.json").write_text(calibration.model_dump_json(indent=2) + "\n")
    return calibration


def _pause(
    trial: PauseTrial, request: Request, folder: Path, witness: Witness
) -> tuple[list[Deviation], dict[str, Any]]:
    """Stop a guest for known times while it is probed; what the probe made of each, and the surroundings."""
    order = _order(request)
    witness.say(f"pauses: {trial.name}; {len(order)} pauses of a guest that runs {trial.program}")
    phase = random.Random(f"{request.seed} {trial.name}")
    stalls: list[Stall] = []
    with Stand(trial.program, 1, folder / f"pauses-{trial.name}", request.client) as stand:
        stand.tap("client1")
        stand.start("client1", [trial.request], trial.family)
        stand.rest(WARM_S)
        for done, duration_ns in enumerate(order, 1):
            stand.rest(CALM_S + phase.uniform(0, PHASE_S))
            stalls.append(stand.stall(duration_ns, trial.still))
            witness.advance(done, len(order))
        stand.rest(CALM_S)
        report = stand.stop("client1", [stall.window for stall in stalls])
        wire = stand.tapped() if trial.on_wire else Wire(())
        surroundings = stand.environment()
    looks = zip(stalls, report["during"], strict=True)
    return [_looked_at(trial, stall, during, wire) for stall, during in looks], surroundings


def _order(request: Request) -> list[int]:
    """Every length once in each repeat, shuffled."""
    shuffling = random.Random(request.seed)
    return [
        length
        for _ in range(request.repeats)
        for length in shuffling.sample(list(request.lengths_ns), len(request.lengths_ns))
    ]


def _looked_at(trial: PauseTrial, stall: Stall, during: dict[str, Any], wire: Wire) -> Deviation:
    """`during` is the probe's own report of the window of `stall`."""
    if during["longest_ns"] is None:
        return deviation(trial.definition, trial.interval_ns, stall, None)
    sight = Sight(during["longest_ns"], during["longest_at_ns"])
    found = deviation(trial.definition, trial.interval_ns, stall, sight)
    there = wire.wait(trial.definition, trial.interval_ns, sight)
    if there is None:
        return found
    late_ns = sight.ended_ns(trial.definition, trial.interval_ns) - there.ended_ns
    return replace(found, own_ns=sight.longest_ns - there.length_ns, late_ns=late_ns)


def pauses_of(trial: PauseTrial, deviations: Sequence[Deviation]) -> model.Pauses:
    """One probe's figures from all that it made of the pauses."""
    made = [one for one in deviations if one.stall.asked_ns]
    quiet = [one for one in deviations if not one.stall.asked_ns]
    error, own = errors(_known(made)), errors(_own(made))
    late = errors(spread(one.late_ns for one in made if one.late_ns is not None))
    held_to = [own, late] if own is not None else [error]
    return model.Pauses(
        name=trial.name,
        kind=trial.kind,
        program=trial.program,
        probe=dict(trial.probe),
        still=trial.still,
        family=trial.family,
        interval_ms=trial.interval_ns / 1e6,
        noise_ms=_ms(statistics.median(one.measured_ns for one in quiet)) if quiet else None,
        lengths=[
            _length(asked_ns, [one for one in deviations if one.stall.asked_ns == asked_ns])
            for asked_ns in sorted({one.stall.asked_ns for one in deviations})
        ],
        error=error,
        own=own,
        late=late,
        of_pause=errors(spread(one.of_pause_ns for one in made)),
        holds=all(abs(one.median) < model.GAP_ERROR_MS for one in held_to if one is not None),
    )


def _length(asked_ns: int, deviations: Sequence[Deviation]) -> model.Length:
    of_pause = errors(spread(one.of_pause_ns for one in deviations))
    assert of_pause is not None  # there is a deviation for each length
    return model.Length(
        asked_ms=asked_ns / 1e6,
        true_ms=_ms(statistics.median(one.stall.length_ns for one in deviations)),
        measured_ms=_ms(statistics.median(one.measured_ns for one in deviations)),
        unnoticed=sum(one.error_ns is None for one in deviations),
        error=errors(_known(deviations)),
        own=errors(_own(deviations)),
        of_pause=of_pause,
    )


def _known(deviations: Iterable[Deviation]) -> Spread | None:
    return spread(one.error_ns for one in deviations if one.error_ns is not None)


def _own(deviations: Iterable[Deviation]) -> Spread | None:
    return spread(one.own_ns for one in deviations if one.own_ns is not None)


def errors(found: Spread | None) -> model.Errors | None:
    """From nanoseconds to what stands in the file."""
    if found is None:
        return None
    return model.Errors(
        count=found.count,
        median=_ms(found.median),
        p95=_ms(found.p95),
        largest=_ms(found.largest),
        low=_ms(found.low),
        high=_ms(found.high),
        too_long=found.above,
    )


def _count(trial: CountTrial, request: Request, folder: Path, witness: Witness) -> list[model.Count]:
    """Have a guest do wrong and count it; what its probe found of it."""
    faulty = trial.program.rpartition(":")[2]
    witness.say(f"wrong on purpose: {trial.name} against {faulty}")
    with Stand(trial.program, 1, folder / f"counts-{trial.name}", request.client) as stand:
        stand.start("client1", [trial.request])
        stand.rest(COUNTING_S)
        report = stand.stop("client1")
        done = stand.program_stats()
    return [
        count_of(trial, in_report, done[in_stats], report[in_report])
        for in_report, in_stats in trial.counts.items()
    ]


def count_of(trial: CountTrial, what: str, done: int, found: int) -> model.Count:
    """Nothing done proves nothing: then it does not hold."""
    return model.Count(
        name=trial.name,
        kind=trial.kind,
        what=what.replace("_", " "),
        done=done,
        found=found,
        holds=done == found and done > 0,
    )


def _condition(
    trial: ConditionTrial, request: Request, folder: Path, witness: Witness, left_out: list[str]
) -> list[model.Condition]:
    """Bring conditions about on a client's link, and see what its probe makes of them; what nobody can say
    the truth of is added to `left_out`."""
    witness.say(f"conditions: {trial.name} with {trial.told}")
    below = folder / f"{trial.name}-{trial.readings[0].what.replace(' ', '-')}"
    with Stand(trial.program, 1, below, request.client) as stand:
        stand.start("client1", [trial.request])
        stand.rest(PLAIN_S)
        before = {"plain": stand.report("client1")}
        stand.impair("client1", NEARLY_NOTHING)
        stand.rest(CALM_S)
        before["set"] = stand.report("client1")
        stand.impair("client1", trial.conditions)
        stand.rest(SETTLING_S)
        stand.report("client1")  # what was under way when it changed is let go of; counts go on
        rested_ns = time.monotonic_ns()
        stand.rest(CALM_S)
        earlier, begun_ns = stand.impaired("client1"), time.monotonic_ns()
        stand.rest(CONDITIONED_S)
        meanwhile = stand.impaired("client1")
        report = stand.stop("client1", [(rested_ns, begun_ns)])
        told = stand.impaired("client1")
    found = []
    for reading in trial.readings:
        true = reading.true(told if reading.before == "set" else meanwhile, earlier)
        if true is None:
            left_out.append(f"{trial.name}, {reading.what}: {told.backend} does not say what it did")
        else:
            was = 0.0 if reading.before is None else reading.of(before[reading.before])
            measured = reading.of(report) - was
            found.append(condition_of(trial, reading, true, measured))
    return found


def condition_of(trial: ConditionTrial, reading: Reading, true: float, measured: float) -> model.Condition:
    error = measured - true
    return model.Condition(
        name=trial.name,
        kind=trial.kind,
        what=reading.what,
        unit=reading.unit,
        asked=trial.asked,
        true=round(true, 4),
        measured=round(measured, 4),
        error=round(error, 4),
        allowed=reading.allowed,
        holds=abs(error) <= reading.allowed and true > 0,
    )


def _ms(duration_ns: float) -> float:
    return round(duration_ns / 1e6, 4)
