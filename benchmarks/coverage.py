"""Coverage: every class of a transformers auto mapping, tiny and random, grown by one generic recipe.

Each class runs in a process of its own. The judges are surgeon's proof, stock transformers included, and
`coverage_judge.py`; what is written to the table is what was seen.

Beside all dims together, a class can be grown in other ways: `alone`, each dim by itself; `ties`, with its
embeddings tied if they were not, and the other way round; and `stock`: what is written is looked at by stock
transformers in every way that it can be.

Usage:
    python benchmarks/coverage.py run --group causal --out coverage.jsonl [--only NAME …] [--ways WAY …]
    python benchmarks/coverage.py table coverage.jsonl > docs/coverage.md
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from coverage_judge import judge, wrong
from coverage_table import table
from isolation import sweep
from tiny_configs import TWEAKS, tiny_config
from tiny_inputs import given

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
    "rest": "MODEL_MAPPING_NAMES",
    "tasks": "",
    "endings": "",
}
REST = "rest"  # the bare classes of model types that stand in no other group
TASKS = "tasks"  # the classes of all other tasks, but for those that end a text model in one more layer
ENDED = "endings"  # these
ENDINGS = ("SEQUENCE_CLASS", "TOKEN_CLASS", "FOR_QUESTION_ANSWERING", "MULTIPLE_CHOICE", "TEXT_ENCODING")
TOGETHER = ("hidden", "ffn", "heads")
ALONE = ("hidden", "ffn", "heads", "head_dim")
RECIPE = """recipe coverage() {{
    grow {} by 2
    spread linear with uneven(1, 2)
    noise linear at 10 dB
    preserve logits
}}
"""
WAYS = ("alone", "ties", "stock")
SECONDS = 480


def classes(group: str) -> list[tuple[str, str]]:
    """Model type and class name, each class once."""
    from transformers.models.auto import modeling_auto

    if group in (TASKS, ENDED):
        known = {name for other, mapping in GROUPS.items() if mapping for _, name in classes(other)}
        names = _of_other_tasks(modeling_auto, group == ENDED)
        if group == ENDED:
            known |= _of_other_tasks(modeling_auto, False).keys()
        return [(model_type, name) for name, model_type in names.items() if name not in known]
    names = dict(getattr(modeling_auto, GROUPS[group]))
    if group == REST:
        others = [
            getattr(modeling_auto, mapping)
            for mapping in GROUPS.values()
            if mapping and mapping != GROUPS[REST]
        ]
        names = {key: name for key, name in names.items() if not any(key in known for known in others)}
    seen: dict[str, str] = {}
    for model_type, name in sorted(names.items()):
        first = name if isinstance(name, str) else name[0]
        if first.lower().startswith(model_type.replace("_", "")) or first not in seen:
            seen[first] = model_type
    return [(model_type, name) for name, model_type in seen.items()]


def _of_other_tasks(modeling_auto: Any, ended: bool) -> dict[str, str]:
    """The model type of each class in the mappings that no group is of, `ended` by one more layer or not."""
    found: dict[str, str] = {}
    for mapping, classes_of in vars(modeling_auto).items():
        of_a_task = mapping.startswith("MODEL_FOR") and mapping.endswith("MAPPING_NAMES")
        if not of_a_task or mapping in GROUPS.values():
            continue
        if any(ending in mapping for ending in ENDINGS) != ended:
            continue
        for model_type, name in classes_of.items():
            found.setdefault(name if isinstance(name, str) else name[0], model_type)
    return dict(sorted(found.items()))


def make(model_type: str, name: str, folder: Path, tied: bool | None = None) -> bool:
    """A tiny model of a class, every parameter and statistic random, saved as transformers saves it.

    With `tied` its config says whether input and output embeddings are one tensor. Returns whether any
    tensor of the model is shared.
    """
    import torch
    import transformers

    model_class = getattr(transformers, name)
    own = model_class.config_class.model_type
    tweaks = next((TWEAKS[key] for key in (name, own, model_type) if key in TWEAKS), None)
    config = tiny_config(model_class.config_class, tweaks)
    if tied is not None:
        for part in {id(c): c for c in (config, config.get_text_config())}.values():
            part.tie_word_embeddings = tied
    torch.manual_seed(0)
    model = model_class(config).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for at, parameter in model.named_parameters():
            if not parameter.is_floating_point():
                continue
            values = torch.randn(parameter.shape, generator=generator)
            norm = parameter.ndim == 1 and at.endswith("weight")
            scale = 0.2 if norm or parameter.ndim < 2 else max(1, parameter[0].numel()) ** -0.5
            parameter.copy_(scale * values + (1.0 if norm else 0.0))
        held = model.state_dict().keys()
        for at, buffer in model.named_buffers():
            if at.endswith("running_var"):
                buffer.uniform_(0.5, 1.5, generator=generator)
            elif at.endswith("running_mean"):
                buffer.normal_(0, 0.2, generator=generator)
            elif buffer.ndim > 1 and buffer.is_floating_point() and at in held and not buffer.any():
                buffer.normal_(generator=generator)  # codes, which a class leaves empty: all are as near
    model.save_pretrained(folder)
    every = [p.data_ptr() for _, p in model.named_parameters(remove_duplicate=False)]
    return len(set(every)) < len(every)


def attempt(
    folder: Path,
    dims: tuple[str, ...],
    out: Path,
    verify: str = "full",
    judged_as: Any = None,
    inputs: Any = None,
) -> dict[str, Any]:
    """Grow the named dims; the errors of the proof, or why it was refused. With `judged_as`, the model's
    class, stock transformers looks at the folder as well. `inputs` are the user's own."""
    import surgeon
    from surgeon.errors import SurgeonError

    recipe = out.with_suffix(".surgery")
    recipe.write_text(RECIPE.format(", ".join(dims)))
    planned: list[float] = []
    start = time.perf_counter()
    try:
        result = surgeon.apply(
            recipe,
            folder,
            out,
            example_inputs=inputs,
            device="cpu",
            verify=verify,
            planned=lambda plan, forecast: planned.append(time.perf_counter() - start),
        )
    except SurgeonError as error:
        if error.code == "S313":
            return {"code": "", "refusal": "its config states no such size", "text": ""}
        return refusal(error)
    report = result.report
    assert report.exact is not None
    if not result.plan.grown_dims():
        return {"code": "", "refusal": "its config states no such size", "text": ""}
    row = {
        "fields": {name: list(change) for name, change in result.plan.config_changes.items()},
        "grown": [f"{d.label} {d.size}→{d.target}" for d in result.plan.grown_dims()],
        "notes": list(result.plan.notes),
        "plan_seconds": round(planned[0], 2),
        "exact": report.exact.outputs,
    }
    if report.native is not None:
        row |= {
            "native": report.native.relative,
            "tolerance": report.native.tolerance,
            "greedy": report.native.greedy,
        }
    if judged_as is not None:
        tolerance = report.native.tolerance if report.native is not None else 0.0
        row["judged"] = judge(folder, out, judged_as, result.plan.config_changes, tolerance, inputs)
        row["wrong"] = wrong(row["judged"])
    return row


