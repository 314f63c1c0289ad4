"""How each axis of each parameter expands: copied where an op produces it, shared out where one sums
over it. An axis that is both (a tied head) is copied, and the scale equations take up the rest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from torch import fx

from surgeon.errors import PlanError, fail
from surgeon.graph import signatures
from surgeon.graph.calls import Call, Value
from surgeon.graph.capture import op_name, place_of
from surgeon.graph.inference import Anatomy
from surgeon.graph.kinds import einsum_names, is_transposed
from surgeon.language.syntax import Expansion, Recipe


@dataclass(frozen=True)
class Use:
    """One op that reads a parameter, with the parameter's axes it sums over."""

    call: Call
    argument: int
    summed: frozenset[int]
    first: frozenset[int]  # the summed axes that the first copy alone carries


@dataclass(frozen=True)
class Roles:
    """Per parameter placeholder: the axes that are shared out, and by which ops it is read."""

    shared: Mapping[str, frozenset[int]]
    first: Mapping[str, frozenset[int]]
    uses: Mapping[str, tuple[Use, ...]] = field(repr=False)

    def shares(self, value: Value | None, axis: int) -> bool:
        """Whether axis `axis` of a value is a shared-out axis of a parameter."""
        if value is None or value.origin is None:
            return False
        return bool(value.origin.axes[axis] & self.shared.get(value.origin.parameter, frozenset()))


def summed_axes(call: Call) -> Iterator[tuple[int, fx.Node, int]]:
    """Argument position, tensor node and axis index for every axis that `call` sums over, of
    arguments that multiply."""
    kind = call.rule.kind.name if call.rule.kind else ""
    if call.rule.signature:
        names = signatures.summed(call)
        for tensor in signatures.match(call):
            for name, axis in tensor.named.items():
                if name in names:
                    yield tensor.position, tensor.node, axis
    elif kind == "einsum":
        operands, result = einsum_names(call)
        for position, (letters, node) in enumerate(zip(operands, call.args[1], strict=True)):
            for axis, letter in enumerate(letters):
                if letter not in result:
                    yield position, node, axis
    elif kind == "convolution" and not is_transposed(call):
        yield 1, call.args[1], 1
    elif kind == "convolution" and call.arg("groups", 1) == 1:
        yield 1, call.args[1], 0  # with groups, this axis holds them too, and they are not summed


def module_of(call: Call) -> str:
    return place_of(call.node).module


def matches(patterns: tuple[str, ...], *names: str) -> bool:
    """Whether any of `names` fits any glob; ``{0..3}`` stands for the numbers 0 to 3."""
    if not patterns:
        return True
    return any(fnmatchcase(n, p) for n in names for pattern in patterns for p in braces(pattern))


def braces(pattern: str) -> list[str]:
    """A glob with its ``{a..b}`` and ``{a,b}`` written out."""
    before, opening, rest = pattern.partition("{")
    inside, closing, after = rest.partition("}")
    if not opening or not closing:
        return [pattern]
    low, dots, high = inside.partition("..")
    choices = [str(i) for i in range(int(low), int(high) + 1)] if dots else inside.split(",")
    return [before + choice + tail for choice in choices for tail in braces(after)]


def infer_roles(anatomy: Anatomy, recipe: Recipe) -> Roles:
    """Collect the uses of every parameter and settle the role of each axis."""
    consumed: dict[str, set[int]] = {}
    copied: dict[str, set[int]] = {}
    first: dict[str, set[int]] = {}
    uses: dict[str, list[Use]] = {}
    for name, call in anatomy.calls.items():
        if name in anatomy.refused:
            summed: dict[str, tuple[int, set[int]]] = {}
        else:
            summed = _parameter_sums(call)
        laid_out = any(v is not None and v.origin is not None for v in anatomy.values[name])
        for node, value in call.tensors():
            if value.origin is None or (laid_out and node is call.args[0]):
                continue
            parameter = value.origin.parameter
            position, axes = summed.get(node.name, (0, set()))
            stated = _stated(call, recipe, position)
            firsts: set[int] = set()
            for axis, origin in enumerate(value.origin.axes):
                word = _word(call, stated, position, axis) or ("share" if axis in axes else "copy")
                if word == "copy":
                    copied.setdefault(parameter, set()).update(origin)
                else:
                    consumed.setdefault(parameter, set()).update(origin)
                if word == "first":
                    first.setdefault(parameter, set()).update(origin)
                    firsts |= origin
            here = frozenset().union(*(value.origin.axes[a] for a in axes))
            uses.setdefault(parameter, []).append(Use(call, position, here, frozenset(firsts)))
    return Roles(
        {p: frozenset(axes - copied.get(p, set())) for p, axes in consumed.items()},
        {p: frozenset(axes) for p, axes in first.items()},
        {p: tuple(u) for p, u in uses.items()},
    )


def _parameter_sums(call: Call) -> dict[str, tuple[int, set[int]]]:
    """Summed axes per argument that is a parameter; of two parameters multiplied, the last takes
    the share."""
    found: dict[str, tuple[int, set[int]]] = {}
    for position, node, axis in summed_axes(call):
        value = call.value(node)
        if value is not None and value.origin is not None:
            found.setdefault(node.name, (position, set()))[1].add(axis)
    last = max((position for position, _ in found.values()), default=0)
    return {name: entry for name, entry in found.items() if entry[0] == last}


def _stated(call: Call, recipe: Recipe, position: int) -> tuple[Expansion, ...]:
    """The expansions that the rule or, over it, the recipe states for this op here."""
    op = op_name(call.node)
    for rule in reversed(recipe.expands):
        if (op == rule.op or op.rpartition(".")[0] == rule.op) and matches(rule.at, module_of(call)):
            return rule.expansions
    return call.rule.expansions


def _word(call: Call, stated: tuple[Expansion, ...], position: int, axis: int) -> str | None:
    signature = call.rule.signature
    if signature is None or position >= len(signature.args):
        return None
    pattern = signature.args[position]
    for expansion in stated:
        if expansion.argument != pattern.name or pattern.axes is None:
            continue
        value = call.value(call.args[position])
        assert value is not None
        named, _ = signatures.lay(pattern.axes, len(value.axes))
        for word, name in expansion.factors:
            if name not in named:
                raise fail(
                    PlanError,
                    "S315",
                    f"the expansion of {pattern.name} names the axis {name}, which it does not have",
                    notes=(str(place_of(call.node)),),
                )
            if named[name] == axis:
                return word
    return None
