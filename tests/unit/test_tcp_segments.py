"""The segments in a peer's name, read by a decoder that is not ours."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6

from testbed.tcp import segments, state
from testbed.tcp.state import Endpoint
from tests.unit.test_tcp_state import EXAMPLE

CLOSE_WAIT_4 = replace(EXAMPLE, state=state.CLOSE_WAIT)
CLOSE_WAIT_6 = replace(
    CLOSE_WAIT_4,
    family=state.INET6,
    local=Endpoint(ip_address("fd07::10").packed, 7000),
    remote=Endpoint(ip_address("fd07::2").packed, 40000),
)
CLOSE_WAIT_MAPPED = replace(
    CLOSE_WAIT_4,
    family=state.INET6,
    local=Endpoint(ip_address("::ffff:10.7.0.10").packed, 7000),
    remote=Endpoint(ip_address("::ffff:10.7.0.2").packed, 40000),
)
ALL = pytest.mark.parametrize(
    ("example", "layer", "source", "target"),
    [
        (CLOSE_WAIT_4, IP, "10.7.0.2", "10.7.0.10"),
        (CLOSE_WAIT_6, IPv6, "fd07::2", "fd07::10"),
        (CLOSE_WAIT_MAPPED, IP, "10.7.0.2", "10.7.0.10"),
    ],
)


@ALL
def test_fin(example, layer, source, target):
    packet = layer(segments.fin_segment(example))
    tcp = packet[TCP]
    assert (packet.src, packet.dst, tcp.sport, tcp.dport) == (source, target, 40000, 7000)
    assert (tcp.flags, tcp.seq, tcp.ack) == ("FA", 999, 5000 - 9)
    assert tcp.window == 64000 >> 7
    assert segments.is_ipv4(example) == (layer is IP)


@ALL
@pytest.mark.parametrize(
    "build",
    [segments.fin_segment, segments.fin_acknowledgement, segments.acknowledgement_request, segments.reset],
)
def test_checksums_and_lengths(example, layer, source, target, build):
    raw = build(example)
    again = layer(raw)
    for part in (again, again[TCP]):
        if "chksum" in part.fields:
            del part.chksum
    if layer is IP:
        del again.len
    else:
        del again.plen
    assert bytes(again) == raw


def test_the_acknowledgement_of_our_fin_covers_it():
    example = replace(EXAMPLE, state=state.FIN_WAIT2, sent=b"", unsent=b"")
    tcp = IP(segments.fin_acknowledgement(example))[TCP]
    assert (tcp.flags, tcp.seq, tcp.ack) == ("A", 1000, 5000)
    assert example.send_start == 4999


def test_a_request_for_an_acknowledgement_stands_before_what_was_acknowledged():
    due = replace(EXAMPLE, window=EXAMPLE.window._replace(rcv_wup=990))
    tcp = IP(segments.acknowledgement_request(due))[TCP]
    assert (tcp.flags, tcp.seq) == ("A", 989)


def test_numbers_wrap():
    example = replace(CLOSE_WAIT_4, rcv_nxt=0)
    assert IP(segments.fin_segment(example))[TCP].seq == 0xFFFFFFFF
