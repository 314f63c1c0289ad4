"""What surgeon does, for the command line and for Python: dims, plan, apply, verify."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import surgeon
from surgeon.checkpoints.carry import carry_files, say_grown_sizes, write_card, write_surgery
from surgeon.checkpoints.reading import Checkpoint, open_checkpoint
from surgeon.checkpoints.staging import refuse_existing, refuse_source, set_aside, staging
from surgeon.checkpoints.writing import Spec, write_checkpoint
from surgeon.errors import CheckpointError, LanguageError, ModelError, NotPreserved, fail
from surgeon.graph.inference import Anatomy
from surgeon.language import load
from surgeon.language.syntax import Program, Recipe
from surgeon.models.native import real_inputs, reason
from surgeon.models.source import (
    ModuleSource,
    Source,
    TransformersSource,
    from_factory_value,
    open_source,
    refuse_quantised,
)
from surgeon.models.stored import StoredModel, open_stored
from surgeon.planning.native import compare
from surgeon.planning.plan import Plan, plan_growth
from surgeon.rewriting.checkpoint import GrownCheckpoint
from surgeon.rewriting.graph import GrownModule, export, rewrite
from surgeon.rewriting.weights import expand
from surgeon.subject import Stage, Subject, Surgery, examine, plan_surgery, quiet
from surgeon.verification.coexecution import Coexecution, Pair, coexecute
from surgeon.verification.native import (
    WIDER,
    compare_stock,
    observe_folder,
    observe_wider,
    refuse_other_graph,
    told_of_stock,
)
from surgeon.verification.report import Report
from surgeon.verification.trainability import Asymmetry, gradient_asymmetry, watched_nodes


@dataclass(frozen=True)
class Result:
    """A finished surgery: the plan, the proof, where or what the grown model is, and what to know of it."""

    plan: Plan
    report: Report
    model: nn.Module | None = field(default=None, repr=False)
    folder: Path | None = None
    notes: tuple[str, ...] = ()


def device_of(name: str) -> torch.device:
    """``auto``, ``cpu`` or ``cuda``. Raises ModelError S230 for a device that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise fail(ModelError, "S230", "no CUDA device is to be had here", help="use --device cpu")
    if name not in ("cpu", "cuda"):
        raise fail(ModelError, "S230", f"unknown device {name}", expected="auto, cpu or cuda")
    return torch.device(name)


def _source(model: Any, example_inputs: tuple[Any, ...] | None, trust: bool = False) -> Source:
    if isinstance(model, nn.Module):
        if example_inputs is None:
            raise fail(ModelError, "S208", "a module needs example_inputs to be traced with")
        return from_factory_value((model, example_inputs), type(model).__name__)
    return open_source(str(model), trust)


def _read(recipe: str | Path, settings: Mapping[str, str] | None, name: str | None) -> tuple[Program, Recipe]:
    program = load(recipe, settings or {}, name)
    if not program.recipes:
        raise fail(LanguageError, "S137", f"{recipe} declares no recipe", expected="recipe NAME() { … }")
    return program, program.recipes[-1]


def dims(model: Any, example_inputs: tuple[Any, ...] | None = None, stage: Stage = quiet) -> Anatomy:
    """The anatomy of a model: its dims, the axes they tie, and what pins them. Reads no weights."""
    return examine(_source(model, example_inputs), None, stage).anatomy


def plan(
    recipe: str | Path,
    model: Any,
    example_inputs: tuple[Any, ...] | None = None,
    settings: Mapping[str, str] | None = None,
    stage: Stage = quiet,
) -> Plan:
    """What `recipe` would change in `model`. Reads no weights. Raises SurgeonError."""
    program, chosen = _read(recipe, settings, None)
    subject = examine(_source(model, example_inputs), program, stage)
    return plan_surgery(subject, chosen, program, stage).plan


