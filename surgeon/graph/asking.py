"""What functions of torch do, by name and by what they are called with: which of them ask a tensor for
numbers, or make as many rows as numbers say, and which change what they are given."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad
from torch.utils._pytree import tree_flatten

ASKED = {
    Tensor.item,
    Tensor.__bool__,
    Tensor.__int__,
    Tensor.__float__,
    Tensor.__index__,
    Tensor.__format__,
    Tensor.tolist,
}
REPEATED = {torch.repeat_interleave, Tensor.repeat_interleave}
INDEXED = {Tensor.__getitem__, Tensor.__setitem__}
STRETCHED = {Tensor.expand, Tensor.repeat, Tensor.tile}
INVERTED = {Tensor.__invert__, Tensor.logical_not, Tensor.bitwise_not, torch.logical_not, torch.bitwise_not}
SIZED = {  # how many arguments come before the sizes
    Tensor.view: 1,
    Tensor.reshape: 1,
    Tensor.expand: 1,
    Tensor.repeat: 1,
    Tensor.narrow: 1,
    Tensor.split: 1,
    torch.split: 1,
    torch.arange: 0,
    torch.zeros: 0,
    torch.ones: 0,
    interpolate: 1,
    pad: 1,
}
CHANGING = re.compile(r"__(set|setitem|i(and|or|xor|add|sub|mul|truediv|floordiv|mod|pow))__|.*[^_]_")
DISTINCT = {torch.unique_consecutive, Tensor.unique_consecutive, torch.unique, Tensor.unique}
POSITIONS = {torch.nonzero, Tensor.nonzero, torch.where}
ADDED = {torch.index_add, Tensor.index_add, Tensor.index_add_}
RANDOM = re.compile(r"rand|normal|bernoulli|multinomial|uniform|exponential|empty_|dropout")


def tensors_in(*trees: Any) -> list[Tensor]:
    return [leaf for leaf in tree_flatten(trees)[0] if isinstance(leaf, Tensor)]


def sized_by_values(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether values say how many rows come out: counts, or repetitions."""
    if func in (torch.argwhere, Tensor.argwhere):
        return True
    if func in REPEATED:
        return len(tensors_in(args, kwargs)) > 1
    if func not in DISTINCT or len(args) > 1:
        return False
    return not any(v not in (None, False) for name, v in kwargs.items() if name != "sorted")


def picked_by_mask(func: Any, args: tuple[Any, ...]) -> bool:
    return (
        func in INDEXED and isinstance(args[1], Tensor) and args[1].dtype == torch.bool and args[1].ndim > 0
    )
