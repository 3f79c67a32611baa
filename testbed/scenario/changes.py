"""Changes to a scenario in the words of options: what ``hold=no`` or ``delay=10ms`` means over a file. Pure.

A word that is a guest's (``ram``, ``hold``, ``dirty-rate`` ...) changes every guest, one that is a
migration's (``mode``, ``max-rounds`` ...) what holds for all and what a step says for itself, one of a link
(``delay``, ``loss`` ...) the link of every client.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from testbed.scenario.files import read
from testbed.scenario.model import Scenario
from testbed.scenario.options import OptionError

Said = dict[str, Any]
_OF_A_VM = ("ram", "fill", "program", "disk", "mac", "announce", "hold", "tracker", "durable")
_OF_A_LOAD = ("dirty-rate", "working-set", "pattern")
_OF_A_MIGRATION = ("mode", "downtime-limit", "max-rounds", "on-stall", "max-bandwidth")
LINK_KEYS = ("delay", "jitter", "loss", "duplicate", "reorder", "rate", "queue")
"""Conditions of the clients' links; no options of ``testbed migrate``."""
NO_OPTIONS = (*LINK_KEYS, "aftermath")
"""Words that change a scenario and are no options of ``testbed migrate``."""
_TOP = ("baseline", "aftermath", "seed")
KEYS = (*_OF_A_VM, *_OF_A_LOAD, *_OF_A_MIGRATION, "bandwidth", "storage-rate", *_TOP, *LINK_KEYS)
"""All words that change a scenario."""
_NUMBERS: dict[str, Callable[[str], Any]] = {
    **dict.fromkeys(("dirty-rate", "max-rounds", "seed", "queue"), int),
    **dict.fromkeys(("fill", "loss", "duplicate", "reorder"), float),
    **dict.fromkeys(("hold", "durable"), lambda text: {"yes": True, "no": False}[text]),
}


def changed(scenario: Scenario, changes: Mapping[str, str], where: str) -> Scenario:
    """`scenario` with `changes`; `where` is what errors call it. Raises OptionError, ScenarioError."""
    if not changes:
        return scenario
    said = scenario.as_json()
    for key, text in changes.items():
        if key not in KEYS:
            raise OptionError(f"{where}: {key!r} changes no scenario, only {', '.join(KEYS)}")
        _change(said, key, _value(key, text, where))
    return read(said, where)


def _value(key: str, text: str, where: str) -> Any:
    try:
        return _NUMBERS.get(key, str)(text)
    except (ValueError, KeyError):
        what = "yes or no" if key in ("hold", "durable") else "a number"
        raise OptionError(f"{where}: {key}: {text!r} is not {what}") from None


def _change(said: Said, key: str, value: Any) -> None:
    name = key.replace("-", "_")
    if key in _TOP:
        said[name] = value
    elif key == "bandwidth":
        said.setdefault("network", {})[name] = value
    elif key == "storage-rate":
        said.setdefault("storage", {})["rate"] = value
    elif key in LINK_KEYS:
        _change_links(said, name, value)
    elif key in _OF_A_MIGRATION:
        said.setdefault("migration", {})[name] = value
        for step in said["step"]:
            step.pop(name, None)
    else:
        for vm in said["vm"]:
            (vm.setdefault("load", {}) if key in _OF_A_LOAD else vm)[name] = value


def _change_links(said: Said, name: str, value: Any) -> None:
    links = said.setdefault("link", [])
    known = {link["name"]: link for link in links}
    for client in said["client"]:
        if client["name"] not in known:
            known[client["name"]] = {"name": client["name"]}
            links.append(known[client["name"]])
        known[client["name"]][name] = value
