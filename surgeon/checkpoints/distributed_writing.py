"""A checkpoint written as torch.distributed.checkpoint lays it out, without its collectives: each tensor in
chunks of rows, each chunk an archive of ``torch.save``, and one table of all chunks."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch import Tensor

from surgeon.checkpoints.distributed import METADATA, Saved
from surgeon.checkpoints.journal import Journal
from surgeon.checkpoints.writing import Shard, Sink, Spec, note_finished

CHUNK_BYTES = 64 * 1024 * 1024
CHUNKS_UNDER_WAY = 2  # one is put together while the last is written


def distributed_files(shards: Sequence[Shard]) -> list[Shard]:
    """The same shards, named as if each were of a rank of its own: what is written does not depend on how
    many ranks share the work."""
    return [replace(shard, file=f"__{number}_0.distcp") for number, shard in enumerate(shards)]


def write_distributed(
    folder: Path,
    shards: Sequence[Shard],
    produce: Callable[[str], Iterable[Tensor]],
    progress: Callable[[int], None],
    journal: Journal,
) -> None:
    """Write some files, those left out that `journal` knows to be finished. The journal's notes hold where
    each chunk is: :func:`write_metadata` makes the table of them."""
    with ThreadPoolExecutor(1) as syncer:
        notes = []
        for shard in shards:
            if journal.is_finished(shard.file):
                progress(shard.bytes)
                continue
            checksum, chunks = _write_file(folder / shard.file, shard.specs, produce, progress)
            notes.append(syncer.submit(note_finished, journal, shard.file, checksum, chunks))
        for note in notes:
            note.result()


def write_metadata(folder: Path, shards: Sequence[Shard], saved: Saved, journal: Journal) -> None:
    """The table of all chunks, of torch's own classes, with the names that the source's tensors have."""
    from torch.distributed.checkpoint.filesystem import CURRENT_DCP_VERSION, _StorageInfo
    from torch.distributed.checkpoint.metadata import (
        ChunkStorageMetadata,
        Metadata,
        MetadataIndex,
        TensorProperties,
        TensorStorageMetadata,
    )

    tensors: dict[str, Any] = {}
    places = {}
    for shard in shards:
        for spec in shard.specs:
            properties = TensorProperties(dtype=spec.dtype)
            tensors[saved.prefix + spec.name] = TensorStorageMetadata(properties, torch.Size(spec.shape), [])
        for name, at, sizes, offset, length in journal.chunks(shard.file):
            chunks = tensors[saved.prefix + name].chunks
            index = MetadataIndex(saved.prefix + name, torch.Size(at), len(chunks))
            chunks.append(ChunkStorageMetadata(torch.Size(at), torch.Size(sizes)))
            places[index] = _StorageInfo(shard.file, offset, length)
    paths = {name: saved.paths.get(name, (name,)) for name in tensors}
    table = Metadata(tensors, paths, places, version=CURRENT_DCP_VERSION)
    with (folder / METADATA).open("wb") as stream:
        pickle.dump(table, stream)


def _write_file(
    file: Path,
    specs: Sequence[Spec],
    produce: Callable[[str], Iterable[Tensor]],
    progress: Callable[[int], None],
) -> tuple[int, list[list[Any]]]:
    """Returns the file's CRC-32, and for each chunk the tensor's name, where it begins in it, its shape, and
    offset and length of its archive."""
    chunks: list[list[Any]] = []
    with file.open("wb", buffering=0) as stream, ThreadPoolExecutor(1) as writer:
        sink = Sink(stream, True)
        for spec in specs:
            under_way = None
            row = 0
            for chunk in _chunks(spec, produce(spec.name)):
                if under_way is not None:
                    under_way.result()
                at = [row, *[0] * (len(spec.shape) - 1)] if spec.shape else []
                chunks.append([spec.name, at, list(chunk.shape)])
                under_way = writer.submit(_save, chunk, sink, chunks[-1])
                row += len(chunk) if spec.shape else 0
            if under_way is not None:
                under_way.result()
            if spec.shape and row != spec.shape[0]:
                raise AssertionError(f"{spec.name}: {row} rows, not the {spec.shape[0]} of {spec}")
            progress(spec.bytes)
        return sink.checksum, chunks


def _save(chunk: Tensor, sink: Sink, about: list[Any]) -> None:
    before = sink.size
    torch.save(chunk, cast("IO[bytes]", sink))  # it asks for no more than a sink can
    about += [before, sink.size - before]


def _chunks(spec: Spec, blocks: Iterable[Tensor]) -> Iterator[Tensor]:
    """Blocks of rows, or of what is within one, put together to chunks of CHUNK_BYTES or a single row."""
    across = prod(spec.shape[1:])
    height = max(1, CHUNK_BYTES // max(1, across * spec.dtype.itemsize))
    chunk, filled = torch.empty(0), 0
    for block in blocks:
        if block.dtype != spec.dtype or block.shape[1:][-1:] != spec.shape[1:][-1:]:
            raise AssertionError(f"{spec.name}: {tuple(block.shape)} {block.dtype} is not of {spec}")
        if not spec.shape:
            yield block.detach().cpu().clone()
            return
        rest = block.flatten()
        while len(rest):
            if not filled:
                chunk = torch.empty(min(height, spec.shape[0]), *spec.shape[1:], dtype=spec.dtype)
            part = rest[: chunk.numel() - filled]
            chunk.view(-1)[filled : filled + len(part)] = part
            rest, filled = rest[len(part) :], filled + len(part)
            if filled == chunk.numel():
                yield chunk
                filled = 0
    if filled:
        yield chunk[: filled // across].clone()
