"""Whether a growth did what was asked, judged from outside: by shapes, and by running both modules."""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from drawn_ops import BATCH, Blueprint, Drawn, inputs_for
from drawn_recipes import DrawnRecipe
from torch import Tensor

import surgeon
from surgeon.errors import NotPreserved, SurgeonError
from surgeon.operations import Result
from surgeon.planning.plan import Plan
from surgeon.verification.coexecution import coexecute

TOLERANCE = 1e-10  # of float64, through some ten ops, relative to the largest output


@dataclass(frozen=True)
class Outcome:
    """What came of a case: ``grown``, ``unchanged``, the code of the refusal, or ``vanishing`` where the
    proof failed at a value that is zero but for rounding."""

    word: str
    result: Result | None = None


def attempt(module: Drawn, recipe: DrawnRecipe) -> Outcome:
    """Apply a recipe to a module. A refusal must be a deliberate one, that names what it refuses."""
    blueprint = module.blueprint
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "drawn.surgery"
        file.write_text(recipe.text)
        try:
            result = surgeon.apply(file, module, example_inputs=(inputs_for(blueprint, 1),), device="cpu")
        except NotPreserved as failure:
            plan = surgeon.plan(file, module, example_inputs=(inputs_for(blueprint, 1),))
            assert vanishes(plan, module, inputs_for(blueprint, 1)), str(failure)
            return Outcome("vanishing")
        except SurgeonError as refusal:
            assert re.fullmatch(r"S[23]\d\d", refusal.code), f"{refusal.code}: {refusal}"
            assert _names_something(str(refusal)), str(refusal)
            return Outcome(refusal.code)
    changed = any(t.changes for t in result.plan.transforms.values())
    return Outcome("grown" if changed else "unchanged", result)


def vanishes(plan: Plan, module: Drawn, x: Tensor) -> bool:
    """Whether the node at which a proof failed is zero but for rounding, as the mean of what was centred
    is: then it has no magnitude that an error could be relative to."""
    captured, state = plan.anatomy.captured, dict(module.state_dict())
    report = coexecute(plan, lambda name: state[name], {captured.inputs[0]: x})
    assert report.divergence is not None
    found: dict[str, Any] = {}

    class Watching(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> Any:
            found[n.name] = super().run_node(n)
            return found[n.name]

    known = {**captured.parameters, **captured.buffers}
    given = [
        state[known[n.name]] if n.name in known else captured.constants.get(n.name, x)
        for n in captured.graph.nodes
        if n.op == "placeholder"
    ]
    with torch.no_grad():
        Watching(captured.program.graph_module).run(*given)
    node = plan.anatomy.nodes[report.divergence.node]
    read = max(float(found[n.name].abs().max()) for n in node.all_input_nodes if n.name in found)
    return float(found[node.name].abs().max()) <= 1e-13 * read


def _names_something(message: str) -> bool:
    """A message names an op, a stored tensor, or a size: something that can be looked up."""
    return re.search(r"aten\.\w+|\b[pbv]\d+|d\d+:\d+|\bx\[\d\]|drawn_ops\.py:\d+", message) is not None


def as_tuple(out: Any) -> tuple[Tensor, ...]:
    return out if isinstance(out, tuple) else (out,)


def check(module: Drawn, recipe: DrawnRecipe) -> Outcome:
    """Grow a module and hold the grown one against it; AssertionError where they part."""
    blueprint = module.blueprint
    before = {name: value.clone() for name, value in module.state_dict().items()}
    outcome = attempt(module, recipe)
    result = outcome.result
    if result is None:
        return outcome
    assert result.model is not None
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    check_shapes(blueprint, recipe, result)
    batches = [BATCH]
    captured = result.plan.anatomy.captured
    if any(s is None or s[0] > 1000 for n in captured.inputs for s in captured.shapes[n]):
        batches.append(BATCH + 2)  # traced with a symbolic batch
    for number, batch in enumerate(batches):
        inputs = inputs_for(blueprint, 100 + number, batch)
        with torch.no_grad():
            ours, theirs = as_tuple(result.model(inputs)), as_tuple(module(inputs))
        assert len(ours) == len(theirs)
        for i, (grown, source) in enumerate(zip(ours, theirs, strict=True)):
            wanted = copied(source, result, i)
            assert grown.dtype == torch.float64 and grown.shape == wanted.shape
            limit = TOLERANCE * max(1.0, float(wanted.abs().max()))
            assert float((grown - wanted).abs().max()) <= limit, f"output {i} is another function"
    return outcome


def copied(source: Tensor, result: Result, number: int) -> Tensor:
    """The source's output with the channels of its axes copied as the plan says; an axis that is one dim
    must be a clone, channel ``j mod size``, and every channel must have a copy."""
    plan = result.plan
    (node,) = (n for n in plan.anatomy.captured.graph.nodes if n.op == "output")
    value = plan.anatomy.values[node.args[0][number].name][0]
    assert value is not None
    out = source
    for dim, axis in enumerate(value.axes):
        axis = plan.anatomy.store.resolve(axis)
        if not plan.maps.grows(axis):
            continue
        index, size = plan.maps.index(axis), source.shape[dim]
        assert set(index.tolist()) == set(range(size))
        if len(axis) == 1 and isinstance(axis[0], int):
            np.testing.assert_array_equal(index, np.arange(len(index)) % size)
        out = out.index_select(dim, torch.from_numpy(index))
    return out


def check_shapes(blueprint: Blueprint, recipe: DrawnRecipe, result: Result) -> None:
    """Tensors grow where it was asked, nowhere by less than nothing, and stay tied and in their kind."""
    model = result.model
    assert model is not None
    names = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers())}
    anatomy = result.plan.anatomy
    shapes = {n: s for n, (s, _) in blueprint.stored.items()}
    assert {n for n in names} == {*shapes, *blueprint.aliases}
    for alias, name in blueprint.aliases.items():
        assert names[alias] is names[name]
    for name, shape in shapes.items():
        assert all(new >= old for new, old in zip(names[name].shape, shape, strict=True))
        assert isinstance(names[name], torch.nn.Parameter) == (blueprint.stored[name][1] == "parameter")
    for growth in recipe.growths:
        name = blueprint.aliases.get(growth.name, growth.name)
        old, new = shapes[name][growth.axis], names[name].shape[growth.axis]
        axis = anatomy.parameter_axes(growth.name)[growth.axis]
        if len(axis) == 1:
            assert new == wanted_size(growth.amount, old), (growth, old, new)
        elif growth.amount != "by 1":
            assert new >= old


def wanted_size(amount: str, size: int) -> int:
    word, *rest = amount.split()
    if word == "by":
        top, _, bottom = rest[0].partition("/")
        return size * int(top) // int(bottom or 1)
    return int(rest[0]) if rest[0] != "multiple" else -(-size // int(rest[-1])) * int(rest[-1])
