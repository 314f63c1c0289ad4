"""Each op's rule against the op: what the rule lets grow must keep the function, and what it refuses
without need is said.

The samples of an op are captured as one graph; every axis of every sample is grown, every activation
scaled, and both graphs are run in lockstep. Growths of different samples touch different dims, so they
are tried together and taken apart only when something fails.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from surgeon.axes.maps import Index, Maps, clone_map
from surgeon.certification.samples import REFUSALS, Sample, samples
from surgeon.errors import ModelError, PlanError
from surgeon.graph.capture import capture
from surgeon.graph.captured import Captured
from surgeon.graph.inference import infer
from surgeon.graph.places import op_name
from surgeon.language import builtin_rules
from surgeon.language.syntax import OpRule, Recipe
from surgeon.planning.native import NativeGrowth
from surgeon.planning.plan import plan_growth
from surgeon.verification.coexecution import Pair, coexecute

Verdict = Literal["right", "wrong", "strict", "untested"]

RECIPE = Recipe("certify", (), ())
SCALE = 3.0
"""The factor by which an activation of the grown graph is larger, to try what a rule says of scales."""
DRAWS = 3

aten = torch.ops.aten


@dataclass(frozen=True)
class Finding:
    """What the samples of one op say of its rule."""

    op: str
    verdict: Verdict
    detail: str


@dataclass(frozen=True)
class Growth:
    """One way to grow one sample: maps of its dims, factors of its activations."""

    sample: int
    words: str
    dims: Mapping[int, Index] = field(default_factory=dict)
    scales: Mapping[str, float] = field(default_factory=dict)


def certify(rules: Iterable[OpRule]) -> list[Finding]:
    """One finding per op that `rules` name. The library's rules hold for all other ops."""
    return [certify_op(rule, name) for rule in rules for name in rule.names]


def certify_op(rule: OpRule, name: str) -> Finding:
    """Try the rule of one op on all samples of the op."""
    if rule.kind is not None and rule.kind.name == "ignore":
        return Finding(name, "untested", "the rule says that no tensor matters")
    chosen = samples(rule, name)
    if not chosen:
        return Finding(name, "untested", "there is no sample of it")
    rules = (*builtin_rules(), rule)
    glue = aten.div if name.startswith("aten.mul") else aten.mul
    benches = [bench for bench in _benches(chosen, rules, glue) if bench.nodes_of(name)]
    if not benches:
        return Finding(name, "untested", "its samples are captured as other ops")
    if all(bench.nodes_of(name) <= bench.refused for bench in benches):
        return Finding(
            name, "wrong", f"the rule fits none of the calls, such as {benches[0].samples[0].label}"
        )
    needless: list[str] = []
    for bench in benches:
        wrong = bench.try_all()
        if wrong is not None:
            return Finding(name, "wrong", wrong)
        needless += bench.needless()
    if needless:
        return Finding(name, "strict", needless[0])
    count = sum(len(bench.samples) for bench in benches)
    accepted = sum(bench.accepted for bench in benches)
    return Finding(name, "right", f"{accepted} growths of {count} calls kept the function")


# ── a graph of samples ───────────────────────────────────────────────────────────────────


class Row(nn.Module):
    """The calls side by side; each floating result is multiplied (`glue`) by a parameter, which
    takes up whatever scale the growth gives it."""

    def __init__(self, several: Sequence[Sample], glue: Any) -> None:
        super().__init__()
        self._glue = glue
        self._empty: set[tuple[int, int]] = set()  # results without elements: nothing reads them
        self._samples = several
        generator = torch.Generator().manual_seed(3)
        for i, sample in enumerate(several):
            for j, tensor in enumerate(sample.tensors):
                if j in sample.parameters:
                    self.register_parameter(f"s{i}_t{j}", nn.Parameter(tensor.clone()))
                else:
                    self.register_buffer(f"s{i}_t{j}", tensor.clone())
            for k, out in enumerate(sample.run()):
                if not out.numel():
                    self._empty.add((i, k))
                elif out.is_floating_point():
                    gain = torch.randn(out.shape, generator=generator, dtype=out.dtype)
                    self.register_parameter(f"s{i}_q{k}", nn.Parameter(gain))

    def forward(self) -> tuple[Tensor, ...]:
        results = []
        for i, sample in enumerate(self._samples):
            tensors = [getattr(self, f"s{i}_t{j}") for j in range(len(sample.tensors))]
            for k, out in enumerate(sample.run(tensors)):
                if (i, k) in self._empty:
                    continue
                gain = getattr(self, f"s{i}_q{k}", None)
                results.append(out if gain is None else self._glue(out, gain))
        return tuple(results)


