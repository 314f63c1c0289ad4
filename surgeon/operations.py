"""What surgeon does, for the command line and for Python: dims, plan, apply, verify."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from surgeon.checkpoints.reading import Checkpoint, holds_weights, open_checkpoint
from surgeon.checkpoints.staging import refuse_existing, refuse_source, writing_to
from surgeon.errors import CheckpointError, LanguageError, ModelError, PlanError, fail
from surgeon.graph.captured import LOGITS
from surgeon.graph.inference import Anatomy
from surgeon.language import load
from surgeon.language.loading import not_one
from surgeon.language.syntax import Program, Recipe
from surgeon.models.source import (
    ModuleSource,
    Source,
    TransformersSource,
    from_factory_value,
    open_source,
    refuse_quantised,
)
from surgeon.models.stored import StoredModel, open_stored
from surgeon.models.supply import read_inputs
from surgeon.planning.native import compare
from surgeon.planning.plan import Plan, plan_growth
from surgeon.running.ranks import Ranks, joined, local_rank
from surgeon.surgery.folder import apply_folder
from surgeon.surgery.forecast import Forecast, forecast_planned, forecast_stored
from surgeon.surgery.module import apply_module, prove_modules
from surgeon.surgery.proof import main_dtype, prove_folders
from surgeon.surgery.result import Delivery, Result
from surgeon.surgery.subject import Stage, Subject, Surgery, examine, plan_surgery, proved_for, quiet
from surgeon.verification.report import Report

SHARD_SIZE = "5GB"
Inputs = tuple[Any, ...] | Mapping[str, Any] | str | Path
"""What a model is traced with: its arguments in their order, or by name, or a file that holds them."""

__all__ = ["Result", "apply", "device_of", "dims", "plan", "plan_with_forecast", "verify"]


def device_of(name: str) -> torch.device:
    """``auto``, ``cpu`` or ``cuda``. Raises ModelError S230 for a device that is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise fail(ModelError, "S230", "no CUDA device is to be had here", help="use --device cpu")
    if name == "cuda":
        return torch.device("cuda", local_rank() % torch.cuda.device_count())
    if name != "cpu":
        raise fail(ModelError, "S230", f"unknown device {name}", expected="auto, cpu or cuda")
    return torch.device("cpu")


def _source(model: Any, example_inputs: Inputs | None, trust: bool = False) -> Source:
    if isinstance(model, nn.Module):
        if not isinstance(example_inputs, (tuple, Mapping)):
            raise fail(ModelError, "S208", "a module needs example_inputs to be traced with")
        named = isinstance(example_inputs, Mapping)
        made = (model, (), example_inputs) if named else (model, example_inputs)
        return from_factory_value(made, type(model).__name__)
    source = open_source(str(model), trust)
    if example_inputs is None:
        return source
    if not isinstance(source, TransformersSource):
        raise fail(ModelError, "S208", f"{model} brings the inputs that it is traced with")
    if isinstance(example_inputs, tuple):
        raise fail(ModelError, "S224", f"{source.name} takes inputs by name", expected="a mapping, or a file")
    given = example_inputs if isinstance(example_inputs, Mapping) else read_inputs(Path(example_inputs))
    return replace(source, inputs=dict(given))


def _read(recipe: str | Path, settings: Mapping[str, str] | None) -> tuple[Program, Recipe]:
    """The recipe of a file; of one that declares several the one named, as in ``FILE:NAME``."""
    path, colon, name = str(recipe).rpartition(":")
    named = bool(colon) and not os.path.lexists(recipe)
    program = load(path, settings or {}, name) if named else load(recipe, settings or {})
    if len(program.recipes) != 1:
        raise LanguageError(not_one(str(recipe), [each.name for each in program.recipes]))
    return program, program.recipes[0]


def dims(
    model: Any,
    example_inputs: Inputs | None = None,
    stage: Stage = quiet,
    *,
    trust_remote_code: bool = False,
) -> Anatomy:
    """The anatomy of a model: its dims, the axes they tie, and what pins them. Reads no weights."""
    return examine(_source(model, example_inputs, trust_remote_code), None, stage).anatomy


def plan(
    recipe: str | Path,
    model: Any,
    example_inputs: Inputs | None = None,
    settings: Mapping[str, str] | None = None,
    stage: Stage = quiet,
    *,
    trust_remote_code: bool = False,
) -> Plan:
    """What `recipe` would change in `model`. Reads no weights. Raises SurgeonError."""
    planned, _ = plan_with_forecast(
        recipe, model, None, example_inputs, settings, stage, trust_remote_code=trust_remote_code
    )
    return planned


