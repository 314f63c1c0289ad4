"""Networks as people write them, grown dim by dim and all together, against themselves in float64."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from zoo import ZOO as PLAIN
from zoo_ops import ZOO as WITH_OPS

import surgeon
from surgeon.errors import PlanError

ZOO = {**PLAIN, **WITH_OPS}


def _drawn(name: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A module with every parameter and statistic at random, and its inputs."""
    torch.manual_seed(0)
    exhibit = ZOO[name]
    module = exhibit.make().double().eval()
    inputs = tuple(t.double() if t.is_floating_point() else t for t in exhibit.inputs())
    with torch.no_grad():
        for at, parameter in module.named_parameters():
            scale = 0.3 if parameter.ndim < 2 else parameter[0].numel() ** -0.5
            shift = 1.0 if parameter.ndim == 1 and at.endswith("weight") else 0.0
            parameter.copy_(shift + scale * torch.randn(parameter.shape))
        for at, buffer in module.named_buffers():
            if at.endswith("running_mean"):
                buffer.normal_(0, 0.3)
            elif at.endswith("running_var"):
                buffer.uniform_(0.5, 1.5)
    return module, inputs


def _outputs(module: nn.Module, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    with torch.no_grad():
        out = module(*inputs)
    return list(out) if isinstance(out, tuple) else [out]


def _recipe(folder: Path, dims: Iterable[tuple[str, int]], times: int) -> Path:
    targets = ", ".join(f'axis("{parameter}", {axis})' for parameter, axis in dims)
    shares = {2: "uneven(1, 2)", 3: "uneven(3, 1, 2)"}[times]
    path = folder / "grow.surgery"
    path.write_text(
        f"recipe r() {{\n grow {targets} by {times}\n spread linear with {shares}\n noise linear at 10 dB\n}}"
    )
    return path


def _grow(recipe: Path, name: str, dims: tuple[tuple[str, int], ...]) -> None:
    module, inputs = _drawn(name)
    result = surgeon.apply(recipe, module, example_inputs=inputs)
    assert result.report.preserved
    state = dict(module.named_parameters())
    grown = dict(result.model.named_parameters())
    for parameter, axis in dims:
        assert grown[parameter].shape[axis] > state[parameter].shape[axis]
    for before, after in zip(_outputs(module, inputs), _outputs(result.model, inputs), strict=True):
        assert before.std() > 1e-3  # a dead signal proves nothing
        torch.testing.assert_close(after, before, rtol=0, atol=1e-13 * max(1.0, float(before.abs().max())))


@pytest.mark.parametrize("name", [name for name, exhibit in ZOO.items() if exhibit.dims])
def test_all_dims_grow_together(name: str, tmp_path: Path) -> None:
    _grow(_recipe(tmp_path, ZOO[name].dims, 2), name, ZOO[name].dims)


@pytest.mark.parametrize(("name", "dim"), [(n, d) for n, e in ZOO.items() for d in e.dims if len(e.dims) > 1])
def test_each_dim_grows_alone(name: str, dim: tuple[str, int], tmp_path: Path) -> None:
    _grow(_recipe(tmp_path, (dim,), 3), name, (dim,))


@pytest.mark.parametrize(("name", "dim"), [(n, d) for n, e in ZOO.items() for d in e.refused])
def test_what_cannot_grow_is_refused(name: str, dim: tuple[str, int], tmp_path: Path) -> None:
    module, inputs = _drawn(name)
    with pytest.raises(PlanError) as refused:
        surgeon.apply(_recipe(tmp_path, (dim,), 2), module, example_inputs=inputs)
    assert refused.value.code == ZOO[name].refused[dim]
