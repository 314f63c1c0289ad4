"""A checkpoint folder opened lazily, its headers checked before anything is believed."""

from __future__ import annotations

import contextlib
import json
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from surgeon.checkpoints.distributed import METADATA, Saved, prefix_of, read_distributed
from surgeon.checkpoints.stamps import Stamp, stamp
from surgeon.checkpoints.tensors import Entry, Files, Piece, StoredTensor
from surgeon.errors import CheckpointError, counted, fail

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
MAX_HEADER = 100 * 1024 * 1024
LFS_POINTER = b"version https://git-lfs"
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
FOREIGN = {"F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F6_E2M3", "F6_E3M2", "F4"} | {
    *("C64", "U16", "U32", "U64"),
}  # what safetensors knows besides
WIDTHS = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2}


@dataclass
class Checkpoint:
    """The tensors of a folder by name; values are read on demand, by rows."""

    folder: Path
    entries: Mapping[str, Entry]
    stamps: Mapping[Path, Stamp] = field(default_factory=dict, repr=False)  # of config.json too
    saved: Saved | None = None  # where torch.distributed.checkpoint wrote it
    _sound: dict[str, NDArray[np.bool_]] = field(default_factory=dict, repr=False)  # rows looked through
    _files: Files = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._files = Files(self.stamps)

    def open(self, name: str) -> StoredTensor:
        """One tensor, still in its files. Raises CheckpointError S403 (a file cannot be read) and S415 (one
        changed since its header was read)."""
        entry = self.entries[name]
        for file in {piece.file: None for piece in entry.pieces}:
            self._files.refuse_change(file)
        sound = self._sound.setdefault(name, np.zeros(entry.shape[0] if entry.shape else 1, bool))
        return StoredTensor(name, entry, self._files, sound)

    def rooted(self, names: Iterable[str]) -> Checkpoint:
        """The checkpoint of a class alone, under its own `names`, without what stands before them and beside
        them in a folder of torch.distributed.checkpoint. Raises CheckpointError S422."""
        if self.saved is None:
            return self
        prefix = prefix_of(self.entries, names)
        own = {n.removeprefix(prefix): e for n, e in self.entries.items() if n.startswith(prefix)}
        others = (*self.saved.others, *(n for n in self.entries if not n.startswith(prefix)))
        saved = replace(self.saved, prefix=prefix, others=tuple(sorted(others)))
        return Checkpoint(self.folder, own, self.stamps, saved)

    def read(self, name: str) -> Tensor:
        """One tensor in memory. Raises CheckpointError S403, S415, and S404 (it holds NaN or infinity)."""
        return self.open(name).whole()

    def refuse_changes(self) -> None:
        """Raises CheckpointError S415 when a file changed since it was opened, S403 when one is gone."""
        for seen in self.stamps.values():
            seen.refuse_change()

    @contextlib.contextmanager
    def steady(self) -> Iterator[None]:
        """A stretch of work on the files: where it fails because one of them changed, that is the error."""
        try:
            yield
        except Exception as error:
            try:
                self.refuse_changes()
            except CheckpointError as change:
                raise change from error
            raise

    @property
    def total_bytes(self) -> int:
        return sum(e.bytes for e in self.entries.values())