def apply(
    recipe: str | Path,
    model: Any,
    out: str | Path | None = None,
    *,
    example_inputs: tuple[Any, ...] | None = None,
    settings: Mapping[str, str] | None = None,
    device: str = "auto",
    dtype: str | None = None,
    force: bool = False,
    trust_remote_code: bool = False,
    stage: Stage = quiet,
    progress: Callable[[int, int], None] = lambda done, total: None,
    planned: Callable[[Plan], None] = lambda plan: None,
) -> Result:
    """Grow `model` by `recipe`, write it to `out`, and prove that it computes the same function.

    Args:
        model: a folder, hub id, ``package.module:factory``, or a module with `example_inputs`.
        out: a folder; may be None for a plain module, whose grown module is then only returned.
        progress: called with bytes written and bytes in all.

    Raises NotPreserved S501 when the proof fails (the output is kept aside), SurgeonError otherwise.
    """
    where = device_of(device)
    program, chosen = _read(recipe, settings, None)
    source = _source(model, example_inputs, trust_remote_code)
    checkpoint = None
    if isinstance(source, TransformersSource):
        if source.folder is None or out is None:
            raise fail(
                ModelError, "S209", f"{source.name}: there are no weights to grow, or nowhere to put them"
            )
        refuse_source(Path(out), source.folder)
        checkpoint = open_checkpoint(source.folder)
        refuse_quantised(source)
        _main_dtype(checkpoint)
    if out is not None:
        refuse_existing(Path(out), force)
    subject = examine(source, program, stage)
    surgery = plan_surgery(subject, chosen, program, stage)
    planned(surgery.plan)
    if checkpoint is None:
        return _apply_module(surgery, where, Path(out) if out else None, force, stage)
    assert out is not None
    return _apply_native(surgery, checkpoint, Path(out), where, _dtype(dtype), force, stage, progress)


def _dtype(name: str | None) -> torch.dtype | None:
    if name is None:
        return None
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name not in known:
        raise fail(CheckpointError, "S407", f"unknown dtype {name}", expected=", ".join(known))
    return known[name]


# ── transformers models ──────────────────────────────────────────────────────────────────


def _stored(subject: Subject, folder: Path) -> StoredModel:
    return open_stored(subject.module, subject.anatomy.captured.aliases, open_checkpoint(folder))


def _apply_native(
    surgery: Surgery,
    checkpoint: Checkpoint,
    out: Path,
    device: torch.device,
    dtype: torch.dtype | None,
    force: bool,
    stage: Stage,
    progress: Callable[[int, int], None],
) -> Result:
    subject, plan = surgery.subject, surgery.plan
    source = subject.source
    assert isinstance(source, TransformersSource) and source.folder is not None
    assert surgery.module is not None
    stored = open_stored(subject.module, subject.anatomy.captured.aliases, checkpoint)
    grown = GrownCheckpoint(stored, plan.transforms, stored.layout.of(surgery.module), dtype, device)
    specs = grown.specs()
    total = sum(spec.bytes for spec in specs)
    done = 0

    def written(count: int) -> None:
        nonlocal done
        done += count
        progress(done, total)

    with staging(out, force, total) as folder, checkpoint.steady():
        stage("expanding and writing")
        write_checkpoint(folder, specs, grown.produce, written)
        carried = carry_files(source.folder, folder)
        said = say_grown_sizes(folder, carried, surgery.file_fields, plan.config_changes)
        _write_config(source, plan, folder, dtype)
        stage("proof: both graphs in float64")
        report = _prove_native(surgery, stored.read, source.folder, folder, dtype, device, stage)
        checkpoint.refuse_changes()
        notes = (*_notes(stored, source.model_class), *said)
        record = _record(surgery, report, source.name) | {"notes": notes}
        write_surgery(folder, record)
        write_card(folder, source.name, record)
        if not report.preserved:
            aside = set_aside(folder, out)
            raise _not_preserved(report, aside)
    return Result(plan, report, None, out, notes)


