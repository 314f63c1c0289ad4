"""The inferred anatomy held against transformers' own plans for tensor parallelism, of every config with one.

A plan names the modules whose outputs are cut (colwise) and those whose inputs are (rowwise); a person wrote
it down by hand. What is cut between two modules of a block is a dim: the outermost of what the one puts out
must be that of what the other reads, and nothing else may fix it.

Usage:
    python benchmarks/parallel_plans.py run --out plans.jsonl [--only NAME …]
    python benchmarks/parallel_plans.py table plans.jsonl
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

from isolation import Row, sweep

from surgeon.axes.store import Axis, Store
from surgeon.graph.inference import Anatomy

CUT = {
    **dict.fromkeys(("colwise", "packed_colwise", "colwise_gather_output"), -2),
    **dict.fromkeys(("rowwise", "packed_rowwise", "rowwise_split_input"), -1),
}
"""The axis of a weight that is cut. Of the other styles some copy, and some cut rows of a vocabulary or whole
experts, between which no dim lies."""
SECONDS = 240


def cut_dims(anatomy: Anatomy, plan: Mapping[str, str]) -> dict[str, dict[str, set[int]]]:
    """For each block the dims that its modules cut, by side: ``colwise`` what is put out, ``rowwise`` what is
    read. `plan` has patterns of whole module or parameter names."""
    cut: dict[str, dict[str, set[int]]] = {}
    for parameter in anatomy.captured.parameters.values():
        style, axes = style_of(parameter, plan), anatomy.parameter_axes(parameter)
        if style in CUT and len(axes) > 1:
            block = parameter.removesuffix(".weight").rpartition(".")[0]
            side = "colwise" if CUT[style] == -2 else "rowwise"
            found = outermost(anatomy.store, axes[CUT[style]])
            cut.setdefault(block, {}).setdefault(side, set()).update(found)
    return cut


def style_of(parameter: str, plan: Mapping[str, str]) -> str:
    module = parameter.removesuffix(".weight")
    return next((style for pattern, style in plan.items() if fnmatchcase(module, pattern)), "")


def outermost(store: Store, axis: Axis) -> set[int]:
    """The first dim of each piece of an axis."""
    return {word[0] for word in store.words(axis) if word and isinstance(word[0], int)}


def held_against(anatomy: Anatomy, plan: Mapping[str, str]) -> Row:
    """How many blocks agree, and what is said of those that do not."""
    store, agree, unlike = anatomy.store, 0, dict[str, str]()
    cut = cut_dims(anatomy, plan)
    for block, sides in cut.items():
        if len(sides) < 2:
            continue
        put, read = sides["colwise"], sides["rowwise"]
        pins = [anatomy.describe_pin(p) for d in put for p in store.pins_of(d)]
        if put == read and not pins:
            agree += 1
            continue
        said = "; ".join(
            f"{side} {', '.join(sorted(store.labels[d] for d in dims))}" for side, dims in sides.items()
        )
        unlike[block] = f"pinned: {pins[0]}" if put == read else said
    return {"blocks": agree, "unlike": unlike, "one-sided": sum(len(s) < 2 for s in cut.values())}


def classes() -> Iterator[tuple[str, str]]:
    """Of each config one class: the first of the groups of the coverage that has one."""
    from coverage import GROUPS
    from coverage import classes as of_group

    seen = set()
    for group in GROUPS:
        for model_type, name in of_group(group):
            if model_type not in seen:
                seen.add(model_type)
                yield model_type, name


def examine(model_type: str, name: str) -> Row:
    import torch
    import transformers
    from tiny_configs import TWEAKS, tiny_config

    import surgeon
    from surgeon.errors import SurgeonError
    from surgeon.models.native import build_meta

    torch.set_num_threads(1)
    try:
        model_class = getattr(transformers, name)
        own = model_class.config_class.model_type
        config = tiny_config(
            model_class.config_class, TWEAKS.get(name) or TWEAKS.get(model_type) or TWEAKS.get(own)
        )
        config.architectures = [name]
        plan = dict(build_meta(config, model_class)[0]._tp_plan or {})
    except Exception as error:
        return {"unbuilt": f"{type(error).__name__}: {error}"[:300]}
    if not plan:
        return {"plan": 0}
    with tempfile.TemporaryDirectory() as place:
        config.save_pretrained(place)
        try:
            anatomy = surgeon.dims(Path(place) / "config.json")
        except SurgeonError as error:
            return {"plan": len(plan), "refusal": str(error)[:600]}
    return {"plan": len(plan), **held_against(anatomy, plan)}


def verdict(row: Row) -> str:
    for key in ("crash", "unbuilt", "refusal"):
        if key in row:
            return f"{key}: {row[key]}".splitlines()[0][:160]
    if not row["plan"]:
        return "its config has no plan"
    unlike = [f"{re.sub(r'[0-9]+', '*', block)}: {said}" for block, said in row["unlike"].items()]
    if not row["blocks"] and not unlike:
        return "its plan cuts no block on both sides"
    return f"{row['blocks']} blocks agree" + (f", {len(unlike)} do not: {unlike[0]}" if unlike else "")


def table(rows: list[Row]) -> str:
    """What was found, in numbers, and every disagreement."""
    planned = [row for row in rows if row.get("plan")]
    held = [row for row in planned if "blocks" in row]
    count = Counter("unlike" if row["unlike"] else "alike" if row["blocks"] else "no pair" for row in held)
    lines = [
        f"{len(planned)} configs have a plan; {len(planned) - len(held)} of them cannot be captured. "
        f"Of the others {count['alike']} agree in all {sum(r['blocks'] for r in held)} blocks that cut both "
        f"sides, {count['no pair']} cut no both sides of a block, and {count['unlike']} do not agree:",
        "",
        *(f"- {row['class']}: {verdict(row)}" for row in held if row["unlike"]),
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(dest="command", required=True)
    runs = commands.add_parser("run")
    runs.add_argument("--out", type=Path, default=Path("plans.jsonl"))
    runs.add_argument("--only", nargs="*", default=[])
    runs.add_argument("--jobs", type=int, default=1)
    commands.add_parser("table").add_argument("file", type=Path)
    given = parser.parse_args()
    if given.command == "table":
        rows: list[dict[str, Any]] = [json.loads(line) for line in given.file.read_text().splitlines()]
        sys.stdout.write(table(rows) + "\n")
        return
    import transformers

    import surgeon.operations  # noqa: F401  imported before the fork

    transformers.logging.set_verbosity_error()
    logging.disable(logging.CRITICAL)
    several = [
        ({"type": model_type, "class": name}, partial(examine, model_type, name))
        for model_type, name in classes()
        if not given.only or name in given.only or model_type in given.only
    ]
    for row in sweep(given.out, several, "class", given.jobs, SECONDS):
        print(f"{row['type']:32s} {verdict(row)}", flush=True)


if __name__ == "__main__":
    main()