def open_checkpoint(folder: Path) -> Checkpoint:
    """Open a folder's weights, the file that stock transformers would take where there are both kinds.

    Raises CheckpointError S401 (no weights, or unsafe ones only), S402 (a shard is missing or outside
    the folder), S403 (a header that does not fit its file), and for a folder of torch.distributed.checkpoint
    S407, S420 and S421.
    """
    stamps: dict[Path, Stamp] = {}
    if is_file(folder / "config.json"):
        stamps[folder / "config.json"] = stamp(folder / "config.json")
    if is_file(folder / SINGLE):
        stamps[folder / SINGLE] = stamp(folder / SINGLE)
        return Checkpoint(folder, read_header(folder / SINGLE), stamps)
    if is_file(folder / INDEX):
        stamps[folder / INDEX] = stamp(folder / INDEX)
        return Checkpoint(folder, _sharded(folder, stamps), stamps)
    if is_file(folder / METADATA):
        entries, saved = read_distributed(folder, stamps)
        return Checkpoint(folder, entries, stamps, saved)
    pickles = sorted(p.name for pattern in PICKLES for p in folder.glob(pattern))
    if pickles:
        raise fail(
            CheckpointError,
            "S401",
            f"{folder} holds weights only as pickles ({pickles[0]}), which can run code and are not opened",
            help="convert them once: model.save_pretrained(folder) writes safetensors",
        )
    raise fail(CheckpointError, "S401", f"{folder} holds no {SINGLE}", help="is the download complete?")


def holds_weights(folder: Path) -> bool:
    """Whether there are weights that :func:`open_checkpoint` would open."""
    return any(is_file(folder / name) for name in (SINGLE, INDEX, METADATA))


def is_file(path: Path) -> bool:
    """Whether a file is there to be read, perhaps behind a link. Raises CheckpointError S403 where there
    is something else: a folder, a pipe, or a link that leads nowhere."""
    try:
        kind = path.stat().st_mode
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        if not os.path.islink(path) and isinstance(error, FileNotFoundError):
            return False
        raise _unreadable(path, error) from error
    if not stat.S_ISREG(kind):
        raise fail(CheckpointError, "S403", f"{path} is no file")
    return True


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    return fail(
        CheckpointError, "S403", f"{path} cannot be read: {getattr(error, 'strerror', None) or error}"
    )


def _sharded(folder: Path, stamps: dict[Path, Stamp]) -> dict[str, Entry]:
    _refuse_pointer(folder / INDEX)
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"), object_pairs_hook=no_duplicates)
        weight_map = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(weight_map, dict) or not weight_map:
            raise ValueError("it has no weight_map")
        if not isinstance(index.get("metadata"), dict):
            raise ValueError("it has no metadata, which transformers asks for")
    except OSError as error:
        raise _unreadable(folder / INDEX, error) from error
    except (ValueError, RecursionError) as error:
        raise fail(CheckpointError, "S402", f"{INDEX} is not a readable index: {error}") from error
    headers: dict[str, dict[str, Entry]] = {}
    entries: dict[str, Entry] = {}
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or shard in ("", ".", "..") or set(shard) & set("/\\\0"):
            raise fail(CheckpointError, "S402", f"{INDEX} points outside the folder: {shard}")
        if shard not in headers:
            if not is_file(folder / shard):
                raise fail(
                    CheckpointError, "S402", f"the shard {shard} is missing", help="is the download complete?"
                )
            stamps[folder / shard] = stamp(folder / shard)
            headers[shard] = read_header(folder / shard)
        if name not in headers[shard]:
            raise fail(CheckpointError, "S402", f"{INDEX} says that {shard} holds {name}, but it does not")
        entries[name] = headers[shard][name]
    return entries


def read_header(file: Path) -> dict[str, Entry]:
    """The tensors of one safetensors file, every stretch of bytes checked against the file's size."""
    _refuse_pointer(file)
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or length > min(size - 8, MAX_HEADER):
                raise ValueError("the file is shorter than its header says")
            header = json.loads(stream.read(length).decode("utf-8"), object_pairs_hook=no_duplicates)
        if not isinstance(header, dict):
            raise ValueError("the header is no JSON object")
        metadata = header.pop("__metadata__", {})
        if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
            raise ValueError("its __metadata__ does not lead from names to texts")
        entries = {}
        end = 0
        described = [(name, *_described(name, about)) for name, about in header.items()]
        for name, begin, stop, shape, dtype in sorted(described, key=lambda d: d[1:3]):
            if dtype in FOREIGN:
                raise fail(
                    CheckpointError,
                    "S407",
                    f"{name} in {file.name} has the dtype {dtype}, which is not supported",
                    help="quantised weights cannot be grown: use the model they were made of",
                )
            if dtype not in DTYPES:
                raise ValueError(f"{name} has the dtype {dtype}, which is not supported")
            count = prod(shape) * WIDTHS.get(dtype, 1)
            if begin != end or stop - begin != count or 8 + length + stop > size:
                raise ValueError(f"{name} does not fit the file")
            end = stop
            piece = Piece(file, 8 + length + begin, (0,) * len(shape), shape)
            entries[name] = Entry(file, shape, DTYPES[dtype], (piece,))
        if 8 + length + end != size:
            raise ValueError("the file is longer or shorter than its tensors")
    except OSError as error:
        raise _unreadable(file, error) from error
    except (ValueError, RecursionError) as error:
        raise fail(
            CheckpointError,
            "S403",
            f"{file.name} is not a sound safetensors file: {error}",
            help="download it again",
        ) from error
    return entries