def refusal(error: Any) -> dict[str, Any]:
    text = str(error)
    return {"code": error.code, "refusal": text.splitlines()[0], "text": text[:1500]}


def examine(group: str, model_type: str, name: str, ways: tuple[str, ...]) -> dict[str, Any]:
    """One class: the row of the table."""
    import torch
    import transformers

    import surgeon
    from surgeon.errors import SurgeonError

    torch.set_num_threads(1)
    row: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "source"
        try:
            row["tied"] = make(model_type, name, folder)
        except Exception as error:
            return row | {"unbuilt": f"{type(error).__name__}: {error}"[:300]}
        inputs = given(model_type, name, transformers.AutoConfig.from_pretrained(folder))
        row["given"] = sorted(inputs or {})
        start = time.perf_counter()
        try:
            row["dims"] = len(surgeon.dims(folder, inputs).store.labels)
        except SurgeonError as error:
            return row | refusal(error)
        row["seconds"] = round(time.perf_counter() - start, 2)
        judged_as = getattr(transformers, name) if "stock" in ways else None
        grow = partial(attempt, folder, inputs=inputs)
        together = grow(TOGETHER, Path(place) / "together", judged_as=judged_as)
        row["together"] = together
        if "exact" not in together:
            row["alone"] = {d: grow((d,), Path(place) / d, judged_as=judged_as) for d in ALONE}
        elif "alone" in ways:  # the exact check is enough: the folder is of the kind that stock has judged
            row["alone"] = {d: grow((d,), Path(place) / d, verify="sample") for d in TOGETHER}
        if "ties" in ways:
            row["otherwise"] = _otherwise(model_type, name, Path(place), not row["tied"], judged_as, inputs)
    return row


