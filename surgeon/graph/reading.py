"""What a model asks of torch while it is traced, put so that the trace keeps it."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

MAX_LITERALS = 64


class Reading(TorchFunctionMode):
    """Numbers that a model makes into tensors stay numbers of the graph: on the meta device a tensor made
    of them would lose them. Where no gradients are kept it need not turn them off: the trace would be cut
    in pieces for it.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        if func is torch._C._set_grad_enabled and not (args[0] or torch.is_grad_enabled()):
            return None
        if func in (torch.tensor, torch.as_tensor) and len(args) == 1 and not given.get("requires_grad"):
            made = of_numbers(args[0], given.get("dtype"), given.get("device"))
            if made is not None:
                return made
        if func is torch.Tensor.new_tensor and not given.get("requires_grad"):
            like, data = args
            kind, place = given.get("dtype") or like.dtype, given.get("device") or like.device
            made = of_numbers(data, kind, place)
            if made is not None:
                return made
        if func in (torch.Tensor.__getitem__, torch.Tensor.__setitem__):
            tensor, index, *put = args
            several = index if isinstance(index, tuple) else (index,)
            if any(isinstance(i, list) for i in several):
                device = tensor.device
                laid = (of_numbers(i, None, device) if isinstance(i, list) else i for i in several)
                args = tensor, tuple(i if m is None else m for i, m in zip(several, laid, strict=True)), *put
        return func(*args, **given)


@contextlib.contextmanager
def within(module: nn.Module, mode: TorchFunctionMode) -> Iterator[None]:
    """Put `mode` before those of the tracer, while the module runs, and take it away however that ends:
    hooks are not called where a trace fails."""
    forward = module.forward

    @functools.wraps(forward)
    def run(*args: Any, **kwargs: Any) -> Any:
        with mode:
            return forward(*args, **kwargs)

    with patch.object(module, "forward", run):
        yield


def of_numbers(data: Any, dtype: Any, device: Any) -> Tensor | None:
    """The tensor of a number, or of a short list of numbers, of tensors of one each, or of equally long
    lists of them; None for other data."""
    if isinstance(data, (bool, int, float)):
        return torch.full((), data, dtype=dtype, device=device)
    if isinstance(data, (list, tuple)) and not data:  # a cache that holds nothing yet
        return torch.zeros((0,), dtype=dtype, device=device)
    if not isinstance(data, (list, tuple)) or not 0 < _count(data) <= MAX_LITERALS:
        return None
    if all(isinstance(item, (list, tuple)) for item in data):
        if len({len(item) for item in data}) != 1:
            return None
        rows = [of_numbers(item, dtype, device) for item in data]
    else:
        kinds = {type(item) for item in data}
        if all(isinstance(item, Tensor) and not item.ndim for item in data):
            made = torch.stack(data)
            return made.to(dtype=dtype or made.dtype, device=device or made.device)
        if kinds == {int, float}:  # as torch reads them together
            data = [float(item) for item in data]
        elif len(kinds) != 1 or not kinds <= {bool, int, float}:
            return None
        rows = [torch.full((), item, dtype=dtype, device=device) for item in data]
    known = [row for row in rows if row is not None]
    if len(known) != len(rows) or len({row.dtype for row in known}) != 1:
        return None
    return torch.stack(known)


def _count(data: Any) -> int:
    """How many things stand in a list, lists within it opened."""
    return sum(map(_count, data)) if isinstance(data, (list, tuple)) else 1
