"""Branches on the values of inputs, while a model is traced without data.

``if mask.any():`` asks a tensor for a number that a dataless trace does not have. Where the tensor is
computed from inputs and numbers alone, no weight among them (a few numbers in a buffer are none), it is
computed beside the trace on the inputs that the proof will run on; the trace takes that path, and an
assertion in the graph says so.

``for expert in chosen.nonzero():`` asks weights which path to take. It is traced for all there is to choose:
the positions of what is true become all positions, and what is added up at them is zero where it is not;
one number that is written at them is written where it is true. That this is what the model computes is for
the proof to see, which holds the graph against the model.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map

from surgeon.graph.asking import (
    ADDED,
    ASKED,
    CHANGING,
    INDEXED,
    INVERTED,
    POSITIONS,
    RANDOM,
    SIZED,
    STRETCHED,
    picked_by_mask,
    sized_by_values,
    tensors_in,
)
from surgeon.graph.places import is_machinery, short
from surgeon.graph.reading import of_numbers

MAX_ELEMENTS = 1 << 22  # of a value that is kept beside the trace


class Branches(TorchFunctionMode):
    """Answers questions about values as the inputs would, with an assertion for each answer. The last `spare`
    rows of a choice among rows stand for nothing that could be chosen."""

    def __init__(self, spare: int = 0) -> None:
        super().__init__()
        self._spare = spare
        self._known: dict[int, tuple[Tensor, Tensor]] = {}  # by identity: as traced, and its value
        self._given: set[int] = set()  # of those, what is computed from inputs
        self._stretched: dict[int, Tensor] = {}  # the column that a known value is a stretch of
        self._true: dict[int, tuple[Tensor, Tensor]] = {}  # positions: themselves, and what is true of them
        self._masks: dict[tuple[int, ...], Tensor] = {}  # all positions, axis by axis: of what

    @contextlib.contextmanager
    def watching(
        self, module: nn.Module, values: Mapping[str, Any], buffers: Mapping[str, Tensor]
    ) -> Iterator[None]:
        """Know the inputs of `module` by these values, by name, and some of its buffers."""

        def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            given = inspect.signature(module.forward).bind_partial(*args, **kwargs).arguments
            self.know(given, values)
            self.know(dict(module.named_buffers()), buffers)

        hook = module.register_forward_pre_hook(enter, with_kwargs=True)
        try:
            with self, _casts_in_place():
                yield
        finally:
            hook.remove()

    def know(self, traced: Mapping[str, Any], values: Mapping[str, Any]) -> None:
        """Answer for these tensors as their values, by the same names, would."""
        with _disable_current_modes():
            for name in traced.keys() & values.keys():
                for tensor, value in zip(tree_leaves(traced[name]), tree_leaves(values[name]), strict=False):
                    if isinstance(tensor, Tensor) and isinstance(value, Tensor):
                        self._known[id(tensor)] = tensor, value.clone()
                        self._given.add(id(tensor))

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        if func in INDEXED:
            args = (args[0], self._bounds(args[1]), *args[2:])
        elif func in SIZED:
            args = (*args[: SIZED[func]], *tree_map(self._number, args[SIZED[func] :]))
            given = tree_map(self._number, given)
        if func is Tensor.expand_as and id(args[0]) in self._known:  # it reads a shape, no values
            func, args = Tensor.expand, (args[0], args[1].shape)
        known = self._of(args, given)
        if func in ASKED and known is not None:
            return self._answer(func, args, known[0])
        if known is not None and sized_by_values(func, args, given):
            table = self._as_numbers(func, known, args, given)
            if table is not None:
                return table
        if picked_by_mask(func, args) and id(args[1]) in self._known:
            if (filled := self._filled(*args)) is not None:
                return self.__torch_function__(Tensor.masked_fill_, types, filled)
            return self._picked(func, types, args)
        if func in POSITIONS and len(args) == 1:
            apart = func is torch.where or given.get("as_tuple")
            places = self._as_numbers(torch.nonzero, ((known[0][0],), {}), args, {}) if known else None
            if places is not None:
                return self.__torch_function__(torch.unbind, types, (places, 1)) if apart else places
            if _small(args[0]):
                return self._all_positions(args[0], apart)
        if func is Tensor.__setitem__ and (mask := self._mask_of(*args)) is not None:
            return self.__torch_function__(Tensor.masked_fill_, types, (args[0], mask, args[2]))
        if func is Tensor.__iter__:
            return iter(self.__torch_function__(torch.unbind, types, (args[0], 0)))
        if func in ADDED:
            args, given = self._where_true(args, given)
        made = func(*args, **given)
        self._follow(func, known, args, given, made)
        if id(made) in self._known and (column := self._column(func, args, made)) is not None:
            self._stretched[id(made)] = column
        return made

    def _column(self, func: Any, args: tuple[Any, ...], made: Tensor) -> Tensor | None:
        """The one column that a mask is a stretch of, along its last axis."""
        if func in INVERTED:
            column = self._stretched.get(id(args[0]))
            return None if column is None else self.__torch_function__(func, (), (column,))
        if func not in STRETCHED or len(args) < 2 or not 1 < args[0].ndim == made.ndim:
            return None
        if not args[0].shape[-1] == 1 < made.shape[-1]:
            return None
        *sizes, _ = args[1] if isinstance(args[1], (list, tuple)) else args[1:]
        return self.__torch_function__(func, (), (args[0], *sizes, 1))

    def _of(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any] | None:
        """The arguments with every tensor's value; None where one is not known."""
        tensors = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, Tensor)]
        if any(id(t) not in self._known for t in tensors):
            return None

        def value(leaf: Any) -> Any:
            if isinstance(leaf, Tensor):
                return self._known[id(leaf)][1]
            return torch.device("cpu") if isinstance(leaf, torch.device) else leaf

        return tree_map(value, (args, kwargs))

    def _answer(self, func: Any, args: tuple[Any, ...], values: tuple[Any, ...]) -> Any:
        with _disable_current_modes():  # beside the trace
            numbers = values[0].tolist()
        table = numbers if values[0].ndim == 0 else of_numbers(numbers, values[0].dtype, args[0].device)
        if table is None or (values[0].numel() != 1 and func is not Tensor.tolist):
            return func(*args)
        with _disable_current_modes():
            answer = func(*values)
        if id(args[0]) in self._given:
            torch._assert_async((args[0] == table).all(), f"{numbers} at {_where()}")
        return answer

    def _bounds(self, index: Any) -> Any:
        """An index whose slices end where numbers say, not tensors."""
        if isinstance(index, tuple):
            return tuple(self._bounds(part) for part in index)
        if not isinstance(index, slice):
            return index
        return slice(*(self._number(end) for end in (index.start, index.stop, index.step)))

    def _number(self, size: Any) -> Any:
        if not isinstance(size, Tensor) or id(size) not in self._known or size.ndim:
            return size
        return self._answer(Tensor.__index__, (size,), (self._known[id(size)][1],))

    def _as_numbers(
        self, func: Any, known: tuple[Any, Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Tensor | None:
        """What has as many rows as the inputs say is put down as its numbers, which the inputs must give."""
        tensors, values = tensors_in(args, kwargs), tensors_in(*known)
        with _disable_current_modes():
            made = func(*known[0], **known[1])
        table = of_numbers(made.tolist(), made.dtype, tensors[0].device)
        if table is not None and not made.numel():  # a list of nothing does not say what of
            table = table.reshape(made.shape)
        for tensor, value in zip(tensors, values, strict=True):
            found, asked = _put_down(value, tensor.device)
            if table is None or asked is None:
                return None
            if id(tensor) in self._given:
                torch._assert_async((tensor == asked).all(), f"{found} at {_where()}")
        if table is not None:
            self._known[id(table)] = table, made
        return table

    def _as_many(self, mask: Tensor, value: Tensor) -> Tensor:
        """Where a mask is true, more often than could be put down: as often as the inputs say."""
        with _disable_current_modes():
            made = value.nonzero()
        places = torch.nonzero_static(mask, size=len(made))
        self._known[id(places)] = places, made
        if id(mask) in self._given:
            torch._assert_async(mask.sum() == len(made), f"{len(made)} of them at {_where()}")
            self._given.add(id(places))
        return places

    def _filled(self, written: Tensor, mask: Tensor, value: Any = None) -> tuple[Any, ...] | None:
        """What is filled, a mask as wide, and the one number that is written where it is true, however often.
        None where something is read, or more numbers than one are written."""
        if isinstance(value, Tensor) and value.numel() == 1:
            value = self.__torch_function__(Tensor.reshape, (), (value, ()))
            value = self.__torch_function__(Tensor.to, (), (value, written.dtype))
        elif not isinstance(value, (bool, int, float)):
            return None
        elif not written.is_floating_point():
            value = (bool if written.dtype == torch.bool else int)(value)
        shape = (*mask.shape, *(1,) * (written.ndim - mask.ndim))
        return written, self.__torch_function__(Tensor.reshape, (), (mask, shape)), value

    def _picked(self, func: Any, types: Any, args: tuple[Any, ...]) -> Any:
        """What is picked, or put, where a mask is true, by its positions. A mask that is one column,
        stretched, picks whole rows."""
        mask = self._stretched.get(id(args[1]), args[1])
        whole = mask is not args[1]
        if whole:
            mask = self.__torch_function__(torch.select, (), (mask, -1, 0))
        value = self._known[id(mask)][1]
        places = self._as_numbers(torch.nonzero, ((value,), {}), (mask,), {})
        if places is None:
            places = self._as_many(mask, value)
        apart = tuple(self.__torch_function__(torch.unbind, types, (places, 1)))
        put, inner = args[2:], args[0].ndim - args[1].ndim
        if whole and put and put[0].ndim > inner and len(put[0]) != 1:
            put = (put[0].unflatten(0, (len(places), args[1].shape[-1])),)
        made = self.__torch_function__(func, types, (args[0], apart, *put))
        return made.flatten(0, 1) if whole and not put else made

    def _all_positions(self, chosen: Tensor, apart: Any) -> Any:
        """Every position of a tensor, axis by axis, whether it is chosen or not."""
        if chosen.ndim == 1:
            chosen = chosen[: max(1, len(chosen) - self._spare)]
        true = (chosen != 0).flatten()
        columns, inner = [], chosen.numel()
        for size in chosen.shape:
            inner //= size
            column = torch.arange(chosen.numel(), device=chosen.device) // inner % size
            with _disable_current_modes():
                value = torch.arange(chosen.numel()) // inner % size
            self._known[id(column)], self._true[id(column)] = (column, value), (column, true)
            columns.append(column)
        self._masks[tuple(map(id, columns))] = chosen != 0
        if apart:
            return tuple(columns)
        return self.__torch_function__(torch.stack, (), (columns, 1))

    def _mask_of(self, written: Tensor, index: Any, value: Any) -> Tensor | None:
        """The mask at whose true positions one number is written, as wide as what it is written into."""
        several = index if isinstance(index, tuple) else (index,)
        mask = self._masks.get(tuple(map(id, several)))
        if mask is None or isinstance(value, Tensor) or mask.shape != written.shape[: mask.ndim]:
            return None
        return mask.reshape(*mask.shape, *(1,) * (written.ndim - mask.ndim))

    def _where_true(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        """The arguments of an addition at positions, with nothing to add at those that are not chosen."""
        names = ("self", "dim", "index", "source")
        given = dict(zip(names, args, strict=False)) | kwargs
        if id(given["index"]) in self._true:
            shape = [
                -1 if i == given["dim"] % given["source"].ndim else 1 for i in range(given["source"].ndim)
            ]
            true = self._true[id(given["index"])][1].reshape(shape)
            given["source"] = torch.where(true, given["source"], 0.0)
        return tuple(given.pop(name) for name in names), given

    def _follow(
        self,
        func: Any,
        known: tuple[Any, Any] | None,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        made: Any,
    ) -> None:
        name = getattr(func, "__name__", "")
        changes = CHANGING.fullmatch(name)
        changed = next(iter((*args, *kwargs.values())), None)
        if known is None:
            if changes:
                self._forget(changed)
            return
        results = [leaf for leaf in tree_flatten(made)[0] if isinstance(leaf, Tensor)]
        if RANDOM.search(name) and changes:
            self._forget(changed)
        if RANDOM.search(name) or not (results or changes):
            return
        if any(not _small(leaf, least=0) for leaf in results):
            return
        with _disable_current_modes():
            found = func(*known[0], **known[1])
            if func is torch.empty:  # a table that will be written: what is not, no model can mean
                found.zero_()
        for key in self._sharing(changed) if changes else ():
            self._stretched.pop(key, None)
        values = [leaf for leaf in tree_flatten(found)[0] if isinstance(leaf, Tensor)]
        given = any(id(leaf) in self._given for leaf in tree_flatten((args, kwargs))[0])
        for traced, value in zip(results, values, strict=True):
            self._known[id(traced)] = traced, value
            if given:
                self._given.add(id(traced))
        if given and changes and isinstance(changed, Tensor):
            self._given.add(id(changed))

    def _forget(self, changed: Any) -> None:
        """A value that something unknown was written into, and all that share its memory."""
        for key in self._sharing(changed):
            del self._known[key]
            self._stretched.pop(key, None)

    def _sharing(self, changed: Any) -> list[int]:
        """The known values that share the memory of one."""
        if id(changed) not in self._known:
            return []
        memory = self._known[id(changed)][1].untyped_storage().data_ptr()
        return [key for key, (_, v) in self._known.items() if v.untyped_storage().data_ptr() == memory]


def _casts_in_place() -> contextlib.AbstractContextManager[Any]:
    """A layer that is cast, while the model runs, to the type it has is left as it is: the cast would put
    other weights into it than those that are traced."""
    cast = nn.Module.to

    def to(self: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
        wanted = {a for a in (*args, *kwargs.values()) if a is not None}
        return self if wanted == {p.dtype for p in self.parameters()} else cast(self, *args, **kwargs)

    return patch.object(nn.Module, "to", to)


def _put_down(value: Tensor, device: torch.device) -> tuple[list[Any], Tensor | None]:
    """A value as its numbers, and as a tensor made of them; a long mask by where it is true. None for what is
    longer."""
    found = value.tolist()
    asked = of_numbers(found, value.dtype, device)
    if asked is None and value.dtype == torch.bool:
        with _disable_current_modes():
            found = value.flatten().nonzero().flatten().tolist()
        true = of_numbers(found, torch.long, device)
        if true is not None:
            none = torch.zeros(value.numel(), dtype=torch.bool, device=device)
            asked = none.index_put((true,), torch.ones_like(true, dtype=torch.bool)).reshape(value.shape)
    return found, asked


def _small(traced: Tensor, least: int = 1) -> bool:
    return all(isinstance(n, int) for n in traced.shape) and least <= traced.numel() <= MAX_ELEMENTS


def _where() -> str:
    """The line of the model that asks: the innermost one that is not torch's or ours."""
    frame = inspect.currentframe()
    while frame is not None:
        if not is_machinery(frame.f_code.co_filename):
            return f"{short(frame.f_code.co_filename)}:{frame.f_lineno}"
        frame = frame.f_back
    return "an unknown place"
