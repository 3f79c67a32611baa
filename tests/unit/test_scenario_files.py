"""Scenario files: what they say, what they leave out, and one line for each thing that is wrong."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.scenario import shelf
from testbed.scenario.files import ScenarioError, found, load, parse, read
from testbed.scenario.from_options import scenario_of
from testbed.scenario.model import SCHEMA_FILE, Scenario, schema
from testbed.scenario.options import Options
from testbed.scenario.units import (
    parse_duration,
    parse_rate,
    parse_size,
    write_duration,
    write_rate,
    write_size,
)


def scenario(text: str = "") -> Scenario:
    return parse(text.encode(), "f.toml")


def problems(text: str) -> list[str]:
    with pytest.raises(ScenarioError) as refused:
        scenario(text)
    return list(refused.value.problems)


# ---- what is left out


def test_an_empty_file_is_one_guest_that_moves_once_before_one_client() -> None:
    made = scenario()
    assert [(vm.name, vm.host, vm.ipv4, vm.mac_address) for vm in made.vms] == [
        ("vm1", "host-a", "10.7.0.10", "02:00:00:00:00:42")
    ]
    assert [(client.name, client.on, client.probes[0].kind) for client in made.clients] == [
        ("client1", "switch", "closed-loop")
    ]
    assert [(step.verb, step.migrate, step.times) for step in made.steps] == [("migrate", ("vm1",), 1)]
    assert made.hosts == ("host-a", "host-b")


def test_guests_are_numbered_and_have_addresses_of_their_own() -> None:
    made = scenario("[[vm]]\n[[vm]]\nhost = 'host-b'\n[[vm]]\nname = 'mine'\nipv4 = '10.7.0.77'")
    assert [(vm.name, vm.host, vm.ipv4, vm.ipv6, vm.mac_address[-2:]) for vm in made.vms] == [
        ("vm1", "host-a", "10.7.0.10", "fd07::10", "42"),
        ("vm2", "host-b", "10.7.0.11", "fd07::11", "43"),
        ("mine", "host-a", "10.7.0.77", "fd07::12", "44"),
    ]


def test_a_disk_is_there_where_it_is_needed() -> None:
    assert scenario().vms[0].disk_bytes == 0
    assert scenario("[[vm]]\nprogram = 'kv'\ndurable = true").vms[0].disk_bytes == 64 << 20
    assert scenario("[migration]\nmode = 'quick'").vms[0].disk_bytes == 16 << 20
    assert scenario("[[step]]\nmigrate = 'vm1'\nmode = 'quick'").is_quick


@pytest.mark.parametrize(
    ("vm", "kind"),
    [("program = 'ramp'", "ramp"), ("program = 'kv'\ndurable = true", "ledger"), ("", "closed-loop")],
)
def test_a_client_that_is_told_nothing_asks_in_the_way_of_the_guest(vm: str, kind: str) -> None:
    assert scenario(f"[[vm]]\n{vm}").clients[0].probes[0].kind == kind


def test_a_client_can_be_told_to_do_nothing() -> None:
    """Somebody may work there by hand."""
    assert scenario("[[client]]\nidle = true").clients[0].probes == ()


# ---- what is said


def test_a_probe_becomes_what_a_client_is_told() -> None:
    made = scenario(
        "[[vm]]\n[[vm]]\nprogram = 'kv'\n[[client]]\n[[client.probe]]\nkind = 'closed-loop'\nvm = 'vm2'\n"
        "family = 'ipv6'\ninterval = '2ms'\nconnections = 3\nsize = '1KiB'\n"
        "[[client.probe]]\nkind = 'open-loop'\nrate = 250.5\nport = 7000\n"
    )
    first, second = (made.probe_argument(probe) for probe in made.clients[0].probes)
    assert first == {
        "kind": "closed-loop",
        "address": "fd07::11",
        "program": "kv",
        "interval_us": 2000,
        "connections": 3,
        "size": 1024,
    }
    assert second == {
        "kind": "open-loop",
        "address": "10.7.0.10",
        "program": "echo",
        "rate_per_s": 250.5,
        "port": 7000,
    }


def test_a_rate_of_bytes_is_written_as_a_rate() -> None:
    made = scenario("[[vm]]\nprogram='ramp'\n[[client]]\n[[client.probe]]\nkind='ramp'\nrate='32mbit'")
    assert made.probe_argument(made.clients[0].probes[0])["rate_bytes_per_s"] == 4_000_000


def test_a_step_goes_before_what_is_said_of_all() -> None:
    made = scenario(
        "[migration]\nmode = 'stop-and-copy'\nmax_rounds = 4\n"
        "[[step]]\nmigrate = 'vm1'\nmode = 'live'\n[[step]]\nmigrate = 'vm1'\n"
    )
    first, second = (made.manner(step) for step in made.steps)
    assert (first.mode, first.max_rounds, first.on_stall) == ("live", 4, "switch")
    assert (second.mode, second.max_rounds, second.downtime_limit_ns) == ("stop-and-copy", 4, 300_000_000)


def test_conditions_are_read_with_their_units() -> None:
    step = scenario("[[step]]\nlink='client1'\nloss='0.1%'\ndelay='10ms'\nrate='1gbit'\nqueue=50").steps[0]
    told = step.conditions
    assert (told.loss, told.delay_ns, told.rate_bits_per_s, told.queue_frames) == (
        pytest.approx(0.001),
        10_000_000,
        10**9,
        50,
    )


@pytest.mark.parametrize(
    ("text", "links"),
    [
        ("", ["client1", "host-a", "host-b", "migration"]),
        ("network.migration = 'shared'", ["client1", "host-a", "host-b"]),
        ("hosts = ['a', 'b', 'c']", ["client1", "a", "b", "c", "a.migration", "b.migration", "c.migration"]),
        (
            "[[vm]]\ndisk = '16MiB'",
            ["client1", "host-a", "host-b", "migration", "host-a.storage", "host-b.storage", "storage"],
        ),
    ],
)
def test_links_go_by_the_node_that_they_plug_in(text: str, links: list[str]) -> None:
    assert list(scenario(text).link_names) == links


# ---- what is wrong


WRONG = {
    "rma = 1": "f.toml: unknown key 'rma'; there are: name, shows,",
    "nmae = 'x'": "f.toml: unknown key 'nmae'; did you mean name?",
    "[[vm]]\nrma = '1GiB'": "f.toml: vm[1]: unknown key 'rma'; did you mean ram? there are: name, host,",
    "[[vm]]\nram_bytes = 1": "f.toml: vm[1]: unknown key 'ram_bytes'",
    "[[vm]]\nram = 268435456": "f.toml: vm[1].ram: 268435456 is not a size: a text with a number and its uni",
    "[[vm]]\nname = 'db'\nram = '1 gig'": "f.toml: vm[db].ram: '1 gig' is not a size: a number and one of",
    "[[vm]]\nram = '4KiB'": "f.toml: vm[1].ram: 4096 bytes; a guest has whole pages",
    "[[vm]]\nram = '10000001B'": "f.toml: vm[1].ram: 10000001 bytes; a guest has whole pages",
    "[[vm]]\nload.working_set = '200MiB'": "f.toml: vm[1].load.working_set: 209715200 bytes",
    "[[vm]]\nload.pattern = 'x'": "f.toml: vm[1].load.pattern: 'x' is none of uniform, hot-cold, sequential",
    "[[vm]]\nhold = 'yes'": "f.toml: vm[1].hold: 'yes' is neither true nor false",
    "[[vm]]\nfill = 2": "f.toml: vm[1].fill: 2",
    "[[vm]]\nhost = 'x'": "f.toml: vm[vm1].host: there is no host 'x'; there are: host-a, host-b",
    "[[vm]]\nprogram = 'nginx'": "f.toml: vm[1].program: 'nginx' is none of echo, kv,",
    "[[vm]]\ndurable = true": "f.toml: vm[1].durable: echo keeps nothing on a disk",
    "[[vm]]\nprogram = 'kv'\ndurable = true\ndisk = '1MiB'": "f.toml: vm[1].disk: 1048576 bytes",
    "[[vm]]\nipv4 = '10.7.0.101'": "f.toml: vm[vm1].ipv4: 10.7.0.101 is client1's already",
    "[[vm]]\n[[vm]]\nipv6 = 'fd07::0:10'": "f.toml: vm[vm2].ipv6: fd07::10 is vm1's already",
    "[[vm]]\n[[vm]]\nmac_address = '02:00:00:00:00:42'": "f.toml: vm[vm2].mac_address: 02:00:00:00:00:42 is",
    "[[vm]]\nmac_address = '03:00:00:00:00:42'": "f.toml: vm[1].mac_address: '03:00:00:00:00:42' is no",
    "[[vm]]\nipv4 = '10.8.0.1'": "f.toml: vm[1].ipv4: '10.8.0.1' is not an address of the clients' network",
    "[[vm]]\n[[vm]]\nname = 'vm1'": "f.toml: vm: something called vm1 is there already",
    "[[client]]\nname = 'host-a'": "f.toml: client: something called host-a is there already, under hosts",
    "[[client]]\nname = 'switch'": "f.toml: client[switch].name: 'switch' is the testbed's own",
    "[[client]]\nname = 'A b'": "f.toml: client[A b].name: 'A b' is not a name",
    "[[client]]\non = 'x'": "f.toml: client[client1].on: 'x' is none of switch, host-a, host-b",
    "[[client]]\nprobe = []": "f.toml: client[client1]: does nothing; give it a probe or a program, or say "
    "idle = true",
    "[[client]]\nidle = true\n[[client.probe]]\nkind='closed-loop'": "f.toml: client[client1].idle: it has a "
    "probe or a program, so it is not",
    "[[client]]\nprogram = [{command = []}]": "f.toml: client[1].program[1].command: has 0, and there must b",
    "[vm]\nram = '1GiB'": "f.toml: vm: is a list of tables: each begins with the name in [[double brackets]]",
    "hosts = ['a']": "f.toml: hosts: has 1, and there must be at least 2",
    "hosts = ['a', 'a']": "f.toml: hosts: something called a is there already",
    "hosts = ['a', 'b', 'c']\n[[vm]]\ndisk = '16MiB'": "f.toml: hosts: shared storage (a guest has a disk) i",
    "[[link]]\nname = 'x'": "f.toml: link: there is no link 'x'; there are: client1, host-a, host-b, migrati",
    "[[link]]\nname = 'client1'\ndelay = '1'": "f.toml: link[client1].delay: '1' is not a duration",
    "[[link]]\nname = 'client1'\nloss = 2": "f.toml: link[client1].loss: 2 is not between 0 and 1",
    "[[link]]\nname = 'client1'\nloss = 'x%'": "f.toml: link[client1].loss: 'x%' is not a share",
    "[[link]]\nname = 'client1'\nrate = '1bit'": "f.toml: link[client1].rate: 1bit is not between 100kbit an",
    "[[link]]\nname = 'client1'\n[[link]]\nname = 'client1'\ndirection = 'to-node'": "f.toml: link: a link c",
    "[storage]\nrate = '1gbit'": "f.toml: storage: there is none unless a guest has a disk",
    "[migration]\nmode = 'quik'": "f.toml: migration.mode: 'quik' is none of live, stop-and-copy, quick",
    "[migration]\nmode = 'quick'\n[[vm]]\n[[vm]]": "f.toml: migration.mode: quick moves the whole LUN",
    "[[step]]\nmigrate = 'vm1'\nmode = 'quick'\n[[step]]\nmigrate = 'vm1'": "f.toml: migration.mode: quick m",
    "[storage]\nserver = 'nbdkit'\n[[vm]]\ndisk='1MiB'\n[[vm]]\ndisk='1MiB'": "f.toml: storage.server: nbdki",
    "[network]\nmigration = 'shared'\nbandwidth = '1gbit'": "f.toml: network.bandwidth: is that of a wire",
    "[network]\nrelearn = false": "f.toml: network.relearn: without it the switch must age",
    "step = []": "f.toml: step: has 0, and there must be at least 1",
    "[[step]]": "f.toml: step[1]: a step has exactly one of migrate, drain, wait, link, run; here none",
    "[[step]]\nwait = '1s'\nmigrate = 'vm1'": "f.toml: step[1]: a step has exactly one of migrate, drain, wa",
    "[[step]]\nwait = '1s'\nto = 'host-a'": "f.toml: step[1].to: does not belong to wait, which takes nothin",
    "[[step]]\nmigrate = 'vm9'": "f.toml: step[1].migrate: there is no guest 'vm9'; there are: vm1",
    "[[step]]\nmigrate = ['vm1', 'vm1']": "f.toml: step[1].migrate: a guest is named twice",
    "[[step]]\nmigrate = 'vm1'\nto = 'x'": "f.toml: step[1].to: there is no host 'x'; there are: host-a, hos",
    "[[step]]\nmigrate = 'vm1'\nfault = 'x:y'": "f.toml: step[1].fault: 'x:y' is not PHASE:KIND",
    "[[step]]\nmigrate = 'vm1'\nfault = 'commit:lun-full'": "f.toml: step[1].fault: commit:lun-full needs sh",
    "[[vm]]\n[[vm]]\n[[step]]\nmigrate = ['vm1','vm2']\nfault = 'commit:link-reset'": "f.toml: step[1].fault",
    "name = 'a/b'": "f.toml: name: 'a/b' cannot be part of a folder's name",
    "network.migration='shared'\n[[step]]\nmigrate='vm1'\nfault='commit:link-slow'": "f.toml: step[1].fault",
    "[[step]]\ndrain = 'x'": "f.toml: step[1].drain: there is no host 'x'; there are: host-a, host-b",
    "[[step]]\ndrain = 'host-a'\nto = 'host-a'": "f.toml: step[1].to: 'host-a' is the host that is drained",
    "[[step]]\nlink = 'x'\nreset = true": "f.toml: step[1].link: there is no link 'x'",
    "[[step]]\nlink = 'client1'\nreset = true\ndelay = '1ms'": "f.toml: step[1].reset: takes all conditions",
    "[[step]]\nrun = ['ls']": "f.toml: step[1].on: is missing",
    "[[step]]\nrun = ['ls']\non = 'x'": "f.toml: step[1].on: there is no node 'x'; there are: switch, host-a",
    "[[step]]\nmigrate = 'vm1'\ntimes = 0": "f.toml: step[1].times: 0",
    "[[check]]\nfigure = 'clients.x'\nat_most = 1": "f.toml: check[1].figure: 'clients.x': the result has no",
    "[[check]]\nfigure = 'migrations.blackout_ms'\nat_most = 1": "f.toml: check[1].figure: 'migrations.black",
    "[[check]]\nfigure = 'blackout_ms'": "f.toml: check[1]: a check needs at_most, at_least or equals",
    "[[check]]\nfigure = 'blackout_ms'\nat_most = '1gbit'": "f.toml: check[1].at_most: '1gbit' is not a dura",
    "[[check]]\nfigure = 'blackout_ms'\nequals = 'abc'": "f.toml: check[1].equals: 'abc' is not a duration",
    "[[check]]\nfigure = 'blackout_ms'\nat_most = nan": "f.toml: check[1].at_most: nan is not a finite",
    "[[check]]\nfigure = 'blackout_ms'\nequals = inf": "f.toml: check[1].equals: inf is not a finite",
    "[[vm]]\nipv4 = '10.7.0.255'": "f.toml: vm[1].ipv4: '10.7.0.255' is that of the whole network",
    "[[vm]]\nipv4 = '10.7.0.0'": "f.toml: vm[1].ipv4: '10.7.0.0' is that of the whole network",
    "[[vm]]\nipv6 = 'fd07::'": "f.toml: vm[1].ipv6: 'fd07::' is that of the whole network",
    "[[vm]]\nmac_address = '00:00:00:00:00:00'": "f.toml: vm[1].mac_address: all zero is no interface's",
    "[[client]]\n[[client.probe]]\nkind = 'udp'\nrat = 1": "f.toml: client[1].probe[1]: unknown key 'rat'; "
    "did you mean rate? there are: kind, vm, family, port, program, connections, rate, size",
    "[[check]]\nfigure = 'clients.broken'\nat_most = '1ms'": "f.toml: check[1].at_most: '1ms': clients.broke",
    "waive = ['x']": "f.toml: waive[1]: 'x' is none of the standard checks: migrated; verified;",
    "a ==": "f.toml: is not TOML: ",
    "baseline = '2h'": "f.toml: baseline: '2h' is not a duration",
    "baseline = '61min'": "f.toml: baseline: 3660s is not between 0ns and 3600s",
    "seed = '1'": "f.toml: seed: '1' is not a whole number",
    "[[vm]]\n[[client]]\n[[client.probe]]\nkind = 'x'": "f.toml: client[1].probe[1].kind: 'x' is none of clo",
    "[[client]]\n[[client.probe]]\nkind = 'open-loop'\ninterval = '1ms'": "f.toml: client[1].probe[1]: unkn",
    "[[client]]\n[[client.probe]]\nkind = 'open-loop'\nrate = 0": "f.toml: client[client1].probe[1]: rate mu",
    "[[client]]\n[[client.probe]]\nkind = 'closed-loop'\ninterval = 1": "f.toml: client[1].probe[1].interval",
    "[[client]]\n[[client.probe]]\nkind = 'closed-loop'\nvm = 'x'": "f.toml: client[client1].probe[1].vm: th",
    "[[vm]]\nprogram = 'ramp'\n[[client]]\n[[client.probe]]\nkind = 'churn'": "f.toml: client[client1].probe",
}


@pytest.mark.parametrize(("text", "line"), WRONG.items(), ids=lambda value: value.replace("\n", " ")[:60])
def test_what_is_wrong_is_said_in_one_line(text: str, line: str) -> None:
    told = problems(text)
    assert len(told) == 1, told
    assert told[0].startswith(line)
    assert "\n" not in told[0]


def test_everything_that_is_wrong_is_said() -> None:
    told = problems("seed = 'x'\n[[vm]]\nram = 1\nhold = 3\n")
    assert [line.split(": ")[1] for line in told] == ["seed", "vm[1].ram", "vm[1].hold"]


def test_a_file_that_is_not_there_or_too_long_is_named(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match=r"none\.toml: cannot be read: No such file"):
        load(tmp_path / "none.toml")
    long = tmp_path / "long.toml"
    long.write_bytes(b"#" * ((1 << 20) + 1))
    with pytest.raises(ScenarioError, match="over 1 MiB"):
        load(long)


def test_a_word_is_a_file_or_a_scenario_of_the_shelf(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("demo").mkdir()
    assert found("demo").name == "demo", "a folder beside it is not what is meant"
    with pytest.raises(ScenarioError, match=r"tmp|Is a directory"):
        found(str(tmp_path))
    file = tmp_path / "mine.toml"
    file.write_text("")
    assert found(str(file)).name == "mine"
    with pytest.raises(ScenarioError, match=r"dem: neither a file nor a scenario of the shelf, which has ag"):
        found("dem")


def test_everything_that_does_not_fit_is_told_at_once() -> None:
    text = "[[vm]]\n[[vm]]\nipv4 = '10.7.0.10'\n[[link]]\nname = 'host-z'\n[[client]]\nname = 'host-a'\n"
    assert problems(text + "probe = [{kind = 'closed-loop', vm = 'vm9'}]") == [
        "f.toml: client: something called host-a is there already, under hosts",
        "f.toml: vm[vm2].ipv4: 10.7.0.10 is vm1's already",
        "f.toml: client[host-a].probe[1].vm: there is no guest 'vm9'; there are: vm1, vm2",
        "f.toml: link: there is no link 'host-z'; there are: host-a, host-a, host-b, migration",
    ]
    steps = "[[step]]\nmigrate = 'vm7'\n[[step]]\nlink = 'nowhere'\n"
    assert [one.partition(":")[2].partition(":")[0].strip() for one in problems(steps)] == [
        "step[1].migrate",
        "step[2].link",
    ]


# ---- the shelf, the schema, and back


@pytest.mark.parametrize("path", shelf.paths(), ids=lambda path: path.stem)
def test_every_scenario_of_the_shelf_can_be_run_and_says_what_it_is(path: Path) -> None:
    made = load(path)
    assert made.name == path.stem
    assert made.shows.endswith(".")
    assert made.expect.endswith(".")
    jsonschema.validate(tomllib.loads(path.read_text()), schema())


def test_the_schema_that_ships_is_that_of_the_model() -> None:
    assert json.loads(SCHEMA_FILE.read_text()) == schema()


def test_the_schema_refuses_what_the_model_refuses() -> None:
    for text in ("rma = 1", "[[vm]]\nrma = 1", "[[vm]]\nram = 1", "[[step]]\ntimes = 0"):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(tomllib.loads(text), schema())


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"program": "ramp", "family": "ipv6"},
        {"mode": "quick", "disk_bytes": 16 << 20, "storage_rate_bits_per_s": 10**9},
        {"program": "kv-durable", "disk_bytes": 64 << 20, "fault": "commit:storage-cut-source"},
        {"mac": "per-host", "hold": False, "bandwidth_bits_per_s": 123_456_789, "interval_ns": 1_500_000},
        {"dirty_rate_pages_per_s": 0, "working_set_bytes": 0, "migrations": 7, "clients": 9},
    ],
)
def test_what_options_ask_for_is_a_scenario_and_reads_back_as_the_same(options: dict[str, Any]) -> None:
    made = scenario_of(Options(**options))
    assert read(made.as_json(), "written") == made
    jsonschema.validate(made.as_json(), schema())


def test_options_keep_their_meaning() -> None:
    made = scenario_of(Options(ram_bytes=64 << 20, migrations=3, bandwidth_bits_per_s=10**9, connections=5))
    assert made.vms[0].ram_bytes == 64 << 20
    assert made.network.bandwidth_bits_per_s == 10**9
    assert [(step.migrate, step.times) for step in made.steps] == [(("vm1",), 3)]
    probes = [probe for client in made.clients for probe in client.probes if probe.kind == "closed-loop"]
    assert sum(made.probe_argument(probe)["connections"] for probe in probes) == 5
    assert made.manner(made.steps[0]).max_rounds == Options().max_rounds


@given(st.integers(0, 10**15 - 1))
def test_a_written_size_reads_back(size_bytes: int) -> None:
    assert parse_size(write_size(size_bytes)) == size_bytes


@given(st.integers(0, 10**14))
def test_a_written_rate_or_duration_reads_back(value: int) -> None:
    assert parse_rate(write_rate(value)) == value
    assert parse_duration(write_duration(value)) == value


@given(
    ram_mib=st.integers(8, 1 << 40),
    disk_sectors=st.integers(1, 1 << 40),
    mode=st.sampled_from(["live", "stop-and-copy", "quick"]),
    program=st.sampled_from(["echo", "kv", "http", "ramp", "kv-durable", "my.own:Program"]),
    family=st.sampled_from(["both", "ipv4", "ipv6"]),
    clients=st.integers(1, 100),
    connections=st.integers(0, 20_000),
    interval_ns=st.integers(100_000, 60 * 10**9),
    stream_rate_per_s=st.integers(0, 100_000),
    churn_per_s=st.integers(0, 10_000),
    baseline_ns=st.integers(0, 3600 * 10**9),
    rate=st.integers(100_000, 34 * 10**9),
)
def test_whatever_options_there_can_be_are_a_scenario(
    ram_mib: int, disk_sectors: int, mode: Any, rate: int, program: str, **more: Any
) -> None:
    options = Options(
        ram_bytes=ram_mib << 20,
        working_set_bytes=4096,
        disk_bytes=(8 << 20) + disk_sectors * 512,
        mode=mode,
        program=program,
        bandwidth_bits_per_s=rate,
        max_bandwidth_bits_per_s=rate,
        storage_rate_bits_per_s=rate,
        downtime_limit_ns=more["baseline_ns"] % (600 * 10**9),
        **more,
    )
    assert scenario_of(options).vms[0].ram_bytes == options.ram_bytes


def test_a_word_that_no_file_can_be_called_is_one_line() -> None:
    """Whether it exists cannot even be asked; nor can it of a file in a folder that is closed to us."""
    with pytest.raises(ScenarioError, match="cannot be read: File name too long"):
        found("x" * 300)
