"""What a recipe's `preserve` means for a model: which outputs have to stay as they are, and what becomes of
the others."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from surgeon.errors import PlanError, fail
from surgeon.graph.captured import LOGITS, Captured
from surgeon.language.report import nearest
from surgeon.planning.equations import Equations

Factors = Mapping[str, tuple[float, ...]]
"""The outputs that come out scaled, by name, with the factors of their pieces."""


def loose_outputs(preserve: tuple[str, ...], captured: Captured) -> frozenset[str]:
    """The outputs, by node name, that may come out scaled, as `preserve` does not name them.

    A name stands for every output on whose way it lies; ``logits`` for all that have it in their name, and
    for every output where none has. Without names all outputs are kept. Raises PlanError S332 for a name
    that no output has.
    """
    outputs = captured.outputs
    kept: set[str] = set() if preserve else {node.name for _, node in outputs}
    for word in preserve:
        found = {node.name for path, node in outputs if _named(word, path)}
        if not found and word != LOGITS:
            raise _no_output(word, [path for path, _ in outputs if path])
        kept |= found or {node.name for _, node in outputs}
    return frozenset(node.name for _, node in outputs) - kept


def _named(word: str, path: str) -> bool:
    if word == LOGITS:
        return LOGITS in path
    return f".{word}." in f".{path}."


def _no_output(word: str, paths: list[str]) -> PlanError:
    parts = [part for path in paths for part in (path, *path.split("."))]
    return fail(
        PlanError,
        "S332",
        f"the model returns nothing called {word}, which the recipe wants to preserve",
        expected=", ".join(dict.fromkeys(paths)) or "no name: it returns one tensor, which has none",
        help=nearest(word, parts) or "without `preserve` all outputs stay as they are",
    )


def scaled_outputs(captured: Captured, equations: Equations) -> Factors:
    """The outputs whose scale is not one."""
    found: dict[str, tuple[float, ...]] = {}
    for path, node in captured.outputs:
        cells = equations.cells.get(node.name, [None])[0]
        if cells is not None:
            factors = np.vectorize(equations.system.value, otypes=[np.float64])(cells)
            if (factors != 1.0).any():
                found[path] = tuple(sorted({float(f) for f in factors.flat}))
    return found


def in_words(scaled: Factors) -> str:
    """What comes out scaled, in one line: ``text_embeds, image_embeds come out times 0.7071``."""
    names: dict[tuple[float, ...], list[str]] = {}
    for path, factors in scaled.items():
        names.setdefault(factors, []).append(path or "the output")
    return "; ".join(
        f"{', '.join(paths)} {'comes' if len(paths) == 1 else 'come'} out times "
        + " and ".join(f"{factor:.4g}" for factor in factors)
        for factors, paths in names.items()
    )
