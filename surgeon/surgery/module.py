"""A plain module grown: the rewritten graph as a trainable module, and its folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_map_only

from surgeon.checkpoints.carry import write_surgery
from surgeon.checkpoints.staging import set_aside, staging
from surgeon.checkpoints.writing import Spec, write_checkpoint
from surgeon.errors import PlanError, fail
from surgeon.models.source import ModuleSource
from surgeon.planning.plan import plan_growth
from surgeon.rewriting.calling import calling_of, refuse_unwritable
from surgeon.rewriting.graph import GrownModule, export, rewrite
from surgeon.rewriting.weights import expand
from surgeon.surgery.proof import dtype_of_most, not_preserved, trainability
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
    them held against its module as it is called. Raises ModelError S213, PlanError S320 where they return
    other things or hold other constants."""
    plan, small, large = surgery.plan, surgery.subject.source, grown.source
    assert isinstance(small, ModuleSource) and isinstance(large, ModuleSource)
    calling = calling_of(plan.anatomy.captured, small.module.forward)
    its_calling = calling_of(grown.anatomy.captured, large.module.forward)
    state, its_state = _state(small), _state(large)
    _refuse_other_answers(surgery, grown)
    weights = [its_state[name] for name in grown.anatomy.captured.parameters.values()]
    main = dtype_of_most((w.dtype, w.nbytes) for w in weights if w.is_floating_point())
    pair = Pair(
        plan,
        state.__getitem__,
        calling.leaves(small.args, small.kwargs),
        its_state.__getitem__,
        held_buffers=dict(large.module.named_buffers()),
        rounded_to=main or torch.float64,
    )
    run = coexecute(pair, device, watched_nodes(plan))
    called = Called(small.module, small.args, small.kwargs, calling.rewrites)
    notes = held_to_module(plan, calling, called, run)
    alone = plan_growth(grown.anatomy, replace(plan.recipe, preserve=()))  # it grows no further
    called = Called(large.module, large.args, large.kwargs, its_calling.rewrites)
    notes += held_to_module(alone, its_calling, called, replace(run, source={}))
    trained, untrained = trainability(plan, run)
    count, scaled = len(plan.anatomy.calls), plan.scaled_outputs
    return Report(count, run.report, None, trained, untrained, scaled=scaled, notes=notes)


def _refuse_other_answers(surgery: Surgery, grown: Subject) -> None:
    """Raise PlanError S320 where the grown module returns other values, or under other names, than the
    source, or holds other constants."""
    native, small, large = surgery.plan.native, surgery.subject.anatomy.captured, grown.anatomy.captured
    assert native is not None
    twins = native.twins
    ours, theirs = (list(cast(Any, captured.nodes[-1].args[0])) for captured in (small, large))
    same = small.program.call_spec.out_spec == large.program.call_spec.out_spec and all(
        twins[a.name] == b.name if isinstance(a, fx.Node) and isinstance(b, fx.Node) else a == b
        for a, b in zip(ours, theirs, strict=True)
    )
    held = ((value, large.constants.get(twins[name])) for name, value in small.constants.items())
    other = next((a for a, b in held if b is None or a.dtype != b.dtype or not torch.equal(a, b)), None)
    if same and other is None:
        return
    raise fail(
        PlanError,
        "S320",
        f"{grown.source.name} has not grown from {surgery.subject.source.name}",
        notes=(
            "it returns other values, or under other names"
            if not same
            else f"it holds another constant of shape {tuple(other.shape) if other is not None else ()}",
        ),
    )


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
