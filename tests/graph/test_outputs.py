"""What a captured graph returns, whatever the tracing does to the nodes on the way."""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from surgeon.errors import ModelError
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


Pair = namedtuple("Pair", "low high")


class Named(nn.Module):
    """Outputs in a dict, a named tuple and a list, beside some that are no tensors."""

    def forward(self, x: Tensor) -> dict[str, Any]:
        return {"logits": x + 1, "none": None, "pair": Pair(x + 2, [x + 3, 7])}


def test_outputs_have_the_names_that_lead_to_them() -> None:
    outputs = capture(Named().eval(), (torch.zeros(2),)).outputs
    added = {path: node.args[1] for path, node in outputs}
    assert added == {"logits": 1, "pair.low": 2, "pair.high.0": 3}
    ((alone, _),) = capture(nn.Linear(3, 4).eval(), (torch.zeros(2, 3),)).outputs
    assert alone == ""


class Memory:
    """A class that torch.export does not know."""


class Remembering(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> dict[str, Any]:
        y = self.linear(x)
        return {"y": y + 1, "seen": (Memory(), y), "memory": Memory()}


def test_what_no_tensors_are_found_in_is_left_out_and_said() -> None:
    given = (torch.randn(2, 3),)
    module = Remembering().eval()
    captured = capture(module, given, unknown=frozenset())
    assert [path for path, _ in captured.outputs] == ["y", "seen.1"]
    unknown = "a test_outputs.Memory, in which torch.export finds no tensors"
    assert captured.left_out == (f"the output seen.0, {unknown}", f"the output memory, {unknown}")
    assert isinstance(module(*given)["memory"], Memory)  # the module is as it was
    with pytest.raises(ModelError, match=r"returns a test_outputs\.Memory, in which") as caught:
        capture(module, given)
    assert caught.value.code == "S210"


@pytest.mark.parametrize(
    "answer",
    [
        lambda y: Memory(),
        lambda y: {"memory": Memory(), "y": y},  # the first counts for most
        lambda y: {"y": y, "logits": Memory()},
        lambda y: {"y": y, "logits_by_word": [y, Memory()]},
    ],
)
def test_what_a_module_is_run_for_is_not_left_out(answer: Any) -> None:
    class Answering(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return answer(x + 1)

    with pytest.raises(ModelError, match=r"returns a test_outputs\.Memory, in which"):
        capture(Answering(), (torch.randn(2, 3),), unknown=frozenset())