def _notes(stored: StoredModel, model_class: Any) -> tuple[str, ...]:
    """What the user should know about the folder written."""
    unused = stored.unused()
    if not unused:
        return ()
    named = ", ".join(unused[:4]) + (", …" if len(unused) > 4 else "")
    return (f"left out, as {model_class.__name__} has no place for them: {len(unused)} tensors ({named})",)


def _write_config(source: TransformersSource, plan: Plan, folder: Path, dtype: torch.dtype | None) -> None:
    """The source's own config.json with the grown fields changed, and nothing else."""
    content = copy.deepcopy(dict(source.content))
    names = getattr(type(source.config), "attribute_map", {})
    for name, (_, value) in plan.config_changes.items():
        *parents, last = name.split(".")
        place = content
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last if last in place else names.get(last, last)] = value
    if dtype is not None:
        content.pop("torch_dtype", None)
        content["dtype"] = str(dtype).removeprefix("torch.")
    (folder / "config.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _prove_native(
    surgery: Surgery,
    read: Callable[[str], Tensor],
    source_folder: Path,
    grown_folder: Path,
    dtype: torch.dtype | None,
    device: torch.device,
    stage: Stage,
    grown: Callable[[str], Tensor] | None = None,
) -> Report:
    subject, plan = surgery.subject, surgery.plan
    assert isinstance(subject.source, TransformersSource)
    rounded_to = _main_dtype(open_checkpoint(grown_folder)) if grown is not None else None
    inputs = real_inputs(subject.module, seed=0)
    pair = Pair(plan, read, inputs, grown, surgery.grown_buffers, subject.buffers, rounded_to)
    run = coexecute(pair, device, watched_nodes(plan))
    trained, untrained = _trainability(plan, run)
    stage("proof: stock transformers")
    model_class = subject.source.model_class
    own = dtype or _main_dtype(open_checkpoint(source_folder))
    with told_of_stock(source_folder):
        small = observe_folder(source_folder, model_class, own, own, device)
        wide = observe_wider(source_folder, model_class, own, run.source, device)
        refuse_other_graph(small, wide, run.source)
    native = compare_stock(plan, small, wide, observe_folder(grown_folder, model_class, own, own, device))
    return Report(len(plan.anatomy.calls), run.report, native, trained, untrained)


def _trainability(plan: Plan, run: Coexecution) -> tuple[tuple[Asymmetry, ...] | None, str | None]:
    """How far apart the copies' gradients are, or why that is not known: an op of the user's own need
    not have a backward."""
    if not run.report.passed or run.output is None:
        return None, "the exact check failed"
    try:
        return gradient_asymmetry(plan, run.output, run.watched), None
    except (RuntimeError, UserWarning) as error:
        return None, f"the backward pass failed: {reason(error)}"


def _main_dtype(checkpoint: Checkpoint) -> torch.dtype:
    floats: dict[torch.dtype, int] = {}
    for entry in checkpoint.entries.values():
        if entry.dtype in WIDER:
            floats[entry.dtype] = floats.get(entry.dtype, 0) + entry.bytes
    if not floats:
        raise fail(
            CheckpointError, "S407", f"{checkpoint.folder} holds no float32, bfloat16 or float16 weights"
        )
    return max(floats, key=lambda d: floats[d])


