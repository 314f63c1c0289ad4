"""Branches on the values of inputs, while a model is traced without data.

``if mask.any():`` asks a tensor for a number that a dataless trace does not have. Where the tensor is
computed from inputs and numbers alone, no weight among them, it is computed beside the trace on the
inputs that the proof will run on; the trace takes that path, and an assertion in the graph says so.
"""

from __future__ import annotations

import contextlib
import inspect
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_map

MAX_ELEMENTS = 1 << 22  # of a value that is kept beside the trace

ASKED = {Tensor.item, Tensor.__bool__, Tensor.__int__, Tensor.__float__, Tensor.__index__, Tensor.tolist}
RANDOM = re.compile(r"rand|normal|bernoulli|multinomial|uniform|exponential|empty|dropout")


class Branches(TorchFunctionMode):
    """Answers questions about values as the inputs would, with an assertion for each answer."""

    def __init__(self) -> None:
        super().__init__()
        self._known: dict[int, tuple[Tensor, Tensor]] = {}  # by identity: as traced, and its value

    @contextlib.contextmanager
    def watching(self, module: nn.Module, values: Mapping[str, Any]) -> Iterator[None]:
        """Know the inputs of `module` by these values, by name."""

        def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            given = inspect.signature(module.forward).bind_partial(*args, **kwargs).arguments
            with _disable_current_modes():
                for name, traced in given.items():
                    if isinstance(traced, Tensor) and isinstance(values.get(name), Tensor):
                        self._known[id(traced)] = traced, values[name].clone()

        hook = module.register_forward_pre_hook(enter, with_kwargs=True)
        try:
            with self:
                yield
        finally:
            hook.remove()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        known = self._of(args, given)
        if func in ASKED and known is not None:
            return self._answer(func, args[0], known[0][0])
        made = func(*args, **given)
        self._follow(func, known, args, made)
        return made

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

    def _answer(self, func: Any, traced: Tensor, value: Tensor) -> Any:
        if value.numel() != 1:
            return func(traced)
        with _disable_current_modes():  # beside the trace
            answer, number = func(value), value.item()
        torch._assert_async((traced == number).all(), f"{number} at {_where()}")
        return answer

    def _follow(self, func: Any, known: tuple[Any, Any] | None, args: tuple[Any, ...], made: Any) -> None:
        name = getattr(func, "__name__", "")
        changes = name in ("__setitem__", "__set__") or (name.endswith("_") and not name.endswith("__"))
        if known is None:
            if changes and args:
                self._forget(args[0])
            return
        results = [leaf for leaf in tree_flatten(made)[0] if isinstance(leaf, Tensor)]
        if RANDOM.search(name) or not (results or changes):
            return
        if any(not _small(leaf) for leaf in results):
            return
        with _disable_current_modes():
            found = func(*known[0], **known[1])
        values = [leaf for leaf in tree_flatten(found)[0] if isinstance(leaf, Tensor)]
        for traced, value in zip(results, values, strict=True):
            self._known[id(traced)] = traced, value

    def _forget(self, changed: Any) -> None:
        """A value that something unknown was written into, and all that share its memory."""
        if id(changed) not in self._known:
            return
        memory = self._known[id(changed)][1].untyped_storage().data_ptr()
        for key, (_, value) in list(self._known.items()):
            if value.untyped_storage().data_ptr() == memory:
                del self._known[key]


def _small(traced: Tensor) -> bool:
    return all(isinstance(n, int) for n in traced.shape) and traced.numel() <= MAX_ELEMENTS


def _where() -> str:
    """The line of the model that asks: the innermost one that is not torch's or ours."""
    frame = inspect.currentframe()
    while frame is not None:
        file = Path(frame.f_code.co_filename)
        if "torch" not in file.parts and file.parent != Path(__file__).parent:
            return f"{'/'.join(file.parts[-3:])}:{frame.f_lineno}"
        frame = frame.f_back
    return "an unknown place"
