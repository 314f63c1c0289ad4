"""Coverage of plain modules: architectures of `timm` and `torchvision`, every dim alone and all together.

The judge stands outside of surgeon's proof: the grown module that is returned runs in float64 on inputs that
nobody has seen, and must give what the source gives.

Usage:
    python benchmarks/coverage_modules.py run --collection timm --out modules.jsonl [--only NAME …] [--jobs N]
    python benchmarks/coverage_modules.py table modules.jsonl > docs/coverage-modules.md
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from isolation import Row, sweep
from plain_models import build, names, pictures, ready
from torch import Tensor, nn

import surgeon
from surgeon.axes.store import Axis
from surgeon.errors import SurgeonError
from surgeon.graph.inference import Anatomy

COLLECTIONS = ("timm", "torchvision")
Dim = tuple[str, int]
"""A parameter and an axis of it."""
RECIPE = """recipe coverage() {{
    grow {} by 2
    spread linear with uneven(1, 2)
    noise linear at 10 dB
    preserve logits
}}
"""
SECONDS = 900
GAPS = {
    "S302": "axes that meet in a way that is not typed",
    "S305": "a length known only when the model runs",
    "S308": "an op without a rule",
    "S325": "a size reckoned as the graph runs",
}
"""Codes of refusals for want of a rule or kind; what else pins a dim is a fact of the model."""


def growable(anatomy: Anatomy) -> tuple[dict[str, list[Dim]], Counter[str], int]:
    """The growable dims that a recipe can name, in groups that look alike; how many others are pinned, by
    reason; and how many no axis of a parameter names by itself."""
    store, captured = anatomy.store, anatomy.captured
    every = {
        (parameter, i): axis
        for parameter in captured.parameters.values()
        if captured.aliases.get(parameter, parameter) == parameter
        for i, axis in enumerate(anatomy.parameter_axes(parameter))
    }
    seen = dict.fromkeys(dim for axis in every.values() for dim in store.leaves(axis))
    named: dict[int, Dim] = {}
    for single in (True, False):  # a name of one dim before one of several
        for place, axis in every.items():
            pieces = [axis] if any(isinstance(f, int) for f in axis) else store.words(axis)
            dims = [_first(anatomy, piece) for piece in pieces if piece]
            if single == (len(pieces) == 1) and dims and not any(store.pins_of(d) for d in dims):
                named.update((d, place) for d in dims if d not in named)
    groups: dict[str, list[Dim]] = {}
    for parameter, i in dict.fromkeys(named.values()):
        *path, layer, kind = ["", *parameter.split(".")][-99:]
        label = ".".join([*(re.sub(r"\d+", "*", p) for p in path if p), layer, kind]).lstrip(".")
        groups.setdefault(f"{label}[{i}]", []).append((parameter, i))
    pins = Counter(_reason(anatomy, dim) for dim in seen if store.pins_of(dim))
    nameless = sum(1 for dim in seen if not store.pins_of(dim) and dim not in named)
    return groups, pins, nameless


def _first(anatomy: Anatomy, piece: Axis) -> int:
    """The dim of a product that its name stands for."""
    factors = [f for f in piece if isinstance(f, int)]
    return next((f for f in factors if not anatomy.store.pins_of(f)), factors[0])


def _reason(anatomy: Anatomy, dim: int) -> str:
    pins = anatomy.store.pins_of(dim)
    first = next((p for p in pins if p.code in GAPS), pins[0])
    where = anatomy.describe_pin(first).removeprefix(first.reason) if first.code in GAPS else ""
    return f"{first.code} {re.sub(r' in module.*| ?[(].*', '', first.reason + where)}"


def grow(module: nn.Module, inputs: tuple[Tensor, ...], dims: Iterable[Dim]) -> Row:
    """Grow dims by 2 through the public interface; the error of the grown module on fresh inputs, or why it
    was refused."""
    with tempfile.TemporaryDirectory() as place:
        recipe = Path(place) / "coverage.surgery"
        recipe.write_text(RECIPE.format(", ".join(f'axis("{p}", {i})' for p, i in dims)))
        try:
            result = surgeon.apply(recipe, module, example_inputs=inputs, device="cpu")
        except SurgeonError as error:
            return refusal(error)
    assert result.model is not None
    state = dict(module.named_parameters(remove_duplicate=False))
    grown = dict(result.model.named_parameters(remove_duplicate=False))
    assert all(grown[p].shape[i] > state[p].shape[i] for p, i in dims)
    before, after = result.plan.parameter_counts()
    return {
        "error": difference(module, result.model, inputs[0].shape[-1]),
        "tolerance": max(
            8 * len(result.plan.anatomy.calls) * _epsilon(result.plan.anatomy),
            8 * own_noise(module, inputs[0].shape[-1]),
        ),
        "exact": result.report.exact.outputs,
        "parameters": [before, after],
    }


def own_noise(module: nn.Module, side: int) -> float:
    """How far the outputs move when every weight is off by one rounding: random networks may magnify it."""
    generator = torch.Generator().manual_seed(9)
    shaken = copy.deepcopy(module)
    with torch.no_grad():
        for parameter in shaken.parameters():
            off = torch.randint(-1, 2, parameter.shape, generator=generator).to(parameter)
            parameter *= 1 + off * torch.finfo(parameter.dtype).eps
    return difference(module, shaken, side)


def _epsilon(anatomy: Anatomy) -> float:
    """Of the narrowest floating type that the model computes in: some cast parts of it."""
    values = [node.meta.get("val") for node in anatomy.captured.graph.nodes]
    kinds = {v.dtype for v in values if isinstance(v, Tensor) and v.is_floating_point()}
    return max(torch.finfo(kind).eps for kind in kinds)


def refusal(error: SurgeonError) -> Row:
    text = str(error)
    return {"code": error.code, "refusal": text.splitlines()[0], "text": text[:1500]}


def difference(module: nn.Module, grown: nn.Module, side: int) -> float:
    """The largest difference of the outputs on fresh pictures, relative to the largest output. An output
    axis that grew must be the source's, over and over."""
    worst = 0.0
    with torch.no_grad():
        for seed, batch in ((101, 2), (102, 3)):
            inputs = pictures(side, seed, batch)
            for old, new in zip(_tensors(module(*inputs)), _tensors(grown(*inputs)), strict=True):
                for axis, size in enumerate(new.shape):
                    old = old.index_select(axis, torch.arange(size) % old.shape[axis])
                assert bool((old[0] - old[1]).abs().max() > 1e-3 * old.abs().max()), "it forgets its input"
                worst = max(worst, float((new - old).abs().max() / old.abs().max()))
    return worst


