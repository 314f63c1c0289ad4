"""Tied parameters as ``from_pretrained`` ties them: it leaves apart what a checkpoint stores twice, unlike.

A class says which of its parameters are one; a checkpoint in which both stand with different values is
believed more than the class (transformers' ``tie_weights``).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from surgeon.checkpoints.reading import Checkpoint
from surgeon.checkpoints.tensors import row_blocks, rows_of
from surgeon.models.layout import disk_names


def apart_in(module: Any, checkpoint: Checkpoint) -> frozenset[str]:
    """The names of tied parameters that differ, in the checkpoint, from what the class ties them to. Of the
    weights no more is read than tells two apart. A folder of torch.distributed.checkpoint ties as the class
    does: there ``from_pretrained`` has no say."""
    tied = getattr(module, "all_tied_weights_keys", None) or {}
    if not tied or checkpoint.saved is not None:
        return frozenset()
    stored = disk_names(module, checkpoint.entries)
    found = set()
    for target, source in tied.items():
        if target in stored and source in stored:
            if not are_alike(checkpoint, stored[target], stored[source]):
                found.add(target)
        elif target in stored or source in stored:  # one stands for both
            stored[target] = stored[source] = stored.get(target) or stored[source]
    return frozenset(found)


def untie(module: Any, names: Iterable[str]) -> None:
    """Give each of the tied parameters a tensor of its own."""
    for name in names:
        path, _, last = name.rpartition(".")
        owner = module.get_submodule(path)
        shared = getattr(owner, last)
        setattr(owner, last, nn.Parameter(torch.empty_like(shared), requires_grad=shared.requires_grad))
        module.all_tied_weights_keys.pop(name)


def are_alike(checkpoint: Checkpoint, name: str, other: str) -> bool:
    """Whether two tensors hold the same, a few rows at a time."""
    one, two = checkpoint.open(name), checkpoint.open(other)
    if one.dtype != two.dtype or one.shape != two.shape:
        return False
    return name == other or all(torch.equal(rows_of(one, r), rows_of(two, r)) for r in row_blocks(one.shape))
