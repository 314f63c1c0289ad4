"""Small calls of every op, on which its rule is tried.

A rule with a signature is sampled from the signature, a pointwise one from the op's schema; the other
kinds choose their arguments from a table. A sample's tensors are buffers (activations: every axis of
theirs may grow) except those it names as parameters.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from surgeon.language.syntax import OpRule

SIZES = (3, 4, 2, 5, 6, 7)
POSITIVE_FLOOR = 0.1
REFUSALS = (RuntimeError, IndexError, TypeError, ValueError)
"""How an op says that it takes no such arguments."""

Spec = tuple[int, ...] | Tensor
Case = tuple[Callable[..., Any], tuple[Spec, ...]]


@dataclass(frozen=True)
class Sample:
    """One call: ``function(*tensors)``; `parameters` are the positions of tensors that are weights."""

    label: str
    function: Callable[..., Any]
    tensors: tuple[Tensor, ...]
    parameters: frozenset[int] = frozenset()

    def run(self, tensors: Sequence[Tensor] | None = None) -> tuple[Tensor, ...]:
        """The tensors that the call returns."""
        out = self.function(*(self.tensors if tensors is None else tensors))
        several = out if isinstance(out, (list, tuple)) else [out]
        return tuple(t for t in several if isinstance(t, Tensor))

    def redrawn(self, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Other values for the floating tensors, positive where the sample's are."""
        return tuple(_redraw(t, generator) for t in self.tensors)


def _redraw(tensor: Tensor, generator: torch.Generator) -> Tensor:
    if not tensor.is_floating_point():
        return tensor
    fresh = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
    return fresh.abs() + POSITIVE_FLOOR if bool((tensor > 0).all()) else fresh


def samples(rule: OpRule, name: str) -> list[Sample]:
    """The samples of the op `name` under `rule`: those that the op itself accepts. Which tensors are
    parameters is varied throughout for ops that multiply, and once for the others."""
    generator = torch.Generator().manual_seed(0)
    found: list[Sample] = []
    multiplies = rule.signature is not None or (rule.kind and rule.kind.name in ("einsum", "convolution"))
    for function, specs in _cases(rule, name):
        tensors = tuple(s if isinstance(s, Tensor) else torch.randn(s, generator=generator) for s in specs)
        sample = _valid(Sample(name, function, tensors))
        if sample is not None:
            placed = list(_placed(sample))
            found.extend(placed if multiplies or not found else placed[:1])
    return found


def _valid(sample: Sample) -> Sample | None:
    """The sample with values at which the op is finite, or None when the op refuses it."""
    positive = tuple(t.abs() + POSITIVE_FLOOR if t.is_floating_point() else t for t in sample.tensors)
    for tensors in (sample.tensors, positive):
        try:
            outputs = sample.run(tensors)
        except REFUSALS:
            return None
        if outputs and all(not t.is_floating_point() or not t.isnan().any() for t in outputs):
            return replace(sample, tensors=tensors)
    return None


def _placed(sample: Sample) -> Iterator[Sample]:
    """The sample with all tensors activations, with the first a parameter, and with the others."""
    floats = [i for i, t in enumerate(sample.tensors) if t.is_floating_point()]
    choices = {frozenset[int](), frozenset(floats[:1]), frozenset(floats[1:])}
    for chosen in sorted(choices, key=sorted):
        shapes = ", ".join(
            f"{'parameter' if i in chosen else 'activation'} {list(t.shape)}"
            for i, t in enumerate(sample.tensors)
        )
        yield replace(sample, label=f"{sample.label}({shapes})", parameters=chosen)


def _cases(rule: OpRule, name: str) -> Iterator[Case]:
    plain = ".".join(name.split(".")[:2])
    if plain in TABLE:
        yield from TABLE[plain]
    elif rule.kind is not None and rule.kind.name in BY_KIND:
        for op in _overloads(name):
            yield from BY_KIND[rule.kind.name](op)
    elif rule.signature is not None:
        for op in _overloads(name):
            yield from _by_signature(rule, op)
    else:
        for op in _overloads(name):
            yield from _by_schema(op)


