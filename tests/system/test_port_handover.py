"""The VM's place moves between two hosts: every frame arrives once, and the network learns where it went."""

from __future__ import annotations

import select
import socket
import sys
import time
from ipaddress import IPv4Address

import pytest
from pyroute2 import IPRoute

from netns import packet
from netns.namespace import Namespace
from netns.observe import ForwardingWatch
from testbed.handover.announcement import Kind, build
from testbed.handover.announcer import Announcer
from testbed.handover.hold import SYN_SLOTS, SynHold
from testbed.handover.neighbours import Neighbour, NeighbourTable, decode, encode
from testbed.handover.observers import NEIGHBOUR_ADVERTISEMENT, AnnouncementObserver
from testbed.handover.wiring import GUEST_INTERFACE, GUEST_PORT, HOLD_PORT, GuestNic, GuestWiring
from testbed.kernel import netlink
from testbed.kernel.netlink import RouteSocket
from testbed.kernel.tcp_repair import tcp_info
from tests.system import handover_stage as stage

pytestmark = pytest.mark.universe

DEADLINE_S = 20.0
SILENT = {GUEST_PORT, HOLD_PORT}
ANNOUNCED = {
    Kind.GARP_REQUEST: [str(Kind.GARP_REQUEST), NEIGHBOUR_ADVERTISEMENT],
    Kind.GARP_REPLY: [str(Kind.GARP_REPLY), NEIGHBOUR_ADVERTISEMENT],
    Kind.RARP: [str(Kind.RARP)],
    Kind.NONE: [],
}


@pytest.fixture
def hosts() -> tuple[stage.Host, stage.Host]:
    """host-a with the guest plugged in, host-b with its place for it; the switch knows."""
    stage.make_network()
    a, b = stage.make_host("host-a"), stage.make_host("host-b")
    a.port.plug()
    announcer(a).announce()
    return a, b


def announcer(host: stage.Host, kind: Kind = Kind.GARP_REQUEST, mac: bytes = stage.MAC) -> Announcer:
    frames = build(kind, mac, stage.GUEST_4.ip, stage.GUEST_6.ip)
    return Announcer(host.namespace, "br0", frames, silent=SILENT)


@pytest.mark.parametrize("client", ["client", "local"])
def test_a_stream_follows_the_guest_there_and_back_frame_for_frame(
    hosts: tuple[stage.Host, stage.Host], client: str
) -> None:
    """The client on the switch, and one on the first host's own bridge. What is missing has been counted."""
    count = 40_000
    ledgers = [stage.Ledger(host.guest) for host in hosts]
    announcers = [announcer(host) for host in hosts]
    source, target = 0, 1
    moves = held_on_source = held_on_target = 0
    with stage.stream(client, 20_000, count) as pidfd:
        while not stage.ended(pidfd, 0.02):
            leaving, arriving = hosts[source], hosts[target]
            leaving.hold.start()
            arriving.hold.start()
            leaving.port.cut()
            stage.spin_us(2000)
            arriving.port.cut()
            announcers[target].announce()
            stage.spin_us(2000)
            caught = leaving.hold.drain()
            held_on_source += len(caught)
            arriving.port.open()
            delivery = arriving.delivery()
            held_on_target += delivery.deliver(caught).before_plug - len(caught)
            leaving.port.depart()
            rest = [*leaving.hold.descriptors(), *arriving.hold.descriptors()]
            while select.select(rest, [], [], 0.02)[0]:
                delivery.late(leaving.hold.drain())
            moves += 1
            source, target = target, source
    numbers = [number for ledger in ledgers for _, number in ledger.read()]
    dropped = sum(host.hold.dropped + host.release.dropped - host.release.retried for host in hosts)
    print(f"{moves} moves; held {held_on_source} on the source, {held_on_target} on the target")
    assert moves > 3
    assert held_on_source > 0
    assert held_on_target > 0
    assert len(numbers) == len(set(numbers))
    assert count - len(numbers) == dropped + stage.dropped_by_wires()


@pytest.mark.parametrize("sticky", [True, False])
def test_the_announcement_of_the_target_does_not_turn_the_sources_entry(
    hosts: tuple[stage.Host, stage.Host], sticky: bool
) -> None:
    """Negative control, not sticky: what is still under way to the source when the target announces is
    lost."""
    a, b = hosts
    a.cut()
    if not sticky:
        route = RouteSocket(a.namespace.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0))
        held_port = route.link(HOLD_PORT).index
        route.request(netlink.prepare(netlink.forwarding_entry(stage.MAC, held_port, sticky=False)))
    pin_switch("to-a")
    announcer(b).announce()
    stage.send("client", range(10))
    assert [stage.number_of(frame) for frame in a.hold.drain()] == (list(range(10)) if sticky else [])


