"""The schema of result.json: what ships is what the models say, and users get it with the package."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from testbed.measure import comparison
from testbed.measure.result import SCHEMA_FILE, SCHEMA_VERSION, Result, schema

ROOT = Path(__file__).resolve().parents[2]
CONTRACT = (
    *("schema_version", "outcome", "mode", "total_ms", "blackout_ms", "blackout_parts_ms", "network_gap_ms"),
    *("rounds", "ram", "clients", "network", "environment", "migrations"),
)
"""What every script may rely on being there."""


@pytest.fixture(scope="module")
def shipped() -> dict[str, Any]:
    return dict(json.loads(SCHEMA_FILE.read_text()))


def test_what_ships_is_what_the_models_say(shipped: dict[str, Any]) -> None:
    assert shipped == schema(), "run: python -m testbed.measure.result"


def test_it_is_a_schema(shipped: dict[str, Any]) -> None:
    assert shipped["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    jsonschema.Draft202012Validator.check_schema(shipped)


def test_the_contract_is_demanded(shipped: dict[str, Any]) -> None:
    assert set(CONTRACT) <= set(shipped["required"])
    assert shipped["properties"]["outcome"]["enum"] == ["completed", "rolled-back", "failed"]
    assert shipped["properties"]["schema_version"]["default"] == SCHEMA_VERSION


@pytest.mark.parametrize("name", CONTRACT)
def test_a_result_that_lacks_something_is_refused(shipped: dict[str, Any], name: str) -> None:
    """An empty result is refused for each thing that it lacks."""
    errors = jsonschema.Draft202012Validator(shipped).iter_errors({})
    assert f"{name!r} is a required property" in [error.message for error in errors]


def test_a_result_with_something_unknown_is_refused(shipped: dict[str, Any]) -> None:
    errors = jsonschema.Draft202012Validator(shipped).iter_errors({"blackout": 1})
    assert any("'blackout' was unexpected" in error.message for error in errors)
    assert Result.model_config.get("extra") == "forbid"


def test_users_get_it(shipped: dict[str, Any], tmp_path: Path) -> None:
    """A wheel, built as an installer would, but without fetching the builder anew."""
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT, check=True, capture_output=True,
    )  # fmt: skip
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        assert json.loads(archive.read("testbed/measure/result.schema.json")) == shipped
        assert json.loads(archive.read("testbed/measure/comparison.schema.json")) == comparison.schema()
    modules = [path for room in ("netns", "testbed") for path in (ROOT / room).rglob("*.py")]
    assert {str(path.relative_to(ROOT)) for path in modules} <= names
    assert not [name for name in names if name.startswith(("tests", ".ci"))]
    assert any(name.endswith("licenses/LICENSE") for name in names)
