"""The grown checkpoint: which tensors it will hold, and each of them in blocks of rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from surgeon.checkpoints.tensors import rows_of
from surgeon.checkpoints.writing import Spec
from surgeon.models.layout import Layout
from surgeon.models.stored import StoredModel
from surgeon.planning.transforms import Transform
from surgeon.rewriting.weights import blocks, expand


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
    _waiting: dict[str, Tensor] = field(default_factory=dict, repr=False)  # of the bundle made last

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
        for bundle in self.layout.bundles:
            held = {n: torch.empty(self.transforms[n].target_shape, device="meta") for n in bundle.held}
            for disk, tensor in self.layout.store(bundle, held).items():
                specs.append(Spec(disk, tuple(tensor.shape), self._cast(entries[disk].dtype)))
        return sorted(specs, key=lambda spec: spec.name)

    def produce(self, disk: str) -> Iterable[Tensor]:
        """The tensor stored as `disk`, in blocks of rows."""
        if disk in self._names:
            return self._blocks(self._names[disk], disk)
        if disk not in self._waiting:
            bundle = next(b for b in self.layout.bundles if disk in b.stored)
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

    @cached_property
    def _names(self) -> Mapping[str, str]:
        return {disk: name for name, disk in self.source.names.items()} | dict(self.source.twins)

    def _cast(self, dtype: torch.dtype) -> torch.dtype:
        return self.dtype if self.dtype is not None and dtype.is_floating_point else dtype
