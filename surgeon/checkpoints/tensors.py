"""Tensors in files, read by rows into memory of this process: where a file is cut short meanwhile that is an
error, while one mapped into memory takes the process with it."""

from __future__ import annotations

import io
import mmap
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from math import prod
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from surgeon.axes.maps import Index
from surgeon.checkpoints.stamps import Stamp
from surgeon.errors import CheckpointError, fail

OPEN_FILES = 32  # of one checkpoint at a time
BLOCK_ELEMENTS = 1 << 19  # of a block: what is made of it stays in the processor's cache
Box = tuple[tuple[int, int], ...]  # for each axis the first position and the one after the last


@dataclass(frozen=True)
class Piece:
    """A stretch of a file that holds a box of a tensor, row by row: where the box begins, its shape."""

    file: Path
    offset: int  # of its first byte in the file
    at: tuple[int, ...]
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Entry:
    """One tensor of a checkpoint, as its headers describe it. The pieces fill it exactly."""

    file: Path  # the one to name: its own, or the first of several
    shape: tuple[int, ...]
    dtype: torch.dtype
    pieces: tuple[Piece, ...]

    @property
    def bytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


@dataclass
class Files:
    """The files of a checkpoint, opened when first read, and as they were when its headers were."""

    stamps: Mapping[Path, Stamp] = field(repr=False)
    _opened: Callable[[Path], io.FileIO] = field(
        default_factory=lambda: lru_cache(OPEN_FILES)(_open), repr=False
    )

    def refuse_change(self, file: Path) -> None:
        """Raises CheckpointError S415 when a file changed, S403 when it is gone."""
        if file in self.stamps:
            self.stamps[file].refuse_change()

    def fill(self, buffer: Tensor, file: Path, offset: int) -> None:
        """Read bytes of a file. Raises CheckpointError S403 and S415."""
        left = memoryview(buffer.numpy().data)
        try:
            stream = self._opened(file)
            while left:
                count = os.preadv(stream.fileno(), [left], offset)
                if not count:
                    break
                left, offset = left[count:], offset + count
        except OSError as error:
            said = f"{file.name} cannot be read: {error.strerror or error}"
            raise fail(CheckpointError, "S403", said) from error
        if left:
            self.refuse_change(file)
            raise fail(CheckpointError, "S403", f"{file.name} ends before its tensors do")

    def map(self, file: Path, offset: int, length: int) -> mmap.mmap:
        """A stretch of a file in memory, copy-on-write. Raises OSError and ValueError."""
        descriptor = self._opened(file).fileno()
        return mmap.mmap(descriptor, length, access=mmap.ACCESS_COPY, offset=offset)


def _open(file: Path) -> io.FileIO:
    return io.FileIO(file)


