"""A run with --pcap: from before the guest's first frame to the last, with the migration's moments in it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from netns import pcapng
from testbed.experiment.run import run
from testbed.measure.result import Result
from testbed.scenario.from_options import scenario_of
from testbed.scenario.pcap import Pcap
from tests.system.labs import PRELOAD, SMALL, Witness, failed_checks

pytestmark = pytest.mark.universe(preload=PRELOAD)

GUEST_MAC = "02:00:00:00:00:42"
COMMENT = re.compile(
    r"(?P<name>\w+): .* \[(?P<at>\d+) ns CLOCK_MONOTONIC, (?P<ms>[\d.]+) ms before this frame\]"
)
MOMENTS = ["pause", "announcement", "commit", "release", "resume"]


def test_every_link_has_its_file_and_the_migration_its_comments(tmp_path: Path) -> None:
    pcap = Pcap(links=None, snap_bytes=None, limit_bytes=1 << 30)
    result = run(scenario_of(SMALL), tmp_path, Witness(), pcap=pcap)
    assert failed_checks(result) == []
    written = Result.model_validate_json((tmp_path / "result.json").read_text())
    assert [one.link for one in written.captures] == ["host-a", "host-b", "client1", "client2", "migration"]
    assert all(one.frames > 0 and one.dropped == 0 and one.stopped is None for one in written.captures)
    files = {one.link: pcapng.read((tmp_path / one.file).read_bytes()) for one in written.captures}

    client = files["client1"].packets
    named = [comment.split(":")[0] for one in client for comment in one.comments]
    assert list(dict.fromkeys(named)) == MOMENTS
    assert_the_silence_is_where_the_marks_are(client)

    # The first thing that a client says is an ARP request or a solicitation, and the guest's answer is there.
    guest = bytes.fromhex(GUEST_MAC.replace(":", ""))
    uplink = files["host-a"].packets
    assert any(one.data[:12] == one.data[:6] + guest for one in uplink[:20])
    syn = [one for one in uplink if one.data[12:14] == b"\x08\x00" and one.data[47] == 0x02]
    assert len(syn) >= 2, "connections were made before the link was tapped"
    assert files["migration"].snap_length > 0
    assert max(one.length for one in files["migration"].packets) > 9000


def assert_the_silence_is_where_the_marks_are(frames: list[pcapng.Packet]) -> None:
    """Once it is announced the guest is silent at its source, and until the commit at its target: nothing of
    its unicast comes to a client in between, if the two clocks agree."""
    commented = [
        (f.t_ns, COMMENT.fullmatch(c)) for f in frames for c in f.comments if c.endswith("before this frame]")
    ]
    found = [(t_ns, match) for t_ns, match in commented if match is not None]
    assert len(found) == len(commented)
    times = {match["name"]: int(match["at"]) for _, match in reversed(found)}  # the first of each name
    apart = [t_ns - int(match["at"]) - round(float(match["ms"]) * 1e6) for t_ns, match in found]
    assert max(apart) - min(apart) < 1_000_000, "the clocks' distance is not one"
    begin, end = times["announcement"] + min(apart), times["commit"] + min(apart)
    assert end > begin
    guest = bytes.fromhex(GUEST_MAC.replace(":", ""))
    spoken = [f for f in frames if f.data[6:12] == guest and f.data[0] & 1 == 0]
    assert [f for f in spoken if begin < f.t_ns < end] == []
    assert [f for f in spoken if f.t_ns > end]


def test_an_error_in_the_lab_leaves_what_was_captured(tmp_path: Path) -> None:
    class Broken(Witness):
        def migration(self, *_: object) -> None:
            raise RuntimeError("of the witness")

    pcap = Pcap(links=("client1",), snap_bytes=128, limit_bytes=1 << 30)
    with pytest.raises(RuntimeError):
        run(scenario_of(SMALL), tmp_path, Broken(), pcap=pcap)
    assert pcapng.read((tmp_path / "pcap" / "client1.pcapng").read_bytes()).packets
    assert not (tmp_path / "result.json").exists()
    assert json.dumps([path.name for path in (tmp_path / "pcap").iterdir()]) == '["client1.pcapng"]'
