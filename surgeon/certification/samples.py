"""Small calls of every op, on which its rule is tried.

A rule with a signature is sampled from the signature, a pointwise one from the op's schema; the other
kinds choose their arguments from a table. A sample's tensors are buffers (activations: every axis of
theirs may grow) except those it names as parameters.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from surgeon.certification.chosen import BY_KIND, TABLE, Case, Spec
from surgeon.language.syntax import OpRule

SIZES = (3, 4, 2, 5, 6, 7)
POSITIVE_FLOOR = 0.1
REFUSALS = (RuntimeError, IndexError, TypeError, ValueError)
"""How an op says that it takes no such arguments."""


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
    if name in TABLE or plain in TABLE:
        yield from TABLE.get(name, TABLE.get(plain, []))
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
            shape = [math.prod(sizes.get(n, 1) for n in names) for names in pattern.axes.axes]
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
