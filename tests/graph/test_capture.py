"""Capture: what a model that cannot be traced leaves behind, which must be nothing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack

from surgeon.errors import ModelError
from surgeon.graph.capture import capture


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
