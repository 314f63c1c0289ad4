"""Folders that torch.distributed.checkpoint wrote: a table of tensors and their chunks in ``.metadata``, the
chunks in ``*.distcp``.

The table is a pickle, which could run code, and so is a small part of each chunk, which is an archive of
``torch.save`` with one box of a tensor as plain bytes: see :mod:`surgeon.checkpoints.pickles`.
"""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import torch

from surgeon.checkpoints.pickles import (
    DTYPES,
    BytesPart,
    Part,
    PlacePart,
    TablePart,
    TensorPart,
    read_chunk,
    read_table,
)
from surgeon.checkpoints.stamps import Stamp, stamp
from surgeon.checkpoints.tensors import Entry, Piece
from surgeon.errors import CheckpointError, fail

METADATA = ".metadata"
MAX_METADATA = 1 << 30
LOCAL_HEADER = struct.Struct("<4s22xHH")  # of a zip's member: signature, lengths of name and extra field


@dataclass(frozen=True)
class Saved:
    """What such a folder says beside its tensors.

    Args:
        prefix: what stands before the class's own name in each tensor's.
        paths: where each value stood in the dict that was saved, by full name.
        others: full names of all that is not a tensor of the model, such as an optimizer's state.
    """

    prefix: str
    paths: Mapping[str, tuple[str | int, ...]]
    others: tuple[str, ...]


# ── the table ────────────────────────────────────────────────────────────────────────────


def read_distributed(folder: Path, stamps: dict[Path, Stamp]) -> tuple[dict[str, Entry], Saved]:
    """The tensors of a folder by full name, every chunk found and checked; `stamps` gets those of the files.

    Raises CheckpointError S402 (a file is missing, or outside the folder), S403 (a chunk does not fit its
    file), S407 (a dtype), S420 (an unsound table), S421 (chunks that do not fill a tensor exactly).
    """
    file = folder / METADATA
    stamps[file] = stamp(file)
    try:
        if stamps[file].size > MAX_METADATA:
            raise ValueError("it is larger than any sound one")
        table = read_table(file.read_bytes())
        tensors, others, paths, places = _parts(table)
    except OSError as error:
        raise fail(CheckpointError, "S403", f"{file} cannot be read: {error.strerror}") from error
    except Exception as error:  # whatever a broken pickle makes its reader stumble over
        raise fail(
            CheckpointError,
            "S420",
            f"{METADATA} is not a sound table of torch.distributed.checkpoint: {error}",
            help="was the save finished, and by torch.distributed.checkpoint.save?",
        ) from error
    entries = {}
    with _Archives(folder, stamps) as archives:
        for name, (shape, dtype, boxes) in tensors.items():
            if dtype not in DTYPES:
                said = str(dtype).removeprefix("torch.")
                raise fail(CheckpointError, "S407", f"{name} has the dtype {said}, which is not supported")
            _refuse_gaps(name, shape, boxes)
            pieces = tuple(archives.piece(name, dtype, *box, places) for box in sorted(boxes) if prod(box[1]))
            entries[name] = Entry(pieces[0].file if pieces else file, shape, dtype, pieces)
    return entries, Saved("", paths, tuple(sorted(others)))


Box = tuple[tuple[int, ...], tuple[int, ...]]  # where it begins, and its shape
Places = Mapping[tuple[str, tuple[int, ...]], Part]


def _parts(
    table: Any,
) -> tuple[dict[str, tuple[tuple[int, ...], Any, list[Box]]], list[str], dict[str, Any], Places]:
    """Tensors, names of what is none, paths, and where each chunk is stored. Raises ValueError."""
    if not isinstance(table, TablePart):
        raise ValueError("it holds something else")
    tensors, others = {}, []
    for name, about in _dict(table.get("state_dict_metadata")).items():
        if isinstance(about, BytesPart):
            others.append(str(name))
            continue
        if not isinstance(about, TensorPart) or not isinstance(name, str):
            raise ValueError(f"{name} is not described")
        properties, chunks = about.get("properties"), about.get("chunks")
        dtype = properties.state[0] if isinstance(properties, Part) and properties.state else None
        if not isinstance(dtype, torch.dtype) or not isinstance(chunks, list):
            raise ValueError(f"{name} is not described")
        boxes = [(_sizes(name, c.get("offsets")), _sizes(name, c.get("sizes"))) for c in chunks]
        tensors[name] = (_sizes(name, about.get("size")), dtype, boxes)
    places = {}
    for place, info in _dict(table.get("storage_data")).items():
        if not isinstance(place, PlacePart) or not isinstance(info, Part):
            raise ValueError("its places are not described")
        name, offset = place.get("fqn"), place.get("offset")
        if name in tensors:
            nowhere = (0,) * len(tensors[name][0])
            places[name, nowhere if offset is None else _sizes(name, offset)] = info
    paths = {
        name: path
        for name, path in _dict(table.get("planner_data") or {}).items()
        if isinstance(path, tuple) and all(isinstance(step, (str, int)) for step in path)
    }
    return tensors, others, paths, places


