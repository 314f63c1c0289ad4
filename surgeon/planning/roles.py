"""How each axis of each parameter expands: copied where an op produces it, shared out where one sums
over it. An axis that is both (a tied head) is copied, and the scale equations take up the rest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from torch import fx

from surgeon.errors import PlanError, fail
from surgeon.graph import signatures
from surgeon.graph.calls import Call, Origin, Value
from surgeon.graph.einsums import einsum_names
from surgeon.graph.inference import Anatomy
from surgeon.graph.places import op_name, place_of
from surgeon.graph.spatial import is_transposed
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


@dataclass(frozen=True)
class Sum:
    """One axis of one argument that an op multiplies and sums over; what is summed together has one
    label."""

    position: int
    node: fx.Node
    axis: int
    label: str


def summed_axes(call: Call) -> Iterator[Sum]:
    """Every axis that `call` sums over, of arguments that multiply."""
    kind = call.rule.kind.name if call.rule.kind else ""
    if call.rule.signature:
        names = signatures.summed(call)
        for tensor in signatures.match(call):
            for name, axis in tensor.named.items():
                if name in names:
                    yield Sum(tensor.position, tensor.node, axis, name)
    elif kind == "einsum":
        operands, result = einsum_names(call)
        for position, (letters, node) in enumerate(zip(operands, call.args[1], strict=True)):
            for axis, letter in enumerate(letters):
                if letter not in result:
                    yield Sum(position, node, axis, letter)
    elif kind == "convolution" and not is_transposed(call):
        yield Sum(1, call.args[1], 1, "i")
    elif kind == "convolution" and call.arg("groups", 1) == 1:
        yield Sum(1, call.args[1], 0, "i")  # with groups, this axis holds them too: they are not summed


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
    """Collect the uses of every parameter and settle the role of each axis. Raises PlanError S315."""
    consumed: dict[str, set[int]] = {}
    copied: dict[str, set[int]] = {}
    first: dict[str, set[int]] = {}
    uses: dict[str, list[Use]] = {}
    products: list[list[Reading]] = []
    for name, call in anatomy.calls.items():
        sums = [] if name in anatomy.refused else list(summed_axes(call))
        products += _products(call, sums)
        last = max((s.position for s in sums if _origin(call, s.node)), default=0)
        laid_out = any(v is not None and v.origin is not None for v in anatomy.values[name])
        for position, node, value in arguments(call):
            if value.origin is None or (laid_out and node is call.args[0]):
                continue
            parameter = value.origin.parameter
            summed = {s.axis for s in sums if s.position == position}
            axes = summed if position == last else set()  # of two parameters multiplied, the last shares
            stated = _stated(call, recipe)
            firsts: set[int] = set()
            for axis, origin in enumerate(value.origin.axes):
                word = _word(call, stated, position, axis) or ("share" if axis in axes else "copy")
                if word == "copy":
                    copied.setdefault(parameter, set()).update(origin)
                elif axis not in summed and name not in anatomy.refused:
                    raise _not_summed(call, word, position, axis)
                else:
                    consumed.setdefault(parameter, set()).update(origin)
                if word == "first":
                    first.setdefault(parameter, set()).update(origin)
                    firsts |= origin
            here = frozenset().union(*(value.origin.axes[a] for a in axes))
            uses.setdefault(parameter, []).append(Use(call, position, here, frozenset(firsts)))
    for placeholder in anatomy.captured.unread:
        consumed.setdefault(placeholder, set()).update(_summed_by_layer(anatomy, placeholder))
    for node in anatomy.captured.results:
        for given in anatomy.values.get(node.name, ()):
            if given is not None and given.origin is not None:
                copied.setdefault(given.origin.parameter, set()).update(*given.origin.axes)
    return Roles(
        _settled({p: axes - copied.get(p, set()) for p, axes in consumed.items()}, products),
        {p: frozenset(axes) for p, axes in first.items()},
        {p: tuple(u) for p, u in uses.items()},
    )


def _summed_by_layer(anatomy: Anatomy, placeholder: str) -> set[int]:
    """The axes of a parameter that its layer sums over, as the rule of the layer's op has it: for
    parameters that the traced pass does not read."""
    name = anatomy.captured.parameters[placeholder]
    rule = anatomy.rules.get(anatomy.captured.layers.get(name, ""))
    if rule is None:
        return set()
    if rule.signature is None:
        return {1} if name.endswith("weight") else set()  # a convolution's
    kept = {axis for out in rule.signature.outputs for axis in out.names}
    patterns = [a.axes for a in rule.signature.args if a.name == name.rpartition(".")[2] and a.axes]
    return {i for axes in patterns for i, names in enumerate(axes.axes) if not kept.issuperset(names)}


Reading = tuple[str, frozenset[int]]
"""A parameter, and the axes of it that one axis of an argument holds."""


def _origin(call: Call, node: fx.Node) -> Origin | None:
    value = call.value(node)
    return value.origin if value is not None else None


def _products(call: Call, sums: list[Sum]) -> Iterator[list[Reading]]:
    """For each label that a call sums over, the parameters that are multiplied along it."""
    for label in dict.fromkeys(s.label for s in sums):
        origins = [(s.axis, _origin(call, s.node)) for s in sums if s.label == label]
        yield [(o.parameter, o.axes[axis]) for axis, o in origins if o is not None]


def _settled(shared: dict[str, set[int]], products: list[list[Reading]]) -> dict[str, frozenset[int]]:
    """A sum over copies is shared out by one factor alone; and by all parameter axes that were merged
    into the axis it runs over, or by none. Where that fails, axes are copied instead."""
    moved = True
    while moved:
        moved = False
        for readings in products:
            sharing = [(p, axes) for p, axes in readings if axes & shared.get(p, set())]
            for i, (parameter, axes) in enumerate(sharing):
                if i < len(sharing) - 1 or not axes <= shared[parameter]:
                    moved = moved or bool(axes & shared[parameter])
                    shared[parameter] -= axes
    return {parameter: frozenset(axes) for parameter, axes in shared.items()}


def arguments(call: Call) -> Iterator[tuple[int, fx.Node, Value]]:
    """The tensor arguments of a call with their positions; those of a list, with theirs in the list."""
    for position, arg in enumerate(call.args):
        items = enumerate(arg) if isinstance(arg, (list, tuple)) else [(position, arg)]
        for place, item in items:
            value = call.value(item)
            if value is not None:
                yield place, item, value


def _not_summed(call: Call, word: str, position: int, axis: int) -> PlanError:
    assert call.rule.signature is not None
    return fail(
        PlanError,
        "S315",
        f"the expansion of {call.rule.signature.args[position].name} says {word} for its axis {axis}, "
        f"which {op_name(call.node)} does not sum over",
        notes=(str(place_of(call.node)),),
        help="only what is summed can be shared out over copies; say copy",
    )


def _stated(call: Call, recipe: Recipe) -> tuple[Expansion, ...]:
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
        laid = signatures.lay(pattern.axes, len(value.axes))
        for word, name in expansion.factors:
            if not any(name in names for names in laid):
                raise fail(
                    PlanError,
                    "S315",
                    f"the expansion of {pattern.name} names the axis {name}, which it does not have",
                    notes=(str(place_of(call.node)),),
                )
            if name in laid[axis]:
                return word
    return None
