"""The graph held against stock transformers, and what the source's own noise is measured by."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from surgeon.errors import ModelError
from surgeon.verification.native import Observed, observe_wider, refuse_other_graph

CPU = torch.device("cpu")


def observed(output: torch.Tensor) -> Observed:
    return Observed(torch.float32, output.double(), False)


def test_a_graph_that_computes_something_else_is_refused() -> None:
    output = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(3, 4)
    wider = output + 1e-7
    refuse_other_graph(observed(output), observed(wider), output[:2])
    with pytest.raises(ModelError, match=r"relative difference 1\.0e-03") as caught:
        refuse_other_graph(observed(output), observed(wider), output[:2] * 1.001)
    assert caught.value.code == "S213"


@pytest.mark.parametrize("exact", [torch.ones(3, 5), torch.full((3, 4), float("nan"))])
def test_another_shape_and_no_number_are_something_else(exact: torch.Tensor) -> None:
    with pytest.raises(ModelError, match="not what the class computes"):
        refuse_other_graph(observed(torch.ones(3, 4)), None, exact.double())


@pytest.mark.parametrize(("own", "kept"), [(torch.float32, True), (torch.bfloat16, False)])
def test_only_float64_may_be_unknown_to_a_class(own: torch.dtype, kept: bool) -> None:
    def refuses(*_: Any) -> Observed:
        raise RuntimeError("expected scalar type Float but found Double")

    if kept:
        assert observe_wider(refuses, own) is None
    else:
        with pytest.raises(RuntimeError, match="scalar type"):
            observe_wider(refuses, own)


def test_another_failure_is_no_unknown_dtype() -> None:
    def fails(*_: Any) -> Observed:
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        observe_wider(fails, torch.float32)
