"""Why no scale of any parameter keeps the function: what the equation without a solution contradicts, and
what of the grown class would have to be otherwise.

Two things of a grown class may be in the way, and no weight can change them: numbers that it makes of its
sizes, and values that it makes of them, at whose places the source's channels stand. Which it is shows when
the equations are solved once more as if it were otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Protocol

from surgeon.axes.maps import NEW, Index, Maps, clone_map
from surgeon.errors import Diagnostic, PlanError
from surgeon.graph.inference import Anatomy
from surgeon.planning.cells import Drift
from surgeon.planning.equations import KEPT, Equations
from surgeon.planning.scales import Conflict, System

SHOWN = 3  # places of equations without a solution, before the rest is counted
GROUNDS = 6  # of what an equation contradicts, how much is told


class Solve(Protocol):
    """The equations of other maps and numbers of the same graph, as if the outputs in `released`, by node
    name, might come out scaled as well."""

    def __call__(self, maps: Maps, drift: Drift, released: frozenset[str] = ...) -> Equations: ...


def refuse_conflicts(
    anatomy: Anatomy, maps: Maps, drift: Drift, system: System, placed: Mapping[int, str], solve: Solve
) -> None:
    """Raise PlanError S330 for the first equation that has no solution.

    Args:
        placed: the dims whose channels stand where a known value of the grown class has them, and what.
    """
    conflicts = system.conflicts
    if not conflicts:
        return
    blocked = [c for c in conflicts if placed.keys() & set(c.dims)]
    places = list(dict.fromkeys(anatomy.where(c.node) for c in blocked or conflicts))
    more = [f"and {len(places) - SHOWN} more places"] if len(places) > SHOWN else []
    if blocked:
        dim = next(d for d in blocked[0].dims if d in placed)
        index, label = maps.dims[dim], anatomy.store.labels[dim]
        raise PlanError(
            Diagnostic(
                "S330",
                "no scale of any parameter keeps the function: statistics are taken over all channels of "
                f"{label}, of which {(index == NEW).sum()} of {len(index)} would be new",
                notes=(f"{placed[dim]} {_placing(index)}", *places[:SHOWN], *more),
                help="the class makes that value for its width, and no weight can change it: "
                f"leave {label} at {anatomy.store.sizes[dim]}, and grow other dims",
            )
        )
    first = conflicts[0]
    off = "" if math.isnan(first.factor) else f", off by a factor of {first.factor:.4g}"
    why = (
        _numbers(anatomy, maps, drift, first, solve)
        or _places(anatomy, maps, drift, placed, solve)
        or _contradicted(anatomy, system, first)
    )
    whole = all(len(index) % anatomy.store.sizes[dim] == 0 for dim, index in maps.dims.items())
    fraction = "" if whole else "grow by an integer factor, "
    release = _released(anatomy, maps, drift, conflicts, solve)
    raise PlanError(
        Diagnostic(
            "S330",
            f"no scale of any parameter keeps the function: {first.reason}{off}",
            notes=(*places[:SHOWN], *more, *why, *_tied(anatomy, first)),
            help=f"{release}{fraction}grow other dims, or untie the parameters involved",
        )
    )


def _placing(index: Index) -> str:
    """Where a known value of the grown class has the source's channels."""
    found = [str(i) for i in (index != NEW).nonzero()[0]]
    named = ", ".join(found[:4]) + (", …" if len(found) > 4 else "")
    return f"of the grown class has the source's values at {named} alone, and others at the other places"


def _released(anatomy: Anatomy, maps: Maps, drift: Drift, conflicts: list[Conflict], solve: Solve) -> str:
    """The outputs that are in the way, where all would be well if they might come out scaled."""
    released = frozenset[str]()
    while conflicts:
        kept = frozenset(c.node for c in conflicts if c.reason == KEPT)
        if not kept:
            return ""
        released |= kept
        conflicts = solve(maps, drift, released).system.conflicts
    outputs = anatomy.captured.outputs
    paths = [path for path, node in outputs if node.name in released]
    if not all(paths) or len(paths) == len(outputs):
        return ""
    it = "it" if len(paths) == 1 else "they"
    return f"`preserve` other outputs than {', '.join(paths)}, and {it} may come out scaled; or "


def _numbers(anatomy: Anatomy, maps: Maps, drift: Drift, conflict: Conflict, solve: Solve) -> list[str]:
    """The numbers of the grown class that are in the way: those before the conflict, where all would be well
    if each were as it is in the source."""
    if not drift or solve(maps, {}).system.conflicts:
        return []
    before, waiting = set[str](), [conflict.node]
    while waiting:
        name = waiting.pop()
        if name not in before:
            before.add(name)
            waiting += [node.name for node in anatomy.nodes[name].all_input_nodes]
    return [
        f"the class has {pair[1]:g} there where it has {pair[0]:g} in the source, of its sizes: "
        f"{anatomy.where(node)}"
        for (node, _), pair in list(drift.items())[::-1]
        if node in before
    ][:SHOWN]


def _places(anatomy: Anatomy, maps: Maps, drift: Drift, placed: Mapping[int, str], solve: Solve) -> list[str]:
    """The known values of the grown class that are in the way: where all would be well with copies at every
    place."""
    clones = {dim: clone_map(anatomy.store.sizes[dim], len(maps.dims[dim])) for dim in placed}
    if not placed or solve(Maps(anatomy.store, {**maps.dims, **clones}), drift).system.conflicts:
        return []
    return [
        f"{what} of the grown class has new channels of {anatomy.store.labels[dim]} between the source's"
        for dim, what in list(placed.items())[:SHOWN]
    ]


def _tied(anatomy: Anatomy, conflict: Conflict) -> list[str]:
    """The tied weight of the product that a conflict is about: as one tensor it cannot be shared out at one
    place and copied at the other."""
    captured, node = anatomy.captured, anatomy.nodes[conflict.node]
    while not (found := [i.name for i in node.all_input_nodes if i.name in captured.parameters]):
        if len(node.all_input_nodes) != 1:
            return []
        (node,) = node.all_input_nodes
    names = {captured.parameters[captured.tied_placeholder(placeholder)] for placeholder in found}
    groups = ([name, *(n for n, used in captured.aliases.items() if used == name != n)] for name in names)
    return [
        f"{' and '.join(group)} are one tensor, of copies: a sum over them is so many times the source's"
        for group in groups
        if len(group) > 1
    ]


def _contradicted(anatomy: Anatomy, system: System, conflict: Conflict) -> list[str]:
    """What else is asked of the scales that an equation without a solution speaks of, in graph order."""
    position = {name: i for i, name in enumerate(anatomy.nodes)}
    asked = sorted(system.grounds(conflict), key=lambda e: position.get(e.node, 0))
    said = [f"{e.reason}, in {anatomy.where(e.node)}" for e in asked if e.node != conflict.node]
    several = list(dict.fromkeys(said))
    more = [f"and {len(several) - GROUNDS} more"] if len(several) > GROUNDS else []
    return [f"against it stands: {text}" for text in [*several[:GROUNDS], *more]]
