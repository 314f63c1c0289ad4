"""Values as terminal output: plans, proofs, anatomies."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from types import TracebackType
from typing import Any

import networkx as nx
from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.progress import Progress as Bars
from rich.table import Table

from surgeon.errors import PlanError, fail
from surgeon.graph.inference import Anatomy
from surgeon.graph.places import starred
from surgeon.language.report import nearest
from surgeon.planning.plan import Plan
from surgeon.surgery.forecast import Forecast
from surgeon.verification.native import STOCK
from surgeon.verification.report import Report
from surgeon.verification.trainability import Trainability


class Progress:
    """The stage at hand, and a bar with rate and time left while weights are written."""

    def __init__(self, console: Console):
        self.console = console
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        self.bars = Bars(*columns, TimeRemainingColumn(), console=console, transient=True)
        self.task: Any = None
        self.status = console.status("reading")

    def __enter__(self) -> Progress:
        self.stage("reading")
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.console.is_terminal:
            self.status.stop()
            self.bars.stop()

    def stage(self, text: str) -> None:
        """Name the stage at hand; silent when not on a terminal."""
        if not self.console.is_terminal:
            return
        self.bars.stop()
        self.status.update(text)
        self.status.start()

    def bytes(self, done: int, total: int) -> None:
        """Move the bar; silent when not on a terminal."""
        if not self.console.is_terminal:
            return
        if self.task is None:
            self.status.stop()
            self.bars.start()
            self.task = self.bars.add_task("writing", total=total)
        self.bars.update(self.task, completed=done)


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        right = column in ("from", "to", "dims", "size", "largest error", "tolerance")
        table.add_column(column, justify="right" if right else "left", overflow="fold")  # names stay whole
    return table


def show_table(console: Console, table: Table) -> None:
    """A table; in a file or pipe without the blanks that fill its lines up."""
    if console.is_terminal:
        console.print(table)
        return
    for line in console.render_lines(table, pad=False):
        console.print("".join(part.text for part in line).rstrip(), markup=False, soft_wrap=True)


def show_plan(console: Console, plan: Plan) -> None:
    """Dims, config, scales, and the count of what changes."""
    table = _table("dim", "from", "to", "dims")
    for d in plan.grown_dims():
        table.add_row(d.label, str(d.size), str(d.target), str(d.dims))
    show_table(console, table)
    if plan.config_changes:
        console.print()
        for name, (before, after) in plan.config_changes.items():
            console.print(f"config.{name}: {before} → {after}")
    scaled = plan.scaled()
    if scaled:
        console.print()
        groups: dict[tuple[str, tuple[float, ...]], int] = {}
        for name, values in scaled.items():
            key = starred(name), values
            groups[key] = groups.get(key, 0) + 1
        for (name, values), count in groups.items():
            numbers = ", ".join(f"{v:.6g}" for v in values)
            console.print(f"scale {name} by {numbers}" + (f" ({count} tensors)" if count > 1 else ""))
    for note in plan.notes:
        console.print(f"note: {note}", soft_wrap=True)
    before, after = plan.parameter_counts()
    changing = sum(t.changes for t in plan.transforms.values())
    console.print(
        f"\nPlan: {changing} of {len(plan.transforms)} tensors change, {before:,} → {after:,} parameters.\n"
    )


def show_planned(console: Console, plan: Plan, forecast: Forecast | None) -> None:
    """The plan, and what it takes where that is known."""
    show_plan(console, plan)
    if forecast is not None:
        show_forecast(console, forecast)


def show_forecast(console: Console, forecast: Forecast) -> None:
    """What an apply will take."""
    files = f"{forecast.shards} shards" if forecast.shards > 1 else "one file"
    console.print(
        f"Reads {decimal(forecast.bytes_in)}, writes {decimal(forecast.bytes_out)} in {files}; "
        f"about {decimal(forecast.memory)} of memory beyond the interpreter's.",
        soft_wrap=True,
    )
    if forecast.room is not None and forecast.seconds is not None:
        free, rate = decimal(forecast.room.free), decimal(int(forecast.room.rate))
        takes = f"; at its {rate}/s writing takes about {_span(forecast.seconds)}, before the proof."
        enough = forecast.room.free >= forecast.bytes_out
        said = takes if enough else f", which is too little: {decimal(forecast.bytes_out)} are to be written."
        console.print(f"{forecast.room.place} has {free} free{said}", soft_wrap=True)
    console.print()


def _span(seconds: float) -> str:
    """A time as one says it."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 1 else "a second"


