"""Files as they were when first looked at, so that a change while they are read does not go unseen."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from surgeon.errors import CheckpointError, fail


@dataclass(frozen=True)
class Stamp:
    """A file's identity, size and time of change. Written anew in place it has another time, replaced by
    a rename it is another file."""

    file: Path
    device: int
    inode: int
    size: int
    modified: int  # in nanoseconds

    def refuse_change(self) -> None:
        """Raises CheckpointError S415 when the file is not what it was, S403 when it is gone."""
        if stamp(self.file) != self:
            raise fail(
                CheckpointError,
                "S415",
                f"{self.file} changed while surgeon was reading it",
                help="let the download or training that writes it end first",
            )


def stamp(file: Path) -> Stamp:
    """What a file is now. Raises CheckpointError S403 when it cannot be told."""
    try:
        status = file.stat()
    except OSError as error:
        raise fail(CheckpointError, "S403", f"{file.name} cannot be read: {error.strerror}") from error
    return Stamp(file, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
