"""A plain module grown: the rewritten graph as a trainable module, and its folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from surgeon.checkpoints.carry import write_surgery
from surgeon.checkpoints.staging import set_aside, staging
from surgeon.checkpoints.writing import Spec, write_checkpoint
from surgeon.models.source import ModuleSource
from surgeon.planning.plan import plan_growth
from surgeon.rewriting.calling import calling_of, refuse_unwritable
from surgeon.rewriting.graph import GrownModule, export, rewrite
from surgeon.rewriting.weights import expand
from surgeon.surgery.proof import not_preserved, trainability
from surgeon.surgery.result import Delivery, Result, record_of
from surgeon.surgery.subject import Stage, Subject, Surgery
from surgeon.verification.coexecution import Pair, coexecute
from surgeon.verification.report import Report
from surgeon.verification.traced import Called, held_to_module
from surgeon.verification.trainability import watched_nodes


def apply_module(surgery: Surgery, delivery: Delivery, stage: Stage) -> Result:
    """Grow and prove a plain module; where a folder is asked for, write its weights and ``model.pt2`` there.

    Raises ModelError S213 where the traced graph is not what the module computes, NotPreserved S501 when the
    proof fails, CheckpointError S4xx or ModelError S214 where it cannot be written.
    """
    subject, plan, device, out = surgery.subject, surgery.plan, delivery.device, delivery.out
    source = subject.source
    assert isinstance(source, ModuleSource)
    state = _state(source)
    calling = calling_of(plan.anatomy.captured, source.module.forward)
    if out is not None:
        refuse_unwritable(plan.anatomy.captured, source.name)
    stage("expanding")
    grown = {n: _apart(expand(state[n], t).to(device), state[n]) for n, t in plan.transforms.items()}
    module = rewrite(plan, grown, calling)
    stage("proof: both graphs in float64")
    inputs = calling.leaves(source.args, source.kwargs)
    run = coexecute(Pair(plan, state.__getitem__, inputs), device, watched_nodes(plan))
    called = Called(source.module, source.args, source.kwargs, calling.rewrites)
    notes = held_to_module(plan, calling, called, run)
    trained, untrained = trainability(plan, run)
    report = Report(len(plan.anatomy.calls), run.report, None, trained, untrained, scaled=plan.scaled_outputs)
    if out is not None:
        stage("writing")
        given = tree_map_only(Tensor, lambda t: t.to(device), (source.args, dict(source.kwargs)))
        _write_module(surgery, report, module, out, delivery.force, export(module, *given))
    if report.failed:
        raise not_preserved(report, None)
    return Result(plan, report, module, out, notes)


def prove_modules(surgery: Surgery, grown: Subject, device: torch.device) -> Report:
    """The proof for a plain module and another that has grown from it: both graphs side by side, and each of
    them held against its module as it is called. Raises ModelError S213."""
    plan, small, large = surgery.plan, surgery.subject.source, grown.source
    assert isinstance(small, ModuleSource) and isinstance(large, ModuleSource)
    calling = calling_of(plan.anatomy.captured, small.module.forward)
    its_calling = calling_of(grown.anatomy.captured, large.module.forward)
    state, its_state = _state(small), _state(large)
    floats = [value.dtype for value in its_state.values() if value.is_floating_point()]
    pair = Pair(
        plan,
        state.__getitem__,
        calling.leaves(small.args, small.kwargs),
        its_state.__getitem__,
        held_buffers=dict(large.module.named_buffers()),
        rounded_to=max(floats, key=lambda dtype: torch.finfo(dtype).eps, default=torch.float64),
    )
    run = coexecute(pair, device, watched_nodes(plan))
    called = Called(small.module, small.args, small.kwargs, calling.rewrites)
    held_to_module(plan, calling, called, run)
    alone = plan_growth(grown.anatomy, replace(plan.recipe, preserve=()))  # it grows no further
    called = Called(large.module, large.args, large.kwargs, its_calling.rewrites)
    held_to_module(alone, its_calling, called, replace(run, source={}))
    trained, untrained = trainability(plan, run)
    return Report(len(plan.anatomy.calls), run.report, None, trained, untrained, scaled=plan.scaled_outputs)


def _state(source: ModuleSource) -> dict[str, Tensor]:
    """Parameters, under all their names, and buffers."""
    named = dict(source.module.named_parameters(remove_duplicate=False)) | dict(source.module.named_buffers())
    return {name: value.detach() for name, value in named.items()}


def _apart(grown: Tensor, source: Tensor) -> Tensor:
    """A tensor that shares no memory with the source, which is not to change when the grown module trains."""
    shared = grown.untyped_storage().data_ptr() == source.untyped_storage().data_ptr()
    return grown.clone() if shared else grown


def _write_module(
    surgery: Surgery, report: Report, module: GrownModule, out: Path, force: bool, program: Any
) -> None:
    state = {n: t.detach().cpu().contiguous() for n, t in module.state_dict().items()}
    kept = {n: t for n, t in state.items() if surgery.plan.aliases.get(n, n) == n}
    specs = [Spec(n, tuple(t.shape), t.dtype) for n, t in sorted(kept.items())]
    with staging(out, force, 2 * sum(spec.bytes for spec in specs)) as folder:
        write_checkpoint(folder, specs, lambda name: (kept[name],))
        torch.export.save(program, folder / "model.pt2")
        write_surgery(folder, record_of(surgery, report, surgery.subject.source.name))
        if report.failed:
            raise not_preserved(report, set_aside(folder, out))
