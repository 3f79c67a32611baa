"""What is compared with what: words of a command line to variants, and variants to whole options."""

from __future__ import annotations

from pathlib import Path

import pytest

from testbed.scenario.options import OptionError, Options
from testbed.scenario.variants import Contender, contenders, read_variant, read_variants
from testbed.scenario.words import DURABLE_DISK_BYTES, QUICK_DISK_BYTES, Words


def compared(*words: str, **shared: str) -> list[Contender]:
    given: Words = {key.replace("_", "-"): value for key, value in shared.items()}
    return contenders(given, read_variants(words))


def options(one: Contender) -> Options:
    assert one.options is not None
    return one.options


@pytest.mark.parametrize(
    ("word", "changes"),
    [
        ("quick", {"mode": "quick"}),
        ("hold=no", {"hold": "no"}),
        ("mode=live,ram=1GiB", {"mode": "live", "ram": "1GiB"}),
        ("live,hold=no", {"mode": "live", "hold": "no"}),
        ("program=mine:Server", {"program": "mine:Server"}),
    ],
)
def test_a_word_is_a_label_and_its_changes(word: str, changes: dict[str, str]) -> None:
    variant = read_variant(word)
    assert (variant.label, variant.changes) == (word, changes)


def test_a_variant_changes_what_it_names_and_shares_the_rest() -> None:
    one, other = compared("hold=yes", "hold=no,ram=64MiB", ram="32MiB", announce="rarp")
    assert (options(one).hold, options(one).ram_bytes, options(one).announce) == (True, 32 << 20, "rarp")
    assert (options(other).hold, options(other).ram_bytes, options(other).announce) == (
        False,
        64 << 20,
        "rarp",
    )


def test_all_have_the_storage_that_one_needs() -> None:
    found = compared("live", "stop-and-copy", "quick", storage_rate="1gbit")
    assert {options(one).disk_bytes for one in found} == {QUICK_DISK_BYTES}
    assert {options(one).storage_rate_bits_per_s for one in found} == {10**9}
    found = compared("quick", "program=kv,durable=yes", "live")
    assert {options(one).disk_bytes for one in found} == {DURABLE_DISK_BYTES}


def test_none_has_storage_where_none_needs_it() -> None:
    assert {options(one).disk_bytes for one in compared("live", "stop-and-copy")} == {0}


def test_a_variant_may_name_its_own_disk() -> None:
    found = compared("live,disk=0B", "live", "quick,disk=64MiB")
    assert [options(one).disk_bytes for one in found] == [0, QUICK_DISK_BYTES, 64 << 20]


def test_all_run_on_the_disk_that_is_asked_for() -> None:
    assert {options(one).disk_bytes for one in compared("live", "quick", disk="8MiB")} == {8 << 20}


def test_a_repeat_has_a_seed_of_its_own_which_all_share() -> None:
    one, other = compared("live", "stop-and-copy", seed="5")
    assert [one.repeated(number).seed for number in range(3)] == [5, 6, 7]
    assert one.repeated(2).seed == other.repeated(2).seed
    assert one.repeated(0) == one
    assert options(one.repeated(2)).seed == 7


# ---- grids


def labels(*words: str) -> list[str]:
    return [one.label for one in read_variants(words)]


def test_slashes_make_a_grid_of_every_combination() -> None:
    found = read_variants(["hold=yes/no", "mac=keep/per-host"])
    assert [one.label for one in found] == [
        "hold=yes,mac=keep", "hold=yes,mac=per-host", "hold=no,mac=keep", "hold=no,mac=per-host",
    ]  # fmt: skip
    assert found[1].levels == found[1].changes == {"hold": "yes", "mac": "per-host"}
    assert labels("hold=yes/no,mac=keep/per-host") == labels("hold=yes/no", "mac=keep/per-host")


def test_plain_words_are_combined_with_the_grid_and_are_a_factor_if_there_are_several() -> None:
    found = read_variants(["live", "quick", "ram=64MiB/256MiB"])
    assert [one.label for one in found] == [
        "live,ram=64MiB", "live,ram=256MiB", "quick,ram=64MiB", "quick,ram=256MiB",
    ]  # fmt: skip
    assert found[3].levels == {"variant": "quick", "ram": "256MiB"}
    alone = read_variants(["live", "ram=64MiB/256MiB"])
    assert [(one.levels, one.changes["mode"]) for one in alone] == [
        ({"ram": "64MiB"}, "live"), ({"ram": "256MiB"}, "live"),
    ]  # fmt: skip