def _benches(several: Sequence[Sample], rules: tuple[OpRule, ...], glue: Any) -> Iterator[Bench]:
    """The samples captured together; where that fails, or one of them breaks the plan of all, in halves."""
    bench = None
    known = frozenset(name for rule in rules for name in rule.names)
    try:
        row = Row(several, glue)
        bench = Bench(several, row, capture(row, known=known), rules)
    except ModelError:
        pass
    if bench is not None and (bench.broken is None or len(several) == 1):
        yield bench
    elif len(several) > 1:
        middle = len(several) // 2
        yield from _benches(several[:middle], rules, glue)
        yield from _benches(several[middle:], rules, glue)


class Bench:
    """Captured samples on which one rule is tried."""

    def __init__(
        self, several: Sequence[Sample], row: Row, captured: Captured, rules: tuple[OpRule, ...]
    ) -> None:
        self.samples = several
        self.state = {name: value.detach() for name, value in row.state_dict().items()}
        self.captured = captured
        self.accepted = 0
        self.grew: set[int] = set()  # dims of which a growth was accepted
        self.refused: frozenset[str] = frozenset()  # nodes that the rule does not fit
        self.broken: str | None = None  # why nothing can be tried
        try:
            self.anatomy = infer(captured, rules)
        except Exception as error:
            self.broken = f"{several[0].label}: the rule cannot be applied: {_told(error)}"
            return
        self.refused = self.anatomy.refused
        self.broken = self._try([Growth(0, "nothing")])

    def nodes_of(self, name: str) -> set[str]:
        """The nodes of the op of this name."""
        return {n.name for n in self.captured.nodes if f"{op_name(n)}.".startswith(f"{name}.")}

    def try_all(self) -> str | None:
        """Grow every axis and scale every activation; what went wrong first, or None."""
        if self.broken is not None:
            return self.broken
        rounds: dict[tuple[str, int], list[Growth]] = {}
        for i in range(len(self.samples)):
            counts: dict[str, int] = {}
            for growth in self._growths(i):
                turn = counts.setdefault(growth.words, 0)
                counts[growth.words] += 1
                rounds.setdefault((growth.words, turn), []).append(growth)
        for group in rounds.values():
            wrong = self._try(group)
            if wrong is not None:
                return wrong
        return None

    def _names(self, sample: int) -> list[str]:
        return [name for name in self.state if name.startswith(f"s{sample}_")]

    def _growths(self, sample: int) -> Iterator[Growth]:
        """Each free dim cloned, cloned unevenly and shuffled, then all together; and each activation
        scaled, then all together."""
        store = self.anatomy.store
        names = self._names(sample)
        leaves = [d for n in names for axis in self.anatomy.parameter_axes(n) for d in store.leaves(axis)]
        free = [d for d in dict.fromkeys(leaves) if store.sizes[d] and not store.pins_of(d)]
        for dim in free:
            for words, index in _maps(store.sizes[dim]):
                yield Growth(sample, words, {dim: index})
        if len(free) > 1:
            yield Growth(
                sample, "all twice", {d: clone_map(store.sizes[d], 2 * store.sizes[d]) for d in free}
            )
        floats = [
            n for n in names if n in self.captured.buffers.values() and self.state[n].is_floating_point()
        ]
        for name in floats:
            yield Growth(sample, "scaled", scales={name: SCALE})
        if len(floats) > 1:
            yield Growth(sample, "all scaled", scales=dict.fromkeys(floats, SCALE))

    def _try(self, group: Sequence[Growth]) -> str | None:
        """Try growths of different samples together, in halves when they fail together."""
        dims = {dim: index for growth in group for dim, index in growth.dims.items()}
        scales = {name: factor for growth in group for name, factor in growth.scales.items()}
        wrong: str | None = None
        try:
            placed = {p: scales[name] for p, name in self.captured.buffers.items() if name in scales}
            plan = plan_growth(self.anatomy, RECIPE, NativeGrowth(Maps(self.anatomy.store, dims), {}, placed))
            pair = Pair(plan, self.state.__getitem__, {})
            report = coexecute(pair, torch.device("cpu")).report
            if report.divergence is not None:
                wrong = f"off by {report.divergence.error:.3g} at {report.divergence.where}"
        except PlanError:
            if len(group) == 1:
                return None
            wrong = "refused"
        except Exception as error:
            wrong = _told(error)
        if wrong is None:
            self.accepted += len(group)
            self.grew.update(dims)
            return None
        if len(group) == 1:
            return self._words(group[0], wrong)
        middle = len(group) // 2
        return self._try(group[:middle]) or self._try(group[middle:])

    def _words(self, growth: Growth, wrong: str) -> str:
        store, sample = self.anatomy.store, self.samples[growth.sample]
        grown = [
            f"{self._readable(store.labels[d])} of size {store.sizes[d]} by {index.tolist()}"
            for d, index in growth.dims.items()
        ]
        grown += [f"{self._readable(n)} times {factor:g}" for n, factor in growth.scales.items()]
        return f"{sample.label}: {', '.join(grown) or 'nothing'} grown: {wrong}"

    def _readable(self, label: str) -> str:
        """``s0_t1[2]`` as ``tensor 1 axis 2``."""
        name, _, axis = label.partition("[")
        _, _, tensor = name.partition("_")
        what = f"tensor {tensor[1:]}" if tensor.startswith("t") else tensor or name
        return f"{what} axis {axis.rstrip(']')}" if axis else what

    # ── needless refusals ────────────────────────────────────────────────────────────────

    def needless(self) -> list[str]:
        """Axes that the rule never lets grow although the op carries their copies through."""
        store, found = self.anatomy.store, []
        for i, sample in enumerate(self.samples):
            for j, tensor in enumerate(sample.tensors):
                for axis, typed in enumerate(self.anatomy.parameter_axes(f"s{i}_t{j}")):
                    refused = not any(d in self.grew for d in store.leaves(typed))
                    if refused and tensor.shape[axis] > 1 and carries_copies(sample, j, axis):
                        found.append(
                            f"{sample.label}: tensor {j} axis {axis} is refused, yet the op of copies "
                            "is the copies of the op"
                        )
        return found


