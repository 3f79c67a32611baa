"""What is compared with what: words of a command line to variants, and variants to whole options."""

from __future__ import annotations

import pytest

from testbed.scenario.options import OptionError
from testbed.scenario.variants import Contender, contenders, read_variant
from testbed.scenario.words import DURABLE_DISK_BYTES, QUICK_DISK_BYTES, Words


def compared(*words: str, **shared: str) -> list[Contender]:
    given: Words = {key.replace("_", "-"): value for key, value in shared.items()}
    return contenders(given, [read_variant(word) for word in words])


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
    assert (one.options.hold, one.options.ram_bytes, one.options.announce) == (True, 32 << 20, "rarp")
    assert (other.options.hold, other.options.ram_bytes, other.options.announce) == (False, 64 << 20, "rarp")


def test_all_have_the_storage_that_one_needs() -> None:
    found = compared("live", "stop-and-copy", "quick", storage_rate="1gbit")
    assert {one.options.disk_bytes for one in found} == {QUICK_DISK_BYTES}
    assert {one.options.storage_rate_bits_per_s for one in found} == {10**9}
    found = compared("quick", "program=kv,durable=yes", "live")
    assert {one.options.disk_bytes for one in found} == {DURABLE_DISK_BYTES}


def test_none_has_storage_where_none_needs_it() -> None:
    assert {one.options.disk_bytes for one in compared("live", "stop-and-copy")} == {0}


def test_a_variant_may_name_its_own_disk() -> None:
    found = compared("live,disk=0B", "live", "quick,disk=64MiB")
    assert [one.options.disk_bytes for one in found] == [0, QUICK_DISK_BYTES, 64 << 20]


def test_all_run_on_the_disk_that_is_asked_for() -> None:
    assert {one.options.disk_bytes for one in compared("live", "quick", disk="8MiB")} == {8 << 20}


def test_a_repeat_has_a_seed_of_its_own_which_all_share() -> None:
    one, other = compared("live", "stop-and-copy", seed="5")
    assert [one.repeated(number).seed for number in range(3)] == [5, 6, 7]
    assert one.repeated(2).seed == other.repeated(2).seed
    assert one.repeated(0) == one.options


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
        (("live", "durable=yes"), ("durable=yes: --durable", "--program kv")),
    ],
)
def test_what_cannot_be_compared_is_refused(words: tuple[str, ...], told: tuple[str, ...]) -> None:
    with pytest.raises(OptionError) as caught:
        compared(*words)
    assert str(caught.value).startswith("compare: ")
    assert [one for one in told if one not in str(caught.value)] == []