def test_modes_may_be_the_levels_and_without_slashes_there_are_none() -> None:
    assert labels("live/stop-and-copy") == ["mode=live", "mode=stop-and-copy"]
    assert [one.levels for one in read_variants(["hold=yes", "hold=no"])] == [{}, {}]


# ---- links and files


def test_the_links_of_the_clients_may_be_slow() -> None:
    near, far = compared("delay=0ms/10ms", clients="2")
    assert {link.name: link.delay_ns for link in far.scenario.links} == {
        "client1": 10_000_000, "client2": 10_000_000,
    }  # fmt: skip
    assert {link.delay_ns for link in near.scenario.links} == {0}
    assert near.options == far.options


def test_a_scenario_from_a_file_is_a_variant_and_can_be_changed(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('[[vm]]\nram = "32MiB"\n[[step]]\nmigrate = "vm1"\nmode = "live"\n')
    plain, changed = compared(
        str(path), f"{path},hold=no,mode=stop-and-copy,dirty-rate=7,bandwidth=1gbit", seed="3"
    )
    assert (plain.options, plain.scenario.vms[0].hold, plain.seed) == (None, True, 3)
    vm = changed.scenario.vms[0]
    assert (vm.hold, vm.load.dirty_rate_pages_per_s, vm.ram_bytes) == (False, 7, 32 << 20)
    assert changed.scenario.manner(changed.scenario.steps[0]).mode == "stop-and-copy"
    assert changed.scenario.network.bandwidth_bits_per_s == 10**9


def test_the_shelf_goes_by_name() -> None:
    found = compared("two-vms-at-once", "two-vms-at-once,hold=no")
    assert [{vm.hold for vm in one.scenario.vms} for one in found] == [{True}, {False}]


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("two-vms-at-once,clients=3", ("'clients' changes no scenario", "hold")),
        ("two-vms-at-once,hold=perhaps", ("hold", "'perhaps' is not yes or no")),
        ("two-vms-at-once,ram=much", ("two-vms-at-once,ram=much", "'much'")),
        ("nowhere.toml", ("nowhere.toml", "cannot be read")),
    ],
)
def test_what_changes_no_scenario_is_refused(word: str, told: tuple[str, ...]) -> None:
    with pytest.raises(OptionError) as caught:
        compared("two-vms-at-once", word)
    assert [one for one in told if one not in str(caught.value)] == []


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("live",), ("from 2", "1")),
        ((), ("from 2", "0")),
        (tuple(f"seed={number}" for number in range(21)), ("to 20", "21")),
        (("live", "live"), ("'live'", "twice")),
        (("live", "fast"), ("'fast'", "live, stop-and-copy, quick", "KEY=VALUE")),
        (("live", "speed=9"), ("'speed'", "ram", "dirty-rate", "durable")),
        (("live", "name=x"), ("'name'", "ram")),
        (("live", "ram=1GiB,ram=2GiB"), ("ram twice",)),
        (("live", "quick,mode=live"), ("mode twice",)),
        (("live", "live,"), ("''", "KEY=VALUE")),
        (("live", "ram="), ("ram=: --ram", "''", "MiB")),
        (("live", "ram=much"), ("ram=much: --ram", "much", "MiB")),
        (("live", "mac=mine"), ("mac=mine: --mac", "keep, per-host")),
        (("hold=yes/no", "hold=no/yes"), ("hold has levels twice",)),
        (("hold=yes/yes",), ("'hold=yes/yes' has a level twice",)),
        (("hold=no,ram=32MiB", "hold=yes/no"), ("sets hold, which has levels too",)),
        (("mode=live/fast",), ("'fast'", "live, stop-and-copy, quick")),
        (("speed=1/2",), ("'speed'", "delay")),
        (("live", "durable=yes"), ("durable=yes: --durable", "--program kv")),
    ],
)
def test_what_cannot_be_compared_is_refused(words: tuple[str, ...], told: tuple[str, ...]) -> None:
    with pytest.raises(OptionError) as caught:
        compared(*words)
    assert str(caught.value).startswith("compare: ")
    assert [one for one in told if one not in str(caught.value)] == []
