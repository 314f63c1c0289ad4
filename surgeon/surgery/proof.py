"""The proof of a surgery: both graphs in float64, the gradients, and stock transformers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from surgeon.checkpoints.reading import Checkpoint, open_checkpoint
from surgeon.checkpoints.tensors import StoredTensor
from surgeon.errors import CheckpointError, ModelError, NotPreserved, SurgeonError, fail
from surgeon.models.inputs import pictured
from surgeon.models.native import reason
from surgeon.models.source import TransformersSource
from surgeon.models.stored import StoredModel, open_stored
from surgeon.models.supply import Supply
from surgeon.planning.plan import Plan
from surgeon.rewriting.calling import calling_of
from surgeon.rewriting.checkpoint import GrownCheckpoint
from surgeon.surgery.subject import Stage, Subject, Surgery
from surgeon.verification.coexecution import Coexecution, Pair, coexecute
from surgeon.verification.native import (
    WIDER,
    NativeReport,
    Observed,
    compare_stock,
    is_held_by_stock,
    observe_folder,
    observe_stored,
    observe_wider,
    of_the_graph,
    refuse_other_graph,
    told_of_stock,
)
from surgeon.verification.report import Report, Sampled
from surgeon.verification.rounding import DRAWS
from surgeon.verification.sampling import draw
from surgeon.verification.trainability import Trainability, backward, watched_nodes


def prove_folders(
    surgery: Surgery,
    source: StoredModel,
    source_folder: Path,
    grown_folder: Path,
    dtype: torch.dtype | None,
    device: torch.device,
    stage: Stage,
    grown: StoredModel | None = None,
) -> Report:
    """All parts of the proof for two model folders.

    Args:
        dtype: that the grown folder was written in; None for the source's own.
        grown: the grown weights; by default the source's, expanded by the plan.

    Raises ModelError S213 where the traced graph is not what stock transformers computes, S222 where it
    fails on the source.
    """
    subject, plan = surgery.subject, surgery.plan
    assert isinstance(subject.source, TransformersSource)
    rounded_to = main_dtype(grown.checkpoint) if grown is not None else None
    inputs = _placed(subject)
    pair = Pair(
        plan,
        source.open,
        inputs,
        grown.open if grown is not None else None,
        surgery.grown_buffers,
        {**subject.buffers, **source.buffers()},
        grown.buffers() if grown is not None else {},
        rounded_to,
    )
    run = coexecute(pair, device, watched_nodes(plan))
    trained, untrained = trainability(plan, run)
    stage("proof: stock transformers")
    config, model_class = subject.source.config, subject.source.model_class
    own = dtype or main_dtype(source.checkpoint)
    asked = tuple(plan.anatomy.captured.compared)

    written = grown or open_grown(surgery, grown_folder)
    opened_by_stock = is_held_by_stock(source) and is_held_by_stock(written)

    def see(
        folder: Path, config: Any, stored: StoredModel, wanted: torch.dtype, supply: Supply, draw: int | None
    ) -> Observed:
        if opened_by_stock:
            return observe_folder(folder, model_class, own, wanted, device, asked, supply, draw)
        return observe_stored(
            stored, config, model_class, subject.apart, own, wanted, device, asked, supply, draw
        )

    def see_source(wanted: torch.dtype, supply: Supply, draw: int | None = None) -> Observed:
        return see(source_folder, config, source, wanted, supply, draw)

    def see_grown(supply: Supply) -> Observed:
        return see(grown_folder, surgery.config, written, own, supply, None)

    def look(supply: Supply) -> tuple[Observed, Observed | None]:
        small = see_source(own, supply)
        return small, observe_wider(lambda wanted: see_source(wanted, supply), small)

    supply, exact = subject.supply, {p: torch.atleast_1d(v.detach().cpu()) for p, v in run.source.items()}
    with told_of_stock(source_folder):
        small, wide = look(supply)
        try:
            refuse_other_graph(small, wide, exact)
        except ModelError:
            if supply.given is not None:  # one batch, which nothing was joined to
                raise
            # What it makes of an example may depend on those beside it: a mean over the batch does.
            supply = replace(supply, joined=False)
            small, wide = look(supply)
            refuse_other_graph(small, wide, exact)
        small = of_the_graph(small, wide, exact, plan.scaled_outputs)
    large = see_grown(supply)
    native = compare_stock(plan, small, wide, exact, large)
    if not native.passed and not native.unloaded:  # the noise is worth to be known better
        otherwise = [see_source(own, supply, draw) for draw in DRAWS]
        native = compare_stock(plan, small, wide, exact, large, otherwise)
    if native.passed and not supply.pictures and pictured(subject.module):
        stage("proof: stock transformers, with pictures")
        native = _with_pictures(plan, own, replace(supply, pictures=True), see_source, see_grown) or native
    return Report(len(plan.anatomy.calls), run.report, native, trained, untrained, scaled=plan.scaled_outputs)


def _with_pictures(
    plan: Plan,
    own: torch.dtype,
    supply: Supply,
    see_source: Callable[..., Observed],
    see_grown: Callable[[Supply], Observed],
) -> NativeReport | None:
    """Stock models compared on pictures among words, which could not be traced; None where the source fails
    on them. Raises NotPreserved S504 where the grown class alone does."""
    try:
        small = see_source(own, supply)
    except (SurgeonError, OSError, MemoryError):
        raise
    except Exception:  # such pictures are not for this class; the plan says that words alone are proved
        return None
    wide = observe_wider(lambda wanted: see_source(wanted, supply), small)
    try:
        large = see_grown(supply)
    except Exception as error:
        raise fail(
            NotPreserved,
            "S504",
            f"the grown class fails on pictures among words, which the source reads: {reason(error)}",
            help="what is made of pictures must be as wide as the words: grow its config field along",
        ) from error
    small = of_the_graph(small, wide, {}, plan.scaled_outputs)
    return compare_stock(plan, small, wide, {}, large)


def open_grown(surgery: Surgery, folder: Path) -> StoredModel:
    """The grown weights, as they were written."""
    assert surgery.module is not None
    return open_stored(surgery.module, surgery.plan.aliases, open_checkpoint(folder))


def prove_sample(
    surgery: Surgery,
    stored: StoredModel,
    grown: GrownCheckpoint,
    grown_folder: Path,
    device: torch.device,
) -> Report:
    """The exact check of some of the repeated layers, and whether their tensors and those outside of layers
    were written as the plan says. Stock transformers is not run."""
    subject, plan = surgery.subject, surgery.plan
    sample = draw(plan)
    inputs = _placed(subject)
    buffers = {**subject.buffers, **stored.buffers()}
    pair = Pair(plan, stored.open, inputs, None, surgery.grown_buffers, buffers, sample=sample)
    run = coexecute(pair, device, watched_nodes(plan) - sample.unrun - sample.stands.keys())
    trained, untrained = trainability(plan, run)
    captured = plan.anatomy.captured
    held = {**captured.parameters, **captured.buffers}
    names = {n for placeholder, n in held.items() if placeholder not in sample.unrun}
    disks = {stored.names[n] for n in names if n in stored.names}
    disks.update(d for b in stored.layout.bundles if names.intersection(b.held) for d in b.stored)
    disks.update(d for d, n in stored.twins.items() if n in names)
    written = open_grown(surgery, grown_folder).checkpoint
    unlike = next((d for d in sorted(disks) if not _written_so(grown.produce(d), written.open(d))), None)
    sampled = Sampled(sample.layers, sample.run, len(disks), unlike)
    return Report(
        len(plan.anatomy.calls),
        run.report,
        None,
        trained,
        untrained,
        verified="sample",
        sampled=sampled,
        scaled=plan.scaled_outputs,
    )


def _written_so(blocks: Iterable[Tensor], written: StoredTensor) -> bool:
    """Whether a tensor is bit for bit the one whose rows are `blocks`."""
    at, same = 0, True
    for block in blocks:
        same = same and torch.equal(block.cpu().flatten(), written.stretch(at, block.numel()))
        at += block.numel()
    return same


def trainability(plan: Plan, run: Coexecution) -> tuple[Trainability | None, str | None]:
    """How far apart the copies' gradients are, or why that is not known: an op of the user's own need
    not have a backward."""
    if not run.report.passed or run.output is None:
        return None, "the exact check failed"
    try:
        return backward(plan, run.output, run.watched), None
    except (RuntimeError, UserWarning) as error:
        return None, f"the backward pass failed: {reason(error)}"


def _placed(subject: Subject) -> dict[str, Any]:
    """The inputs of the proof, which may hold several tensors each, by the placeholders of the graph."""
    calling = calling_of(subject.anatomy.captured, subject.module.forward)
    return calling.leaves((), subject.supply.batch(subject.module))


def dtype_of_most(sizes: Iterable[tuple[torch.dtype, int]]) -> torch.dtype | None:
    """Of dtypes and bytes in them, that of most bytes; None of nothing."""
    total: dict[torch.dtype, int] = {}
    for dtype, count in sizes:
        total[dtype] = total.get(dtype, 0) + count
    return max(total, key=lambda dtype: total[dtype], default=None)


def main_dtype(checkpoint: Checkpoint) -> torch.dtype:
    """The floating dtype of most of a checkpoint's bytes. Raises CheckpointError S407 for a checkpoint
    without weights in one that surgeon grows."""
    found = dtype_of_most((e.dtype, e.bytes) for e in checkpoint.entries.values() if e.dtype in WIDER)
    if found is None:
        raise fail(
            CheckpointError,
            "S407",
            f"{checkpoint.folder} holds no float32, bfloat16 or float16 weights",
            help="convert them first: from_pretrained(folder, dtype=torch.float32), then save_pretrained"
            if any(entry.dtype == torch.float64 for entry in checkpoint.entries.values())
            else "quantised weights cannot be grown: use the model they were made of",
        )
    return found


def not_preserved(report: Report, aside: Path | None) -> NotPreserved:
    """The error that tells of a failed proof, S501, S502 or S503; `aside` is where the output is kept."""
    kept = f"the output is kept aside in {aside}" if aside else None
    if report.exact is not None and report.exact.divergence is not None:
        d = report.exact.divergence
        message = f"the grown model computes something else: first at {d.where}, relative error {d.error:.2e}"
        return fail(NotPreserved, "S501", message, notes=(kept,) if kept else ())
    if report.sampled is not None and report.sampled.unlike is not None:
        message = f"{report.sampled.unlike} was not written as the plan says"
        return fail(NotPreserved, "S503", message, notes=(kept,) if kept else ())
    assert report.native is not None
    message = (
        f"stock transformers sees a relative error of {report.native.relative:.2e} in {report.native.dtype}, "
        f"where its own noise allows {report.native.tolerance:.2e}"
    )
    return fail(NotPreserved, "S502", message, notes=(kept,) if kept else ())