def _dict(value: Any) -> dict[Any, Any]:
    if not isinstance(value, dict):
        raise ValueError("a part of it is missing")
    return value


def _sizes(name: str, value: Any) -> tuple[int, ...]:
    if not isinstance(value, tuple) or not all(type(n) is int and n >= 0 for n in value):
        raise ValueError(f"{name} has a size that is no whole number")
    return value


def _refuse_gaps(name: str, shape: tuple[int, ...], boxes: Sequence[Box]) -> None:
    """Raises CheckpointError S421 where boxes do not fill a tensor exactly: within it, with no two of them on
    one element, they fill it if they have as many."""

    def unsound(why: str) -> CheckpointError:
        return fail(CheckpointError, "S421", f"the chunks of {name}, of shape {shape}, {why}")

    if any(len(at) != len(shape) or len(sizes) != len(shape) for at, sizes in boxes):
        raise unsound("have another number of axes")
    if any(a + n > s for at, sizes in boxes for a, n, s in zip(at, sizes, shape, strict=True)):
        raise unsound("reach out of it")
    beside: list[Box] = []  # those that the next may still meet, going down the first axis
    for at, sizes in sorted(box for box in boxes if prod(box[1])):
        beside = [b for b in beside if not shape or b[0][0] + b[1][0] > at[0]]
        for other, theirs in beside:
            if all(a < b + m and b < a + n for a, n, b, m in zip(at, sizes, other, theirs, strict=True)):
                raise unsound("overlap")
        beside.append((at, sizes))
    if sum(prod(sizes) for _, sizes in boxes) != prod(shape):
        raise unsound("leave a gap")


# ── the chunks ───────────────────────────────────────────────────────────────────────────


class _Archives:
    """The files with the chunks, each opened once."""

    def __init__(self, folder: Path, stamps: dict[Path, Stamp]):
        self._folder, self._stamps = folder, stamps
        self._file: Path | None = None
        self._stream: BinaryIO = io.BytesIO()

    def __enter__(self) -> _Archives:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def piece(
        self, name: str, dtype: torch.dtype, at: tuple[int, ...], sizes: tuple[int, ...], places: Places
    ) -> Piece:
        """Where the bytes of a chunk are. Raises CheckpointError S402 and S403."""
        info = places.get((name, at))
        if info is None:
            raise fail(CheckpointError, "S402", f"{METADATA} does not say where a chunk of {name} is stored")
        path, offset, length = (info.get(key) for key in ("relative_path", "offset", "length"))
        if not isinstance(path, str) or path in ("", ".", "..") or set(path) & set("/\\\0"):
            raise fail(CheckpointError, "S402", f"{METADATA} points outside the folder: {path}")
        file = self._folder / path
        try:
            if info.get("transform_descriptors"):
                raise ValueError("it is compressed or changed by an extension")
            if not all(type(n) is int and n >= 0 for n in (offset, length)):
                raise ValueError("its place is no whole number")
            self._open(file)
            if offset + length > self._stamps[file].size:
                raise ValueError("the file ends before it does")
            with zipfile.ZipFile(_View(self._stream, offset, length)) as archive:
                begin = _data(archive, _View(self._stream, offset, length), dtype, sizes)
        except FileNotFoundError as error:
            raise fail(
                CheckpointError, "S402", f"the file {path} is missing", help="is the copy of it complete?"
            ) from error
        except OSError as error:
            raise fail(CheckpointError, "S403", f"{path} cannot be read: {error.strerror}") from error
        except CheckpointError:
            raise
        except Exception as error:  # whatever a broken archive makes its reader stumble over
            raise fail(
                CheckpointError,
                "S403",
                f"{path} holds no sound chunk of {name}: {error}",
                help="was the save finished, and is the copy of it complete?",
            ) from error
        return Piece(file, offset + begin, at, sizes)

    def _open(self, file: Path) -> None:
        if file != self._file:
            if not file.is_file():  # a pipe would have us wait for ever
                raise FileNotFoundError
            stream = file.open("rb")
            self._stream.close()
            self._file, self._stream = file, stream
            if file not in self._stamps:
                self._stamps[file] = stamp(file)