def _described(name: str, about: Any) -> tuple[int, int, tuple[int, ...], str]:
    """First and last byte, shape and dtype as a header gives them. Raises ValueError."""
    if not isinstance(about, dict):
        raise ValueError(f"{name} is not described")
    offsets, shape, dtype = (about.get(key) for key in ("data_offsets", "shape", "dtype"))
    if not isinstance(offsets, list) or not isinstance(shape, list) or len(offsets) != 2:
        raise ValueError(f"{name} has no shape and two offsets")
    if not isinstance(dtype, str):
        raise ValueError(f"{name} has no dtype")
    if not all(type(n) is int and n >= 0 for n in (*offsets, *shape)):
        raise ValueError(f"{name} has a size that is no whole number")
    return offsets[0], offsets[1], tuple(shape), dtype


def _refuse_pointer(file: Path) -> None:
    """Raises CheckpointError S403 for a git-lfs pointer, which a clone without git-lfs leaves behind."""
    with contextlib.suppress(OSError), file.open("rb") as stream:
        if stream.read(len(LFS_POINTER)) != LFS_POINTER:
            return
        raise fail(
            CheckpointError,
            "S403",
            f"{file.name} is a git-lfs pointer, not the file itself",
            help="run: git lfs pull",
        )


def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """For ``json.loads``: an object whose names are distinct. Raises ValueError."""
    out: dict[str, Any] = {}
    for key, value in pairs:
        if key in out:
            raise ValueError(f"{key} stands twice")
        out[key] = value
    return out


def resolve_names(
    wanted: Mapping[str, tuple[int, ...]],
    aliases: Mapping[str, str],
    checkpoint: Checkpoint,
    on_disk: Mapping[str, str],
) -> dict[str, str]:
    """For each tensor of the module its name on disk; a tied tensor may stand under any of its names.

    Args:
        wanted: shapes by module name.
        aliases: every name of a tied tensor, to the one in `wanted`.
        on_disk: module name to disk name, for what the checkpoint holds.

    Raises CheckpointError S405 (missing) and S406 (another shape).
    """
    groups: dict[str, list[str]] = {}
    for alias, name in aliases.items():
        groups.setdefault(name, []).append(alias)
    found, missing = {}, []
    for name, shape in wanted.items():
        disk = next((on_disk[n] for n in (name, *groups.get(name, ())) if n in on_disk), None)
        if disk is None:
            missing.append(name)
            continue
        entry = checkpoint.entries[disk]
        if entry.shape != shape:
            raise fail(
                CheckpointError,
                "S406",
                f"{disk} in {entry.file.name} has the shape {entry.shape} where the config asks for {shape}",
                help="do config.json and the weights belong together?",
            )
        found[name] = disk
    if missing:
        raise fail(
            CheckpointError,
            "S405",
            f"{counted(len(missing), 'tensor is', 'tensors are')} missing from the checkpoint in "
            f"{checkpoint.folder}: {', '.join(missing[:4])}",
            help="is the download complete, and config.json the right one?",
        )
    return found
