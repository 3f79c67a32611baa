"""The scenarios that ship with the testbed, a file each; they go by their file's name alone. Light to
import."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent


def paths() -> list[Path]:
    """Their files, by name."""
    return sorted(FOLDER.glob("*.toml"))


def names() -> list[str]:
    return [path.stem for path in paths()]
