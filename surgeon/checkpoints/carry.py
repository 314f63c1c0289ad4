"""What travels with the weights: tokenizer, generation config and other side files byte for byte, a model
card, and ``surgery.json``."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

WRITTEN = {"config.json", "README.md", "surgery.json"}
LEFT_SUFFIXES = {
    ".safetensors",
    ".bin",
    ".pt",
    ".pth",
    ".ckpt",
    ".pkl",
    ".h5",
    ".msgpack",
    ".onnx",
    ".gguf",
    ".py",
}
MAX_SIDE_FILE = 64 * 1024 * 1024


def carry_files(source: Path, folder: Path) -> list[str]:
    """Copy every side file of a model folder; weights, pickles and code stay behind."""
    carried = []
    for file in sorted(source.rglob("*")):
        relative = file.relative_to(source)
        hidden = any(part.startswith(".") for part in relative.parts)
        if hidden or not file.is_file() or str(relative) in WRITTEN or file.suffix in LEFT_SUFFIXES:
            continue
        if file.name.endswith(".index.json") or file.stat().st_size > MAX_SIDE_FILE:
            continue
        (folder / relative).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, folder / relative)
        carried.append(str(relative))
    return carried


def write_surgery(folder: Path, record: Mapping[str, Any]) -> None:
    """``surgery.json``: recipe, plan and proof."""
    text = json.dumps(record, indent=2, sort_keys=False, default=str)
    (folder / "surgery.json").write_text(text + "\n", encoding="utf-8")


def write_card(folder: Path, source: str, record: Mapping[str, Any]) -> None:
    """The model card."""
    plan, proof = record["plan"], record["proof"]
    fence = "```"
    rows = "\n".join(f"| {d['label']} | {d['size']} | {d['target']} | {d['dims']} |" for d in plan["dims"])
    card = f"""---
base_model: {source}
tags: [surgeon, model-growth]
library_name: transformers
---

# {folder.name if not folder.name.startswith(".") else source} grown

Grown from `{source}` by surgeon with the recipe `{plan["recipe"]}`: {plan["parameters"]["source"]:,} to
{plan["parameters"]["target"]:,} parameters, computing the same function.

| dim | from | to | how many |
|---|---|---|---|
{rows}

Worst relative error of the outputs in float64: {proof["exact"]["outputs"]:.2e}
(tolerance {proof["exact"]["tolerance"]:.2e}). The whole plan and proof are in `surgery.json`.

{fence}
{record["recipe_text"].strip()}
{fence}
"""
    (folder / "README.md").write_text(card, encoding="utf-8")
