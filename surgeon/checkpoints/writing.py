"""A checkpoint written beside its target and put in place by one rename, or not at all."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import io
import json
import os
import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from surgeon.checkpoints.reading import DTYPES, INDEX, SINGLE
from surgeon.errors import CheckpointError, fail

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


@contextlib.contextmanager
def staging(target: Path, force: bool, needed: int = 0) -> Iterator[Path]:
    """A folder beside `target` that becomes it when the block ends well, and vanishes otherwise.

    Parent folders made for it vanish too. Raises CheckpointError S410 (the target exists), S411 (no
    room), S412 (cannot write).
    """
    shown, target = target, _absolute(target)
    made: list[Path] = []
    try:
        if target.exists() and (not target.is_dir() or any(target.iterdir())) and not force:
            raise fail(
                CheckpointError,
                "S410",
                f"{shown} exists already",
                help="choose another --out, or add --force",
            )
        made = [p for p in target.parents if not p.exists()]
        target.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(target.parent).free
        if needed > free:
            raise fail(
                CheckpointError,
                "S411",
                f"the grown model needs {needed / 1e9:.1f} GB; {target.parent} has {free / 1e9:.1f} GB free",
            )
        folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.surgeon-", dir=target.parent))
    except OSError as error:
        _remove_empty(made)
        raise _write_error(shown, error) from error
    except BaseException:
        _remove_empty(made)
        raise
    try:
        yield folder
        put_in_place(folder, target)
    except OSError as error:
        if not _is_writing(error, target.parent):
            raise
        raise _write_error(shown, error) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        _remove_empty(made)


def _absolute(path: Path) -> Path:
    """So that `.` and `x/..` have a name and a parent."""
    return Path(os.path.abspath(path))


def _remove_empty(folders: Sequence[Path]) -> None:
    """Remove folders, innermost first, as far as they are empty."""
    with contextlib.suppress(OSError):
        for folder in folders:
            folder.rmdir()


def _is_writing(error: OSError, parent: Path) -> bool:
    """Whether the system refused to write here: other libraries raise OSError for whatever they read."""
    if error.errno is None:
        return False
    return error.filename is None or Path(os.fsdecode(error.filename)).is_relative_to(parent)


def _write_error(target: Path, error: OSError) -> CheckpointError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return fail(
            CheckpointError,
            "S411",
            f"the disk of {_absolute(target).parent} is full",
            help="nothing was left behind",
        )
    return fail(CheckpointError, "S412", f"cannot write {target}: {error.strerror or error}")


def put_in_place(folder: Path, target: Path) -> None:
    """Sync a finished folder to disk and rename it to `target`; what stood there goes.

    Should the last rename fail, what stood there stands there again.
    """
    folder.chmod(0o755)
    for path in (*folder.rglob("*"), folder):
        _sync(path)
    if not os.path.lexists(target):
        folder.rename(target)
    else:
        old = Path(tempfile.mkdtemp(prefix=f".{target.name}.old-", dir=target.parent)) / target.name
        try:
            target.rename(old)
            folder.rename(target)
        finally:
            if not os.path.lexists(target):
                old.rename(target)
            shutil.rmtree(old.parent, ignore_errors=True)
    _sync(target.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def set_aside(folder: Path, target: Path) -> Path:
    """Move an output that failed its proof to ``TARGET.not-preserved``, replacing an older one."""
    aside = target.with_name(_absolute(target).name + ".not-preserved")
    put_in_place(folder, aside)
    return aside


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
        weight_map.update({spec.name: name for spec in shard})
    if len(shards) > 1:
        total = sum(spec.bytes for spec in specs)
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


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
