"""The links of a lab by name, and the conditions on them: those of the scenario, and what is set while it
runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Self

from netns.apply import Topology
from netns.conditions import Conditions
from netns.impairment import ConditionedLink
from netns.link_figures import Choice, LinkFigures
from netns.sounding import Sounding
from testbed.lab import plan as planned
from testbed.lab.plan import Ends
from testbed.scenario import parts
from testbed.scenario.model import Scenario


class NoSuchLink(ValueError):
    """There is no link of that name; the text names those that there are."""


class LabLinks(Mapping[str, Ends]):
    """Every link by its name, with its two ends. A link that nobody has set conditions on has nothing in its
    way.

    From the node that names a link to the far end is ``from-node``. Errors are those of
    :class:`netns.impairment.ConditionedLink`, and NoSuchLink. A context manager; at its end the links are as
    they were made.
    """

    def __init__(self, scenario: Scenario, topology: Topology) -> None:
        """Sets what the scenario says of its links."""
        self._ends = planned.links(scenario)
        self._topology = topology
        self._seed = scenario.seed
        self._lost_announcements = dict.fromkeys(scenario.hosts, scenario.network.drop_announcements)
        self._asked: dict[str, tuple[parts.Conditions, parts.Conditions]] = {}
        self._conditioned: dict[str, ConditionedLink] = {}
        self.soundings: dict[str, tuple[Sounding, LinkFigures]] = {}
        with ExitStack() as stack:
            self._stack = stack.enter_context(ExitStack())
            for link in scenario.links:
                self.set(link.name, link)
            self.lose_announcements_anew()
            stack.pop_all()

    def __getitem__(self, name: str) -> Ends:
        return self._ends[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._ends)

    def __len__(self) -> int:
        return len(self._ends)

    def set(self, name: str, conditions: parts.Conditions) -> Choice:
        """From now on these hold, in the direction that they name; in the other what held. A rate that the
        link was made with stays unless they have one. Returns by whom it is done, and why."""
        plain = parts.Conditions()
        forward, backward = self._asked.get(name, (plain, plain))
        if conditions.direction != "to-node":
            forward = conditions
        if conditions.direction != "from-node":
            backward = conditions
        return self._apply(name, forward, backward)

    def reset(self, name: str) -> None:
        """As it was made, without conditions."""
        link = self._link(name)
        self._asked.pop(name, None)
        if self._lost_announcements.get(name):
            self._apply(name, parts.Conditions(), parts.Conditions())
        else:
            link.reset()

    def lose_announcements_anew(self) -> None:
        """The next announcements that a host sends are the first again, if the scenario loses the first."""
        for name, count in self._lost_announcements.items():
            if count:
                plain = parts.Conditions()
                self._apply(name, *self._asked.get(name, (plain, plain)))

    @property
    def are_conditioned(self) -> bool:
        """Whether any has had conditions."""
        return bool(self._conditioned)

    def sound(self) -> None:
        """Measure every link that has conditions now from its own two ends, and count anew: half a second and
        more for each. What is found stays in :attr:`soundings`, with what was asked of the link then."""
        for name, link in self._conditioned.items():
            self.soundings[name] = link.sound(), link.figures()
            link.restart()

    def figures(self) -> dict[str, LinkFigures]:
        """What was asked and what came of it, of every link that has had conditions."""
        return {name: link.figures() for name, link in self._conditioned.items()}

    def _apply(self, name: str, forward: parts.Conditions, backward: parts.Conditions) -> Choice:
        link = self._link(name)
        lost = self._lost_announcements.get(name, 0)
        wires: list[Conditions] = []
        for number, (asked, count) in enumerate(((forward, lost), (backward, 0))):
            wire = asked.of_a_wire(self._seed * 2 + number, count)
            if wire.rate_bits_per_s is None and (made := self._ends[name].rate_mbit) is not None:
                wire = replace(wire, rate_bits_per_s=made * 1e6)
            wires.append(wire)
        choice = link.set(*wires)
        self._asked[name] = (forward, backward)
        return choice

    def _link(self, name: str) -> ConditionedLink:
        if name not in self._ends:
            raise NoSuchLink(f"there is no link {name!r}; there are: {', '.join(self._ends)}")
        if name not in self._conditioned:
            ends = self._ends[name]
            link = ConditionedLink(self._topology, ends.node, ends.far, rate_mbit=ends.rate_mbit)
            self._conditioned[name] = self._stack.enter_context(link)
        return self._conditioned[name]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
