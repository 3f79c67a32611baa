"""The captures of one run: begun before anything is said on the network, files when its events are known."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from netns.apply import Topology
from netns.capture import Captures, Tapped
from testbed.experiment.marks import marks
from testbed.lab.plan import Ends
from testbed.measure.result import CaptureFile
from testbed.scenario.pcap import Pcap

FOLDER = "pcap"


class Capturing:
    """What `pcap` asks for (None: nothing, and then nothing here does anything), into ``pcap/`` of a run's
    `folder`.

    Give :meth:`begin` to whoever makes the network, :meth:`stop` taking while the network still stands, and
    ask for the :meth:`files` at leisure. A context manager: left by an exception it writes what was taken.
    """

    def __init__(self, pcap: Pcap | None, folder: Path) -> None:
        self._pcap = pcap
        self._folder = folder
        self._captures: Captures | None = None
        self._stack = ExitStack()

    def begin(self, topology: Topology, links: Mapping[str, Ends]) -> None:
        """Tap the links that are asked for. Raises CaptureError, and OptionError for a link that is not
        there."""
        if self._pcap is None:
            return
        tapped = {
            name: Tapped(links[name].node, links[name].far, self._pcap.snap_of(name))
            for name in self._pcap.chosen(links)
        }
        captures = Captures(
            topology,
            tapped,
            self._folder / FOLDER,
            limit_bytes=self._pcap.limit_bytes,
            application=f"live-migration-testbed {version('live-migration-testbed')}",
        )
        self._captures = self._stack.enter_context(captures)

    def stop(self) -> None:
        if self._captures is not None:
            self._captures.stop()

    def files(self, events: Iterable[dict[str, Any]], say: Callable[[str], None]) -> list[CaptureFile]:
        """Write the files, with what `events` tell as comments; `say` is told of each. Raises
        CaptureError."""
        if self._captures is None:
            return []
        return [
            CaptureFile(
                link=one.link,
                file=str(one.file.relative_to(self._folder)),
                frames=one.frames,
                bytes=one.bytes,
                dropped=one.dropped,
                stopped=one.stopped,
            )
            for one in self._captures.write(marks(events), say)
        ]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)