def show_report(console: Console, report: Report) -> None:
    """The four parts of the proof."""
    table = _table("proof", "largest error", "tolerance", "")
    table.add_row("static", "", "", f"{report.static} ops typed, no open obligation")
    exact = report.exact
    if exact is not None:
        where = "" if exact.divergence is None else f"first at {exact.divergence.where}"
        table.add_row(
            "exact, float64",
            f"{exact.outputs:.1e}",
            f"{exact.tolerance:.1e}",
            where or f"{exact.nodes} tensors, worst {exact.worst:.1e}",
        )
    if report.sampled is not None:
        layers, read = ", ".join(report.sampled.run), report.sampled.unlike
        table.add_row("sample", "", "", f"ran {layers}, of {report.sampled.layers} layers")
        told = f"{read} is not what the plan says" if read else f"{report.sampled.tensors} tensors as planned"
        table.add_row("read back", "", "", told)
    if report.native is not None:
        n = report.native
        extra = [f"max {n.max_abs:.1e}", f"source's own noise {n.noise:.1e} (against {n.noise_against})"]
        if n.kl is not None:
            extra.append(f"KL {n.kl:.1e}")
        if n.top1 is not None:
            extra.append(f"top-1 {n.top1:.1%}")
        if n.greedy is not None:
            extra.append("greedy text equal" if n.greedy else "greedy text differs")
        if n.loaded_by != STOCK:
            extra.append(f"loaded by {n.loaded_by}")
        table.add_row(f"stock, {n.dtype}", f"{n.relative:.1e}", f"{n.tolerance:.1e}", ", ".join(extra))
    if report.untrained is not None:
        table.add_row("trainable", "", "", f"not run: {report.untrained}")
    if report.trainability is not None:
        for note in _trained(report.trainability):
            table.add_row("trainable", "", "", note)
    show_table(console, table)
    console.print(f"\n{report.verdict}", style="bold")
    for note in report.notes:
        console.print(f"note: {note}", soft_wrap=True)


def _trained(found: Trainability) -> Iterator[str]:
    """What the backward pass showed, in words."""
    if found.copies:
        least = min(found.copies, key=lambda a: a.asymmetry)
        if least.asymmetry < 1e-3:
            yield f"copies of {least.label} get one gradient and never separate: add noise or uneven shares"
        else:
            yield f"copies' gradients differ by {least.asymmetry:.0%} or more"
    for label in found.dormant:
        yield f"new channels of {label} are zero where they are made and read: they get no gradient"


@dataclass(frozen=True)
class DimRow:
    """Dims that look alike: layers written ``*``."""

    label: str
    size: int
    dims: int
    ties: tuple[str, ...]
    pinned: str  # empty: growable


def dim_rows(anatomy: Anatomy) -> list[DimRow]:
    """The dims that parameters have, grouped over layers."""
    store = anatomy.store
    ties: dict[int, dict[str, None]] = {}
    for name in anatomy.captured.parameters.values():
        if anatomy.captured.aliases.get(name, name) != name:
            continue
        for i, axis in enumerate(anatomy.parameter_axes(name)):
            for dim in store.leaves(axis):
                ties.setdefault(dim, {})[f"{starred(name)}[{i}]"] = None
    groups: dict[tuple[Any, ...], int] = {}
    for dim, names in ties.items():
        pins = store.pins_of(dim)
        label = starred(store.labels[dim])
        reason = starred(anatomy.describe_pin(pins[0])) if pins else ""
        key = label, store.sizes[dim], tuple(names), reason
        groups[key] = groups.get(key, 0) + 1
    return [DimRow(label, size, count, names, pin) for (label, size, names, pin), count in groups.items()]


def show_dims(console: Console, rows: list[DimRow]) -> None:
    """Growable dims first, then the pinned ones with their reasons."""
    for title, chosen in (
        ("growable", [r for r in rows if not r.pinned]),
        ("pinned", [r for r in rows if r.pinned]),
    ):
        if not chosen:
            continue
        table = _table(title, "size", "dims", "ties" if title == "growable" else "because")
        for row in chosen:
            more = f" and {len(row.ties) - 2} more" if len(row.ties) > 2 else ""
            tied = ", ".join(row.ties[:2]) + more
            table.add_row(row.label, str(row.size), str(row.dims), row.pinned or tied)
        show_table(console, table)
        console.print()


def show_axis(console: Console, anatomy: Anatomy, spec: str) -> None:
    """One parameter axis: its structure, and for each dim the chain of ops that ties it to where the
    dim is first seen. Raises PlanError S311 for an axis that is not there."""
    match = re.fullmatch(r"(.+)\[(\d+)\]", spec)
    names = list(anatomy.captured.parameters.values())
    if match is None or match[1] not in names or int(match[2]) >= len(anatomy.parameter_axes(match[1])):
        known = [f"{name}[{i}]" for name in names for i in range(len(anatomy.parameter_axes(name)))]
        raise fail(
            PlanError,
            "S311",
            f"there is no axis {spec}",
            expected='NAME[AXIS], such as "fc1.weight[0]"',
            help=nearest(spec, known) or "surgeon dims MODEL lists axes",
        )
    store = anatomy.store
    axis = anatomy.parameter_axes(match[1])[int(match[2])]
    labels = {d: store.labels[d] for d in store.leaves(axis)}
    console.print(f"{spec} = {store.show(axis, labels)}", soft_wrap=True)
    start = store.labels.index(spec) if spec in store.labels else None
    for dim in dict.fromkeys(store.leaves(axis)):
        pins = store.pins_of(dim)
        state = "growable" if not pins else "pinned: " + "; ".join(anatomy.describe_pin(p) for p in pins[:3])
        console.print(f"\n{store.labels[dim]} (size {store.sizes[dim]}): {state}", soft_wrap=True)
        graph = anatomy.coupling
        if start is None or start == dim or start not in graph or not nx.has_path(graph, start, dim):
            continue
        path = nx.shortest_path(graph, start, dim)
        for a, b in pairwise(path):
            console.print(
                f"  tied by {anatomy.where(graph.edges[a, b]['node'])} to {store.labels[b]}", soft_wrap=True
            )
