"""A stock model that rounds otherwise: what each of its innermost modules gives is off by one rounding at
random. How far its outputs move is the noise that it has in its own dtype, and it tells of inputs on which
the model magnifies its rounding, where its distance from a wider dtype may be small by luck."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

DRAWS = (0, 1, 2, 3)  # seeds


def round_otherwise(model: nn.Module, seed: int) -> None:
    """From here on a model's innermost modules give results that are off by one rounding at most."""
    generators: dict[torch.device, torch.Generator] = {}

    def off(value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        drawn = generators.setdefault(value.device, torch.Generator(value.device).manual_seed(seed))
        part = torch.empty_like(value).uniform_(-1, 1, generator=drawn) * torch.finfo(value.dtype).eps
        return value + value * part

    def hook(module: nn.Module, arguments: Any, result: Any) -> Any:
        return tree_map(off, result)

    for module in model.modules():
        if next(module.children(), None) is None:
            module.register_forward_hook(hook)
