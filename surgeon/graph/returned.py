"""What a module returns and torch.export finds no tensors in, such as a cache of a class of its own."""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Collection, Iterator
from typing import Any
from unittest.mock import patch

from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from surgeon.graph.captured import LOGITS, paths

UNKNOWN = re.compile(r"Found <class '([^']+)'> in output, which is not a known type")


def unknown_kind(error: BaseException) -> str | None:
    """The class of a value that torch.export met among the outputs and does not know."""
    found = UNKNOWN.search(str(error))
    return found[1] if found is not None else None


@contextlib.contextmanager
def leaving_out(module: nn.Module, kinds: Collection[str]) -> Iterator[list[str]]:
    """Values of these classes are no outputs of the module, but for its first and its logits. The list that
    is given holds afterwards, in words, which were left out."""
    forward, told = module.forward, list[str]()

    @functools.wraps(forward)
    def run(*args: Any, **kwargs: Any) -> Any:
        returned = forward(*args, **kwargs)
        leaves, spec = tree_flatten(returned)
        out = [kind if (kind := _kind(leaf)) in kinds else None for leaf in leaves]
        left = [(path, kind) for path, kind in zip(paths(spec), out, strict=True) if kind is not None]
        if not isinstance(leaves[0], Tensor) or any(LOGITS in part for path, _ in left for part in path):
            return returned  # what the model is run for
        unknown = "in which torch.export finds no tensors"
        told[:] = [f"the output {'.'.join(path)}, a {kind}, {unknown}" for path, kind in left]
        kept = [leaf if kind is None else None for leaf, kind in zip(leaves, out, strict=True)]
        return tree_unflatten(kept, spec)

    if not kinds:
        yield told
        return
    with patch.object(module, "forward", run):
        yield told


def _kind(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"
