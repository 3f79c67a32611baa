"""The options that several commands take, each with its help text in one place."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from testbed.scenario.options import OptionError
from testbed.scenario.pcap import ALL, Pcap

if TYPE_CHECKING:
    from testbed.scenario.model import Scenario

DEFAULT_FOLDER = Path("testbed-runs")

Ram = Annotated[str, typer.Option(help="The guest's RAM.")]
Program = Annotated[
    str, typer.Option(help="echo, kv, kv-durable, http, ramp, or your own: package.module:Class.")
]
Connections = Annotated[int, typer.Option(help="Connections that ask and wait, over all clients.")]
DirtyRate = Annotated[int, typer.Option(help="Pages a second that the guest writes besides.")]
Bandwidth = Annotated[
    str | None, typer.Option(help="Rate of the wire between the hosts, as 1gbit. Unlimited if not given.")
]
Disk = Annotated[
    str | None,
    typer.Option(
        help="The guest's disk, on storage that both hosts share and that decides who owns the guest. "
        "If not given: 64MiB for kv-durable, 16MiB for --mode quick, else no storage at all."
    ),
]
StorageRate = Annotated[
    str | None,
    typer.Option(help="Rate of each host's link to the storage, as 1gbit. Unlimited if not given."),
]
Durable = Annotated[
    bool,
    typer.Option("--durable", help="kv keeps its data on the disk, and answers when it is safe there."),
]
Seed = Annotated[int, typer.Option(help="Of everything that is random.")]
Name = Annotated[str, typer.Option(help="Goes into the name of the run's folder.")]
PcapLinks = Annotated[
    str | None,
    typer.Option(
        "--pcap",
        metavar="[LINK,...]",
        help="Capture these links, as client1,host-a, or all if none is named: files for Wireshark in the "
        "run's folder, with comments at pause, commit, announcements and resume.",
    ),
]
PcapSnap = Annotated[
    str | None,
    typer.Option(
        "--pcap-snap",
        metavar="SIZE",
        help="How much of each frame is kept, as 128B; 0: all. If not given: all, but the headers of those "
        "that carry the guest's memory or disk.",
    ),
]
PcapLimit = Annotated[str, typer.Option(help="How much is captured of each link at most.")]
Plain = Annotated[
    bool, typer.Option("--plain", help="Lines as things happen, instead of the picture that a terminal gets.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing while it runs.")]
PauseOnFailure = Annotated[
    bool,
    typer.Option(
        "--pause-on-failure",
        help="If a check fails and this is a terminal: the lab stands on, and you can be in its nodes.",
    ),
]
RunFolder = Annotated[Path, typer.Option("--runs", help="Where to put the run's folder.")]


def check_name(name: str) -> None:
    """Raises OptionError where `name` cannot be part of a folder's name."""
    if not name.isprintable() or not name or "/" in name or name.startswith(".") or len(name) > 100:
        allowed = "at most 100 characters, no slash, no dot first"
        raise OptionError(f"--name: {name!r} cannot be part of a folder's name: {allowed}")


def captured(
    links: str | None, snap: str | None, limit: str, scenarios: Callable[[], Iterable[Scenario]]
) -> Pcap | None:
    """What ``--pcap`` and its companions ask for. Raises OptionError, also where one of `scenarios` has no
    such link."""
    pcap = Pcap.asked(links, snap, limit)
    if pcap is not None:
        for scenario in scenarios():
            pcap.chosen(scenario.link_names)
    return pcap


def completed(words: list[str]) -> list[str]:
    """The words of a command line, with what ``--pcap`` means where it stands alone: typer knows no option
    whose value may be left out."""
    pairs = zip_longest(words, words[1:], fillvalue="-")
    alone = {number for number, (word, after) in enumerate(pairs) if word == "--pcap" and after[:1] == "-"}
    return [f"{word}={ALL}" if number in alone else word for number, word in enumerate(words)]
