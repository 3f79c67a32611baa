"""A capture of one link of a lab that stands: from when somebody wants it to when it is enough."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from netns.apply import Topology
from netns.capture import CaptureError, Captures, Tapped
from testbed.experiment.marks import marks
from testbed.lab.plan import Ends


class Tap:
    """Captures `link` until :meth:`finish`, which makes `file` of it. `position` is how long the journal was
    at its begin: what happened since becomes the file's comments. CaptureError; OSError for a file that
    cannot be there."""

    def __init__(
        self,
        topology: Topology,
        link: str,
        ends: Ends,
        file: Path,
        position: int,
        *,
        snap_bytes: int | None,
        limit_bytes: int,
    ) -> None:
        self.link, self.file, self.position = link, file, position
        self._folder = Path(tempfile.mkdtemp(prefix=f".{file.name}.", dir=file.parent))
        try:
            self._captures = Captures(
                topology,
                {link: Tapped(ends.node, ends.far, snap_bytes)},
                self._folder,
                limit_bytes=limit_bytes,
                application=f"live-migration-testbed {version('live-migration-testbed')}",
            )
        except BaseException:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise

    def finish(self, events: Iterable[dict[str, Any]]) -> dict[str, Any]:
        """Nothing is taken any more; the file is written. `file`, `frames`, `bytes`, `dropped`, `stopped`: as
        of testbed.measure.result.CaptureFile."""
        try:
            with self._captures as captures:
                captures.stop()
                (one,) = captures.write(marks(events), lambda _: None)
                one.file.replace(self.file)
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)
        return {
            "link": self.link,
            "file": str(self.file),
            "frames": one.frames,
            "bytes": one.bytes,
            "dropped": one.dropped,
            "stopped": one.stopped,
        }


__all__ = ["CaptureError", "Tap"]