def _on(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value


def _record(surgery: Surgery, report: Report, source: str) -> dict[str, Any]:
    text = surgery.plan.recipe.text
    return {
        "surgeon": surgeon.__version__,
        "source": source,
        "recipe_text": text,
        "recipe_sha256": hashlib.sha256(text.encode()).hexdigest(),
        "plan": surgery.plan.as_dict(),
        "proof": report.as_dict(),
    }


def _not_preserved(report: Report, aside: Path | None) -> NotPreserved:
    kept = f"the output is kept aside in {aside}" if aside else None
    if report.exact.divergence is not None:
        d = report.exact.divergence
        message = f"the grown model computes something else: first at {d.where}, relative error {d.error:.2e}"
        return fail(NotPreserved, "S501", message, notes=(kept,) if kept else ())
    assert report.native is not None
    message = (
        f"stock transformers sees a relative error of {report.native.relative:.2e} in {report.native.dtype}, "
        f"where its own noise allows {report.native.tolerance:.2e}"
    )
    return fail(NotPreserved, "S502", message, notes=(kept,) if kept else ())


# ── plain modules ────────────────────────────────────────────────────────────────────────


def _apply_module(
    surgery: Surgery, device: torch.device, out: Path | None, force: bool, stage: Stage
) -> Result:
    subject, plan = surgery.subject, surgery.plan
    source = subject.source
    assert isinstance(source, ModuleSource)
    state = dict(source.module.named_parameters(remove_duplicate=False)) | dict(source.module.named_buffers())
    stage("expanding")
    grown = {n: expand(state[n].detach(), t).to(device) for n, t in plan.transforms.items()}
    module = rewrite(plan, grown)
    stage("proof: both graphs in float64")
    inputs = dict(zip(plan.anatomy.captured.inputs, (*source.args, *source.kwargs.values()), strict=True))
    run = coexecute(Pair(plan, lambda name: state[name].detach(), inputs), device, watched_nodes(plan))
    trained, untrained = _trainability(plan, run)
    report = Report(len(plan.anatomy.calls), run.report, None, trained, untrained)
    args = tuple(_on(v, device) for v in inputs.values())
    if out is not None:
        stage("writing")
        _write_module(surgery, report, module, out, force, args)
    if not report.preserved:
        raise _not_preserved(report, None)
    return Result(plan, report, module, out)


def _write_module(
    surgery: Surgery, report: Report, module: GrownModule, out: Path, force: bool, args: tuple[Any, ...]
) -> None:
    state = {n: t.detach().cpu().contiguous() for n, t in module.state_dict().items()}
    kept = {n: t for n, t in state.items() if surgery.plan.aliases.get(n, n) == n}
    specs = [Spec(n, tuple(t.shape), t.dtype) for n, t in sorted(kept.items())]
    with staging(out, force, 2 * sum(spec.bytes for spec in specs)) as folder:
        write_checkpoint(folder, specs, lambda name: (kept[name],))
        torch.export.save(export(module, args), folder / "model.pt2")
        write_surgery(folder, _record(surgery, report, surgery.subject.source.name))
        if not report.preserved:
            raise _not_preserved(report, set_aside(folder, out))


# ── two given models ─────────────────────────────────────────────────────────────────────


def verify(source: Any, target: Any, *, device: str = "auto", stage: Stage = quiet) -> Report:
    """Whether `target` computes the function of `source`: two transformers folders.

    The growth is read off the two configs; a weight that breaks it is located at the first node that
    diverges. Raises PlanError when the two are no source and growth, NotPreserved never: see
    ``report.preserved``.
    """
    where = device_of(device)
    small, large = open_source(str(source)), open_source(str(target))
    for given in (small, large):
        if not isinstance(given, TransformersSource) or given.folder is None:
            raise fail(ModelError, "S209", f"{given.name}: verify wants two model folders with weights")
    assert isinstance(small, TransformersSource) and isinstance(large, TransformersSource)
    assert small.folder is not None and large.folder is not None
    subject, grown = examine(small, None, stage), examine(large, None, stage)
    recipe = Recipe("verify", (), ())
    native = compare(subject.anatomy, grown.anatomy.captured, subject.buffers, grown.buffers)
    plan = plan_growth(subject.anatomy, recipe, native, grown.anatomy.captured)
    old, new = _stored(subject, small.folder), _stored(grown, large.folder)
    surgery = Surgery(subject, plan, large.config, grown.module, grown.buffers)
    stage("proof: both graphs in float64")
    return _prove_native(
        surgery,
        old.read,
        small.folder,
        large.folder,
        None,
        where,
        stage,
        grown=new.read,
    )
