"""``testbed demo``: the place to begin."""

from __future__ import annotations

from testbed.commands import asked
from testbed.commands.ending import finish, wrong_request
from testbed.commands.migrate import run_one, scenario
from testbed.commands.report import NoReport
from testbed.commands.showing import Show, is_live
from testbed.scenario.options import Options
from testbed.scenario.pcap import DEFAULT_LIMIT

_DEFAULT = Options()


def demo(
    pcap: asked.PcapLinks = None,
    pcap_snap: asked.PcapSnap = None,
    pcap_limit: asked.PcapLimit = DEFAULT_LIMIT,
    pause_on_failure: asked.PauseOnFailure = False,
    no_report: NoReport = False,
    plain: asked.Plain = False,
    quiet: asked.Quiet = False,
    runs: asked.RunFolder = asked.DEFAULT_FOLDER,
) -> None:
    """Bring up a lab, migrate its guest live under load, and show what the clients saw. The place to
    begin."""
    with wrong_request():
        captured = asked.captured(pcap, pcap_snap, pcap_limit, lambda: [scenario(_DEFAULT, "demo")])
    live = is_live(plain=plain, quiet=quiet)
    show = Show(quiet=quiet, with_report=not no_report, pcap=captured, live=live, pause=pause_on_failure)
    finish(run_one(_DEFAULT, "demo", runs, show))