def test_the_entry_turns_before_the_port_closes_and_after_it_opens(
    hosts: tuple[stage.Host, stage.Host],
) -> None:
    """As the kernel tells it; test_hold.py shows what the other order loses."""
    a, _ = hosts
    groups = netlink.RTMGRP_LINK | netlink.RTMGRP_NEIGH
    changes = netlink.watch(a.namespace.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0), groups)
    a.port.cut()
    assert _kinds_of_change(a, changes) == [netlink.RTM_NEWNEIGH, netlink.RTM_NEWLINK]
    a.port.plug()
    assert _kinds_of_change(a, changes) == [netlink.RTM_NEWLINK, netlink.RTM_NEWNEIGH]


def test_a_client_beside_a_vm_that_left_reaches_it(hosts: tuple[stage.Host, stage.Host]) -> None:
    a, b = hosts
    ledger = stage.Ledger(b.guest)
    a.cut()
    b.cut()
    announcer(b).announce()
    b.port.plug()
    stage.send("local", range(1))  # negative control: held, until the port says that the VM has left
    a.port.depart()
    stage.send("local", range(1, 2))
    assert [number for _, number in ledger.read()] == [1]
    assert [stage.number_of(frame) for frame in a.hold.drain()] == [0]


@pytest.mark.parametrize("kind", list(Kind))
def test_an_announcement_is_heard_by_remote_and_local_clients_and_turns_their_entries(kind: Kind) -> None:
    """The VM's MAC changes, so that nothing but the announcement can teach the clients. Only ARP and its twin
    do."""
    stage.make_network()
    a = stage.make_host("host-a", stage.OTHER_MAC, stage.EITHER_MAC)
    a.port.plug()
    observers = {
        name: AnnouncementObserver(Namespace.open(name), interface, stage.EITHER_MAC)
        for name, interface in (("client", "eth0"), ("local", "eth0"), ("guest-a", GUEST_INTERFACE))
    }
    before_ns = time.monotonic_ns()
    speaker = announcer(a, kind, stage.OTHER_MAC)
    for name in ("client", "local"):
        with Namespace.open(name).entered(), IPRoute() as route:
            for address in (stage.GUEST_4, stage.GUEST_6):
                stage.know(route, "eth0", str(address.ip), stage.MAC.hex(":"), state="reachable")
    assert speaker.due_ns() is not None
    speaker.announce()
    teaches = kind in (Kind.GARP_REQUEST, Kind.GARP_REPLY)
    for name in ("client", "local"):
        seen = observers[name].take()
        assert [one.kind for one in seen] == ANNOUNCED[kind]
        assert all(one.mac == stage.OTHER_MAC and one.t_ns > before_ns for one in seen)
        table = NeighbourTable(Namespace.open(name), "eth0")
        known = {one.address: one.mac for one in table.read()}
        expected = stage.OTHER_MAC if teaches else stage.MAC
        assert known == {stage.GUEST_4.ip: expected, stage.GUEST_6.ip: expected}
    assert observers["guest-a"].take() == []
    assert speaker.sent == len(ANNOUNCED[kind])


def test_the_switch_is_seen_to_learn(hosts: tuple[stage.Host, stage.Host]) -> None:
    _, b = hosts
    with ForwardingWatch(Namespace.open("switch"), "br0") as watch:
        speaker = announcer(b)
        speaker.announce()
        speaker.announce()
        moved = [change.entry.port for change in watch.read(1.0) if change.entry.mac == stage.MAC.hex(":")]
    assert moved == ["to-b"]


def test_a_schedule_runs_out_and_begins_again() -> None:
    stage.make_network()
    speaker = announcer(stage.make_host("host-a"))
    first_ns = speaker.announce()
    times = []
    while (due_ns := speaker.due_ns()) is not None:
        times.append(due_ns - first_ns)
        speaker.announce()
    assert times == [50_000_000, 200_000_000, 450_000_000, 800_000_000]
    assert speaker.rounds == 5
    speaker.restart()
    assert speaker.due_ns() is not None


def test_a_guest_is_wired_without_a_word_and_stays_disabled() -> None:
    stage.make_network()
    heard = _listen_for_the_guest("host-a", "br0")
    stage.make_host("host-a")
    assert not select.select([heard], [], [], 1.5)[0], heard.recv(200).hex()
    assert stage.port_state("host-a", GUEST_PORT) == netlink.BR_STATE_DISABLED