def plan_with_forecast(
    recipe: str | Path,
    model: Any,
    out: str | Path | None = None,
    example_inputs: Inputs | None = None,
    settings: Mapping[str, str] | None = None,
    stage: Stage = quiet,
    *,
    trust_remote_code: bool = False,
) -> tuple[Plan, Forecast | None]:
    """The plan, and for a transformers model what applying it will take: of the headers of its weights, or,
    where only a config is there, as if all were of the dtype that it names. With `out` the disk there is
    looked at, and a small file written to it and removed."""
    program, chosen = _read(recipe, settings)
    source = _source(model, example_inputs, trust_remote_code)
    subject = examine(source, program, stage)
    surgery = plan_surgery(subject, chosen, program, stage)
    if not isinstance(source, TransformersSource):
        return surgery.plan, None
    target = Path(out) if out is not None else None
    delivery = Delivery(target, False, False, size_of(SHARD_SIZE), None, torch.device("cpu"))
    with writing_to(target):
        if source.folder is not None and holds_weights(source.folder):
            return surgery.plan, forecast_stored(
                surgery, _opened(subject, open_checkpoint(source.folder)), delivery
            )
        dtype = getattr(source.config, "dtype", None)
        known = dtype if isinstance(dtype, torch.dtype) else torch.float32
        return surgery.plan, forecast_planned(surgery, delivery, known)


def apply(
    recipe: str | Path,
    model: Any,
    out: str | Path | None = None,
    *,
    example_inputs: Inputs | None = None,
    settings: Mapping[str, str] | None = None,
    device: str = "auto",
    dtype: str | None = None,
    force: bool = False,
    resume: bool = False,
    shard_size: str = SHARD_SIZE,
    verify: str = "full",
    trust_remote_code: bool = False,
    stage: Stage = quiet,
    progress: Callable[[int, int], None] = lambda done, total: None,
    planned: Callable[[Plan, Forecast | None], None] = lambda plan, forecast: None,
) -> Result:
    """Grow `model` by `recipe`, write it to `out`, and prove that it computes the same function.

    Args:
        model: a folder, hub id, ``package.module:factory``, or a module with `example_inputs`.
        example_inputs: what a module is traced and proved on: its arguments in a tuple, or by name in a
            mapping. For a transformers model, which surgeon makes up inputs for, those of your own instead:
            tensors by name, or a safetensors file that holds them.
        out: a folder; may be None for a plain module, whose grown module is then only returned.
        resume: go on where a stopped run of the same job was, and leave what is finished when stopped.
        verify: ``full``, ``sample`` (some layers, and the result is not called preserved) or ``none``.
        shard_size: of the files written, at most, as in ``5GB``.
        progress: called with bytes written and bytes in all.
        planned: called with the plan, and for a folder with what writing it will take.

    Raises NotPreserved S501 when the proof fails (the output is kept aside), SurgeonError otherwise.
    """
    target = Path(out) if out is not None else None

    def prepared(ranks: Ranks) -> tuple[Program, Surgery, Checkpoint | None, Delivery]:
        """All that can be refused before anything is written, the cheapest first."""
        delivery = Delivery(
            target,
            force,
            resume,
            size_of(shard_size),
            _dtype(dtype),
            device_of(device),
            _verification(verify),
        )
        program, chosen = _read(recipe, settings)
        source = _source(model, example_inputs, trust_remote_code)
        checkpoint = _weights(source, target)
        if checkpoint is None and ranks.size > 1:
            raise fail(ModelError, "S209", "a plain module is grown by one process, not by several")
        if checkpoint is None:
            _refuse_for_folders(delivery)
        if target is not None:
            refuse_existing(target, force)
        return (
            program,
            plan_surgery(examine(source, program, stage), chosen, program, stage),
            checkpoint,
            delivery,
        )

    with joined() as ranks:
        program, surgery, checkpoint, delivery = ranks.agree(lambda: prepared(ranks))
        if checkpoint is None:
            planned(surgery.plan, None)
            return apply_module(surgery, delivery, stage)
        weights = checkpoint
        stored = ranks.agree(lambda: _opened(surgery.subject, weights))
        planned(surgery.plan, ranks.from_first(lambda: _foreseen(surgery, stored, delivery)))
        return apply_folder(surgery, program, stored, delivery, ranks, stage, progress)


def _refuse_for_folders(delivery: Delivery) -> None:
    """Raises ModelError S209 for what is asked of a plain module and holds for model folders alone."""
    for option, given, why in (
        ("--verify", delivery.verify != "full", "proved in full"),
        ("--dtype", delivery.dtype is not None, "written in its own dtype"),
        ("--resume", delivery.resume, "written at once"),
        ("--shard-size", delivery.shard_bytes != size_of(SHARD_SIZE), "written to one file"),
    ):
        if given:
            raise fail(ModelError, "S209", f"a plain module is {why}: {option} is for model folders")


def _foreseen(surgery: Surgery, stored: StoredModel, delivery: Delivery) -> Forecast:
    with writing_to(delivery.out):
        return forecast_stored(surgery, stored, delivery)


