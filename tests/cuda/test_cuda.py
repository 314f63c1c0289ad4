"""Expansion and proof on a CUDA device give what they give on the CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import surgeon

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def test_a_module_grows_on_cuda_as_on_the_cpu(tmp_path: Path) -> None:
    recipe = tmp_path / "wide.surgery"
    recipe.write_text('recipe wide() {\n    grow axis("0.weight", 0) by 2\n    noise linear at 10 dB\n}\n')
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(5, 8), nn.GELU(), nn.Linear(8, 3))
    inputs = (torch.randn(4, 5),)
    on_cpu = surgeon.apply(recipe, module, example_inputs=inputs, device="cpu")
    on_cuda = surgeon.apply(recipe, module, example_inputs=inputs, device="cuda")
    assert on_cuda.report.preserved
    assert on_cuda.report.exact.outputs < 1e-14
    assert on_cpu.model is not None and on_cuda.model is not None
    for name, value in on_cpu.model.state_dict().items():
        torch.testing.assert_close(on_cuda.model.state_dict()[name].cpu(), value)
