"""``testbed up`` and ``testbed down``: the beginning and the end of a lab that stands."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from testbed.commands import asked
from testbed.commands.ending import (
    CANNOT,
    CHECK_FAILED,
    PASSED,
    explanation,
    fail,
    finish,
    tell,
    wrong_request,
)
from testbed.commands.inside import RunFolder, check_possible, check_scenarios, why_no_universe
from testbed.commands.options import given_options, takes_options
from testbed.commands.run import scenario_names
from testbed.commands.standing import Lab, forget_the_dead, the_lab
from testbed.scenario.options import OptionError, Options
from testbed.scenario.pcap import DEFAULT_LIMIT

if TYPE_CHECKING:
    from testbed.scenario.model import Scenario
    from testbed.standing.background import Voice
    from testbed.standing.life import Life
    from testbed.standing.protocol import Message
    from testbed.standing.registry import Claim, Entry
    from testbed.standing.wanted import Wanted

DEFAULT_NAME = "lab"
DOWN_DEADLINE_S = 60.0
"""For clients to finish and the result to be written; then the lab is ended without."""


@takes_options(of_run=False)
def up(
    options: Options,
    context: typer.Context,
    scenario: Annotated[
        str | None,
        typer.Option(
            help="The lab of a scenario, from a file or the shelf, in place of the options: hosts, guests, "
            "clients and conditions; its steps are yours to do.",
            show_default=False,
            autocompletion=scenario_names,
        ),
    ] = None,
    name: Annotated[str, typer.Option(help="What the lab is called.")] = DEFAULT_NAME,
    pcap: asked.PcapLinks = None,
    pcap_snap: asked.PcapSnap = None,
    pcap_limit: asked.PcapLimit = DEFAULT_LIMIT,
    quiet: asked.Quiet = False,
    runs: asked.RunFolder = asked.DEFAULT_FOLDER,
) -> None:
    """Bring up a lab that stands until testbed down: its clients ask, its guest moves when you say so
    (testbed migrate --name), and you can be in any of its nodes (testbed shell, testbed exec). Several may
    stand at once, by name. It goes on when this command has ended."""
    from testbed.standing import background, registry
    from testbed.standing.protocol import LabGone, Refused
    from testbed.standing.wanted import Wanted

    with wrong_request():
        registry.check_name(name)
        lab_of = _scenario(options, scenario, list(given_options(context)), name)
        captured = asked.captured(pcap, pcap_snap, pcap_limit, lambda: [lab_of])
    import_path = check_possible(options) if scenario is None else check_scenarios([lab_of])
    with wrong_request():
        forget_the_dead()
        try:
            claim = registry.claim(name)
        except OSError as error:
            fail(CANNOT, f"labs cannot be registered in {registry.home()}: {error.strerror}")
    log: Path | None = None
    try:
        folder = RunFolder(runs, name)
        log = folder.path / background.LOG

        def hold(voice: Voice) -> int:
            told = options.as_dict() if scenario is None else {}
            wanted = Wanted(lab_of, folder.path.resolve(), import_path, told, captured)
            return _hold(claim, wanted, folder, voice)

        lab = background.start(hold, log)
    except BaseException:
        claim.give_up()
        raise
    claim.close()
    try:
        with lab:
            told = lab.wait_standing(lambda message: _show(message, quiet))
    except Refused as refused:
        fail(refused.status, str(refused))
    except LabGone:
        fail(CHECK_FAILED, f"the lab ended before it stood{_last_words(log)}")
    if not quiet:
        _show_standing(told, name)
    finish(PASSED)


def down(
    name: Lab = None,
    all_: Annotated[bool, typer.Option("--all", help="Every lab of yours.")] = False,
    quiet: asked.Quiet = False,
) -> None:
    """Bring a lab down: its clients finish what they asked, its result is written, and nothing of it is left
    but its folder."""
    from testbed.standing import registry

    if all_:
        with wrong_request():
            if name is not None:
                raise OptionError("--all: every lab, so no --name")
        forget_the_dead()
        entries = registry.standing()
        if not entries:
            tell("no lab stands")
    else:
        entries = [the_lab(name)]
    for entry in entries:
        _bring_down(entry, quiet=quiet)
    finish(PASSED)


# ---- up


def _scenario(options: Options, word: str | None, given: list[str], name: str) -> Scenario:
    """The scenario of the lab: that of the options, or the one that is named. Raises OptionError."""
    from testbed.scenario.files import found
    from testbed.scenario.from_options import scenario_of

    if word is None:
        return scenario_of(options, name)
    if given:
        alien = ", ".join(f"--{one.replace('_', '-')}" for one in given)
        raise OptionError(f"{alien}: the scenario says what the lab is like; change it there")
    return found(word).model_copy(update={"name": name})


def _show(message: Message, quiet: bool) -> None:
    from testbed.report.console import printer

    if "say" in message and not quiet:
        printer().print(str(message["say"]), style="dim", markup=False)


def _show_standing(told: Message, name: str) -> None:
    from testbed.report.console import printer

    console = printer()
    option = f" --name {name}"
    console.print(f"lab {name} stands", style="bold green")
    for command, what in (
        (f"testbed ps{option}", "what is in it"),
        (f"testbed shell{option} client1", "be in a node"),
        (f"testbed exec{option} client1 -- ping -c 3 {_first_address(told)}", "run something there"),
        (f"testbed migrate{option}", "move the guest"),
        (f"testbed down{option}", "the end; the result is written"),
    ):
        console.print(f"  {command:<58} [dim]{what}[/dim]")
    console.print(f"\n  {told['folder']}", style="dim")


def _first_address(told: Message) -> str:
    """Of the first guest."""
    return str(next(iter(told["guests"].values()))["ipv4"])


def _last_words(log: Path) -> str:
    try:
        lines = log.read_text(errors="replace").strip().splitlines()
    except FileNotFoundError:
        lines = []
    return f": {lines[-1]} (see {log})" if lines else ""


def _hold(claim: Claim, wanted: Wanted, folder: RunFolder, voice: Voice) -> int:
    """The holder's life: it waits for the universe, whose main is the server, and clears up."""
    from netns import universe
    from testbed.lab.lab import PRELOAD

    holder = os.getpid()

    def inside() -> int:
        from testbed.standing.background import StarterGone
        from testbed.standing.serving import serve

        try:
            serve(wanted, claim.listener, voice, lambda life: claim.publish(_entry(claim, life, holder)))
        except StarterGone:
            return CHECK_FAILED
        except Exception as error:
            voice.fail(*_explained(error, folder.path))
            return CHECK_FAILED
        return PASSED

    try:
        return universe.run(inside, preload=PRELOAD)
    except universe.UniverseUnavailable as error:
        voice.fail(why_no_universe(error), CANNOT)
        return CANNOT
    finally:
        claim.give_up()
        folder.leave()


