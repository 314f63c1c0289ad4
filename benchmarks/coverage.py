"""Coverage: every class of a transformers auto mapping, tiny and random, grown by one generic recipe.

Each class runs in a process of its own. The judge is surgeon's proof, stock transformers included; what
is written to the table is what was seen.

Usage:
    python benchmarks/coverage.py run --group causal --out coverage.jsonl [--only NAME …] [--jobs N]
    python benchmarks/coverage.py table coverage.jsonl > docs/coverage.md
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import multiprocessing
import os
import resource
import sys
import tempfile
import time
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tiny_configs import TWEAKS, tiny_config

GROUPS = {
    "causal": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "masked": "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
    "seq2seq": "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
    "vision": "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES",
    "towers": "MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES",
    "video": "MODEL_FOR_VIDEO_CLASSIFICATION_MAPPING_NAMES",
    "segmentation": "MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES",
    "depth": "MODEL_FOR_DEPTH_ESTIMATION_MAPPING_NAMES",
    "detection": "MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES",
    "speech": "MODEL_FOR_CTC_MAPPING_NAMES",
    "vlm": "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES",
    "audio": "MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES",
    "transcription": "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES",
}
TOGETHER = ("hidden", "ffn", "heads")
ALONE = ("hidden", "ffn", "heads", "head_dim")
RECIPE = """recipe coverage() {{
    grow {} by 2
    spread linear with uneven(1, 2)
    noise linear at 10 dB
    preserve logits
}}
"""
SECONDS, BYTES = 240, 9 * 2**30


def classes(group: str) -> list[tuple[str, str]]:
    """Model type and class name, each class once."""
    from transformers.models.auto import modeling_auto

    seen: dict[str, str] = {}
    for model_type, name in sorted(getattr(modeling_auto, GROUPS[group]).items()):
        first = name if isinstance(name, str) else name[0]
        if first.lower().startswith(model_type.replace("_", "")) or first not in seen:
            seen[first] = model_type
    return [(model_type, name) for name, model_type in seen.items()]


def make(model_type: str, name: str, folder: Path) -> None:
    """A tiny model of a class, every parameter and statistic random, saved as transformers saves it."""
    import torch
    import transformers

    model_class = getattr(transformers, name)
    own = model_class.config_class.model_type
    tweaks = TWEAKS.get(name) or TWEAKS.get(model_type) or TWEAKS.get(own)
    config = tiny_config(model_class.config_class, tweaks)
    torch.manual_seed(0)
    model = model_class(config).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for at, parameter in model.named_parameters():
            if not parameter.is_floating_point():
                continue
            values = torch.randn(parameter.shape, generator=generator)
            norm = parameter.ndim == 1 and at.endswith("weight")
            scale = 0.2 if norm or parameter.ndim < 2 else parameter[0].numel() ** -0.5
            parameter.copy_(scale * values + (1.0 if norm else 0.0))
        for at, buffer in model.named_buffers():
            if at.endswith("running_var"):
                buffer.uniform_(0.5, 1.5, generator=generator)
            elif at.endswith("running_mean"):
                buffer.normal_(0, 0.2, generator=generator)
    model.save_pretrained(folder)


def attempt(folder: Path, dims: tuple[str, ...], out: Path) -> dict[str, Any]:
    """Grow the named dims; the errors of the proof, or why it was refused."""
    import surgeon
    from surgeon.errors import SurgeonError

    recipe = out.with_suffix(".surgery")
    recipe.write_text(RECIPE.format(", ".join(dims)))
    try:
        result = surgeon.apply(recipe, folder, out, device="cpu")
    except SurgeonError as error:
        text = str(error)
        return {"code": error.code, "refusal": text.splitlines()[0], "text": text[:1500]}
    report = result.report
    assert report.native is not None
    if not result.plan.grown_dims():
        return {"code": "", "refusal": "its config states no such size", "text": ""}
    return {
        "fields": {name: list(change) for name, change in result.plan.config_changes.items()},
        "grown": [f"{d.label} {d.size}→{d.target}" for d in result.plan.grown_dims()],
        "notes": list(result.plan.notes),
        "exact": report.exact.outputs,
        "native": report.native.relative,
        "tolerance": report.native.tolerance,
        "greedy": report.native.greedy,
    }


def examine(group: str, model_type: str, name: str) -> dict[str, Any]:
    """One class: the row of the table."""
    import torch

    import surgeon
    from surgeon.errors import SurgeonError

    torch.set_num_threads(1)
    row: dict[str, Any] = {"group": group, "type": model_type, "class": name}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "source"
        try:
            make(model_type, name, folder)
        except Exception as error:
            return row | {"unbuilt": f"{type(error).__name__}: {error}"[:300]}
        start = time.perf_counter()
        try:
            row["dims"] = len(surgeon.dims(folder).store.labels)
        except SurgeonError as error:
            text = str(error)
            return row | {"code": error.code, "refusal": text.splitlines()[0], "text": text[:1500]}
        row["seconds"] = round(time.perf_counter() - start, 2)
        together = attempt(folder, TOGETHER, Path(place) / "together")
        row["together"] = together
        if "exact" not in together:
            row["alone"] = {d: attempt(folder, (d,), Path(place) / d) for d in ALONE}
    return row


def _child(pipe: Any, group: str, model_type: str, name: str) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
    warnings.simplefilter("ignore")
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        try:
            row = examine(group, model_type, name)
        except BaseException as error:
            import traceback

            row = {"group": group, "type": model_type, "class": name}
            row["crash"] = f"{type(error).__name__}: {error}"[:300]
            row["text"] = traceback.format_exc()[-1500:]
    pipe.send(row)
    os._exit(0)


def isolated(group: str, model_type: str, name: str) -> dict[str, Any]:
    """The row of a class, made in a forked process: what is imported once serves all."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(theirs, group, model_type, name))
    process.start()
    theirs.close()
    row = {"group": group, "type": model_type, "class": name}
    try:
        row = ours.recv() if ours.poll(SECONDS) else row | {"crash": f"no answer in {SECONDS} s"}
    except EOFError:
        row["crash"] = "the process died"
    process.kill()
    process.join()
    return row