class _View(io.RawIOBase):
    """A stretch of a file as a file."""

    def __init__(self, stream: Any, offset: int, length: int):
        self._stream, self._offset, self._length, self._at = stream, offset, length, 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, to: int, whence: int = 0) -> int:
        self._at = (0, self._at, self._length)[whence] + to
        if self._at < 0:
            raise ValueError("it is too short")
        return self._at

    def readinto(self, buffer: Any) -> int:
        count = max(0, min(len(buffer), self._length - self._at))
        self._stream.seek(self._offset + self._at)
        data = self._stream.read(count)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def _data(archive: zipfile.ZipFile, view: _View, dtype: torch.dtype, sizes: tuple[int, ...]) -> int:
    """Where in an archive of ``torch.save`` the bytes of its one tensor begin. Raises ValueError where that
    is not of `dtype` and `sizes`, row by row."""
    members = {info.filename.partition("/")[2]: info for info in archive.infolist()}
    if "data.pkl" not in members:
        raise ValueError("it was not written by torch.save")
    about = read_chunk(archive.read(members["data.pkl"]))
    if not isinstance(about, tuple) or len(about) < 4:
        raise ValueError("it is no plain tensor")
    storage, first, shape, strides = about[:4]
    if not isinstance(storage, tuple) or len(storage) != 5 or storage[0] != "storage":
        raise ValueError("it is no plain tensor")
    if storage[1] != dtype or shape != sizes:
        raise ValueError("it is of another shape or dtype than the table says")
    wanted = [prod(sizes[axis + 1 :]) for axis in range(len(sizes))]
    if first != 0 or any(n > 1 and s != w for n, s, w in zip(sizes, strides, wanted, strict=True)):
        raise ValueError("it is not laid out row by row; save it after .contiguous()")
    if "byteorder" in members and archive.read(members["byteorder"]) != b"little":
        raise ValueError("its bytes are in another order than this machine's")
    member = members[f"data/{storage[2]}"]
    if member.compress_type != zipfile.ZIP_STORED or member.file_size < prod(sizes) * dtype.itemsize:
        raise ValueError("its bytes are compressed or too few")
    view.seek(member.header_offset)
    signature, name, extra = LOCAL_HEADER.unpack(view.read(LOCAL_HEADER.size))
    begin: int = member.header_offset + LOCAL_HEADER.size + name + extra
    if signature != b"PK\x03\x04" or view.seek(0, 2) < begin + member.file_size:
        raise ValueError("it is too short")
    return begin


# ── whose tensors they are ───────────────────────────────────────────────────────────────


def prefix_of(stored: Iterable[str], names: Iterable[str]) -> str:
    """What stands before the names of a class where its tensors are stored; empty where nothing does, or
    where they are stored under names that the class has to translate.

    Raises CheckpointError S422 where several sets of tensors could be the model's.
    """
    wanted = set(names)
    counts: dict[str, int] = {}
    for full in stored:
        steps = full.split(".")
        for i in range(len(steps)):
            if ".".join(steps[i:]) in wanted:
                prefix = "".join(f"{step}." for step in steps[:i])
                counts[prefix] = counts.get(prefix, 0) + 1
    most = max(counts.values(), default=0)
    best = sorted(prefix for prefix, count in counts.items() if count == most)
    if len(best) > 1 and "" not in best:
        raise fail(
            CheckpointError,
            "S422",
            f"the folder holds {len(best)} sets of the class's tensors: under {', '.join(best)}",
            help="which one is the model cannot be known: save it in a folder of its own",
        )
    return "" if "" in best or not best else best[0]
