"""The rules of the library against the ops, and that wrong and needlessly strict rules are told."""

from __future__ import annotations

import pytest

from surgeon.certification import Finding, certify
from surgeon.language import builtin_rules, loads

UNTESTED = {
    *("aten._assert_tensor_metadata", "aten.sym_size"),  # no tensor comes out
    "aten.chunk",  # captured as a split into the sizes of its pieces, which is tried
}


def finding(text: str) -> Finding:
    (only,) = certify(loads(text).rules)
    return only


def test_no_rule_of_the_library_is_wrong() -> None:
    found = certify(builtin_rules())
    assert {f.op: f.detail for f in found if f.verdict == "wrong"} == {}
    assert {f.op for f in found if f.verdict == "untested"} == UNTESTED


@pytest.mark.parametrize(
    "text",
    [
        "op aten.flip : pointwise nonlinear",
        "op aten.softmax : pointwise nonlinear",
        "op aten.gelu : pointwise homogeneous",
        "op aten.mul : pointwise additive",
        "op aten.cumsum : pointwise nonlinear",
        "op aten.linear(x[... i], weight[o i], bias[o]?) -> [... i]",
        "op aten.kron(x[i], y[j]) -> [j*i]",
        "op aten.scaled_dot_product_attention(q[b r*g s e], k[b g t e], v[b g t f]) -> [b r*g s f]"
        " {\n    soft t\n    order s\n    exact q * k\n    frozen e\n}\n",
    ],
)
def test_a_wrong_rule_is_caught(text: str) -> None:
    assert finding(text).verdict == "wrong"


def test_a_product_of_axes_is_tried_from_the_signature() -> None:
    assert finding("op aten.kron(x[i], y[j]) -> [i*j]").verdict == "right"


def test_a_frozen_axis_that_could_grow_is_strict() -> None:
    said = finding("op aten.linear(x[... i], weight[o i], bias[o]?) -> [... o] {\n    frozen o\n}\n")
    assert said.verdict == "strict"


def test_an_op_without_a_sample_is_untested() -> None:
    assert finding("op nowhere.nothing : pointwise nonlinear").verdict == "untested"
