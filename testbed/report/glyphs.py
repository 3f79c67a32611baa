"""What pictures on a terminal are drawn with: once for terminals that show Unicode, once for those that show
ASCII alone. Every glyph is one column wide."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Glyphs:
    """`levels` are eight bars from low to high; `box` has corners (top left, top right, bottom left, bottom
    right), horizontal, vertical; `stem` what leaves a box at its bottom; `joints` what a line below it turns
    or ends with."""

    levels: str
    full: str
    half: str
    empty: str
    dirty: str
    done: str
    now: str
    waiting: str
    broken: str
    mark: str
    pause: str
    running: str
    still: str
    absent: str
    box: str
    stem: str
    corner_left: str
    corner_right: str
    branch: str
    wire: str
    packet: str
    towards: str
    back: str

    def bar(self, share: float, columns: int, rest: str = "") -> str:
        """A bar of that share of `columns`, at least a trace of it where there is any; the rest of `rest`."""
        halves = round(2 * columns * min(max(share, 0.0), 1.0))
        if share > 0 and columns:
            halves = max(halves, 1)
        drawn = self.full * (halves // 2) + self.half * (halves % 2)
        return drawn + (rest and self.empty) * (columns - len(drawn))


UNICODE = Glyphs(
    levels="▁▂▃▄▅▆▇█",
    full="█",
    half="▌",
    empty="░",
    dirty="▒",
    done="✓",
    now="▶",
    waiting="·",
    broken="✗",
    mark="■",
    pause="▼",
    running="●",
    still="◌",
    absent="○",
    box="╭╮╰╯─│",
    stem="┬",
    corner_left="╰",
    corner_right="╯",
    branch="┴",
    wire="─",
    packet="━",
    towards="▶",
    back="◀",
)
ASCII = Glyphs(
    levels="_.-=+*%#",
    full="#",
    half="-",
    empty=".",
    dirty="%",
    done="+",
    now=">",
    waiting=".",
    broken="x",
    mark="#",
    pause="v",
    running="*",
    still="o",
    absent=".",
    box="++++-|",
    stem="+",
    corner_left="+",
    corner_right="+",
    branch="+",
    wire="-",
    packet="=",
    towards=">",
    back="<",
)
