"""The first draft of a rule is a declaration that can be read, with one letter for axes of one size."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, fx

from surgeon.language.loading import check
from surgeon.planning.drafts import draft

A, B = torch.randn(2, 3, 8), torch.randn(2, 5, 8)


@pytest.mark.parametrize(
    ("function", "wanted"),
    [
        (lambda a, b: torch.ops.aten.special_erfcx.default(a), "op aten.special_erfcx : pointwise nonlinear"),
        (lambda a, b: torch.ops.aten.add.Scalar(a, 2), "op aten.add.Scalar : pointwise nonlinear"),
        (
            lambda a, b: torch.ops.aten._euclidean_dist.default(a, b),
            "op aten._euclidean_dist(x[a b c], y[a d c]) -> [a b d]",
        ),
        (
            lambda a, b: torch.ops.aten.sum.dim_IntList(a, [1], True),
            "op aten.sum.dim_IntList(x[a b c]) -> [a 1 c]",
        ),
        (
            lambda a, b: torch.ops.aten.layer_norm.default(a, [8], b[0, 0], b[0, 1]),
            "op aten.layer_norm(x[a b c], _, y[c], z[c]) -> [a b c]",
        ),
        (lambda a, b: torch.ops.aten.topk.default(a, 2), "op aten.topk(x[a b c]) -> [a b a], [a b a]"),
    ],
)
def test_a_draft(function: Callable[..., Tensor], wanted: str, tmp_path: Path) -> None:
    values: dict[str, tuple[tuple[int, ...] | None, ...]] = {}

    class Shapes(fx.Interpreter):
        def run_node(self, n: fx.Node) -> object:
            made = super().run_node(n)
            several = made if isinstance(made, tuple) else (made,)
            values[n.name] = tuple(tuple(v.shape) if isinstance(v, Tensor) else None for v in several)
            return made

    graph = fx.symbolic_trace(function)
    Shapes(graph).run(A, B)
    op = next(n for n in reversed(graph.graph.nodes) if n.op == "call_function")
    written = draft(op, values)
    assert written == wanted
    (tmp_path / "draft.surgery").write_text(written + "\n")
    assert not check(tmp_path / "draft.surgery")
