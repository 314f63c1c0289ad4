"""What a model is given to run on, to be traced and proved: inputs of the user's own, or made up."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from surgeon.errors import ModelError, fail
from surgeon.language.report import nearest
from surgeon.models.inputs import real_inputs


@dataclass(frozen=True)
class Supply:
    """Inputs for a transformers class, by the names of its forward pass. Without `given` ones they are made
    up, with `pictures` among the words of a model that reads both. Several batches are given as one where
    they are `joined`: a model may hold the examples of a batch against each other. `lay` lays what is made up
    in another way, for a class that takes no plain batch."""

    given: Mapping[str, Tensor] | None = field(default=None, repr=False)
    pictures: bool = True
    joined: bool = True
    lay: Callable[[Mapping[str, Any]], dict[str, Any]] | None = None

    def batch(self, module: nn.Module, seed: int = 0) -> dict[str, Any]:
        """One batch on CPU. Raises ModelError S211 (it cannot be made up), S224 (a name the class lacks)."""
        if self.given is None:
            made = real_inputs(module, seed, self.pictures)
            return made if self.lay is None else self.lay(made)
        accepted = inspect.signature(module.forward).parameters
        given = nested(self.given)
        for name in given:
            if name not in accepted:
                said = f"{type(module).__name__} takes no input {name}"
                raise fail(ModelError, "S224", said, help=nearest(name, accepted))
        return {**given, **({"use_cache": False} if "use_cache" in accepted else {})}

    def batches(self, module: nn.Module, seeds: Sequence[int]) -> list[dict[str, Any]]:
        """A batch for each seed; of the user's own there is one."""
        return [self.batch(module, seed) for seed in (seeds if self.given is None else seeds[:1])]

    def example(self, module: nn.Module) -> dict[str, Any]:
        """The first batch on meta, for capture. Sizes are fixed: the class, not the graph, is the result, and
        a graph with symbolic sizes takes three times as long to trace."""
        batch = self.batch(module)
        made: dict[str, Any] = tree_map(lambda v: v.to("meta") if isinstance(v, Tensor) else v, batch)
        return made


def in_choices(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Each example as two, to choose from: batch × choices × length."""
    return {k: torch.stack([v, v.flip(0)], 1) if isinstance(v, Tensor) else v for k, v in inputs.items()}


def alone(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The first example."""
    return {name: value[:1] if isinstance(value, Tensor) else value for name, value in inputs.items()}


def nested(given: Mapping[str, Any], way: str = "") -> dict[str, Any]:
    """Inputs of which some lie within others: ``states.full.0`` is the first of a tuple, which `full` names
    in the mapping ``states``. Names that are numbers are places in a tuple. Raises ModelError S224 where a
    place is missing, or where a name is that of a tensor and of what lies within. `way` leads to all of them.
    """
    whole = {name: value for name, value in given.items() if "." not in name}
    apart: dict[str, dict[str, Any]] = {}
    for name, value in given.items():
        first, dot, rest = name.partition(".")
        if dot:
            apart.setdefault(first, {})[rest] = value
        if first in apart and first in whole:
            raise fail(ModelError, "S224", f"{way}{first} is given whole, and in parts too")
    within = {name: nested(parts, f"{way}{name}.") for name, parts in apart.items()}
    return {**whole, **{name: _as_tuple(f"{way}{name}", parts) for name, parts in within.items()}}


def _as_tuple(name: str, parts: dict[str, Any]) -> Any:
    """A tuple, where what lies within is named by numbers."""
    if not all(part.isdecimal() for part in parts):
        return parts
    places = sorted(parts, key=int)
    if places != [str(n) for n in range(len(parts))]:
        raise fail(
            ModelError,
            "S224",
            f"{name} is given in the parts {', '.join(places)}, which are no places of a tuple",
            expected="all from 0 on",
        )
    return tuple(parts[place] for place in places)


def read_inputs(file: Path) -> dict[str, Tensor]:
    """Inputs by name, from a safetensors file. Raises ModelError S224 where it cannot be read."""
    from safetensors.torch import load_file

    try:
        inputs = load_file(file)
    except Exception as error:  # safetensors has no class of errors that Python code could name
        said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise fail(
            ModelError,
            "S224",
            f"{file} cannot be read as inputs: {said}",
            expected="a safetensors file with a tensor for each input, by the name that forward gives it",
        ) from error
    if not inputs:
        raise fail(ModelError, "S224", f"{file} holds no tensors", expected="one for each input, by name")
    return inputs
