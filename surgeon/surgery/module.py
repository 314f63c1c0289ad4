"""A plain module grown: the rewritten graph as a trainable module, and its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from surgeon.checkpoints.carry import write_surgery
from surgeon.checkpoints.staging import set_aside, staging
from surgeon.checkpoints.writing import Spec, write_checkpoint
from surgeon.models.source import ModuleSource
from surgeon.rewriting.graph import GrownModule, export, rewrite
from surgeon.rewriting.weights import expand
from surgeon.surgery.proof import not_preserved, trainability
from surgeon.surgery.result import Delivery, Result, record_of
from surgeon.surgery.subject import Stage, Surgery
from surgeon.verification.coexecution import Pair, coexecute
from surgeon.verification.report import Report
from surgeon.verification.trainability import watched_nodes


def _on(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value


def apply_module(surgery: Surgery, delivery: Delivery, stage: Stage) -> Result:
    """Grow and prove a plain module; where a folder is asked for, write its weights and ``model.pt2`` there.

    Raises NotPreserved S501 when the proof fails, CheckpointError S4xx where it cannot be written.
    """
    subject, plan, device, out = surgery.subject, surgery.plan, delivery.device, delivery.out
    source = subject.source
    assert isinstance(source, ModuleSource)
    state = dict(source.module.named_parameters(remove_duplicate=False)) | dict(source.module.named_buffers())
    stage("expanding")
    grown = {n: expand(state[n].detach(), t).to(device) for n, t in plan.transforms.items()}
    module = rewrite(plan, grown)
    stage("proof: both graphs in float64")
    inputs = dict(zip(plan.anatomy.captured.inputs, (*source.args, *source.kwargs.values()), strict=True))
    run = coexecute(Pair(plan, lambda name: state[name].detach(), inputs), device, watched_nodes(plan))
    trained, untrained = trainability(plan, run)
    report = Report(len(plan.anatomy.calls), run.report, None, trained, untrained, scaled=plan.scaled_outputs)
    args = tuple(_on(v, device) for v in inputs.values())
    if out is not None:
        stage("writing")
        _write_module(surgery, report, module, out, delivery.force, args)
    if report.failed:
        raise not_preserved(report, None)
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
        write_surgery(folder, record_of(surgery, report, surgery.subject.source.name))
        if report.failed:
            raise not_preserved(report, set_aside(folder, out))