def _overloads(name: str) -> list[Any]:
    """The overloads that a rule's name covers and that a functional graph can hold."""
    namespace, op, *overload = name.split(".")
    packet = getattr(getattr(torch.ops, namespace), op, None)
    if packet is None:
        return []
    names = overload or [n for n in packet.overloads() if "out" not in n and "Dimname" not in n]
    return [getattr(packet, n) for n in names]


# ── from a signature ─────────────────────────────────────────────────────────────────────


def _by_signature(rule: OpRule, op: Any) -> Iterator[Case]:
    """A size per axis name, ``...`` as one or two axes, optional tensors present or absent, and
    integers where floats are refused."""
    signature = rule.signature
    assert signature is not None
    names = dict.fromkeys(n for a in signature.args if a.axes for n in a.axes.names if n not in ("_", "1"))
    sizes = dict(zip(names, itertools.cycle(SIZES), strict=False))
    dotted = any(a.axes is not None and a.axes.ellipsis is not None for a in signature.args)
    optional = any(a.optional for a in signature.args)
    leading: tuple[tuple[int, ...], tuple[int, ...]] = ((2,), (5, 2)) if dotted else ((), ())
    for rest, present in dict.fromkeys(zip(leading, (True, not optional), strict=True)):
        shapes: list[tuple[int, ...]] = []
        where: dict[int, int] = {}
        for position, pattern in enumerate(signature.args):
            if pattern.axes is None or (pattern.optional and not present):
                continue
            shape = [sizes.get(n, 1) for n in pattern.axes.names]
            if pattern.axes.ellipsis is not None:
                shape[pattern.axes.ellipsis : pattern.axes.ellipsis] = rest
            where[position] = len(shapes)
            shapes.append(tuple(shape))
        last = shapes[0][-1:] if shapes else ()
        specs = _first_accepted(op, where, last, shapes)
        if specs is not None:
            yield _bound(op, where, last), specs


def _first_accepted(
    op: Any, where: dict[int, int], last: tuple[int, ...], shapes: list[tuple[int, ...]]
) -> tuple[Spec, ...] | None:
    generator = torch.Generator().manual_seed(1)
    for draws in itertools.product((_float, _whole), repeat=len(shapes)):
        specs = tuple(draw(shape, generator) for draw, shape in zip(draws, shapes, strict=True))
        if _valid(Sample("", _bound(op, where, last), specs)) is not None:
            return specs
    return None


def _float(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator)