def _tensors(out: Any) -> list[Tensor]:
    several = [out] if isinstance(out, Tensor) else list(out.values() if isinstance(out, dict) else out)
    return [t for item in several for t in (_tensors(item) if not isinstance(item, Tensor) else [item])]


def plannable(module: nn.Module, inputs: tuple[Tensor, ...], groups: list[list[Dim]]) -> list[int]:
    """The groups that can grow together: each is added to those before it where a plan has no objection."""
    from surgeon.language import loads
    from surgeon.models.source import from_factory_value
    from surgeon.planning.literals import grown_args
    from surgeon.surgery.subject import examine, plan_surgery

    subject = examine(from_factory_value((module, inputs), "model"))
    taken: list[int] = []
    for i in range(len(groups)):
        dims = [dim for n in (*taken, i) for dim in groups[n]]
        program = loads(RECIPE.format(", ".join(f'axis("{p}", {a})' for p, a in dims)))
        try:
            plan = plan_surgery(subject, program.recipes[-1], program).plan
            for node in plan.anatomy.captured.graph.nodes:
                grown_args(node, plan.anatomy, plan.maps)  # its sizes can be written
        except SurgeonError:
            continue
        taken.append(i)
    return taken


def examine(collection: str, name: str, alone: bool) -> Row:
    """One model: its row."""
    torch.set_num_threads(1)
    try:
        made = build(collection, name)
    except Exception as error:
        return {"unbuilt": f"{type(error).__name__}: {error}"[:300]}
    if made is None:
        return {"unbuilt": "too large for this sweep: its smaller relations are of the same class"}
    module, inputs = made
    row: Row = {"size": sum(p.numel() for p in module.parameters())}
    start = time.perf_counter()
    try:
        anatomy = surgeon.dims(module, inputs)
    except SurgeonError as error:
        return row | refusal(error)
    row["seconds"] = round(time.perf_counter() - start, 2)
    groups, pins, nameless = growable(anatomy)
    row |= {
        "ops": len(anatomy.calls),
        "groups": {label: len(dims) for label, dims in groups.items()},
        "pinned": dict(pins.most_common()),
        "nameless": nameless,
    }
    if not groups:
        return row | {"refusal": "no dim is growable"}
    everything = [dim for dims in groups.values() for dim in dims]
    row["together"] = grow(module, inputs, everything)
    if "error" not in row["together"]:
        taken = plannable(module, inputs, list(groups.values()))
        row["without"] = [label for i, label in enumerate(groups) if i not in taken]
        if taken:
            row["most"] = grow(module, inputs, [d for i in taken for d in list(groups.values())[i]])
    if alone:
        row["alone"] = {label: grow(module, inputs, dims) for label, dims in groups.items()}
    return row


