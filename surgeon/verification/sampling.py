"""Which repeated layers of a model a sample of the proof runs, and which it passes over.

A layer is passed over where its one result has the axes and scales of one value that it reads: that value
then stands for the result, in both graphs, and the invariant holds of it if it held before. What is run is
a shallower model, exactly; of the layers passed over nothing is known.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from torch import fx

from surgeon.graph.places import place_of
from surgeon.planning.plan import Plan

BETWEEN = 2  # layers drawn from between the first and the last
LAYER = re.compile(r"(.*?\.\d+)(?:\.|$)")


@dataclass(frozen=True)
class Sample:
    """What is run of a graph.

    Args:
        layers: how many repeated layers there are.
        run: those that are run, by module name.
        stands: for the result of each layer passed over, the value that stands for it.
        unrun: the nodes that are not run; parameters that only they read are among them.
    """

    layers: int
    run: tuple[str, ...]
    stands: Mapping[str, str]
    unrun: frozenset[str]


def draw(plan: Plan, seed: int = 0) -> Sample:
    """The first and the last layer of each stack and BETWEEN others, drawn at random; those that cannot be
    passed over are run as well."""
    layers: dict[str, list[fx.Node]] = {}
    for node in plan.anatomy.captured.nodes:
        match = LAYER.match(place_of(node).module) if node.op == "call_function" else None
        if match is not None:
            layers.setdefault(match[1], []).append(node)
    stacks: dict[str, list[str]] = {}
    for name in layers:
        stacks.setdefault(name.rpartition(".")[0], []).append(name)
    rng = random.Random(seed)
    run, stands, unrun = [], {}, set[str]()
    for names in stacks.values():
        inner = names[1:-1]
        chosen = {names[0], names[-1], *rng.sample(inner, min(BETWEEN, len(inner)))}
        for name in names:
            passage = None if name in chosen else _passage(layers[name], plan)
            if passage is None:
                run.append(name)
            else:
                stands[passage[0]] = passage[1]
                unrun.update(node.name for node in layers[name])
    for node in plan.anatomy.captured.nodes:
        if node.op == "placeholder" and node.users and all(user.name in unrun for user in node.users):
            unrun.add(node.name)
    return Sample(len(layers), tuple(run), stands, frozenset(unrun - stands.keys()))


def _passage(nodes: list[fx.Node], plan: Plan) -> tuple[str, str] | None:
    """A layer's one result, and the one value it reads that can stand for it."""
    inside = set(nodes)
    results = [node for node in nodes if any(user not in inside for user in node.users)]
    if len(results) != 1:
        return None
    read = dict.fromkeys(used for node in nodes for used in node.all_input_nodes if used not in inside)
    alike = [used for used in read if used.op != "placeholder" and _alike(used.name, results[0].name, plan)]
    return (results[0].name, alike[0].name) if len(alike) == 1 else None


def _alike(one: str, other: str, plan: Plan) -> bool:
    """Whether two nodes give one tensor each, with the same axes and scales."""
    a, b = (plan.anatomy.values.get(name, ()) for name in (one, other))
    if len(a) != 1 or len(b) != 1 or a[0] is None or b[0] is None:
        return False
    store = plan.anatomy.store
    if [store.resolve(x) for x in a[0].axes] != [store.resolve(x) for x in b[0].axes]:
        return False
    scales = [_scales(name, plan) for name in (one, other)]
    return np.array_equal(scales[0], scales[1])


def _scales(name: str, plan: Plan) -> np.ndarray:
    cells = plan.equations.cells.get(name)
    if cells is None or not cells or cells[0] is None:
        return np.ones(())
    values: np.ndarray = np.vectorize(plan.equations.system.value, otypes=[np.float64])(cells[0])
    return values
