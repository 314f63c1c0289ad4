"""The rules of the library against the ops, and that wrong and needlessly strict rules are told."""

from __future__ import annotations

import pytest

from surgeon.certification import Finding, certify
from surgeon.language import builtin_rules, loads

KNOWN = {
    "aten._fused_rms_norm",  # the scale of its second output counts the copies of the weight
    "aten.convolution",  # grouped and transposed: groups are shared out as if they were summed
    "aten.conv_transpose1d",
    "aten.conv_transpose2d.input",
    "aten.conv_transpose3d.input",
    "aten.einsum",  # a letter twice in one operand
    "aten.where",  # two numbers to choose from
    "aten.slice",  # a step with a start
    "aten.split",  # pieces of one size that grow apart
    "aten.index",  # the indices around an axis that stays are not pinned
    "aten.zeros_like",  # the axes are not those of the argument
    "aten.ones_like",
    "aten.full_like",
    "aten.triu",  # the argument is not pinned
    "aten.tril",
    # a scaled tensor without axes becomes one of one axis in the lockstep run
    "aten.add",
    "aten.sub",
    "aten.rsub",
    "aten.maximum",
    "aten.minimum",
    "aten.masked_fill",
    "aten.sum",
    "aten.mean",
    "aten.amax",
    "aten.amin",
}
"""Ops whose handling by the engine is known to be wrong: take an op out when it is mended."""


def finding(text: str) -> Finding:
    (only,) = certify(loads(text).rules)
    return only


def test_no_rule_of_the_library_is_wrong() -> None:
    found = certify(builtin_rules())
    wrong = {f.op: f.detail for f in found if f.verdict == "wrong" and f.op not in KNOWN}
    assert not wrong
    assert sum(f.verdict == "right" for f in found) > 100


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
