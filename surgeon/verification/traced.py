"""Whether the graph of a plain module is what the module computes when it is called: all that is inferred and
proved is read off the graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map_only

from surgeon.axes.maps import Maps
from surgeon.errors import ModelError, fail
from surgeon.graph.kept import left_as_it_is
from surgeon.models.native import reason
from surgeon.planning.plan import Plan
from surgeon.rewriting.calling import Calling
from surgeon.rewriting.graph import rewrite
from surgeon.verification.coexecution import Coexecution
from surgeon.verification.invariant import difference
from surgeon.verification.native import NOISE_FACTOR, TRACE_ROUNDINGS


@dataclass(frozen=True)
class Called:
    """A plain module and the arguments it is called with."""

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    rewrites: tuple[str | None, ...] = ()  # parameters and buffers that a call changes

    def answer(self, graded: bool) -> Any:
        """What it returns, with gradients recorded or without; neither it nor its arguments change."""
        held = {name: value.clone() for name, value in self.state.items()}
        args, kwargs = _cloned((self.args, dict(self.kwargs)))
        with torch.set_grad_enabled(graded), left_as_it_is(self.module):
            return torch.func.functional_call(self.module, held, args, kwargs)

    @property
    def state(self) -> dict[str, Tensor]:
        """What a call may rewrite: buffers, and the parameters that the graph says it does."""
        named = self.module.named_parameters(remove_duplicate=False)
        return {n: p.detach() for n, p in named if n in self.rewrites} | dict(self.module.named_buffers())


def _cloned(value: Any) -> Any:
    return tree_map_only(Tensor, lambda t: t.detach().clone(), value)


def held_to_module(plan: Plan, calling: Calling, called: Called, run: Coexecution) -> tuple[str, ...]:
    """What is to be said of how the module is called. Some modules compute something else while no gradients
    are recorded (torch's own transformer layers, at padded places); the graph is what trains.

    Raises ModelError S213 where the graph gives other outputs than the module.
    """
    plain = replace(plan, maps=Maps(plan.maps.store, {}))
    known = dict(called.module.named_parameters(remove_duplicate=False)) | called.state
    graph = rewrite(plain, {name: known[name].detach().clone() for name in plan.transforms}, calling)
    args, kwargs = _cloned((called.args, dict(called.kwargs)))
    with torch.no_grad():
        seen = graph(*args, **kwargs)
    name = type(called.module).__name__
    try:
        answer = called.answer(graded=True)
    except Exception as failure:
        raise fail(
            ModelError,
            "S213",
            f"{name} was traced, but fails when it is called: {type(failure).__name__}: {reason(failure)}",
            help="does it run on these inputs, on this device and in this dtype?",
        ) from failure
    epsilon = _narrowest(plan)
    error = _apart(seen, answer, run, epsilon)
    if error is not None:
        again = _apart(answer, called.answer(graded=True), run, epsilon)
        why = (
            "it draws random numbers as it runs"
            if again is not None
            else "the trace takes one path through it"
        )
        raise fail(
            ModelError,
            "S213",
            f"the traced graph is not what {name} computes: relative difference {error:.1e}",
            notes=(why,),
            help="give what it draws as an input"
            if again is not None
            else "it must not take another path when it is traced (torch.compiler.is_exporting, fast paths)",
        )
    error = _apart(seen, called.answer(graded=False), run, epsilon)
    if error is None:
        return ()
    return (
        f"{name} computes something else while no gradients are recorded (relative difference {error:.1e}); "
        "the grown module always computes what it does with them",
    )


def _narrowest(plan: Plan) -> float:
    """The epsilon of the narrowest floating type that the graph computes in."""
    values = [node.meta.get("val") for node in plan.anatomy.captured.nodes]
    kinds = {v.dtype for v in values if isinstance(v, Tensor) and v.is_floating_point()}
    return max((float(torch.finfo(kind).eps) for kind in kinds), default=0.0)


def _apart(ours: Any, theirs: Any, run: Coexecution, epsilon: float) -> float | None:
    """The worst relative difference of two answers, where it is more than rounding explains, `epsilon` that
    of the narrowest type."""
    (a, shape), (b, wanted) = tree_flatten(ours), tree_flatten(theirs)
    if shape != wanted:
        return float("inf")
    pairs = [(x, y) for x, y in zip(a, b, strict=True) if isinstance(y, Tensor) and y.is_floating_point()]
    worst = None
    noise = _noise(pairs[0][0], run, epsilon) if pairs else 0.0
    for x, y in pairs:
        error = difference(x.detach(), y.detach(), None)
        if not error <= max(NOISE_FACTOR * noise, TRACE_ROUNDINGS * torch.finfo(y.dtype).eps):
            worst = max(error, worst or 0.0)
    return worst


def _noise(first: Tensor, run: Coexecution, epsilon: float) -> float:
    """How far the graph's first output is from itself with all of it in float64, or what the proof allows
    for if more. What is beyond all rounding of the narrowest type is none: random numbers, or a choice."""
    allowed = run.report.tolerance / NOISE_FACTOR
    exact = next(iter(run.source.values()), None)
    if exact is None or exact.shape != first.shape:
        return allowed
    noise = difference(first.detach(), exact.to(first.device), None)
    return max(noise, allowed) if noise < epsilon**0.5 else allowed
