"""Images that are written where they were drawn: only their digests travel."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path

from gapbench.models.base import Drawing
from gapbench.runs.drawn import Written
from gapbench.runs.folder import RunFolder


@dataclass(frozen=True, slots=True)
class Away:
    """Writes files of images into a run folder from another process, if that process sees the same
    folder: its run.json has the same `mark`, when it was last changed in any way."""

    path: Path
    mark: int

    @classmethod
    def of(cls, folder: RunFolder) -> Away | None:
        """None for a folder whose images are packed, into which one process writes."""
        if folder.packed:
            return None
        path = folder.path.resolve()
        return cls(path, (path / "run.json").stat().st_ctime_ns)

    def __call__(
        self, rows: dict[int, Drawing | Written]
    ) -> tuple[dict[int, Drawing | Written], str | None]:
        """What travels in the place of some drawings, and a note if it is the drawings."""
        file = self.path / "run.json"
        if not file.exists() or file.stat().st_ctime_ns != self.mark:
            return rows, (
                f"node {socket.gethostname()} does not see {self.path}, so its images travel to "
                "the first process, which writes them; give --out on a file system that all nodes "
                "share"
            )
        drawings = {place: row for place, row in rows.items() if isinstance(row, Drawing)}
        kept = RunFolder.open(self.path).add([*drawings.values()])
        written = {
            place: Written(files, row.image.size, row.effective_prompt, row.logprob)
            for (place, row), files in zip(drawings.items(), kept, strict=True)
        }
        return {**rows, **written}, None
