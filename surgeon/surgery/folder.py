"""A model folder grown into another that stock transformers loads: written, proved, put in place."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from surgeon.checkpoints.carry import (
    CARD,
    carry_files,
    left_behind,
    say_grown_sizes,
    write_card,
    write_surgery,
)
from surgeon.checkpoints.distributed_writing import (
    distributed_files,
    write_distributed,
    write_metadata,
)
from surgeon.checkpoints.journal import Journal
from surgeon.checkpoints.reading import Checkpoint
from surgeon.checkpoints.staging import set_aside, staging
from surgeon.checkpoints.writing import Shard, shards_of, write_index, write_shards
from surgeon.errors import CheckpointError, counted, fail
from surgeon.language.syntax import Program
from surgeon.models.native import own_name
from surgeon.models.source import TransformersSource
from surgeon.models.stored import StoredModel
from surgeon.planning.plan import Plan
from surgeon.rewriting.checkpoint import GrownCheckpoint
from surgeon.running.ranks import Ranks
from surgeon.surgery.proof import not_preserved, prove_folders, prove_sample
from surgeon.surgery.result import Delivery, Result, record_of
from surgeon.surgery.subject import Stage, Surgery
from surgeon.verification.report import Report
from surgeon.version import VERSION

OWN_CODE = "auto_map"  # the field of a config that names classes in Python files beside it


def apply_folder(
    surgery: Surgery,
    program: Program,
    stored: StoredModel,
    delivery: Delivery,
    ranks: Ranks,
    stage: Stage,
    progress: Callable[[int, int], None],
) -> Result:
    """Write, prove and put in place a grown folder; each rank writes every `ranks.size`-th shard, the first
    one does the rest.

    Raises NotPreserved S501 and S502 when the proof fails (the output is kept aside), CheckpointError S4xx
    for what cannot be read or written.
    """
    assert surgery.module is not None and delivery.out is not None
    out, checkpoint = delivery.out, stored.checkpoint
    layout = stored.layout.of(surgery.module)
    grown = GrownCheckpoint(stored, surgery.plan.transforms, layout, delivery.dtype, delivery.device)
    shards = shards_of(grown.specs(), delivery.shard_bytes)
    if checkpoint.saved is not None:
        shards = distributed_files(shards)
    mine = shards[ranks.rank :: ranks.size]
    counted = _counted(sum(shard.bytes for shard in mine), progress)
    with ExitStack() as stack:

        def begin() -> Path:
            stored.refuse_unlike_twins()
            job = _job(program, checkpoint, delivery, shards)
            needed = sum(shard.bytes for shard in shards)
            staged = staging(out, delivery.force, needed, job if delivery.resume else None)
            folder = stack.enter_context(staged)
            Journal(folder).begin(job)
            return folder

        def write() -> None:
            if not folder.is_dir():
                raise fail(
                    CheckpointError,
                    "S417",
                    f"rank {ranks.rank} does not see {folder}",
                    help="all ranks need one file system",
                )
            journal = Journal(folder)
            with checkpoint.steady():
                if checkpoint.saved is not None:
                    write_distributed(folder, mine, grown.produce, counted, journal)
                else:
                    write_shards(folder, mine, grown.produce, counted, journal if len(shards) > 1 else None)

        folder = ranks.from_first(begin)
        stage("expanding and writing")
        ranks.agree(write)
        report, notes = ranks.from_first(
            lambda: _finish(surgery, stored, grown, delivery, out, folder, shards, stage)
        )
    return Result(surgery.plan, report, None, out, notes)


def _counted(total: int, progress: Callable[[int, int], None]) -> Callable[[int], None]:
    done = 0

    def written(count: int) -> None:
        nonlocal done
        done += count
        progress(done, total)

    return written


def _job(program: Program, checkpoint: Checkpoint, delivery: Delivery, shards: list[Shard]) -> dict[str, str]:
    """What two runs must have in common for one to go on where the other was stopped."""
    source = sorted((s.file.name, s.size, s.modified) for s in checkpoint.stamps.values())
    return {
        "version of surgeon": VERSION,
        "recipe": hashlib.sha256(repr(program).encode()).hexdigest(),
        "source": hashlib.sha256(repr(source).encode()).hexdigest(),
        "dtype": str(delivery.dtype),
        "shard size": hashlib.sha256(repr(shards).encode()).hexdigest(),
    }


def _finish(
    surgery: Surgery,
    stored: StoredModel,
    grown: GrownCheckpoint,
    delivery: Delivery,
    out: Path,
    folder: Path,
    shards: list[Shard],
    stage: Stage,
) -> tuple[Report, tuple[str, ...]]:
    """All that is not weights, and the proof."""
    plan, source = surgery.plan, surgery.subject.source
    assert isinstance(source, TransformersSource) and source.folder is not None
    with stored.checkpoint.steady():
        saved = stored.checkpoint.saved
        if saved is not None:
            write_metadata(folder, shards, saved, Journal(folder))
        else:
            write_index(folder, shards)
        carried = carry_files(source.folder, folder, source.brings_code)
        said = say_grown_sizes(folder, carried, surgery.file_fields, plan.config_changes)
        _write_config(source, plan, folder, delivery.dtype)
        report = _proved(surgery, stored, grown, delivery, source.folder, folder, stage)
        stored.checkpoint.refuse_changes()
        weights = {p.file.name for entry in stored.checkpoint.entries.values() for p in entry.pieces}
        behind = _behind(left_behind(source.folder, carried, weights))
        notes = (*_notes(stored, grown, source.model_class), *said, *_code(source, folder, carried), *behind)
        record = record_of(surgery, report, source.name) | {"notes": notes}
        write_surgery(folder, record)
        write_card(folder, source.name, record)
        if report.failed:
            Journal(folder).forget()
            raise not_preserved(report, set_aside(folder, out))
    return report, notes


def _proved(
    surgery: Surgery,
    stored: StoredModel,
    grown: GrownCheckpoint,
    delivery: Delivery,
    source: Path,
    folder: Path,
    stage: Stage,
) -> Report:
    """As much of the proof as was asked for."""
    if delivery.verify == "none":
        plan = surgery.plan
        return Report(len(plan.anatomy.calls), None, verified="none", scaled=plan.scaled_outputs)
    if delivery.verify == "sample":
        stage("proof: some layers in float64")
        return prove_sample(surgery, stored, grown, folder, delivery.device)
    stage("proof: both graphs in float64")
    return prove_folders(surgery, stored, source, folder, delivery.dtype, delivery.device, stage)


def _notes(stored: StoredModel, grown: GrownCheckpoint, model_class: Any) -> tuple[str, ...]:
    """What the user should know about the folder written."""
    notes, unused, saved = [], stored.unused(), stored.checkpoint.saved
    if unused:
        said = f"{counted(len(unused), 'tensor')} ({_some(unused)})"
        notes.append(f"left out, as {model_class.__name__} has no place for them: {said}")
    if saved is not None and saved.others:
        said = f"{counted(len(saved.others), 'value')} ({_some(saved.others)})"
        notes.append(f"left out, as they are no weights of the model: {said}")
    whole = [name for bundle in grown.converted for name in bundle.stored]
    if whole:
        said = f"{counted(len(whole), 'tensor')} ({_some(whole)})"
        notes.append(f"converted whole, as more is done to them than to move their elements: {said}")
    if saved is not None:
        notes.append(
            "written for torch.distributed.checkpoint.load, as the source is; not for from_pretrained"
        )
    return tuple(notes)


def _code(source: TransformersSource, folder: Path, carried: Sequence[str]) -> tuple[str, ...]:
    """Where transformers' class has grown: that its config names no code of the source's own, and which of
    the other files do."""
    if source.brings_code:
        return ()
    said = f"what has grown, and is proved, is transformers' own {source.model_class.__name__}"
    own = (f"config.json: {OWN_CODE} is left out: {said}",) if OWN_CODE in source.content else ()
    named = f'"{OWN_CODE}"'.encode()
    others = [n for n in carried if n.endswith(".json") and named in (folder / n).read_bytes()]
    return (*own, *([f"code stays behind that is named in {_some(others)}"] if others else []))


def _behind(names: Sequence[str]) -> tuple[str, ...]:
    """What of the source's folder is not in the grown one."""
    others = [name for name in names if name != CARD]
    card = [f"{CARD} is a new card: what the source's says, its licence too, is not in it"]
    return (*(card if CARD in names else []), *([f"not carried over: {_some(others)}"] if others else []))


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (", …" if len(names) > 4 else "")


def _write_config(source: TransformersSource, plan: Plan, folder: Path, dtype: torch.dtype | None) -> None:
    """The source's own config.json with the grown fields changed, and without code that stays behind."""
    content = copy.deepcopy(dict(source.content))
    if not source.brings_code:
        content.pop(OWN_CODE, None)
    for name, (_, value) in plan.config_changes.items():
        *parents, last = name.split(".")
        place = content
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last if last in place else own_name(source.config, name).rpartition(".")[2]] = value
    if dtype is not None:
        content.pop("torch_dtype", None)
        content["dtype"] = str(dtype).removeprefix("torch.")
    (folder / "config.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
