"""The tensors of a checkpoint, written as transformers and safetensors lay them out."""

from __future__ import annotations

import contextlib
import ctypes
import io
import json
import os
import threading
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from surgeon.checkpoints.journal import Journal
from surgeon.checkpoints.reading import DTYPES, INDEX, SINGLE

SHARD_BYTES = 5 * 10**9
BLOCKS_UNDER_WAY = 2
NAMES = {dtype: name for name, dtype in DTYPES.items()}
NARROW_TO_WIDE = ("BOOL", "U8", "I8", "I16", "F16", "BF16", "I32", "F32", "F64", "I64")


@dataclass(frozen=True)
class Spec:
    """A tensor to be written."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Shard:
    """A file to be written. Within it wide elements come before narrow ones, as safetensors orders them, so
    that every tensor is aligned."""

    file: str
    specs: tuple[Spec, ...]

    @property
    def bytes(self) -> int:
        return sum(spec.bytes for spec in self.specs)


def shards_of(specs: Sequence[Spec], limit: int = SHARD_BYTES) -> list[Shard]:
    """Tensors laid out as transformers lays them out: one file, or shards of at most `limit` bytes, save for
    those that hold a single larger tensor."""
    several: list[list[Spec]] = [[]]
    held = 0
    for spec in specs:
        if several[-1] and held + spec.bytes > limit:
            several.append([])
            held = 0
        several[-1].append(spec)
        held += spec.bytes
    count = len(several)
    names = [SINGLE] if count == 1 else [f"model-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)]
    return [Shard(name, tuple(sorted(shard, key=_rank))) for name, shard in zip(names, several, strict=True)]


def _rank(spec: Spec) -> tuple[int, str]:
    return -NARROW_TO_WIDE.index(NAMES[spec.dtype]), spec.name


def write_shards(
    folder: Path,
    shards: Sequence[Shard],
    produce: Callable[[str], Iterable[Tensor]],
    progress: Callable[[int], None] = lambda done: None,
    journal: Journal | None = None,
) -> None:
    """Write some shards of a checkpoint, those left out that `journal` knows to be finished.

    `produce` gives a tensor in blocks of rows, or of what is within one; one is made while the last is
    written, so a few blocks at a time are in memory. With a journal each shard is synced and noted there,
    while the next is written.
    """
    with ThreadPoolExecutor(1) as syncer:
        notes = []
        for shard in shards:
            if journal is not None and journal.is_finished(shard.file):
                progress(shard.bytes)
                continue
            checksum = _write_file(folder / shard.file, shard.specs, produce, progress, journal is not None)
            if journal is not None:
                notes.append(syncer.submit(note_finished, journal, shard.file, checksum))
            else:
                threading.Thread(target=_flush, args=(folder / shard.file,), daemon=True).start()
        for note in notes:
            note.result()


def write_checkpoint(
    folder: Path,
    specs: Sequence[Spec],
    produce: Callable[[str], Iterable[Tensor]],
    progress: Callable[[int], None] = lambda done: None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write a whole checkpoint."""
    shards = shards_of(specs, shard_bytes)
    write_shards(folder, shards, produce, progress)
    write_index(folder, shards)


def note_finished(
    journal: Journal, shard: str, checksum: int, chunks: Sequence[Sequence[object]] = ()
) -> None:
    """Sync a shard to disk, and note that it is finished."""
    with (journal.folder / shard).open("rb") as stream:
        os.fsync(stream.fileno())
    journal.finished(shard, checksum, chunks)


def write_index(folder: Path, shards: Sequence[Shard]) -> None:
    """The index that several shards need."""
    if len(shards) > 1:
        weight_map = {spec.name: shard.file for shard in shards for spec in shard.specs}
        total = sum(shard.bytes for shard in shards)
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _flush(file: Path) -> None:
    """Let the system write a finished file to disk while the proof runs. What fails here fails once more,
    and is told, when the folder is put in place."""
    with contextlib.suppress(OSError), file.open("rb") as stream:
        os.fsync(stream.fileno())


def _write_file(
    file: Path,
    specs: Sequence[Spec],
    produce: Callable[[str], Iterable[Tensor]],
    progress: Callable[[int], None],
    checked: bool,
) -> int:
    """Returns the file's CRC-32, if that is asked for."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for spec in specs:
        header[spec.name] = {
            "dtype": NAMES[spec.dtype],
            "shape": list(spec.shape),
            "data_offsets": [offset, offset + spec.bytes],
        }
        offset += spec.bytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb", buffering=0) as stream, ThreadPoolExecutor(1) as writer:
        sink = Sink(stream, checked)
        sink.write(len(text).to_bytes(8, "little") + text)
        under_way: deque[Future[None]] = deque()
        for spec in specs:
            size = 0
            for block in produce(spec.name):
                if block.dtype != spec.dtype or block.shape[1:][-1:] != spec.shape[1:][-1:]:
                    raise AssertionError(f"{spec.name}: {tuple(block.shape)} {block.dtype} is not of {spec}")
                if len(under_way) == BLOCKS_UNDER_WAY:
                    under_way.popleft().result()
                under_way.append(writer.submit(sink.write_block, block))
                size += block.numel() * block.element_size()
                del block  # before the next one is made
            if size != spec.bytes:
                raise AssertionError(f"{spec.name}: {size} bytes, not the {spec.bytes} of {spec}")
            progress(spec.bytes)
        for future in under_way:
            future.result()
        return sink.checksum


@dataclass
class Sink:
    """An open file, the bytes written to it, and their CRC-32 where that is asked for."""

    stream: io.RawIOBase
    checked: bool
    checksum: int = 0
    size: int = 0

    def write_block(self, block: Tensor) -> None:
        block = block.detach().cpu().contiguous()
        size = block.numel() * block.element_size()
        if size:
            self.write(memoryview((ctypes.c_char * size).from_address(block.data_ptr())).cast("B"))

    def write(self, data: bytes | memoryview) -> int:
        if self.checked:
            self.checksum = zlib.crc32(data, self.checksum)
        written = 0
        while written < len(data):
            written += self.stream.write(data[written:]) or 0
        self.size += written
        return written

    def flush(self) -> None:
        """Nothing is held back."""