def verdict(row: Row) -> str:
    for key in ("crash", "unbuilt"):
        if key in row:
            return f"{key}: {row[key]}".splitlines()[0][:160]
    if "together" not in row:
        return row["refusal"][:160]
    if "error" in row["together"]:
        return told(row["together"])
    left = f"without {', '.join(row['without'])}: " + (told(row["most"]) if "most" in row else "nothing")
    return f"{row['together']['refusal'][:140]}; {left}"


def told(attempt: Row) -> str:
    if "error" not in attempt:
        return str(attempt["refusal"])
    word = "same" if attempt["error"] <= attempt["tolerance"] else "ANOTHER"
    return f"{word} function: {attempt['error']:.1e}"


def table(rows: list[Row]) -> str:
    """The rows as a page."""
    lines = [
        "# Coverage of plain modules",
        "",
        "Architectures that are no transformers classes: one or more of nearly every family of `timm`, and",
        "the classifiers of `torchvision` of up to 31 million parameters (the larger ones are of the same",
        "classes). Every parameter and running statistic is random. All growable dims grow together by 2,",
        "with uneven shares and noise, through `surgeon.apply`; where that is refused, as many as a plan",
        "does not object to.",
        "",
        "The judge is outside of surgeon: the module that is returned runs in float64 on fresh pictures, in",
        "two sizes of batch, against the source. *Same function* is: its largest relative error is below 8",
        "roundings for each op, or 8 times what one rounding of the source's own weights does to the source.",
        "*Pinned for want* are dims that a rule or kind yet to be written might free. Made by",
        "`benchmarks/coverage_modules.py`.",
    ]
    for collection in dict.fromkeys(row["collection"] for row in rows):
        mine = [row for row in rows if row["collection"] == collection and not _left_out(row)]
        out = sum(_left_out(row) for row in rows if row["collection"] == collection)
        counts = Counter(outcome(row) for row in mine)
        total = ", ".join(f"{n} {what}" for what, n in counts.most_common())
        lines += ["", f"## {collection}: {len(mine)} models", "", f"{total}."]
        lines += [f"{out} more are larger, and were left out."] if out else []
        lines += ["", "| model | parameters | dims | error | pinned for want | what does not grow |"]
        lines += ["|---|---|---|---|---|---|"]
        mine.sort(key=lambda row: (outcome(row) != SAME, outcome(row), row["model"]))
        lines += [_line(row) for row in mine]
    return "\n".join(lines)


SAME = "the same function, all dims together"


def _left_out(row: Row) -> bool:
    return str(row.get("unbuilt", "")).startswith("too large")


def outcome(row: Row) -> str:
    if "together" not in row:
        return "not built" if "unbuilt" in row else "not captured"
    best = row["together"] if "error" in row["together"] else row.get("most", {})
    if "error" not in best:
        return "refused"
    if not best["error"] <= best["tolerance"]:
        return "ANOTHER FUNCTION"
    return SAME if best is row["together"] else "the same function, without some dims"


def _line(row: Row) -> str:
    together = row.get("together", {})
    best = together if "error" in together else row.get("most", {})
    sizes = " → ".join(f"{n:,}" for n in best.get("parameters", []))
    error = f"{best['error']:.1e}" if best.get("error") is not None else ""
    dims = sum(row.get("groups", {}).values()) or ""
    wanting = "; ".join(f"{n}: {why}" for why, n in row.get("pinned", {}).items() if why[:4] in GAPS)
    why = row.get("crash") or row.get("unbuilt") or row.get("refusal") or together.get("refusal", "")
    left = f"{', '.join(row['without'])}: " if row.get("without") else ""
    text = (left + why).replace("|", "\\|")
    return f"| {row['model']} | {sizes} | {dims} | {error} | {wanting} | {text} |"


def main() -> None:
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(dest="command", required=True)
    runs = commands.add_parser("run")
    runs.add_argument("--collection", choices=COLLECTIONS, default="timm")
    runs.add_argument("--out", type=Path, default=Path("modules.jsonl"))
    runs.add_argument("--only", nargs="*", default=[])
    runs.add_argument("--alone", action="store_true", help="each group of dims by itself, too")
    runs.add_argument("--jobs", type=int, default=1)
    commands.add_parser("table").add_argument("file", type=Path)
    given = parser.parse_args()
    if given.command == "table":
        rows = [json.loads(line) for line in given.file.read_text().splitlines()]
        sys.stdout.write(table(rows) + "\n")
        return
    ready()
    torch.set_num_threads(1)
    logging.disable(logging.CRITICAL)
    several = [
        ({"collection": given.collection, "model": n}, partial(examine, given.collection, n, given.alone))
        for n in names(given.collection)
        if not given.only or n in given.only
    ]
    for row in sweep(given.out, several, "model", given.jobs, SECONDS):
        print(f"{row['model']:36s} {verdict(row)}", flush=True)


if __name__ == "__main__":
    main()
