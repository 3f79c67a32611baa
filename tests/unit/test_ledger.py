"""An account against a store that keeps to it, and stores that do not."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from testbed.clients.account import LEAST_VALUE_BYTES, Account, number_of, value_of

SIZE = 64


class Pair:
    """An account and a store in a dict."""

    def __init__(self, keys: int = 3) -> None:
        self.account = Account("client1:0", keys, SIZE)
        self.store: dict[bytes, bytes] = {}

    def write(self, *, stored: bool = True, told: bool = True) -> bytes:
        key, value = self.account.write()
        if stored:
            self.store[key] = value
        if told:
            self.account.told()
        return key

    def check(self) -> tuple[int, int]:
        for entry in self.account.entries:
            self.account.check(entry, self.store.get(entry.key))
        return self.account.writes_lost, self.account.writes_phantom


def test_store_that_keeps_to_it() -> None:
    pair = Pair()
    for _ in range(10):
        pair.write()
    assert pair.check() == (0, 0)
    assert pair.account.acknowledged == 10
    assert pair.account.complaint is None
    assert sorted(pair.store) == [b"client1:0:0", b"client1:0:1", b"client1:0:2"]


def test_acknowledged_write_that_was_not_stored_is_lost() -> None:
    pair = Pair(keys=1)
    pair.write()
    pair.write(stored=False)
    pair.write(stored=False)
    assert pair.check() == (2, 0)
    assert pair.check() == (2, 0), "counted once"
    assert pair.account.complaint == "b'client1:0:0' is at 1, and 3 was acknowledged"
    pair.store.clear()
    assert pair.check() == (3, 0)


def test_write_that_was_not_answered_may_be_there_or_not_and_its_key_is_left_alone() -> None:
    for stored in (True, False):
        pair = Pair(keys=1)
        first = pair.write()
        pair.write(stored=stored, told=False)
        pair.account.lose_touch()
        assert pair.check() == (0, 0)
        assert pair.write() != first
        assert pair.check() == (0, 0)
        pair.store[first] = value_of(first, 2, SIZE)  # carried out late
        assert pair.check() == (0, 0)
        assert len(pair.account.entries) == 2


def test_connection_that_breaks_between_two_writes_retires_no_key() -> None:
    pair = Pair()
    pair.write()
    pair.account.lose_touch()
    assert len(pair.account.entries) == 3


@pytest.mark.parametrize(
    "value",
    [
        b"", b"no number", value_of(b"client1:0:0", 9, SIZE), value_of(b"client1:0:1", 1, SIZE),
        value_of(b"client1:0:0", 1, SIZE)[:-1], b"0:", b"9" * 64, b"-1:x",
    ],
)  # fmt: skip
def test_value_that_was_never_sent_is_a_phantom_once(value: bytes) -> None:
    pair = Pair(keys=1)
    key = pair.write()
    pair.store[key] = value
    assert pair.check() == (0, 1)
    assert pair.check() == (0, 1)
    assert "never sent" in (pair.account.complaint or "")
    pair.write()
    pair.store[key] = value
    assert pair.check() == (0, 2)


def test_refused_write_counts_for_nothing() -> None:
    pair = Pair(keys=1)
    pair.write()
    pair.write(stored=False, told=False)
    pair.account.refuse()
    assert pair.check() == (0, 0)
    assert (pair.account.acknowledged, pair.account.refused) == (1, 1)
    with pytest.raises(ValueError, match="no write is under way"):
        pair.account.told()


@settings(max_examples=100)
@given(
    st.integers(LEAST_VALUE_BYTES, 200), st.integers(1, 10**15), st.integers(1, 10**15), st.binary(max_size=9)
)
def test_value_tells_key_and_number(size: int, number: int, other: int, key: bytes) -> None:
    value = value_of(key, number, size)
    assert len(value) == size
    assert number_of(key, value, size) == number
    assert (number_of(key, value_of(key, other, size), size) == number) is (other == number)
    assert number_of(key + b"x", value, size) is None