def _otherwise(
    model_type: str, name: str, place: Path, tied: bool, judged_as: Any, inputs: Any
) -> dict[str, Any] | None:
    """The same class with embeddings tied if they were not, and the other way round; None where it has no
    such choice."""
    folder = place / "otherwise"
    try:
        if make(model_type, name, folder, tied) != tied:
            return None
    except Exception:  # it refuses: no choice
        return None
    return attempt(folder, TOGETHER, place / "otherwise-grown", inputs=inputs, judged_as=judged_as)


def run(group: str, out: Path, only: list[str], jobs: int, ways: tuple[str, ...]) -> None:
    import torch
    import transformers

    import surgeon.operations  # noqa: F401  imported before the fork

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    logging.disable(logging.CRITICAL)
    several = [
        ({"group": group, "type": model_type, "class": name}, partial(examine, group, model_type, name, ways))
        for model_type, name in classes(group)
        if not only or model_type in only or name in only
    ]
    for row in sweep(out, several, "class", jobs, SECONDS):
        print(f"{row['type']:32s} {verdict(row)}", flush=True)


def verdict(row: dict[str, Any]) -> str:
    """What became of a class, in a few words."""
    for key in ("crash", "unbuilt"):
        if key in row:
            return f"{key}: {row[key]}".splitlines()[0][:160]
    if "together" not in row:
        return str(row["refusal"])[:160]
    more = {"otherwise": row.get("otherwise"), **row.get("alone", {})}
    attempts = {"together": row["together"], **{way: a for way, a in more.items() if a is not None}}
    bad = [f"{way} WRONG {a['wrong']}" for way, a in attempts.items() if a.get("wrong")]
    failed = [f"{way}: {a['refusal'][:140]}" for way, a in attempts.items() if "exact" not in a and a["code"]]
    grown = [way for way, a in attempts.items() if "exact" in a]
    return "; ".join([f"grown {', '.join(grown) or 'none'}", *bad, *failed])


def main() -> None:
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(dest="command", required=True)
    runs = commands.add_parser("run")
    runs.add_argument("--group", choices=GROUPS, default="causal")
    runs.add_argument("--out", type=Path, default=Path("coverage.jsonl"))
    runs.add_argument("--only", nargs="*", default=[])
    runs.add_argument("--jobs", type=int, default=1)
    runs.add_argument("--ways", nargs="*", choices=WAYS, default=["stock"], help="beside all dims together")
    commands.add_parser("table").add_argument("file", type=Path)
    given = parser.parse_args()
    if given.command == "run":
        run(given.group, given.out, given.only, given.jobs, tuple(given.ways))
    else:
        rows = [json.loads(line) for line in given.file.read_text().splitlines()]
        sys.stdout.write(table(rows) + "\n")


if __name__ == "__main__":
    main()