def _told(error: Exception) -> str:
    """An exception in one line."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"


def _maps(size: int) -> Iterator[tuple[str, Index]]:
    """Ways to copy channels of an axis."""
    yield "twice", clone_map(size, 2 * size)
    yield "thrice", clone_map(size, 3 * size)
    yield "uneven", clone_map(size, size + max(1, size // 2))
    yield "shuffled", shuffled_twice(size, np.random.default_rng(size))


def shuffled_twice(size: int, random: np.random.Generator) -> Index:
    """Every channel twice, in any order."""
    return random.permutation(clone_map(size, 2 * size))


def carries_copies(sample: Sample, tensor: int, axis: int) -> bool:
    """Whether the op of expanded tensors is its expanded result, on several draws: with this axis
    alone expanded, or with every axis of its size."""
    size = sample.tensors[tensor].shape[axis]
    together = {
        (j, a) for j, t in enumerate(sample.tensors) for a, extent in enumerate(t.shape) if extent == size
    }
    return any(_equivariant(sample, chosen, size) for chosen in ({(tensor, axis)}, together))


def _equivariant(sample: Sample, chosen: set[tuple[int, int]], size: int) -> bool:
    generator, random = torch.Generator().manual_seed(4), np.random.default_rng(4)
    for _ in range(DRAWS):
        tensors = sample.redrawn(generator)
        index = torch.from_numpy(shuffled_twice(size, random))
        wide = list(tensors)
        for j, a in sorted(chosen):
            wide[j] = wide[j].index_select(a, index)
        try:
            small, large = sample.run(tensors), sample.run(wide)
        except REFUSALS:
            return False
        if len(small) != len(large) or not all(map(_copied, small, large, [index] * len(small))):
            return False
    return True


def _copied(small: Tensor, large: Any, index: Tensor) -> bool:
    """Whether `large` is `small` with some axes read through `index`."""
    if small.ndim != large.ndim:
        return False
    for axis in range(small.ndim):
        if small.shape[axis] != large.shape[axis]:
            if large.shape[axis] != len(index) or int(index.max()) >= small.shape[axis]:
                return False
            small = small.index_select(axis, index)
    return torch.allclose(small, large, rtol=1e-4, atol=1e-6, equal_nan=True)
