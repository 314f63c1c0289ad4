"""Tensors whose elements are those of others, moved and nothing else: any box of one is read alone.

A conversion is run once, by its own code, on tensors without memory, while every operation of torch that it
does is written down. Where all of them only move elements, what it gives is known element for element.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from surgeon.checkpoints.tensors import Box, InFiles, full

Shape = tuple[int, ...]
ReadBox = Callable[[str, Box], Tensor]


@dataclass(frozen=True, eq=False)
class Given:
    """One of the tensors that a conversion starts from, by its name."""

    name: str
    shape: Shape

    def read(self, box: Box, read: ReadBox) -> Tensor:
        return read(self.name, box)


@dataclass(frozen=True, eq=False)
class Joined:
    """Tensors laid end to end along an axis."""

    parts: tuple[Moved, ...]
    dim: int
    shape: Shape
    ends: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "ends", tuple(accumulate(part.shape[self.dim] for part in self.parts)))

    def read(self, box: Box, read: ReadBox) -> Tensor:
        start, stop = box[self.dim]
        number, found = min(bisect_right(self.ends, start), len(self.ends) - 1), list[Tensor]()
        while not found or start < stop:
            part = self.parts[number]
            begin = self.ends[number] - part.shape[self.dim]
            until = min(stop, self.ends[number])
            found.append(part.read(_with(box, self.dim, start - begin, until - begin), read))
            start, number = until, number + 1
        return found[0] if len(found) == 1 else torch.cat(found, self.dim)


@dataclass(frozen=True, eq=False)
class Cut:
    """Some neighbours along an axis."""

    of: Moved
    dim: int
    start: int
    shape: Shape

    def read(self, box: Box, read: ReadBox) -> Tensor:
        start, stop = box[self.dim]
        return self.of.read(_with(box, self.dim, start + self.start, stop + self.start), read)


@dataclass(frozen=True, eq=False)
class Turned:
    """The axes in another order: axis i is the `order[i]`-th of what it is made of."""

    of: Moved
    order: tuple[int, ...]
    shape: Shape

    def read(self, box: Box, read: ReadBox) -> Tensor:
        back = sorted(range(len(self.order)), key=self.order.__getitem__)
        return self.of.read(tuple(box[i] for i in back), read).permute(self.order)


@dataclass(frozen=True, eq=False)
class Reshaped:
    """The same elements, row by row, in another shape."""

    of: Moved
    shape: Shape

    def read(self, box: Box, read: ReadBox) -> Tensor:
        strides = _strides(self.shape)
        sizes = [stop - start for start, stop in box]
        if not prod(sizes):
            return self.of.read(tuple((0, 0) for _ in self.of.shape), read).new_empty(sizes)
        first = sum(start * stride for (start, _), stride in zip(box, strides, strict=True))
        last = sum((stop - 1) * stride for (_, stop), stride in zip(box, strides, strict=True))
        cover, begin = _cover(self.of.shape, first, last)
        stretch = self.of.read(cover, read).contiguous()
        return stretch.as_strided(sizes, strides, stretch.storage_offset() + first - begin)


Moved = Given | Joined | Cut | Turned | Reshaped


def _with(box: Box, dim: int, start: int, stop: int) -> Box:
    return (*box[:dim], (start, stop), *box[dim + 1 :])


def _strides(shape: Shape) -> list[int]:
    return [prod(shape[i + 1 :]) for i in range(len(shape))]


def _cover(shape: Shape, first: int, last: int) -> tuple[Box, int]:
    """The smallest box that lies in memory as one stretch and holds the elements from the `first` to the
    `last`, counted row by row, and the number of its first element."""
    box: list[tuple[int, int]] = []
    begin = 0
    for dim, stride in enumerate(_strides(shape)):
        start, stop = first // stride, last // stride
        box.append((start, stop + 1))
        begin += start * stride
        if start != stop:
            box += [(0, size) for size in shape[dim + 1 :]]
            break
        first, last = first % stride, last % stride
    return tuple(box), begin


def first_given(moved: Moved) -> str:
    """The name of one of the tensors that this one is made of; all are of its dtype."""
    while not isinstance(moved, Given):
        moved = moved.parts[0] if isinstance(moved, Joined) else moved.of
    return moved.name


@dataclass
class MovedTensor(InFiles):
    """A tensor whose elements are those of others in files; `open` opens one of them by its name. `lead` are
    the positions on the first axes of `moved` that it is at."""

    moved: Moved
    open: Callable[[str], InFiles]
    lead: tuple[int, ...] = ()

    @property
    def shape(self) -> Shape:
        return self.moved.shape[len(self.lead) :]

    @property
    def dtype(self) -> torch.dtype:
        return self.open(first_given(self.moved)).dtype

    def at(self, row: int) -> MovedTensor:
        return replace(self, lead=(*self.lead, row))

    def rows(self, start: int, stop: int) -> Tensor:
        rest = self.shape[1:]
        inner: Box = ((start, stop), *full(rest)) if self.shape else ()
        box = (*((at, at + 1) for at in self.lead), *inner)
        found = self.moved.read(box, lambda name, wanted: self.open(name).box(wanted))
        return found.reshape(stop - start, *rest)


# ── a conversion, written down ───────────────────────────────────────────────────────────


def record(
    convert: Callable[[dict[str, Tensor]], Mapping[str, Tensor]], given: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Moved] | None]:
    """What a conversion makes of tensors on meta, and of which of their elements; None in place of this where
    it does something else than move them.

    Args:
        convert: is given tensors of its own, which it may drop.
    """
    own = {name: tensor.detach() for name, tensor in given.items()}
    with _Recording(own) as recording:
        made = dict(convert(dict(own)))
    found = {name: recording.of(tensor) for name, tensor in made.items()}
    moves = {name: moved for name, moved in found.items() if moved is not None}
    return made, moves if len(moves) == len(made) and not recording.changed else None


class _Recording(TorchDispatchMode):
    """Follows tensors through what is done with them."""

    def __init__(self, given: Mapping[str, Tensor]):
        super().__init__()
        self._known: dict[int, tuple[Tensor, Moved]] = {}  # the tensors too, or their numbers are given anew
        self.changed = False  # something was written into a tensor
        for name, tensor in given.items():
            self._note(tensor, Given(name, tuple(tensor.shape)))

    def of(self, tensor: Any) -> Moved | None:
        held = self._known.get(id(tensor))
        return None if held is None else held[1]

    def _note(self, tensor: Tensor, moved: Moved) -> None:
        self._known[id(tensor)] = tensor, moved

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        self.changed |= func._schema.is_mutable
        rule = _RULES.get(func.overloadpacket)
        sources = [self.of(t) for t in (args[0] if args and isinstance(args[0], (list, tuple)) else args[:1])]
        if rule is not None and sources and all(source is not None for source in sources):
            several = list(made) if isinstance(made, (list, tuple)) else [made]
            read = args[0] if isinstance(args[0], (list, tuple)) else args[:1]
            named = {a.name: v for a, v in zip(func._schema.arguments, args, strict=False)} | (kwargs or {})
            if len({one.dtype for one in (*read, *several)}) == 1:
                shapes = [tuple(one.shape) for one in several]
                for one, moved in zip(several, rule(sources, shapes, named), strict=True):
                    if moved is not None:
                        self._note(one, moved)
        return made


Rule = Callable[[list[Any], list[Shape], Mapping[str, Any]], Iterable[Moved | None]]


def _same(sources: list[Moved], shapes: list[Shape], named: Mapping[str, Any]) -> Iterable[Moved]:
    return sources


def _reshaped(sources: list[Moved], shapes: list[Shape], named: Mapping[str, Any]) -> Iterable[Moved]:
    return [Reshaped(sources[0], shapes[0])]


def _joined(sources: list[Moved], shapes: list[Shape], named: Mapping[str, Any]) -> Iterable[Moved | None]:
    (shape,), dim = shapes, named.get("dim", 0) % len(shapes[0])
    # To join tensors torch passes over those of shape [0], whatever the shape of the others.
    return [Joined(tuple(sources), dim, shape) if all(len(s.shape) == len(shape) for s in sources) else None]


def _stacked(sources: list[Moved], shapes: list[Shape], named: Mapping[str, Any]) -> Iterable[Moved]:
    (shape,), dim = shapes, named.get("dim", 0) % len(shapes[0])
    layers = [Reshaped(source, (*shape[:dim], 1, *shape[dim + 1 :])) for source in sources]
    return [Joined(tuple(layers), dim, shape)]


def _split(sources: list[Moved], shapes: list[Shape], named: Mapping[str, Any]) -> Iterable[Moved]:
    dim = named.get("dim", 0) % len(shapes[0])
    ends = accumulate(shape[dim] for shape in shapes)
    return [Cut(sources[0], dim, end - s[dim], s) for s, end in zip(shapes, ends, strict=True)]


def _sliced(sources: list[Moved], shapes: list[Shape], named: Mapping[str, Any]) -> Iterable[Moved | None]:
    (of,), (shape,), dim = sources, shapes, named.get("dim", 0) % len(shapes[0])
    start = slice(named.get("start"), None).indices(of.shape[dim])[0]
    return [Cut(of, dim, start, shape) if named.get("step", 1) == 1 else None]


def _selected(sources: list[Moved], shapes: list[Shape], named: Mapping[str, Any]) -> Iterable[Moved]:
    (of,), dim = sources, named["dim"] % len(sources[0].shape)
    cut = Cut(of, dim, named["index"] % of.shape[dim], (*of.shape[:dim], 1, *of.shape[dim + 1 :]))
    return [Reshaped(cut, shapes[0])]


def _unbound(sources: list[Moved], shapes: list[Shape], named: Mapping[str, Any]) -> Iterable[Moved]:
    (of,), dim = sources, named.get("dim", 0) % len(sources[0].shape)
    whole = (*of.shape[:dim], 1, *of.shape[dim + 1 :])
    return [Reshaped(Cut(of, dim, i, whole), shape) for i, shape in enumerate(shapes)]


def _permuted(sources: list[Moved], shapes: list[Shape], named: Mapping[str, Any]) -> Iterable[Moved]:
    rank = len(shapes[0])
    return [Turned(sources[0], tuple(d % rank for d in named["dims"]), shapes[0])]


def _transposed(sources: list[Moved], shapes: list[Shape], named: Mapping[str, Any]) -> Iterable[Moved]:
    order = list(range(len(shapes[0])))
    a, b = (named.get(key, i) % len(order) for i, key in enumerate(("dim0", "dim1")))
    order[a], order[b] = order[b], order[a]
    return [Turned(sources[0], tuple(order), shapes[0])]


def _rules() -> dict[Any, Rule]:
    aten = torch.ops.aten
    packets: Sequence[tuple[Rule, tuple[Any, ...]]] = (
        (_same, (aten.clone, aten.detach, aten.alias, aten._to_copy, aten.lift_fresh)),
        (_reshaped, (aten.view, aten._unsafe_view, aten.unsqueeze, aten.squeeze)),
        (_joined, (aten.cat,)),
        (_stacked, (aten.stack,)),
        (_split, (aten.split, aten.split_with_sizes)),
        (_sliced, (aten.slice,)),
        (_selected, (aten.select,)),
        (_unbound, (aten.unbind,)),
        (_permuted, (aten.permute,)),
        (_transposed, (aten.transpose,)),
    )
    return {packet: rule for rule, several in packets for packet in several}


_RULES = _rules()