def _whole(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randint(0, 2, shape, generator=generator)


def _truth(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator) < 0.5


_DRAWS = (_float, _truth, _whole)


def _bound(op: Any, where: dict[int, int], sizes: tuple[int, ...]) -> Callable[..., Any]:
    """`op` with the tensors at the positions `where`, and what else it requires made up."""

    def function(*tensors: Tensor) -> Any:
        args: dict[str, Any] = {}
        for position, argument in enumerate(op._schema.arguments):
            if position in where:
                args[argument.name] = tensors[where[position]]
            elif not argument.has_default_value():
                args[argument.name] = _made_up(argument, sizes)
        return op(**args)

    return function


def _made_up(argument: Any, sizes: tuple[int, ...]) -> Any:
    """A value for a required argument that is no tensor of the rule's."""
    kind = str(argument.type)
    if kind.startswith("Optional"):
        return None
    whole = -1 if argument.name.startswith("dim") else 1
    known = {"bool": False, "float": 0.001, "number": 1.5, "List[int]": list(sizes) or [whole]}
    return known.get(kind, whole)


# ── from a schema ────────────────────────────────────────────────────────────────────────


def _by_schema(op: Any) -> Iterator[Case]:
    """Every tensor of the op's schema, broadcast several ways; numbers absent and present."""
    arguments = op._schema.arguments
    where = [i for i, a in enumerate(arguments) if str(a.type) == "Tensor"]
    if not where or str(op._schema.returns[0].type) != "Tensor":
        return
    laid: dict[int, list[tuple[tuple[int, ...], ...]]] = {
        1: [((2, 3, 4),)],
        2: [((2, 3, 4), (4,)), ((3, 1), (3, 4)), ((3, 4), ())],
        3: [((3, 4), (3, 4), (3, 4)), ((3, 1), (3, 4), (4,)), ((3, 4), (2, 1, 4), ())],
    }
    generator = torch.Generator().manual_seed(2)
    numbers = [a.name for a in arguments if "number" in str(a.type)]
    settings: list[dict[str, Any]] = [{}]
    if numbers:
        settings = [dict(zip(numbers, (0.7, 1.5, 2.5), strict=False)), {numbers[0]: 2}]
    for shapes, given in itertools.product(laid.get(len(where), []), settings):
        if given != settings[0] and shapes is not laid[len(where)][0]:
            continue
        for draws in itertools.product(_DRAWS, repeat=len(where)):
            specs = tuple(draw(shape, generator) for draw, shape in zip(draws, shapes, strict=True))
            function = _with_numbers(op, where, given)
            if _valid(Sample("", function, specs)) is not None:
                yield function, specs
                break


def _with_numbers(op: Any, where: list[int], given: dict[str, Any]) -> Callable[..., Any]:
    def function(*tensors: Tensor) -> Any:
        args = dict(given)
        for position, argument in enumerate(op._schema.arguments):
            if position in where:
                args[argument.name] = tensors[where.index(position)]
            elif not argument.has_default_value() and argument.name not in args:
                args[argument.name] = _made_up(argument, ())
        return op(**args)

    return function


# ── chosen arguments ─────────────────────────────────────────────────────────────────────

aten = torch.ops.aten


def _calls(op: Any, *choices: tuple[tuple[int, ...], tuple[Any, ...]]) -> list[Case]:
    """One tensor of a shape, then the arguments as they are."""
    return [(lambda x, op=op, args=args: op(x, *args), (shape,)) for shape, args in choices]


def _softmax(op: Any) -> Iterable[Case]:
    for dim in (-1, 1):
        last = (False,) if str(op).split(".")[1] in ("_softmax", "_log_softmax") else ()
        yield from _calls(op, ((2, 3, 4), (dim, *last)))


def _reduce(op: Any) -> Iterable[Case]:
    """Reductions over one axis or several, kept or not, as far as the overload takes them."""
    shape = (2, 3, 4)
    for args in ((), (1,), (-1, True), ([0, 2],), ([1], True), ([0, 1, 2],)):
        yield from _calls(op, (shape, args))
    yield (lambda x: op(x > 0, 1), (shape,))


def _window(op: Any) -> Iterable[Case]:
    spatial = int(str(op).split("pool")[1][0])
    shape = (2, 3, *(6, 4, 5)[:spatial])
    adaptive = "adaptive" in str(op)
    for size in (2, 1) if adaptive else (2, 3):
        yield from _calls(op, (shape, ([size] * spatial,)), (shape[1:], ([size] * spatial,)))


def _convolution(transposed: bool, spatial: int) -> list[Case]:
    """Plain, grouped and depthwise, with and without a bias."""
    names = ("conv_transpose{}d", "conv{}d")
    packet = getattr(aten, names[0 if transposed else 1].format(spatial))
    op = packet.input if transposed and spatial > 1 else packet.default
    cases: list[Case] = []
    choices = [(1, True), (2, True), (1, False), (6, False)]
    for groups, bias in choices if spatial == 2 else choices[:2]:
        channels, out = 6, 4 if groups < 6 else 6
        weight = (channels, out // groups) if transposed else (out, channels // groups)
        shapes: tuple[Spec, ...] = ((2, channels, *(5,) * spatial), (*weight, *(2,) * spatial))
        middle = ([1] * spatial, [0] * spatial, *([[0] * spatial] if transposed else []))
        after = (groups,) if transposed else ([1] * spatial, groups)

        def function(
            x: Tensor, w: Tensor, b: Tensor | None = None, middle: Any = middle, after: Any = after
        ) -> Any:
            return op(x, w, b, *middle, *after)

        cases.append((function, (*shapes, (out,)) if bias else shapes))
    return cases


def _general_convolution() -> list[Case]:
    cases: list[Case] = []
    for transposed, groups in itertools.product((False, True), (1, 2)):
        weight = (6, 4 // groups) if transposed else (4, 6 // groups)

        def function(x: Tensor, w: Tensor, b: Tensor, t: bool = transposed, g: int = groups) -> Any:
            return aten.convolution.default(x, w, b, [1, 1], [1, 1], [1, 1], t, [0, 0], g)

        cases.append((function, ((2, 6, 5, 4), (*weight, 3, 3), (4,))))
    return cases


def _einsum(equation: str, *shapes: Spec) -> Case:
    return lambda *tensors: aten.einsum.default(equation, list(tensors)), shapes


IDS = torch.tensor([[0, 2, 1], [1, 1, 0]])
TABLE: dict[str, list[Case]] = {
    "aten.einsum": [
        _einsum("bi,oi->bo", (2, 3), (4, 3)),
        _einsum("bhse,bhte->bhst", (2, 3, 4, 5), (2, 3, 6, 5)),
        _einsum("...i,ij->...j", (2, 5, 3), (3, 4)),
        _einsum("i,j->ij", (3,), (4,)),
        _einsum("bi,ij,bj->b", (2, 3), (3, 4), (2, 4)),
        _einsum("ii->i", (3, 3)),
        _einsum("bi,bi", (2, 3), (2, 3)),
        _einsum("bij->b", (2, 3, 4)),
    ],
    **{f"aten.conv{n}d": _convolution(False, n) for n in (1, 2, 3)},
    **{f"aten.conv_transpose{n}d": _convolution(True, n) for n in (1, 2, 3)},
    "aten.convolution": _general_convolution(),
    "aten.view": _calls(
        aten.view.default, ((4, 6), (4, 2, 3)), ((4, 6), ([4, 2, 3],)), ((2, 3, 5), ([6, 5],))
    )
    + _calls(aten.view.default, ((2, 3, 5), ([2, -1],)), ((2, 6, 4), ([2, 3, 2, 4],)), ((2, 6), ([12],))),
    "aten._unsafe_view": _calls(aten._unsafe_view.default, ((4, 6), ([4, 2, 3],)), ((2, 3, 5), ([6, 5],))),
    "aten.reshape": _calls(
        aten.reshape.default, ((4, 6), ([4, 2, 3],)), ((2, 3, 5), ([-1, 5],)), ((4, 6), ([6, 4],))
    ),
    "aten.flatten": _calls(aten.flatten.using_ints, ((2, 3, 5), ()), ((2, 3, 5), (1,)), ((2, 3, 5), (0, 1))),
    "aten.unflatten": _calls(aten.unflatten.int, ((4, 6), (1, [2, 3])), ((6, 5), (0, [-1, 2]))),
    "aten.transpose": _calls(aten.transpose.int, ((2, 3, 4), (0, 1)), ((2, 3, 4), (-1, 0))),
    "aten.t": _calls(aten.t.default, ((3, 4), ())),
    "aten.numpy_T": _calls(aten.numpy_T.default, ((2, 3, 4), ())),
    "aten.permute": _calls(aten.permute.default, ((2, 3, 4), ([2, 0, 1],)), ((2, 3, 4), ([0, -1, 1],))),
    "aten.unsqueeze": _calls(aten.unsqueeze.default, ((3, 4), (0,)), ((3, 4), (-1,)), ((3, 4), (1,))),
    "aten.squeeze": _calls(aten.squeeze.default, ((3, 1, 4), ()))
    + _calls(aten.squeeze.dim, ((3, 1, 4), (1,)), ((3, 1, 4), (0,)))
    + _calls(aten.squeeze.dims, ((1, 3, 1), ([0, 2],))),
    "aten.expand": _calls(
        aten.expand.default, ((3, 1), ([3, 4],)), ((3, 4), ([2, -1, -1],)), ((3, 4), ([2, 3, 4],))
    ),
    "aten.slice": _calls(
        aten.slice.Tensor,
        ((6, 5), (0, 0, 2)),
        ((6, 5), (1, 1, 4)),
        ((6, 5), (0, -3)),
        ((6, 5), (0, 0, 100)),
        ((6, 5), (0, 0, 6, 2)),
        ((6, 5), (0, 1, 6, 3)),
        ((6, 5), (-1, None, -1)),
    ),
    "aten.select": _calls(aten.select.int, ((4, 5), (0, 1)), ((4, 5), (-1, -2))),
    "aten.split": _calls(aten.split.Tensor, ((6, 4), (2,)), ((6, 4), (3, 1)))
    + _calls(aten.split.sizes, ((6, 4), ([1, 2, 3],))),
    "aten.split_with_sizes": _calls(
        aten.split_with_sizes.default, ((6, 4), ([1, 5],)), ((6, 4), ([1, 1, 2], 1))
    ),
    "aten.chunk": _calls(aten.chunk.default, ((6, 4), (2,)), ((6, 5), (3, 1))),
    "aten.unbind": _calls(aten.unbind.int, ((3, 4), ()), ((3, 4), (-1,))),
    "aten.cat": [
        (lambda x, y: aten.cat.default([x, y]), ((3, 4), (2, 4))),
        (lambda x, y: aten.cat.default([x, y, x], -1), ((3, 4), (3, 2))),
        (lambda x: aten.cat.default([x, x], 1), ((3, 4),)),
    ],
    "aten.stack": [
        (lambda x, y: aten.stack.default([x, y]), ((3, 4), (3, 4))),
        (lambda x, y: aten.stack.default([x, y], -1), ((3, 4), (3, 4))),
    ],
    "aten.index": [
        (lambda x, i: aten.index.Tensor(x, [i]), ((3, 4), IDS)),
        (lambda x, i: aten.index.Tensor(x, [None, i]), ((5, 3, 4), IDS)),
        (lambda x, i, j: aten.index.Tensor(x, [i, j]), ((3, 4, 2), IDS, IDS)),
        (lambda x, i, j: aten.index.Tensor(x, [i, None, j]), ((3, 4, 3), IDS, IDS)),
    ],
    "aten.index_select": [
        (lambda x, i: aten.index_select.default(x, 0, i), ((3, 4), IDS[0])),
        (lambda x, i: aten.index_select.default(x, -1, i), ((4, 3), IDS[0])),
    ],
    "aten.max": _calls(aten.max.dim, ((2, 3, 4), (1,)), ((2, 3, 4), (-1, True))),
    "aten.min": _calls(aten.min.dim, ((2, 3, 4), (1,)), ((2, 3, 4), (-1, True))),
    "aten.to": _calls(aten.to.dtype, ((3, 4), (torch.float64,))),
    "aten._to_copy": [(lambda x: aten._to_copy.default(x, dtype=torch.float64), ((3, 4),))],
    "aten.type_as": [(lambda x, y: aten.type_as.default(x, y), ((3, 4), (2,)))],
    "aten.zeros": [(lambda: aten.zeros.default([3, 4]), ())],
    "aten.ones": [(lambda: aten.ones.default([3, 4]), ())],
    "aten.full": [(lambda: aten.full.default([3, 4], 1.5), ())],
    "aten.scalar_tensor": [(lambda: aten.scalar_tensor.default(1.5), ())],
    "aten.new_zeros": _calls(aten.new_zeros.default, ((3, 4), ([2, 4],))),
    "aten.new_ones": _calls(aten.new_ones.default, ((3, 4), ([2, 4],))),
    "aten.new_full": _calls(aten.new_full.default, ((3, 4), ([2, 4], 1.5))),
    "aten.arange": [(lambda: aten.arange.start_step(0.0, 5.0, 1.0), ())],
    "aten.linspace": [(lambda: aten.linspace.default(0.0, 1.0, 5), ())],
    "aten.eye": [(lambda: aten.eye.default(4), ())],
    "aten.triu": _calls(aten.triu.default, ((4, 3), ()), ((2, 3, 4), (1,))),
    "aten.tril": _calls(aten.tril.default, ((4, 3), ()), ((2, 3, 4), (-1,))),
}
"""Ops whose arguments are chosen by hand."""

BY_KIND: dict[str, Callable[[Any], Iterable[Case]]] = {
    "softmax": _softmax,
    "reduce": _reduce,
    "window": _window,
}
"""Kinds whose ops all take alike arguments."""
