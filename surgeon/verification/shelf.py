"""A stock model whose weights stay in its folder and are read whenever a module asks for them."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from surgeon.checkpoints.reading import Checkpoint
from surgeon.checkpoints.tensors import Held, InFiles, StoredTensor, row_blocks, rows_of
from surgeon.models.layout import disk_names
from surgeon.models.stored import StoredModel

LARGE = 1 << 26  # bytes of a parameter that is not read whole, and of a block of its rows
Read = Callable[[], Held]
SAMPLE = 64  # elements that must agree with what stock loaded


class Shelf(dict[str, Any]):
    """A module's parameters: asking for one reads it, and it is gone when the caller is done with it.
    Listing them shows stand-ins of the right shape, dtype and device, which take no memory."""

    def __init__(self, held: dict[str, Any], readers: dict[str, Any]):
        super().__init__(held)
        self._readers = readers

    def __getitem__(self, name: str) -> Any:
        read = self._readers.get(name)
        return super().__getitem__(name) if read is None else read()


def shelve(model: nn.Module, checkpoint: Checkpoint, dtype: torch.dtype | None, device: torch.device) -> None:
    """Put back the parameters of a model that stock transformers loaded from `checkpoint`.

    A parameter that is not one tensor of the checkpoint stays as stock loaded it.

    Args:
        dtype: that floating weights are read in; None for those in which stock loaded them.
    """
    on_disk = _disk_names(model, checkpoint)

    def reader(parameter: Tensor) -> Read | None:
        disk = on_disk.get(id(parameter))
        if disk is None or not _same(parameter, checkpoint.open(disk)):
            return None
        stored = checkpoint.open(disk)
        return lambda: stored if stored.entry.bytes > LARGE else checkpoint.open(disk).mapped()

    _put_back(model, reader, dtype, device)


def shelve_unloaded(
    model: nn.Module, stored: StoredModel, dtype: torch.dtype | None, device: torch.device
) -> None:
    """The same for a model on meta, as nothing of it was loaded: every parameter is read from `stored`."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)

    def reader(parameter: Tensor) -> Read:
        name = next(n for n in names[id(parameter)] if stored.holds(n))
        return lambda: stored.open(name)

    _put_back(model, reader, dtype, device)


def _put_back(
    model: nn.Module,
    reader: Callable[[Tensor], Read | None],
    dtype: torch.dtype | None,
    device: torch.device,
) -> None:
    listed: dict[int, nn.Parameter] = {}  # one for every name of a tied parameter
    for module in model.modules():
        readers = {}
        for name, parameter in module._parameters.items():
            if parameter is None:
                continue
            read = reader(parameter)
            wanted = dtype if dtype is not None and parameter.is_floating_point() else parameter.dtype
            shown: Tensor = parameter
            if read is not None:
                readers[name] = _parameter(read, wanted, device)
                shown = torch.zeros((), dtype=wanted, device=device).expand(parameter.shape)
            if id(parameter) not in listed:
                listed[id(parameter)] = nn.Parameter(shown.to(device, wanted), requires_grad=False)
            module._parameters[name] = listed[id(parameter)]
        module._parameters = Shelf(module._parameters, readers)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                floating = dtype if buffer.is_floating_point() else None
                module._buffers[name] = buffer.to(device, floating or buffer.dtype)


def _disk_names(model: nn.Module, checkpoint: Checkpoint) -> dict[int, str]:
    """For each parameter of a model, by identity, the name it is stored under."""
    names = disk_names(model, checkpoint.entries)
    return {
        id(parameter): names[name]
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if name in names
    }


def _same(parameter: Tensor, stored: StoredTensor) -> bool:
    if parameter.shape != stored.shape:
        return False
    if stored.entry.bytes > LARGE:
        for rows in row_blocks(stored.shape):
            rows_of(stored, rows)  # seen to be finite, as all that is read
        ours = stored.rows(0, 1).flatten()[:SAMPLE].to(parameter.dtype)
    else:
        ours = stored.mapped().flatten()[:SAMPLE].to(parameter.dtype)
    return torch.equal(parameter.detach().flatten()[: len(ours)], ours)


def _parameter(read: Read, dtype: torch.dtype, device: torch.device) -> Any:
    def asked() -> Tensor:
        held = read()
        if isinstance(held, InFiles) and (len(held.shape) > 2 or prod(held.shape) * dtype.itemsize > LARGE):
            return Picked(held, dtype, device)
        return nn.Parameter(rows_of(held, None).to(device, dtype), requires_grad=False)

    return asked


class Picked(Tensor):
    """A parameter in files, of which one row, an expert, is read when it is picked by its index, those of
    some words when these are looked up, and blocks of rows for a product; for whatever else is done with it,
    all of it is read."""

    held: InFiles

    @staticmethod
    def __new__(cls, held: InFiles, dtype: torch.dtype, device: torch.device) -> Picked:
        made: Picked = Tensor._make_wrapper_subclass(cls, held.shape, dtype=dtype, device=device)
        made.held = held
        return made

    def read(self, held: Tensor) -> Tensor:
        return held.to(self.device, self.dtype)

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = None
        if func is torch.nn.functional.linear:
            made = _linear(*args, **(kwargs or {}))
        elif func is torch.nn.functional.embedding:
            made = _embedding(*args, **(kwargs or {}))
        if made is not None:
            return made
        with torch._C.DisableTorchFunctionSubclass():  # what is made of one is none itself
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        def read(value: Any) -> Any:
            return value.read(value.held.whole()) if isinstance(value, Picked) else value

        if func == torch.ops.aten.select.int and isinstance(args[0], Picked) and args[1] == 0:
            (picked, _, row), count = args, len(args[0])
            return picked.read(picked.held.at(row + count if row < 0 else row).whole())
        return func(*tree_map(read, args), **tree_map(read, kwargs or {}))


def _linear(x: Any, weight: Any, bias: Any = None) -> Tensor | None:
    """A product with a large matrix, a block of its rows at a time."""
    if (
        not isinstance(weight, Picked)
        or isinstance(x, Picked)
        or isinstance(bias, Picked)
        or weight.ndim != 2
    ):
        return None
    out = x.new_empty((*x.shape[:-1], len(weight)))
    height = max(1, LARGE // (weight.shape[1] * weight.dtype.itemsize))
    for start in range(0, len(weight), height):
        part = slice(start, start + height)
        rows = weight.read(weight.held.rows(start, min(start + height, len(weight))))
        out[..., part] = torch.nn.functional.linear(x, rows, None if bias is None else bias[part])
    return out


def _embedding(
    ids: Any, weight: Any, padding_idx: Any = None, max_norm: Any = None, *others: Any, **named: Any
) -> Tensor | None:
    """The rows of some words. All that may be asked for but a largest norm matters to gradients only."""
    if not isinstance(weight, Picked) or weight.ndim != 2:
        return None
    if max_norm is not None:  # by which torch changes what it is given in place
        whole = weight.read(weight.held.whole())
        return torch.nn.functional.embedding(ids, whole, padding_idx, max_norm, *others, **named)
    asked, place = ids.unique(return_inverse=True)
    return weight.read(weight.held.select(asked.cpu().numpy()))[place]
