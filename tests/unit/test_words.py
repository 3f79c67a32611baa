"""Options as words: every option of the command has one, and each is read as what it is."""

from __future__ import annotations

import inspect
from dataclasses import fields

import pytest

from testbed.commands.migrate import migrate
from testbed.scenario.options import OptionError, Options
from testbed.scenario.words import DURABLE_DISK_BYTES, KEYS, QUICK_DISK_BYTES, options_from


def test_every_option_of_migrate_is_a_word_and_every_word_an_option() -> None:
    told = {name.replace("_", "-") for name in inspect.signature(migrate).parameters}
    of_the_command = {"context", "json-", "name", "no-report", "plain", "quiet", "runs", "to", "vm"}
    of_the_command |= {name for name in told if name.startswith(("pcap", "pause"))}
    assert set(KEYS) == told - of_the_command


def test_no_words_are_the_defaults() -> None:
    assert options_from({}) == Options()
    assert options_from({"ram": None, "disk": None, "durable": False}) == Options()


@pytest.mark.parametrize(
    ("key", "text", "field", "value"),
    [
        ("mode", "stop-and-copy", "mode", "stop-and-copy"),
        ("ram", "1GiB", "ram_bytes", 1 << 30),
        ("fill", "0.25", "fill", 0.25),
        ("clients", "5", "clients", 5),
        ("interval", "10ms", "interval_ns", 10_000_000),
        ("bandwidth", "1gbit", "bandwidth_bits_per_s", 10**9),
        ("dirty-rate", "20000", "dirty_rate_pages_per_s", 20_000),
        ("announce", "none", "announce", "none"),
        ("mac", "per-host", "mac", "per-host"),
        ("hold", "no", "hold", False),
        ("hold", "yes", "hold", True),
        ("disk", "8MiB", "disk_bytes", 8 << 20),
        ("seed", "7", "seed", 7),
    ],
)
def test_a_word_fills_its_field(key: str, text: str, field: str, value: object) -> None:
    assert getattr(options_from({key: text}), field) == value


def test_what_has_been_read_already_is_taken_as_it_is() -> None:
    words = {"clients": 2, "fill": 0.1, "hold": False, "disk": 512}
    options = options_from(words)
    assert (options.clients, options.fill, options.hold, options.disk_bytes) == (2, 0.1, False, 512)


def test_every_field_can_be_given_in_words() -> None:
    """A field without a word could not be compared."""
    changed = {
        field.name
        for key in KEYS
        for text in ("quick", "1GiB", "0.2", "kv", "2", "20ms", "ipv4", "hot-cold", "1gbit", "no", "rarp",
                     "per-host", "digest", "give-up", "64MiB", "nbdkit", "precopy:target-agent-killed")
        for field in fields(Options)
        if _differs(key, text, field.name)
    }  # fmt: skip
    assert changed == {field.name for field in fields(Options)}


def _differs(key: str, text: str, field: str) -> bool:
    try:
        made = options_from({"disk": 1 << 20, key: text})
    except OptionError:
        return False
    return getattr(made, field) != getattr(Options(disk_bytes=1 << 20), field)


@pytest.mark.parametrize(
    ("words", "program", "disk_bytes"),
    [
        ({"mode": "quick"}, "echo", QUICK_DISK_BYTES),
        ({"mode": "quick", "disk": "32MiB"}, "echo", 32 << 20),
        ({"program": "kv"}, "kv", 0),
        ({"program": "kv", "durable": True}, "kv-durable", DURABLE_DISK_BYTES),
        ({"program": "kv", "durable": "yes"}, "kv-durable", DURABLE_DISK_BYTES),
        ({"program": "kv", "durable": "no"}, "kv", 0),
        ({"program": "kv-durable"}, "kv-durable", DURABLE_DISK_BYTES),
        ({"program": "kv-durable", "durable": True, "mode": "quick"}, "kv-durable", DURABLE_DISK_BYTES),
        ({"program": "kv-durable", "disk": "8MiB"}, "kv-durable", 8 << 20),
    ],
)
def test_what_needs_a_disk_has_one(words: dict[str, str | bool], program: str, disk_bytes: int) -> None:
    options = options_from(words)
    assert (options.program, options.disk_bytes) == (program, disk_bytes)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ({"ram": "much"}, ("--ram", "much", "MiB")),
        ({"clients": "few"}, ("--clients", "few", "whole number")),
        ({"fill": "half"}, ("--fill", "half", "number")),
        ({"hold": "maybe"}, ("--hold", "maybe", "yes", "no")),
        ({"durable": "maybe"}, ("--durable", "maybe", "yes", "no")),
        ({"durable": True}, ("--durable", "echo", "--program kv")),
        ({"durable": True, "program": "http"}, ("--durable", "http", "--program kv")),
        ({"mode": "quick", "disk": "0MiB"}, ("--disk", "LUN")),
        ({"storage-rate": "1gbit"}, ("--storage-rate", "--disk", "--mode quick")),
    ],
)
def test_a_word_that_cannot_be_is_refused(words: dict[str, str | bool], told: tuple[str, ...]) -> None:
    with pytest.raises(OptionError) as caught:
        options_from(words)
    assert [one for one in told if one.lower() not in str(caught.value).lower()] == []