def _entry(claim: Claim, life: Life, holder: int) -> Entry:
    from netns import universe
    from testbed.standing.registry import Entry

    return Entry(
        name=claim.name,
        holder_pid=holder,
        first_pid=universe.first_pid(),
        started_at=life.started_at,
        folder=str(life.folder),
        nodes=life.nodes,
        links=life.links,
    )


def _explained(error: Exception, folder: Path) -> tuple[str, int]:
    """As of a run; what nobody foresaw has its traceback in the lab's log."""
    import traceback

    try:
        return explanation(error, folder)
    except Exception:
        traceback.print_exception(error)
        return f"{type(error).__name__}: {error}; the traceback is in {folder / 'lab.log'}", CHECK_FAILED


# ---- down


def _bring_down(entry: Entry, *, quiet: bool) -> None:
    from testbed.standing import background
    from testbed.standing.client import Conversation
    from testbed.standing.protocol import ProtocolError, Refused

    try:
        pidfd = os.pidfd_open(entry.holder_pid)
    except ProcessLookupError:
        return  # it went down meanwhile
    told: Message = {}
    try:
        try:
            with Conversation.with_lab(entry.name) as lab:
                told = lab.ask({"do": "down"}, DOWN_DEADLINE_S)
        except (ProtocolError, Refused, TimeoutError) as error:
            tell(f"lab {entry.name!r} does not go down when asked ({error}): it is ended")
            background.end(pidfd)
        if not background.wait_for_end(pidfd, DOWN_DEADLINE_S):
            background.end(pidfd)
    except KeyboardInterrupt:
        with suppress(ProcessLookupError):
            background.end(pidfd)
        raise
    finally:
        os.close(pidfd)
    if not quiet:
        what = "nothing migrated, so there is no result" if told.get("outcome") is None else "result.json"
        print(f"lab {entry.name} is down; {entry.folder}: {what}")
