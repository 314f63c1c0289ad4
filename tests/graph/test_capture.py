"""Capture: ops taken apart, and what a model that cannot be traced leaves behind, which must be nothing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack

from surgeon.errors import ModelError
from surgeon.graph.capture import PARTS, capture
from surgeon.graph.places import op_name


class Choosy(nn.Module):
    """Takes a path by what its weights compute."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if self.gate(x).sum() > 0 else x


def test_a_trace_that_fails_leaves_torch_as_it_was() -> None:
    """A mode left on torch's stack would answer every later call in the process."""
    module, x = Choosy(), torch.ones(2, 4)
    with pytest.raises(ModelError, match="Choosy cannot be captured") as caught:
        capture(module, (x,), values={"x": x})
    assert "forward" not in vars(module)
    assert "self.gate(x).sum() > 0" in str(caught.value)
    assert _get_current_function_mode_stack() == []


def test_ops_are_the_sum_of_their_parts() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 6, 3, generator=generator, dtype=torch.float64)
    aten = torch.ops.aten
    for dim in (0, 2, -1):
        gain = torch.randn([n if i == dim % 3 else 1 for i, n in enumerate(x.shape)], dtype=x.dtype)
        parts = PARTS[aten._weight_norm.default](x, gain, dim)
        torch.testing.assert_close(parts, torch._weight_norm(x, gain, dim % 3), rtol=1e-14, atol=1e-15)
    torch.testing.assert_close(PARTS[aten.glu.default](x, 1), aten.glu.default(x, 1), rtol=1e-14, atol=1e-15)


def test_a_rule_goes_before_the_parts_of_an_op() -> None:
    x = torch.ones(2, 4)
    kept, apart = (
        {op_name(node) for node in capture(nn.GLU(), (x,), known=known).nodes}
        for known in ({"aten.glu"}, {"aten.sigmoid"})
    )
    assert "aten.glu.default" in kept
    assert "aten.glu.default" not in apart and "aten.sigmoid.default" in apart
