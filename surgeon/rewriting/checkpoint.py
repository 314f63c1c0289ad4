"""The grown checkpoint: which tensors it will hold, and each of them in blocks of rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from surgeon.checkpoints.moves import Moved
from surgeon.checkpoints.tensors import Box, boxes_of, full, rows_of
from surgeon.checkpoints.writing import Spec
from surgeon.models.layout import Bundle, Layout
from surgeon.models.stored import StoredModel
from surgeon.planning.transforms import Transform
from surgeon.rewriting.weights import blocks, expand, expand_box, makes_rows
from surgeon.running.parallel import side_by_side


@dataclass
class GrownCheckpoint:
    """The tensors of a source, grown, named and laid out on disk as the source's are.

    Args:
        layout: of the grown module.
        dtype: of floating tensors; None for each tensor's own.
    """

    source: StoredModel
    transforms: Mapping[str, Transform]
    layout: Layout
    dtype: torch.dtype | None
    device: torch.device
    _waiting: dict[str, Tensor] = field(default_factory=dict, repr=False)  # of the bundle made whole last

    def specs(self) -> list[Spec]:
        """Every tensor to be written, by disk name."""
        entries = self.source.checkpoint.entries
        specs = []
        for name, disk in self.source.names.items():
            transform = self.transforms.get(name)
            shape = transform.target_shape if transform else entries[disk].shape
            specs.append(Spec(disk, shape, self._cast(entries[disk].dtype)))
        for disk, name in self.source.twins.items():
            specs.append(Spec(disk, self.transforms[name].target_shape, self._cast(entries[disk].dtype)))
        for disk, (shape, _, _) in self._bundled.items():
            specs.append(Spec(disk, shape, self._cast(entries[disk].dtype)))
        return sorted(specs, key=lambda spec: spec.name)

    def produce(self, disk: str) -> Iterable[Tensor]:
        """The tensor stored as `disk`, in blocks of rows, or of what is within one."""
        if disk in self._names:
            return self._blocks(self._names[disk], disk)
        _, bundle, moved = self._bundled[disk]
        if moved is not None:
            return self._moved(moved, disk)
        if disk not in self._waiting:
            self._waiting = {}  # before the next one is made
            held = {
                n: expand(self.source.read(n), self.transforms[n], device=self.device) for n in bundle.held
            }
            self._waiting = self.layout.store(bundle, held)
        tensor = self._waiting.pop(disk)
        return (tensor.to(self._cast(tensor.dtype)),)

    def _blocks(self, name: str, disk: str) -> Iterable[Tensor]:
        tensor = self.source.open(name)
        wanted = self._cast(self.source.checkpoint.entries[disk].dtype)
        transform = self.transforms.get(name)
        if transform is None:
            return (rows_of(tensor, None).to(wanted),)
        return blocks(tensor, transform, wanted if wanted.is_floating_point else None, self.device)

    def _moved(self, moved: Moved, disk: str) -> Iterable[Tensor]:
        """A tensor whose elements are moved from grown ones, these made as far as a block needs them."""
        wanted = self._cast(self.source.checkpoint.entries[disk].dtype)

        def read(name: str, box: Box) -> Tensor:
            return expand_box(self.source.open(name), self.transforms[name], box, wanted, self.device)

        return side_by_side(lambda box: moved.read(box, read), self._boxes(moved), self.device)

    def _boxes(self, moved: Moved) -> Iterable[Box]:
        """The boxes that a tensor is made in, in order: blocks of rows where these need rows of grown
        tensors, and otherwise the whole of it, or of what is at one position of the first axis."""
        shape, by_rows = moved.shape, True

        def ask(name: str, box: Box) -> Tensor:
            nonlocal by_rows
            by_rows = by_rows and makes_rows(self.transforms[name], box)
            return torch.empty([stop - start for start, stop in box], device="meta")

        moved.read(next(iter(boxes_of(shape))), ask)
        if by_rows:
            return boxes_of(shape)
        if len(shape) < 3:
            return (full(shape),)
        return (((row, row + 1), *full(shape[1:])) for row in range(shape[0]))

    @cached_property
    def converted(self) -> tuple[Bundle, ...]:
        """The bundles that are converted whole, as more is done to them than to move elements."""
        several = {id(b): b for _, b, moved in self._bundled.values() if moved is None}
        return tuple(several.values())

    @cached_property
    def _bundled(self) -> Mapping[str, tuple[tuple[int, ...], Bundle, Moved | None]]:
        """For each tensor on disk that is stored otherwise than it is held its shape, its bundle, and the
        elements it consists of, where it only has them moved."""
        found = {}
        for bundle in self.layout.bundles:
            held = {n: torch.empty(self.transforms[n].target_shape, device="meta") for n in bundle.held}
            made, moves = self.layout.written(bundle, held)
            for disk, tensor in made.items():
                moved = moves[disk] if moves is not None and bundle.moves is not None else None
                found[disk] = tuple(tensor.shape), bundle, moved
        return found

    @cached_property
    def _names(self) -> Mapping[str, str]:
        return {disk: name for name, disk in self.source.names.items()} | dict(self.source.twins)

    def _cast(self, dtype: torch.dtype) -> torch.dtype:
        return self.dtype if self.dtype is not None and dtype.is_floating_point else dtype