def _weights(source: Source, out: Path | None) -> Checkpoint | None:
    """The checkpoint of a transformers model, once it is clear that it can be grown; None for a module."""
    if not isinstance(source, TransformersSource):
        return None
    if source.folder is None or out is None:
        raise fail(ModelError, "S209", f"{source.name}: there are no weights to grow, or nowhere to put them")
    refuse_source(out, source.folder)
    checkpoint = open_checkpoint(source.folder)
    refuse_quantised(source)
    main_dtype(checkpoint)
    return checkpoint


def size_of(text: str) -> int:
    """Bytes of ``5GB`` or ``300MB``. Raises CheckpointError S418 for what is no size."""
    match = re.fullmatch(r"(\d+)\s*([KMGT]?)B?", text.strip().upper())
    if match is None or not int(match[1]):
        raise fail(CheckpointError, "S418", f"{text} is no size of a shard", expected="such as 5GB or 300MB")
    return int(match[1]) * 1000 ** " KMGT".index(match[2] or " ")


def _verification(name: str) -> str:
    if name not in ("full", "sample", "none"):
        raise fail(CheckpointError, "S419", f"unknown way to verify: {name}", expected="full, sample or none")
    return name


def _dtype(name: str | None) -> torch.dtype | None:
    if name is None:
        return None
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name not in known:
        raise fail(CheckpointError, "S407", f"unknown dtype {name}", expected=", ".join(known))
    return known[name]


def _opened(subject: Subject, checkpoint: Checkpoint) -> StoredModel:
    return open_stored(subject.module, subject.anatomy.captured.aliases, checkpoint)


# ── two given models ─────────────────────────────────────────────────────────────────────


def verify(
    source: Any,
    target: Any,
    *,
    example_inputs: Inputs | None = None,
    device: str = "auto",
    trust_remote_code: bool = False,
    stage: Stage = quiet,
) -> Report:
    """Whether `target` computes the function of `source`: two transformers folders, or two plain modules.

    The logits are to be the same, or all outputs where there are none; what else comes out scaled is said.
    The growth is read off the two classes or modules; a weight that breaks it is located at the first node
    that diverges. Raises PlanError when the two are no source and growth, NotPreserved never: see
    ``report.preserved``.
    """
    where = device_of(device)
    small, large = (_source(given, example_inputs, trust_remote_code) for given in (source, target))
    if isinstance(small, ModuleSource) and isinstance(large, ModuleSource):
        subject, grown = examine(small, None, stage), examine(large, None, stage)
        surgery = _grown_from(subject, grown)
        stage("proof: both graphs in float64")
        return _noted(prove_modules(surgery, grown, where), surgery)
    for given in (small, large):
        if not isinstance(given, TransformersSource) or given.folder is None:
            raise fail(
                ModelError,
                "S209",
                f"{given.name}: verify wants two model folders with weights, or two plain modules",
            )
    assert isinstance(small, TransformersSource) and isinstance(large, TransformersSource)
    assert small.folder is not None and large.folder is not None
    if small.model_class is not large.model_class and not (small.brings_code and large.brings_code):
        raise fail(
            PlanError,
            "S320",
            f"{large.name} is a {large.model_class.__name__}, and {small.name} a "
            f"{small.model_class.__name__}: neither grows into the other",
        )
    subject, grown = examine(small, None, stage), examine(large, None, stage)
    surgery = _grown_from(subject, grown)
    old, new = (
        _opened(part, open_checkpoint(folder))
        for part, folder in ((subject, small.folder), (grown, large.folder))
    )
    for stored in (old, new):
        stored.refuse_unlike_twins()
    stage("proof: both graphs in float64")
    report = prove_folders(surgery, old, small.folder, large.folder, None, where, stage, grown=new)
    return _noted(report, surgery)


def _noted(report: Report, surgery: Surgery) -> Report:
    """A proof without a plan that was shown, with what the plan would have said of it."""
    return replace(report, notes=(*proved_for(surgery.subject), *report.notes))


def _grown_from(subject: Subject, grown: Subject) -> Surgery:
    """The growth that makes one model the other. Raises PlanError S320 to S323, S316."""
    recipe = Recipe("verify", (), (), preserve=(LOGITS,))
    try:
        native = compare(subject.anatomy, grown.anatomy.captured, subject.buffers, grown.buffers)
    except PlanError as error:
        first = error.diagnostics[0]
        if error.code == "S316":
            first = replace(first, help="the source is named first, then what has grown from it")
        elif isinstance(subject.source, ModuleSource):  # no class and config to speak of
            notes = first.notes if error.code == "S320" else (first.message, *first.notes)
            said = f"{grown.source.name} has not grown from {subject.source.name}"
            first = replace(first, message=said, notes=notes, help=None)
        raise PlanError(first) from error
    plan = plan_growth(subject.anatomy, recipe, native, grown.anatomy.captured)
    config = grown.source.config if isinstance(grown.source, TransformersSource) else None
    return Surgery(subject, plan, config, grown.module, grown.buffers)
