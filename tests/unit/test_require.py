"""TESTBED_REQUIRE: which features a machine must not lack."""

from __future__ import annotations

import pytest

from tests.conftest import demanded, require


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("", False),
        ("netem", False),
        ("netem,soft-dirty", True),
        ("all", True),
        ("all,-soft-dirty", False),
        ("all,-netem", True),
        ("-netem", False),
    ],
)
def test_what_is_demanded(monkeypatch: pytest.MonkeyPatch, value: str, expected: bool) -> None:
    monkeypatch.setenv("TESTBED_REQUIRE", value)
    assert demanded("soft-dirty") is expected


def test_a_missing_feature_fails_where_demanded_and_skips_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TESTBED_REQUIRE", "netem")
    with pytest.raises(pytest.fail.Exception):
        require("netem", False)
    with pytest.raises(pytest.skip.Exception):
        require("soft-dirty", False)
