"""What a captured graph returns, whatever the tracing does to the nodes on the way."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from surgeon.graph.capture import capture


class Copies(nn.Module):
    """Two outputs, one a copy, and an op in place, for which the graph is taken apart."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.linear(x)
        y.mul_(2.0)
        return y.sum(-1), y.clone()


def test_an_output_is_one_even_where_its_copy_is_dropped() -> None:
    captured = capture(Copies().eval(), (torch.randn(2, 3),))
    assert [tuple(node.meta["val"].shape) for node in captured.results] == [(2,), (2, 4)]
