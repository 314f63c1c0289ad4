"""Products with parameters that are read a few rows at a time, held against torch's own."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, fx

from surgeon.axes.maps import Index
from surgeon.checkpoints import tensors
from surgeon.errors import ModelError
from surgeon.verification.coexecution import _step
from surgeon.verification.execution import Chosen, Executor, Weight

CPU = torch.device("cpu")
INDEX = torch.tensor([3, 0, 3, -1, 1, 0])


def weight(value: Tensor, asked: list[int]) -> Weight:
    """A parameter that notes how many elements are read of it at once."""

    def opened() -> Callable[[Index | None], Tensor]:
        def rows(index: Index | None) -> Tensor:
            found = value if index is None else value[torch.from_numpy(np.asarray(index))]
            asked.append(found.numel())
            return found

        return rows

    return Weight(tuple(value.shape), opened, lambda row: weight(value[row], asked))


def graph(flipped: bool) -> fx.Graph:
    made = fx.Graph()
    held, index, x = (made.placeholder(name) for name in ("held", "index", "x"))
    chosen = made.call_function(torch.ops.aten.index.Tensor, (held, [index]))
    made.call_function(torch.ops.aten.bmm.default, (x, chosen) if flipped else (chosen, x))
    return made


def run(made: fx.Graph, values: dict[str, Any]) -> list[Any]:
    """What each op of a graph gives."""
    executor = Executor(CPU, values)
    ops = [node for node in made.nodes if node.op == "call_function"]
    for node in ops:
        executor.values[node.name] = executor.run(node, node.args, node.kwargs)
    return [executor.values[node.name] for node in ops]


@pytest.mark.parametrize("flipped", [False, True])
def test_chosen_matrices_are_read_by_rows(flipped: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensors, "BLOCK_ELEMENTS", 14)
    torch.manual_seed(0)
    held = torch.randn(5, 6, 7, dtype=torch.float64)
    x = torch.randn(6, 3, 6, dtype=torch.float64) if flipped else torch.randn(6, 7, 3, dtype=torch.float64)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    asked: list[int] = []
    chosen, found = run(graph(flipped), {"held": weight(held, asked), "index": INDEX, "x": ours})
    assert isinstance(chosen, Chosen)
    wanted = torch.bmm(theirs, held[INDEX]) if flipped else torch.bmm(held[INDEX], theirs)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    weights = torch.randn_like(wanted)
    (found * weights).sum().backward()
    (wanted * weights).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-12, atol=1e-12)
    assert asked and max(asked) <= 14


def test_chosen_matrices_are_whole_for_any_other_reader() -> None:
    held = torch.randn(5, 6, 7, dtype=torch.float64)
    made = fx.Graph()
    nodes = [made.placeholder(name) for name in ("held", "index")]
    chosen = made.call_function(torch.ops.aten.index.Tensor, (nodes[0], [nodes[1]]))
    made.call_function(torch.ops.aten.mul.Tensor, (chosen, 2.0))
    _, product = run(made, {"held": weight(held, []), "index": INDEX})
    assert torch.equal(product, held[INDEX] * 2)


def test_what_is_asserted_of_numbers_alone_is_asked_of_the_source() -> None:
    """The grown class makes such numbers anew, and there may be no value of them in the grown run."""
    graph = fx.Graph()
    condition = graph.placeholder("condition")
    asserted = graph.call_function(torch.ops.aten._assert_async.msg, (condition, "4 at model.py:1"))
    anatomy = SimpleNamespace(closed={"condition"})
    pair = SimpleNamespace(plan=SimpleNamespace(native=None, grown_nodes={}, anatomy=anatomy))
    for holds in (True, False):
        left = Executor(CPU, {"condition": torch.tensor(holds)})
        right = Executor(CPU, {"condition": None})
        refused = contextlib.nullcontext() if holds else pytest.raises(ModelError, match="other inputs only")
        with refused:
            assert _step(asserted, pair, left, right, False) == (None, None)  # type: ignore[arg-type]
