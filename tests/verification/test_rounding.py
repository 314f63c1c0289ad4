"""What the source's own rounding does to it widens the tolerance, and hides no fault."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import surgeon
from surgeon.errors import NotPreserved
from surgeon.verification import coexecution

RECIPE = 'recipe wide() {\n    grow axis("inward.weight", 0) by 2\n    spread linear with uneven(1, 2)\n}\n'


class Tied(nn.Module):
    """One of its outputs hangs on which of two equal numbers is larger: any rounding of a weight decides."""

    def __init__(self) -> None:
        super().__init__()
        self.inward, self.outward = nn.Linear(6, 8), nn.Linear(8, 4)
        self.left, self.right = nn.Linear(6, 1, bias=False), nn.Linear(6, 1, bias=False)
        with torch.no_grad():
            self.right.weight.copy_(self.left.weight)

    def forward(self, x: Tensor) -> Tensor:
        chosen = torch.sign(self.left(x) - self.right(x)) + 10.0
        return torch.cat([chosen, self.outward(torch.tanh(self.inward(x)))], -1)


@pytest.mark.parametrize("wrong", [0.0, 1e-3])
def test_a_choice_that_rounding_decides_hides_no_fault(
    wrong: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tmp_path / "wide.surgery"
    recipe.write_text(RECIPE)
    torch.manual_seed(0)
    module, right = Tied(), coexecution.expand

    def expand(tensor: Any, transform: Any, *others: Any) -> Tensor:
        made = right(tensor, transform, *others)
        return made * (1 + wrong) if transform.name == "outward.weight" else made

    monkeypatch.setattr(coexecution, "expand", expand)
    inputs = (torch.randn(5, 6),)
    if wrong:
        with pytest.raises(NotPreserved) as caught:
            surgeon.apply(recipe, module, example_inputs=inputs, device="cpu")
        assert caught.value.code == "S501"
    else:
        assert surgeon.apply(recipe, module, example_inputs=inputs, device="cpu").report.preserved
