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
    ],
)
def test_a_wrong_rule_is_caught(text: str) -> None:
    assert finding(text).verdict == "wrong"


def test_a_frozen_axis_that_could_grow_is_strict() -> None:
    said = finding("op aten.linear(x[... i], weight[o i], bias[o]?) -> [... o] {\n    frozen o\n}\n")
    assert said.verdict == "strict"


def test_an_op_without_a_sample_is_untested() -> None:
    assert finding("op nowhere.nothing : pointwise nonlinear").verdict == "untested"