def run(group: str, out: Path, only: list[str], jobs: int) -> None:
    import torch
    import transformers

    import surgeon.operations  # noqa: F401  imported before the fork

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    logging.disable(logging.CRITICAL)
    done = {json.loads(line)["class"] for line in out.read_text().splitlines()} if out.exists() else set()
    wanted = [c for c in classes(group) if c[1] not in done and (not only or c[0] in only or c[1] in only)]
    with ThreadPoolExecutor(jobs) as pool, out.open("a") as stream:
        for row in pool.map(lambda c: isolated(group, *c), wanted):
            stream.write(json.dumps(row) + "\n")
            stream.flush()
            print(f"{row['type']:32s} {verdict(row)}", flush=True)


def verdict(row: dict[str, Any]) -> str:
    """What became of a class, in a few words."""
    for key in ("crash", "unbuilt"):
        if key in row:
            return f"{key}: {row[key]}".splitlines()[0][:160]
    if "together" not in row:
        return row["refusal"][:160]
    if "exact" in row["together"]:
        return "grown: " + ", ".join(row["together"]["fields"])
    grown = [d for d, a in row["alone"].items() if "exact" in a]
    return f"{', '.join(grown) or 'none'}; together: {row['together']['refusal'][:140]}"


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as a page."""
    lines = ["# Coverage", ""]
    lines += [
        "Every class of the auto mappings of transformers, tiny, with all parameters at random, grown by",
        "`grow hidden, ffn, heads by 2` with uneven shares and noise; where the three together are refused,",
        "each alone and head_dim alone. *Exact* is the error of the outputs in float64, *stock* that of",
        "stock transformers in float32 on the written folder. Made by `benchmarks/coverage.py`.",
        "",
    ]
    for group in dict.fromkeys(row["group"] for row in rows):
        mine = [row for row in rows if row["group"] == group]
        counts = Counter(_outcome(row) for row in mine)
        total = ", ".join(f"{n} {what}" for what, n in counts.most_common())
        lines += [f"## {group}: {len(mine)} classes", "", f"{total}.", ""]
        lines += ["| class | dims | config fields grown | exact | stock | why not |"]
        lines += ["|---|---|---|---|---|---|"]
        lines += [_row(row) for row in sorted(mine, key=lambda r: (_outcome(r), r["class"]))]
        lines.append("")
    return "\n".join(lines)


def _outcome(row: dict[str, Any]) -> str:
    if "together" not in row:
        return "not captured" if "refusal" in row else "not tried"
    if "exact" in row["together"]:
        return "grown as asked" if row["together"]["fields"] else "without a size of these names"
    return "grown in part" if any(a.get("fields") for a in row["alone"].values()) else "refused"


def _row(row: dict[str, Any]) -> str:
    together = row.get("together", {})
    alone = {d: a for d, a in row.get("alone", {}).items() if a.get("fields")}
    fields = together.get("fields") or [name for a in alone.values() for name in a["fields"]]
    grown = ", ".join(dict.fromkeys(fields))
    best = together if "exact" in together else next(iter(alone.values()), {})
    why = row.get("crash") or row.get("unbuilt") or row.get("refusal") or together.get("refusal", "")
    errors = [f"{best[k]:.1e}" if k in best else "" for k in ("exact", "native")]
    text = why.splitlines()[0].replace("|", "\\|")[:150] if why else ""
    return f"| {row['class']} | {row.get('dims', '')} | {grown} | {' | '.join(errors)} | {text} |"


def main() -> None:
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(dest="command", required=True)
    runs = commands.add_parser("run")
    runs.add_argument("--group", choices=GROUPS, default="causal")
    runs.add_argument("--out", type=Path, default=Path("coverage.jsonl"))
    runs.add_argument("--only", nargs="*", default=[])
    runs.add_argument("--jobs", type=int, default=1)
    commands.add_parser("table").add_argument("file", type=Path)
    given = parser.parse_args()
    if given.command == "run":
        run(given.group, given.out, given.only, given.jobs)
    else:
        rows = [json.loads(line) for line in given.file.read_text().splitlines()]
        sys.stdout.write(table(rows) + "\n")


if __name__ == "__main__":
    main()
