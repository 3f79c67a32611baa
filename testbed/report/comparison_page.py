"""A comparison as one page that needs nothing else: sentences, a table, and a picture of each figure."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from testbed.experiment.measures import MEASURES, Measure
from testbed.measure.comparison import Comparison, Figure
from testbed.report.strip import COLOURS, Line, steps, strip

STEPS_FROM_RUNS = 8
"""From so many runs on how they are spread is a picture of its own."""
_DARK_AND_LIGHT = (
    *(("#3b6fb6", "#8ab4f0"), ("#c2571a", "#f0a070"), ("#2e7d46", "#7fcf97"), ("#8a3fa0", "#cf9be0")),
    *(("#a03030", "#f09090"), ("#6b6b1f", "#cfcf7f"), ("#1f7a7a", "#7fd0d0"), ("#555555", "#bbbbbb")),
)
_STYLE = """
:root { color-scheme: light dark; --ink: #1c1c1c; --dim: #666; --rule: #ddd; --paper: #fff; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e6e6; --dim: #999; --rule: #3a3a3a; --paper: #161616; } }
body { font: 16px/1.45 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; } .wide { overflow-x: auto; }
th, td { text-align: right; padding: .25rem .8rem .25rem 0; border-bottom: 1px solid var(--rule); }
th:first-child, td:first-child { text-align: left; }
small, .dim { color: var(--dim); } .wrong { color: #c22; } svg { width: 100%; height: auto; }
.label, .tick { font: 12px system-ui, sans-serif; fill: var(--dim); }
.label { text-anchor: end; } .tick { text-anchor: middle; }
.grid { stroke: var(--rule); } .axis { stroke: var(--dim); }
.dot { fill-opacity: .55; } .median { stroke-width: 3; } .steps { fill: none; stroke-width: 2; }
@media print { body { max-width: none; } }
"""


def page(compared: Comparison) -> str:
    """The whole of it as HTML."""
    title = f"{compared.name}: {_of_whom(compared)}"
    parts = [
        f"<h1>{escape(title)}</h1>",
        f"<p class=dim>{escape(_made(compared))}</p>",
        *_warnings(compared),
        *_sentences(compared),
        "<h2>Medians</h2>",
        _table(compared),
        *(_pictures(compared, measure) for measure in MEASURES),
        f"<p><small>{escape(compared.method)}</small></p>",
    ]
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}{_colours()}</style></head>\n"
        f"<body>\n{body}\n</body></html>\n"
    )


def _of_whom(compared: Comparison) -> str:
    if compared.factors:
        levels = (f"{factor} ({', '.join(of)})" for factor, of in compared.factors.items())
        return " by ".join(levels)
    return " against ".join(one.label for one in compared.variants)


def _made(compared: Comparison) -> str:
    kernel = compared.environment.get("kernel", "")
    return f"{len(compared.runs)} runs, begun {compared.started_at}" + (f", Linux {kernel}" if kernel else "")


def _warnings(compared: Comparison) -> list[str]:
    told = []
    if not compared.complete:
        told.append("The comparison was ended before all runs were over: this is what there is.")
    if compared.workers > 1:
        told.append(f"{compared.workers} labs ran beside each other: all times are spoiled.")
    for run in compared.runs:
        if run.error is not None:
            told.append(f"{run.folder}: the lab failed: {run.error}")
        elif run.outcome != "completed" or run.failed_checks:
            told.append(f"{run.folder}: {run.outcome}; failed: {', '.join(run.failed_checks) or 'nothing'}")
    return [f"<p class=wrong>{escape(line)}</p>" for line in told]


def _sentences(compared: Comparison) -> list[str]:
    """Of a grid what its factors do, else what differs between its pairs."""
    judged: Sequence[tuple[bool, str]]
    if compared.effects:
        judged = [(one.real, one.sentence) for one in compared.effects]
    else:
        judged = [(one.real, one.sentence) for one in compared.differences]
    real = [escape(sentence) for is_real, sentence in judged if is_real]
    rest = [escape(sentence) for is_real, sentence in judged if not is_real]
    told = ["<h2>What differs</h2>"]
    told.append(_items(real) if real else "<p>Nothing that these runs show.</p>")
    if rest:
        told.append(
            f"<details><summary>What does not, as far as these runs show</summary>{_items(rest)}</details>"
        )
    return told


def _items(sentences: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{one}</li>" for one in sentences) + "</ul>"


def _table(compared: Comparison) -> str:
    head = "".join(f"<th>{escape(one.label)}</th>" for one in compared.variants)
    rows = [
        f"<tr><td>{measure.noun}</td>"
        + "".join(f"<td>{_cell(one.figures[measure.key], measure)}</td>" for one in compared.variants)
        + "</tr>"
        for measure in MEASURES
    ]
    return f"<div class=wide><table><tr><th></th>{head}</tr>{''.join(rows)}</table></div>"


def _cell(figure: Figure, measure: Measure) -> str:
    if figure.median is None or figure.low is None or figure.high is None:
        return "-"
    median, low, high = (escape(measure.show(one)) for one in (figure.median, figure.low, figure.high))
    return median if low == high else f"{median}<br><small>{low} to {high}</small>"


def _pictures(compared: Comparison, measure: Measure) -> str:
    """Nothing of a figure that no run has, and no picture where all runs are alike."""
    lines = [
        Line(one.label, [value for value in one.figures[measure.key].values if value is not None])
        for one in compared.variants
    ]
    if len({value for line in lines for value in line.values}) < 2:
        return ""
    spoiled = (
        " <small>(spoiled: labs ran beside each other)</small>"
        if compared.workers > 1 and measure.is_time
        else ""
    )
    drawn = [
        f"<h2>{measure.noun[:1].upper()}{measure.noun[1:]}{spoiled}</h2>",
        strip(measure.noun, lines, measure.show),
    ]
    if min(len(line.values) for line in lines) >= STEPS_FROM_RUNS:
        drawn.append(steps(measure.noun, lines, measure.show))
    return "\n".join(drawn)


def _colours() -> str:
    def rule(number: int, colour: str) -> str:
        return f".dot.v{number}{{fill:{colour}}} .median.v{number},.steps.v{number}{{stroke:{colour}}} "

    light = "".join(rule(number, _DARK_AND_LIGHT[number][0]) for number in range(COLOURS))
    dark = "".join(rule(number, _DARK_AND_LIGHT[number][1]) for number in range(COLOURS))
    return f"{light}\n@media (prefers-color-scheme: dark) {{ {dark} }}\n"
