"""``testbed doctor``: what this machine has of what a run needs."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from testbed.commands.ending import CANNOT, fail


def doctor(
    json_: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Try what a run needs of this machine: whether it is there, what is lost without it, how to get it."""
    from testbed.doctor.examination import as_json, examine, missing
    from testbed.doctor.table import show
    from testbed.report.console import printer

    findings = examine()
    if json_:
        print(json.dumps(as_json(findings), indent=2))
    else:
        show(printer(), findings)
    absent = missing(findings)
    if absent:
        first = absent[0]
        names = ", ".join(one.name for one in absent if one.there is False) or first.name
        fail(CANNOT, f"no demo can run here without {names} ({first.detail}). {first.remedy}")