def test_a_guest_whose_port_is_not_disabled_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control."""
    stage.make_network()
    heard = _listen_for_the_guest("host-a", "br0")
    monkeypatch.setattr(netlink, "BR_STATE_DISABLED", netlink.BR_STATE_FORWARDING)
    nic = GuestNic(stage.MAC, stage.GUEST_4, stage.GUEST_6)
    GuestWiring.make(Namespace.open("host-a"), "br0", "guest", nic)
    assert select.select([heard], [], [], DEADLINE_S)[0]


def test_a_carrier_that_comes_later_opens_a_disabled_port(hosts: tuple[stage.Host, stage.Host]) -> None:
    """Why the wiring waits until the kernel has noticed the carrier."""
    _, b = hosts
    changes = netlink.watch(b.namespace.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0), netlink.RTMGRP_LINK)
    assert stage.port_state("host-b", GUEST_PORT) == netlink.BR_STATE_DISABLED
    with b.guest.entered(), IPRoute() as route:
        for state in ("down", "up"):
            route.link("set", index=stage.index(route, GUEST_INTERFACE), state=state)
    deadline_s = time.monotonic() + DEADLINE_S
    while stage.port_state("host-b", GUEST_PORT) != netlink.BR_STATE_FORWARDING:
        assert select.select([changes], [], [], max(0.0, deadline_s - time.monotonic()))[0]
        changes.recv(1 << 16)


def test_what_wiring_made_is_gone_when_it_fails_and_when_it_ends() -> None:
    stage.make_network()
    nic = GuestNic(stage.MAC, stage.GUEST_4, stage.GUEST_6)
    with pytest.raises(OSError, match="no such interface"):
        GuestWiring.make(Namespace.open("host-a"), "br9", "guest", nic)
    with pytest.raises(FileNotFoundError):
        Namespace.open("guest")
    with GuestWiring.make(Namespace.open("host-a"), "br0", "guest", nic), pytest.raises(FileExistsError):
        GuestWiring.make(Namespace.open("host-a"), "br0", "guest", nic)
    with pytest.raises(FileNotFoundError):
        Namespace.open("guest")


def test_neighbours_go_along_but_for_those_not_known(hosts: tuple[stage.Host, stage.Host]) -> None:
    a, b = hosts
    stranger, quiet = IPv4Address("10.7.0.99"), IPv4Address("10.7.0.50")
    with a.guest.entered(), IPRoute() as route:
        stage.know(route, GUEST_INTERFACE, str(quiet), "02:00:00:00:00:50", state="stale")
        stage.know(route, GUEST_INTERFACE, stage.CLIENT_6, "02:00:00:00:00:01", state="reachable")
    with a.guest.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"", (str(stranger), 9))  # it will be asked for, and be INCOMPLETE
    table = NeighbourTable(a.guest, GUEST_INTERFACE)
    read = {one.address: one for one in table.read()}
    assert stranger not in read
    assert read[quiet] == Neighbour(quiet, bytes.fromhex("020000000050"), netlink.NUD_STALE)
    assert len(read) == 4
    with b.guest.entered(), IPRoute() as route:
        stage.know(route, GUEST_INTERFACE, str(quiet), "02:00:00:00:00:99", state="reachable")
    there = NeighbourTable(b.guest, GUEST_INTERFACE)
    there.install(decode(encode(list(read.values()))))
    assert {one.address: one for one in there.read()} == read


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("released", [True, False])
def test_a_handshake_that_the_guest_may_not_take_is_taken_at_the_target(
    hosts: tuple[stage.Host, stage.Host], version: int, released: bool
) -> None:
    """Negative control, not released: it takes the client's second try, a second later."""
    a, b = hosts
    address = str(stage.GUEST_4.ip if version == 4 else stage.GUEST_6.ip)
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    listeners = []
    for host in hosts:
        listener = host.guest.socket(family, socket.SOCK_STREAM)
        listener.bind((address, 7000))
        listener.listen()
        listeners.append(listener)
        with host.guest.entered(), IPRoute() as route:
            stage.know(route, GUEST_INTERFACE, stage.CLIENT_6, "02:00:00:00:00:01")
    hold = SynHold(a.namespace, GUEST_PORT, stage.IDENTITY)
    with Namespace.open("client") as namespace:
        early, client = (namespace.socket(family, socket.SOCK_STREAM) for _ in range(2))
    early.connect((address, 7000))
    hold.start()
    packet.attach_filter(listeners[0], packet.assemble([packet.reject()]))
    client.setblocking(False)
    with pytest.raises(BlockingIOError):
        client.connect((address, 7000))
    held = hold.drain()
    assert len(held) == 1
    assert hold.dropped() == 0
    a.cut()
    b.cut()
    announcer(b).announce()
    b.port.open()
    b.delivery().deliver(held if released else [])
    assert select.select([], [client], [], DEADLINE_S)[1]
    assert client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
    assert (tcp_info(client).total_retrans == 0) is released


