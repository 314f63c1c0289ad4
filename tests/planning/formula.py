"""A module written as one formula over named tensors, and its growth by some lines of a recipe."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import surgeon
from surgeon.operations import Result


class Formula(nn.Module):
    """``formula(self, x)`` over random parameters (and buffers, named with a ``b``) of given shapes."""

    def __init__(self, formula: Callable[[Any, Tensor], Any], **shapes: tuple[int, ...]) -> None:
        super().__init__()
        self.formula = formula
        generator = torch.Generator().manual_seed(0)
        for name, shape in shapes.items():
            value = torch.randn(shape, generator=generator, dtype=torch.float64)
            if name.startswith("b"):
                self.register_buffer(name, value)
            else:
                self.register_parameter(name, nn.Parameter(value))
        self.eval()

    def forward(self, x: Tensor) -> Any:
        return self.formula(self, x)


def numbers(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def grow(module: nn.Module, folder: Path, *lines: str, x: Tensor) -> Result:
    """Apply a recipe of these lines; ``w 0 by 2`` stands for ``grow axis("w", 0) by 2``."""
    written = []
    for line in lines:
        name, axis, *rest = line.split(" ")
        written.append(f'grow axis("{name}", {axis}) {" ".join(rest)}' if axis.isdigit() else line)
    file = folder / "mine.surgery"
    file.write_text("recipe mine() {\n" + "".join(f"    {line}\n" for line in written) + "}\n")
    return surgeon.apply(file, module, example_inputs=(x,), device="cpu")


def same(result: Result, module: nn.Module, x: Tensor) -> None:
    """The grown module gives what the source gives."""
    assert result.model is not None
    with torch.no_grad():
        ours, theirs = result.model(x), module(x)
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= 1e-12 * max(1.0, float(theirs.abs().max()))
