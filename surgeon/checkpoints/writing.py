"""A checkpoint written beside its target and put in place by one rename, or not at all."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from surgeon.checkpoints.reading import DTYPES, INDEX, SINGLE
from surgeon.errors import CheckpointError, fail

SHARD_BYTES = 5 * 10**9
NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Spec:
    """A tensor to be written."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


@contextmanager
def staging(target: Path, force: bool, needed: int = 0) -> Iterator[Path]:
    """A folder beside `target` that becomes it when the block ends well, and vanishes otherwise.

    Raises CheckpointError S410 (the target exists), S411 (no room), S412 (cannot write).
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())) and not force:
        raise fail(
            CheckpointError, "S410", f"{target} exists already", help="choose another --out, or add --force"
        )
    try:
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
        raise _write_error(target, error) from error
    try:
        yield folder
        put_in_place(folder, target)
    except OSError as error:
        raise _write_error(target, error) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write_error(target: Path, error: OSError) -> CheckpointError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return fail(
            CheckpointError, "S411", f"the disk of {target.parent} is full", help="nothing was left behind"
        )
    return fail(CheckpointError, "S412", f"cannot write {target}: {error.strerror or error}")


def put_in_place(folder: Path, target: Path) -> None:
    """Sync a finished folder to disk and rename it to `target`; what stood there goes."""
    folder.chmod(0o755)
    for file in folder.rglob("*"):
        if file.is_file():
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
    old = None
    if target.exists():
        old = Path(tempfile.mkdtemp(prefix=f".{target.name}.old-", dir=target.parent))
        old.rmdir()
        target.rename(old)
    folder.rename(target)
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)


def set_aside(folder: Path, target: Path) -> Path:
    """Move an output that failed its proof to ``TARGET.not-preserved``, replacing an older one."""
    aside = target.with_name(target.name + ".not-preserved")
    shutil.rmtree(aside, ignore_errors=True)
    put_in_place(folder, aside)
    return aside


def write_checkpoint(
    folder: Path,
    specs: Sequence[Spec],
    produce: Callable[[str], Tensor],
    progress: Callable[[int], None] = lambda done: None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write tensors as transformers lays them out: one file, or shards with an index.

    Each tensor is produced, written and dropped, so one at a time is in memory.
    """
    shards = _shards(specs, shard_bytes)
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        name = SINGLE if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
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
    file: Path, specs: Sequence[Spec], produce: Callable[[str], Tensor], progress: Callable[[int], None]
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
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb", buffering=0) as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for spec in specs:
            tensor = produce(spec.name)
            if tuple(tensor.shape) != spec.shape or tensor.dtype != spec.dtype:
                raise AssertionError(f"{spec.name}: {tuple(tensor.shape)} {tensor.dtype} is not {spec}")
            _write_tensor(stream, tensor)
            progress(spec.bytes)


def _write_tensor(stream: object, tensor: Tensor) -> None:
    tensor = tensor.detach().cpu().contiguous()
    size = tensor.numel() * tensor.element_size()
    if not size:
        return
    view = memoryview((ctypes.c_char * size).from_address(tensor.data_ptr())).cast("B")
    written = 0
    while written < size:
        written += stream.write(view[written:])  # type: ignore[attr-defined]
