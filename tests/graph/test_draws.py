"""Which ops draw random numbers, and which of their draws matter. Two passes of the module are the oracle."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from surgeon.errors import ModelError
from surgeon.graph.capture import capture
from surgeon.graph.draws import refuse_draws
from surgeon.graph.places import op_name
from surgeon.language import builtin_rules

KNOWN = frozenset(name for rule in builtin_rules() for name in rule.names)


class Calm(nn.Module):
    """Draws in training alone, or what reaches nothing that is returned."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.3, batch_first=True)
        self.recurrent = nn.GRU(8, 8, 2, dropout=0.3, batch_first=True)
        self.slope = nn.RReLU()

    def forward(self, x: Tensor) -> Tensor:
        torch.rand(3)
        skipped = torch.rand(()) < 0.1  # as layers are dropped in training
        made: Tensor = self.slope(self.recurrent(self.layer(x))[0])
        return x if self.training and skipped else made


class Drawing(nn.Module):
    """Returns, or keeps, what it draws."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.register_buffer("kept", torch.zeros(50))

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "kept":
            self.kept.copy_(torch.rand(50))
            return x * 2 + self.kept
        if self.kind == "filled":
            return x + torch.empty_like(x).uniform_()
        if self.kind == "picked":
            return x[:, torch.randperm(50)]
        return nn.functional.scaled_dot_product_attention(x, x, x, dropout_p=0.5)


def test_draws_of_training_alone_and_those_that_reach_nothing_are_none() -> None:
    module, x = Calm().eval(), torch.randn(2, 3, 8)
    assert torch.equal(module(x), module(x))
    captured = capture(module, (x,), known=KNOWN)
    refuse_draws(captured, "Calm")
    assert not any("rand" in op_name(node) for node in captured.nodes)


@pytest.mark.parametrize(
    ("kind", "op"),
    [("kept", "rand"), ("filled", "uniform"), ("picked", "randperm"), ("attending", "attention")],
)
def test_draws_that_are_returned_or_kept_are_refused(kind: str, op: str) -> None:
    module, x = Drawing(kind).eval(), torch.randn(2, 50)
    assert not torch.equal(module(x), module(x))
    captured = capture(Drawing(kind).eval(), (x,), known=KNOWN)
    with pytest.raises(ModelError, match="Drawing draws random numbers as it runs") as caught:
        refuse_draws(captured, "Drawing")
    assert caught.value.code == "S216"
    assert op in caught.value.diagnostics[0].notes[0]
