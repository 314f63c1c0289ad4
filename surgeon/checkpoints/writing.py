"""The tensors of a checkpoint, written as transformers and safetensors lay them out."""

from __future__ import annotations

import contextlib
import ctypes
import io
import json
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor

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


def write_checkpoint(
    folder: Path,
    specs: Sequence[Spec],
    produce: Callable[[str], Iterable[Tensor]],
    progress: Callable[[int], None] = lambda done: None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write tensors as transformers lays them out: one file, or shards with an index.

    `produce` gives a tensor in blocks of rows; one is made while the last is written, so a few blocks at
    a time are in memory. Within a file wide elements come before narrow ones, as safetensors orders
    them, so that every tensor is aligned.
    """
    shards = _shards(specs, shard_bytes)
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        name = SINGLE if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        shard.sort(key=lambda spec: (-NARROW_TO_WIDE.index(NAMES[spec.dtype]), spec.name))
        _write_file(folder / name, shard, produce, progress)
        threading.Thread(target=_flush, args=(folder / name,), daemon=True).start()
        weight_map.update({spec.name: name for spec in shard})
    if len(shards) > 1:
        total = sum(spec.bytes for spec in specs)
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _flush(file: Path) -> None:
    """Let the system write a finished file to disk while the proof runs. What fails here fails once more,
    and is told, when the folder is put in place."""
    with contextlib.suppress(OSError), file.open("rb") as stream:
        os.fsync(stream.fileno())


def _shards(specs: Sequence[Spec], limit: int) -> list[list[Spec]]:
    shards: list[list[Spec]] = [[]]
    held = 0
    for spec in specs:
        if shards[-1] and held + spec.bytes > limit:
            shards.append([])
            held = 0
        shards[-1].append(spec)
        held += spec.bytes
    return shards


def _write_file(
    file: Path,
    specs: Sequence[Spec],
    produce: Callable[[str], Iterable[Tensor]],
    progress: Callable[[int], None],
) -> None:
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
        stream.write(len(text).to_bytes(8, "little") + text)
        under_way: deque[Future[None]] = deque()
        for spec in specs:
            size = 0
            for block in produce(spec.name):
                if block.dtype != spec.dtype or block.shape[1:] != spec.shape[1:]:
                    raise AssertionError(f"{spec.name}: {tuple(block.shape)} {block.dtype} is not of {spec}")
                if len(under_way) == BLOCKS_UNDER_WAY:
                    under_way.popleft().result()
                under_way.append(writer.submit(_write_block, stream, block))
                size += block.numel() * block.element_size()
                del block  # before the next one is made
            if size != spec.bytes:
                raise AssertionError(f"{spec.name}: {size} bytes, not the {spec.bytes} of {spec}")
            progress(spec.bytes)
        for future in under_way:
            future.result()


def _write_block(stream: io.RawIOBase, block: Tensor) -> None:
    block = block.detach().cpu().contiguous()
    size = block.numel() * block.element_size()
    if not size:
        return
    view = memoryview((ctypes.c_char * size).from_address(block.data_ptr())).cast("B")
    written = 0
    while written < size:
        written += stream.write(view[written:]) or 0
