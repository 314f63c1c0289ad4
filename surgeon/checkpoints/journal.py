"""What an interrupted run has finished: its shards with their checksums, and the job that they belong to.

A note stands beside each finished shard, so that ranks need not share a file. The notes go when the folder
is put in place.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from surgeon.errors import CheckpointError, fail

JOB, DONE = ".surgeon-job.json", ".done"
CHUNK = 1 << 22  # bytes


@dataclass(frozen=True)
class Journal:
    """The notes in a folder under way."""

    folder: Path

    def begin(self, job: Mapping[str, str]) -> None:
        """Say whose shards these will be; `job` leads from what a job is known by to its value."""
        (self.folder / JOB).write_text(json.dumps(dict(job)), encoding="utf-8")

    def job(self) -> dict[str, str]:
        """Whose shards these are; empty where a run was stopped before it said so."""
        return {str(k): str(v) for k, v in _read(self.folder / JOB).items()}

    def finished(self, shard: str, checksum: int, chunks: Sequence[Sequence[object]] = ()) -> None:
        """Note a shard that is written and synced, and what chunks it holds, if it is one that cannot tell.
        A note is whole or not there."""
        new = self.folder / f".{shard}.new"
        new.write_text(json.dumps({"crc32": checksum, "chunks": chunks}), encoding="utf-8")
        new.rename(self._note(shard))

    def is_finished(self, shard: str) -> bool:
        """Whether a shard was noted and its bytes are still those that were written."""
        note, file = _read(self._note(shard)), self.folder / shard
        return bool(note) and file.is_file() and checksum_of(file) == note.get("crc32")

    def chunks(self, shard: str) -> list[list[Any]]:
        """The chunks that were noted of a finished shard."""
        chunks = _read(self._note(shard)).get("chunks")
        return chunks if isinstance(chunks, list) else []

    @property
    def holds_shards(self) -> bool:
        """Whether there is anything to go on from."""
        return any(self.folder.glob(f".*{DONE}"))

    def forget(self) -> None:
        """Remove all notes: the folder is finished. Whose shards they are goes last, for who is killed on the
        way leaves shards that a run may go on from."""
        for note in (".*.new", f".*{DONE}", JOB):
            for file in self.folder.glob(note):
                file.unlink()

    def refuse_other(self, job: Mapping[str, str], shown: Path) -> None:
        """Raises CheckpointError S416 where the shards are of another job."""
        held = self.job()
        other = [name for name in job if held.get(name) != job[name]]
        if other:
            raise fail(
                CheckpointError,
                "S416",
                f"what an interrupted run to {shown} left was made with another {', '.join(other)}",
                help="run the same again, or leave out --resume to start anew",
            )

    def _note(self, shard: str) -> Path:
        return self.folder / f".{shard}{DONE}"


def checksum_of(file: Path) -> int:
    """The CRC-32 of a file's bytes."""
    found = 0
    with file.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            found = zlib.crc32(chunk, found)
    return found


def _read(file: Path) -> dict[str, object]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
