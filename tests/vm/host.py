"""What this machine must have, and where its Debian packages come from."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

APT = Path("/etc/apt")
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
PACKAGE_OF = {
    "debootstrap": "debootstrap",
    "git": "git",
    "mke2fs": "e2fsprogs",
    "qemu-system-x86_64": "qemu-system-x86",
    "unshare": "util-linux",
}
SYSTEM_FOLDERS = "/usr/local/sbin:/usr/sbin:/sbin"


class Unavailable(Exception):
    """This machine cannot do it: what is missing, and how to get it. Exit status 3."""


def tool(name: str) -> str:
    """The path of a program. Raises `Unavailable` with the package to install."""
    path = shutil.which(name) or shutil.which(name, path=SYSTEM_FOLDERS)
    if path is None:
        raise Unavailable(f"{name} is missing: apt-get install {PACKAGE_OF[name]}")
    return path


def debian_mirror(apt: Path = APT) -> str:
    """The main Debian archive among apt's sources, e.g. ``http://HOST/debian``.

    Raises `Unavailable` where there is none, as on other distributions: then it has to be given.
    """
    for uri, suite, components in _sources(apt):
        if uri.startswith("mirror+file:"):
            uri = _first_line(Path(uri.removeprefix("mirror+file:")))
        is_debian = uri.rstrip("/").endswith("/debian")
        if is_debian and "main" in components and re.fullmatch(r"[a-z]+", suite):
            return uri.rstrip("/")
    raise Unavailable(f"no source of the main Debian archive under {apt}: name one with --mirror")


def _sources(apt: Path) -> Iterator[tuple[str, str, list[str]]]:
    """Each (URI, suite, components) of apt's sources, in both of its formats: see sources.list(5)."""
    folder = apt / "sources.list.d"
    for path in [apt / "sources.list", *sorted(folder.glob("*.list"))]:
        if path.exists():
            yield from _one_line_sources(path.read_text().splitlines())
    for path in sorted(folder.glob("*.sources")):
        for stanza in re.split(r"\n\s*\n", path.read_text()):
            yield from _deb822_sources(stanza.splitlines())


def _one_line_sources(lines: Iterable[str]) -> Iterator[tuple[str, str, list[str]]]:
    for line in lines:
        words = re.sub(r"\[.*?\]|#.*", "", line).split()
        if len(words) >= 4 and words[0] == "deb":
            yield words[1], words[2], words[3:]


def _deb822_sources(lines: Iterable[str]) -> Iterator[tuple[str, str, list[str]]]:
    fields: dict[str, list[str]] = {}
    for line in lines:
        if not line.startswith("#") and ":" in line:
            key, _, value = line.partition(":")
            fields[key.lower()] = value.split()
    if "deb" not in fields.get("types", ()) or fields.get("enabled") == ["no"]:
        return
    for uri in fields.get("uris", ()):
        for suite in fields.get("suites", ()):
            yield uri, suite, fields.get("components", [])


def _first_line(path: Path) -> str:
    lines = path.read_text().split("\n") if path.exists() else [""]
    return lines[0].split("\t")[0].strip()
