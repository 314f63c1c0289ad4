"""What travels with the weights: tokenizer, generation config and other side files byte for byte, a model
card, and ``surgery.json``."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from surgeon.checkpoints.distributed import METADATA
from surgeon.checkpoints.reading import INDEX, SINGLE
from surgeon.errors import CheckpointError, fail
from surgeon.language.syntax import FileField

CARD = "README.md"
WRITTEN = {"config.json", CARD, "surgery.json"}
LEFT_SUFFIXES = {
    *(".safetensors", ".h5", ".msgpack", ".onnx", ".gguf", ".ggml", ".ot", ".tflite", ".pb", ".npz", ".npy"),
    ".distcp",
    *(".bin", ".pt", ".pth", ".pt2", ".ckpt", ".pkl", ".pickle", ".joblib", ".dill"),
    *(".py", ".pyc", ".so"),
}
MAX_SIDE_FILE = 64 * 1024 * 1024
MAX_SIDE_FILES = 512 * 1024 * 1024  # all together


def carry_files(source: Path, folder: Path, code: bool = False) -> list[str]:
    """Copy every side file of a model folder, and return their names.

    Weights and pickles stay behind, Python code unless `code` (the class is made of it), and so do hidden
    files, models in subfolders (a trainer's checkpoints), and what is too large to be a side file. Raises
    CheckpointError S413 when a file cannot be read.
    """
    carried: list[str] = []
    room = MAX_SIDE_FILES
    try:
        for file in _side_files(source, code):
            size = file.stat().st_size
            if size > min(room, MAX_SIDE_FILE):
                continue
            room -= size
            relative = file.relative_to(source)
            content = file.read_bytes()
            (folder / relative).parent.mkdir(parents=True, exist_ok=True)
            (folder / relative).write_bytes(content)
            carried.append(relative.as_posix())
    except OSError as error:
        if error.filename is None or not Path(error.filename).is_relative_to(source):
            raise
        raise fail(CheckpointError, "S413", f"{error.filename} cannot be read: {error.strerror}") from error
    return carried


def left_behind(source: Path, carried: Sequence[str], read: Collection[str]) -> list[str]:
    """The files of a model folder, and its subfolders of which nothing travels, that are neither carried,
    nor `read` as weights, nor written anew; the model card is one of them."""
    told = {*(name.partition("/")[0] for name in carried), *read, *WRITTEN - {CARD}, INDEX}
    found = sorted(p for p in source.iterdir() if p.name not in told and not p.name.startswith("."))
    return [p.name + "/" if p.is_dir() else p.name for p in found]


def say_grown_sizes(
    folder: Path,
    carried: Sequence[str],
    fields: Sequence[FileField],
    changes: Mapping[str, tuple[Any, Any]],
) -> list[str]:
    """Let side files say the grown numbers, and return what was changed.

    Only a JSON object that says the old number of a config field in the place that a family names is
    changed, and in it only this number.

    Args:
        carried: the names of side files in `folder`.
        changes: config fields, and their numbers before and after.
    """
    said = []
    for name in carried:
        for about in fields:
            field = next((f for f in about.fields if f in changes), None)
            if field is None or not fnmatchcase(name, about.files):
                continue
            before, after = changes[field]
            file = folder / name
            try:
                text = file.read_bytes().decode("utf-8")
                content = json.loads(text)
            except (ValueError, RecursionError):
                continue
            if not isinstance(content, dict) or content.get(about.name) != before or before == after:
                continue
            pattern = rf'("{re.escape(about.name)}"\s*:\s*){before}(?![\d.eE])'
            changed, count = re.subn(pattern, rf"\g<1>{after}", text)
            if count == 1:
                file.write_bytes(changed.encode("utf-8"))
                said.append(f"{name}: {about.name} {before} → {after}, as config.{field}")
            else:
                said.append(f"{name} still says {about.name} {before}; config.{field} is {after} now")
    return said


def _side_files(source: Path, code: bool) -> Iterator[Path]:
    for place, folders, files in os.walk(source, onerror=_raise):
        here = Path(place)
        folders[:] = sorted(f for f in folders if not f.startswith(".") and not _holds_weights(here / f))
        for name in sorted(files):
            file = here / name
            left = file.suffix.lower() in LEFT_SUFFIXES or name.endswith(".index.json")
            left &= not (code and file.suffix == ".py")
            written = here == source and name in WRITTEN
            if not (left or written or name.startswith(".")) and file.is_file():
                yield file


def _raise(error: OSError) -> None:
    raise error


def _holds_weights(folder: Path) -> bool:
    return any((folder / name).exists() for name in (SINGLE, INDEX, METADATA, "pytorch_model.bin"))


def write_surgery(folder: Path, record: Mapping[str, Any]) -> None:
    """``surgery.json``: recipe, plan and proof."""
    text = json.dumps(record, indent=2, sort_keys=False, default=str)
    (folder / "surgery.json").write_text(text + "\n", encoding="utf-8")


def write_card(folder: Path, source: str, record: Mapping[str, Any]) -> None:
    """The model card. It names a hub id as the base model; of a local folder only its name is said."""
    hub = re.fullmatch(r"[\w.-]+/[\w.-]+", source) is not None and not Path(source).exists()
    base = f"base_model: {json.dumps(source)}\n" if hub else ""
    name = source if hub else Path(source).resolve().name
    plan, proof = record["plan"], record["proof"]
    fence = "```"
    while fence in record["recipe_text"]:
        fence += "`"
    claim = ", computing the same function" if proof["preserved"] else ""
    if (exact := proof["exact"]) is None:
        proved = proof["verdict"]
    else:
        proved = (
            f"{proof['verdict']} Worst relative error of the outputs in float64: {exact['outputs']:.2e}\n"
            f"(tolerance {exact['tolerance']:.2e})."
        )
    rows = "\n".join(f"| {d['label']} | {d['size']} | {d['target']} | {d['dims']} |" for d in plan["dims"])
    card = f"""---
{base}tags: [surgeon, model-growth]
library_name: transformers
---

# {name}, grown

Grown from `{name}` by surgeon with the recipe `{plan["recipe"]}`: {plan["parameters"]["source"]:,} to
{plan["parameters"]["target"]:,} parameters{claim}.

| dim | from | to | how many |
|---|---|---|---|
{rows}

{proved} The whole plan and proof are in `surgery.json`.

{fence}
{record["recipe_text"].strip()}
{fence}
"""
    (folder / CARD).write_text(card, encoding="utf-8")