def test_handshakes_count_only_while_they_are_caught(hosts: tuple[stage.Host, stage.Host]) -> None:
    """A guest takes thousands in its life: none of them was lost by a hold, and none is given to it again."""
    a, _ = hosts
    hold = SynHold(a.namespace, GUEST_PORT, stage.IDENTITY)
    with a.guest.entered(), IPRoute() as route:
        stage.know(route, GUEST_INTERFACE, stage.CLIENT_6, "02:00:00:00:00:01")

    def refused(times: int) -> None:
        for _ in range(times):
            with (
                Namespace.open("client") as namespace,
                namespace.socket(socket.AF_INET, socket.SOCK_STREAM) as one,
                pytest.raises(ConnectionRefusedError),
            ):
                one.connect((str(stage.GUEST_4.ip), 7000))

    refused(SYN_SLOTS + 1)
    assert (len(hold.drain()), hold.dropped()) == (0, 0)
    hold.start()
    refused(2)
    assert (len(hold.drain()), hold.dropped()) == (2, 0)
    hold.stop()
    refused(1)
    assert (len(hold.drain()), hold.dropped()) == (0, 0)


def test_an_announcement_goes_on_where_a_port_is_down(hosts: tuple[stage.Host, stage.Host]) -> None:
    """Whoever announces has a guest to let run, and a wire that is cut must not keep it."""
    a, _ = hosts
    one = announcer(a)
    one.announce()
    whole = one.sent
    with a.namespace.entered(), IPRoute() as route:
        route.link("set", index=stage.index(route, stage.UPLINK), state="down")
    one.announce()
    assert (one.rounds, one.sent) == (2, 2 * whole)


def test_frames_for_the_mac_that_the_vm_had_reach_the_one_it_has() -> None:
    """One MAC address a host: what the client sent before it heard of the new one was held at the source."""
    stage.make_network()
    a = stage.make_host("host-a", stage.MAC, stage.EITHER_MAC)
    b = stage.make_host("host-b", stage.OTHER_MAC, stage.EITHER_MAC)
    a.port.plug()
    receiver = b.guest.socket(socket.AF_INET, socket.SOCK_DGRAM)
    receiver.bind(("", stage.PORT))
    announcer(a).announce()
    a.cut()
    b.cut()
    stage.send("client", range(5))
    with Namespace.open("client").entered(), IPRoute() as route:
        stage.know(route, "eth0", str(stage.GUEST_4.ip), stage.MAC.hex(":"), state="reachable")
    announcer(b, mac=stage.OTHER_MAC).announce()
    stage.send("client", range(5, 10))
    b.port.open()
    delivered = b.delivery(rewrite=(stage.MAC, stage.OTHER_MAC)).deliver(a.hold.drain())
    assert (delivered.before_plug, b.release.dropped) == (10, 0)
    receiver.settimeout(DEADLINE_S)
    assert [int.from_bytes(receiver.recv(100), "big") for _ in range(10)] == list(range(10))


def pin_switch(port: str) -> None:
    """The switch believes for good that the VM is behind `port`: frames under way, made to stay so."""
    with Namespace.open("switch") as switch:
        route = RouteSocket(switch.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0))
    route.request(netlink.prepare(netlink.forwarding_entry(stage.MAC, route.link(port).index, sticky=True)))


def _listen_for_the_guest(node: str, interface: str) -> socket.socket:
    """A socket that hears what the guest says on `interface`."""
    with Namespace.open(node) as namespace:
        heard = namespace.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    source = (
        packet.load(packet.BPF_LD_W_ABS, 6),
        packet.Jump(packet.BPF_JEQ_K, int.from_bytes(stage.MAC[:4], "big"), false="reject"),
        packet.load(packet.BPF_LD_H_ABS, 10),
        packet.Jump(packet.BPF_JEQ_K, int.from_bytes(stage.MAC[4:], "big"), false="reject"),
    )
    end = (packet.accept(), packet.Label("reject"), packet.reject())
    packet.attach_filter(heard, packet.assemble([*source, *end]))
    packet.bind(heard, interface)
    return heard


def _kinds_of_change(host: stage.Host, changes: socket.socket) -> list[int]:
    """The types of the messages about the guest's entry and its port that wait on `changes`, each once, in
    order."""
    with host.namespace.entered(), IPRoute() as route:
        port = stage.index(route, GUEST_PORT)
    kinds: list[int] = []
    while True:
        try:
            message = changes.recv(1 << 16)
        except BlockingIOError:
            return kinds
        kind, index = (int.from_bytes(message[start:end], sys.byteorder) for start, end in ((4, 6), (20, 24)))
        ours = index == port if kind == netlink.RTM_NEWLINK else stage.MAC in message
        if ours and kind not in kinds:
            kinds.append(kind)