class InFiles(ABC):
    """A tensor that is read when it is asked for, by rows. Reading raises CheckpointError S403 (a file cannot
    be read, or ends too early), S404 (what is read holds NaN or infinity) and S415 (a file changed since its
    header was read)."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]: ...

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype: ...

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    @abstractmethod
    def rows(self, start: int, stop: int) -> Tensor:
        """Some rows that follow one another, of shape ``[stop - start, ...]``."""

    @abstractmethod
    def at(self, row: int) -> InFiles:
        """One row, as a tensor of the other axes that stays in its files."""

    def whole(self) -> Tensor:
        return self.rows(0, self._count).reshape(self.shape)

    def select(self, index: Index) -> Tensor:
        """The rows of `index`, in its order, each run of neighbours read at once."""
        if len(index) and (np.diff(index) == 1).all():
            return self.rows(int(index[0]), int(index[-1]) + 1)
        wanted, place = np.unique(index, return_inverse=True)
        starts = np.flatnonzero(np.diff(wanted, prepend=wanted[:1] - 2) != 1)
        runs = [(int(run[0]), int(run[-1]) + 1) for run in np.split(wanted, starts[1:]) if len(run)]
        if not runs:
            return self.rows(0, 0)
        parts = [self.rows(*run) for run in runs]
        found = parts[0] if len(parts) == 1 else torch.cat(parts)
        if np.array_equal(wanted, index):
            return found
        return found.index_select(0, torch.from_numpy(place))

    def box(self, box: Box) -> Tensor:
        """The elements of a box, of its shape."""
        if not box:
            return self.whole()
        (start, stop), *others = box
        if len(others) > 1 and stop - start == 1:
            return self.at(start).box(tuple(others))[None]
        return self.rows(start, stop)[(slice(None), *(slice(*other) for other in others))]

    def stretch(self, first: int, count: int) -> Tensor:
        """`count` elements from the `first` on, counted row by row: of whole rows, or within one row."""
        across = prod(self.shape[1:])
        if not self.shape or (first % across == 0 and count % across == 0):
            start = first // across
            return self.rows(start, start + count // across).flatten()
        return self.at(first // across).stretch(first % across, count)

    @property
    def _count(self) -> int:
        return self.shape[0] if self.shape else 1


@dataclass
class StoredTensor(InFiles):
    """A tensor that stays in its files; any rows of it are read when asked for. `sound` are the rows seen to
    be finite, shared by all who read the tensor."""

    name: str
    entry: Entry
    files: Files = field(repr=False)
    sound: NDArray[np.bool_] = field(repr=False)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.entry.shape

    @property
    def dtype(self) -> torch.dtype:
        return self.entry.dtype

    def at(self, row: int) -> StoredTensor:
        rest = self.shape[1:]
        pieces = []
        for piece in self.entry.pieces:
            inside = row - piece.at[0]
            if 0 <= inside < piece.shape[0]:
                begin = piece.offset + inside * prod(piece.shape[1:]) * self.dtype.itemsize
                pieces.append(Piece(piece.file, begin, piece.at[1:], piece.shape[1:]))
        entry = replace(self.entry, shape=rest, pieces=tuple(pieces))
        sound = np.full(rest[0] if rest else 1, self.sound[row])
        return StoredTensor(self.name, entry, self.files, sound)

    def mapped(self) -> Tensor:
        """All of it, as :meth:`whole`, but mapped where it is one stretch of a file, copy-on-write: quicker
        to read over and over. A file cut short under it takes the process with it."""
        piece = self.entry.pieces[0] if len(self.entry.pieces) == 1 else None
        if piece is None or piece.offset % self.dtype.itemsize or not self.entry.bytes:
            return self.whole()
        before = piece.offset % mmap.ALLOCATIONGRANULARITY
        try:
            pages = self.files.map(piece.file, piece.offset - before, before + self.entry.bytes)
        except (OSError, ValueError) as error:
            raise fail(CheckpointError, "S403", f"{piece.file.name} cannot be read: {error}") from error
        found = torch.from_numpy(np.frombuffer(pages, np.uint8, self.entry.bytes, before))
        return self._seen(found.view(self.dtype).reshape(self.shape), 0, self._count)

    def rows(self, start: int, stop: int) -> Tensor:
        rest, size = self.shape[1:], self.dtype.itemsize
        count = (stop - start) * prod(rest)
        if not count:
            return torch.empty((stop - start, *rest), dtype=self.dtype)
        made = _memory(count * size)
        out = made.view(self.dtype).reshape(stop - start, *rest)
        for piece in self.entry.pieces:
            top, height = (piece.at or (0,))[0], (piece.shape or (1,))[0]
            first, last = max(start, top), min(stop, top + height)
            if first >= last:
                continue
            across = prod(piece.shape[1:]) * size  # bytes of a row of the piece
            begin, count = piece.offset + (first - top) * across, (last - first) * across
            if piece.shape[1:] == rest:
                at = (first - start) * across
                self.files.fill(made[at : at + count], piece.file, begin)
                continue
            box = _memory(count)
            self.files.fill(box, piece.file, begin)
            sides = (slice(a, a + n) for a, n in zip(piece.at[1:], piece.shape[1:], strict=True))
            part = box.view(self.dtype).reshape(last - first, *piece.shape[1:])
            out[(slice(first - start, last - start), *sides)] = part
        return self._seen(out, start, stop)

    def _seen(self, rows: Tensor, start: int, stop: int) -> Tensor:
        if self.dtype.is_floating_point and not self.sound[start:stop].all():
            if not all(torch.isfinite(end) for end in rows.aminmax()):  # NaN is both ends
                file = self.entry.file.name
                raise fail(CheckpointError, "S404", f"{self.name} in {file} holds NaN or infinity")
            self.sound[start:stop] = True
        return rows


def _memory(count: int) -> Tensor:
    """Bytes to read into. Numpy asks for huge pages, and to read is twice as fast as into torch's own."""
    return torch.from_numpy(np.empty(count, np.uint8))


Held = Tensor | InFiles  # in memory, or in files still


def rows_of(tensor: Held, index: Index | None) -> Tensor:
    """The rows of `index` in its order, or all; a view where they follow one another in memory."""
    if isinstance(tensor, InFiles):
        return tensor.whole() if index is None else tensor.select(index)
    if index is None:
        return tensor
    if len(index) and (np.diff(index) == 1).all():
        return tensor[int(index[0]) : int(index[0]) + len(index)]
    return tensor.index_select(0, torch.from_numpy(index).to(tensor.device))


def row_at(tensor: Held, row: int) -> Held:
    """One row of a tensor, left in its files where it is."""
    return tensor.at(row) if isinstance(tensor, InFiles) else tensor[row]


def box_of(tensor: Held, box: Box) -> Tensor:
    """The elements of a box, of its shape."""
    return tensor.box(box) if isinstance(tensor, InFiles) else tensor[tuple(slice(*side) for side in box)]


def full(shape: tuple[int, ...]) -> Box:
    return tuple((0, size) for size in shape)


def boxes_of(shape: tuple[int, ...]) -> Iterator[Box]:
    """The boxes of a tensor of `shape`, in the order in which they lie in memory: a cacheful of rows each, or
    of the rows of one row where that is larger."""
    if len(shape) > 2 and prod(shape[1:]) > BLOCK_ELEMENTS:
        for row in range(shape[0]):
            yield from (((row, row + 1), *box) for box in boxes_of(shape[1:]))
    else:
        yield from row_boxes(shape)


def row_boxes(shape: tuple[int, ...]) -> Iterator[Box]:
    """The blocks of rows of :func:`row_blocks` as boxes."""
    for rows in row_blocks(shape):
        yield full(shape) if rows is None else ((int(rows[0]), int(rows[-1]) + 1), *full(shape[1:]))


def row_blocks(shape: tuple[int, ...]) -> Iterator[Index | None]:
    """The rows of a tensor of `shape`, a cacheful at a time; None where all are one block."""
    count = prod(shape)
    if len(shape) < 2 or count <= BLOCK_ELEMENTS:
        yield None
        return
    height = max(1, BLOCK_ELEMENTS * shape[0] // count)
    for start in range(0, shape[0], height):
        yield np.arange(start, min(start + height, shape[0]))
