"""The written folder judged by stock transformers: loaded, run in its own dtype, and held against the
source. The tolerance is the noise that the source itself has in that dtype."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean as mean
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from surgeon.checkpoints.reading import open_checkpoint
from surgeon.errors import ModelError, SurgeonError, fail
from surgeon.models.inputs import BATCH, holds_several, words
from surgeon.models.native import build_meta, reason
from surgeon.models.stored import StoredModel
from surgeon.models.supply import Supply
from surgeon.planning.plan import Plan
from surgeon.running.memory import give_back
from surgeon.verification.invariant import difference, expected, largest, unbounded
from surgeon.verification.rounding import round_otherwise
from surgeon.verification.shelf import shelve, shelve_unloaded

NOISE_FACTOR = 4  # source and target round apart (twice), and shares such as 1/3 round once more
TRACE_ROUNDINGS = 64  # of the source's dtype, by which its graph may differ where no wider dtype tells more
SEEDS = (0, 1, 2)
STOCK = "from_pretrained"
MADE_UP = Supply()
CONVERTED_BYTES = 1 << 28  # more that is stored otherwise than it is held, from_pretrained is not to hold
ONE_BY_ONE = "its class, experts one by one, not from_pretrained, which would hold all of them in memory"
ROUNDED = "itself rounding otherwise"
BUILT = "torch.distributed.checkpoint's layout, not from_pretrained"
WIDER = {torch.float16: torch.float32, torch.bfloat16: torch.float32, torch.float32: torch.float64}


@dataclass(frozen=True)
class NativeReport:
    """Stock models compared in the checkpoint's dtype, on all outputs of real numbers; the figures are those
    of the one that is nearest to its tolerance.

    Errors are relative to the output's largest magnitude; `noise` is the source's own distance from
    itself in the next wider dtype. `unloaded` are tensors that stock ``from_pretrained`` did not find
    in the grown folder. `kl`, `top1` and `greedy` are None for models without logits.
    """

    dtype: str
    max_abs: float
    relative: float
    noise: float
    tolerance: float
    kl: float | None = None
    top1: float | None = None
    greedy: bool | None = None
    unloaded: tuple[str, ...] = ()
    noise_against: str = ""  # what the source's noise is its distance from
    loaded_by: str = STOCK  # the grown model, and the source

    @property
    def passed(self) -> bool:
        told = math.isfinite(self.relative) and math.isfinite(self.tolerance)
        return not self.unloaded and told and self.relative <= self.tolerance


@dataclass(frozen=True)
class Observed:
    """What a stock model was seen to compute: the outputs that were asked for, by the path to them, the
    tokens it generates (None for a model that does not), and the tensors it was loaded without."""

    dtype: torch.dtype
    outputs: Mapping[str, Tensor]
    has_logits: bool
    tokens: Tensor | None = None
    unloaded: tuple[str, ...] = ()
    loaded_by: str = STOCK


def observe_folder(
    folder: Path,
    model_class: Any,
    own: torch.dtype,
    dtype: torch.dtype,
    device: torch.device,
    asked: tuple[str, ...],
    supply: Supply = MADE_UP,
    draw: int | None = None,
) -> Observed:
    """Stock ``from_pretrained`` in the folder's dtype `own`, run in `dtype`. The weights are read anew
    whenever they are used, so that the model is never in memory as a whole. With a `draw` it rounds
    otherwise."""
    give_back()
    # The fused kernels for experts know no float64; the account of noise does not need them. The class's own
    # loop over experts makes no copy of one for each token.
    experts = "eager" if dtype == torch.float64 else None
    model, account = model_class.from_pretrained(
        folder,
        dtype=own,
        attn_implementation=None,
        experts_implementation=experts,
        output_loading_info=True,
    )
    shelve(model.eval(), open_checkpoint(folder), dtype if dtype != own else None, device)
    unloaded = sorted(str(name) for key in ("missing_keys", "mismatched_keys") for name in account[key])
    if draw is not None:
        round_otherwise(model, draw)
    return observe(model, dtype, asked, supply, dtype == own and draw is None, tuple(unloaded))


def is_held_by_stock(stored: StoredModel) -> bool:
    """Whether ``from_pretrained`` opens the weights, and leaves all but CONVERTED_BYTES of them in their
    files."""
    entries = stored.checkpoint.entries
    converted = sum(entries[name].bytes for bundle in stored.layout.bundles for name in bundle.stored)
    return stored.checkpoint.saved is None and converted <= CONVERTED_BYTES


def observe_stored(
    stored: StoredModel,
    config: Any,
    model_class: Any,
    apart: frozenset[str],
    own: torch.dtype,
    dtype: torch.dtype,
    device: torch.device,
    asked: tuple[str, ...],
    supply: Supply = MADE_UP,
    draw: int | None = None,
) -> Observed:
    """The same for weights that ``from_pretrained`` does not open, or of which it would hold too many: the
    stock class is built of its config, and its weights are read whenever they are used."""
    give_back()
    # The class's own loop over experts asks for one of them at a time.
    model, buffers = build_meta(config, model_class, dtype=own, experts="eager", apart=apart)
    for name, value in {**buffers, **stored.buffers()}.items():
        path, _, last = name.rpartition(".")
        owner = model.get_submodule(path)
        owner._buffers[last] = value.to(getattr(owner, last).dtype)  # as loading casts
    shelve_unloaded(model, stored, dtype if dtype != own else None, device)
    if draw is not None:
        round_otherwise(model, draw)
    by = ONE_BY_ONE if stored.checkpoint.saved is None else BUILT
    generates = dtype == own and draw is None
    return replace(observe(model, dtype, asked, supply, generates), loaded_by=by)


@contextlib.contextmanager
def told_of_stock(folder: Path) -> Iterator[None]:
    """Raises ModelError S222 where stock transformers fails on the source itself."""
    try:
        yield
    except SurgeonError:
        raise
    except Exception as error:
        name = type(error).__name__
        said = reason(error).removeprefix(f"{name}: ")
        raise fail(
            ModelError,
            "S222",
            f"stock transformers cannot load and run {folder}: {name}: {said}",
            help="are all its files sound, generation_config.json too, and --inputs, if given, fit for it?",
        ) from error


def observe_wider(see: Callable[[torch.dtype], Observed], small: Observed) -> Observed | None:
    """The stock model in the next wider dtype than that of `small`; None where the class gives no numbers in
    it, or where it is float64 and the class's own code knows only float32. `see` runs it in a dtype."""
    try:
        wide = see(WIDER[small.dtype])
    except RuntimeError:  # as torch says that two dtypes do not go together
        if small.dtype != torch.float32:
            raise
        return None
    pairs = ((seen, wide.outputs[path]) for path, seen in small.outputs.items())
    return wide if all(math.isfinite(difference(a, b, None)) for a, b in pairs) else None


def _of_another_graph(
    source: Observed, wider: Observed | None, exact: Mapping[str, Tensor], path: str
) -> float | None:
    """How far an output that stock transformers gives is from that of the source's graph in float64, whose
    outputs on the first inputs are `exact`; None where rounding explains it."""
    if path not in source.outputs:
        return math.inf
    seen, truth = source.outputs[path], exact[path]
    error = difference(seen[: len(truth)], truth, None)
    noise = 0.0 if wider is None else difference(seen, wider.outputs[path], None)
    near = error <= max(NOISE_FACTOR * noise, TRACE_ROUNDINGS * torch.finfo(source.dtype).eps)
    return None if near else error


def of_the_graph(
    source: Observed, wider: Observed | None, exact: Mapping[str, Tensor], always: Collection[str]
) -> Observed:
    """What of the source's outputs its graph gives as well, and the first, and those that are `always`
    compared. Others may hold what a class makes of padding, by sums with numbers so large that its dtype
    holds nothing beside them, or what was seen on the way, of which a trace sees more."""
    first, *others = source.outputs
    kept = [
        path
        for path in others
        if path in always or (path in exact and _of_another_graph(source, wider, exact, path) is None)
    ]
    return replace(source, outputs={path: source.outputs[path] for path in (first, *kept)})


def refuse_other_graph(source: Observed, wider: Observed | None, exact: Mapping[str, Tensor]) -> None:
    """Raises ModelError S213 where the source's graph does not give the first output that stock transformers
    does: all that was inferred and proved would be of something else."""
    first = next(iter(exact), None)
    error = None if first is None else _of_another_graph(source, wider, exact, first)
    if error is not None:
        raise fail(
            ModelError,
            "S213",
            f"the traced graph is not what the class computes: relative difference {error:.1e}",
            help="the trace takes one path through the model; this class takes others, too",
        )


def observe(
    model: Any,
    dtype: torch.dtype,
    asked: tuple[str, ...],
    supply: Supply = MADE_UP,
    generates: bool = True,
    unloaded: tuple[str, ...] = (),
) -> Observed:
    """Run a stock model on random inputs, some of them padded; `asked` are the paths of the outputs."""
    several = supply.batches(model, SEEDS)
    # It may hold all examples of a batch against each other.
    apart = len(several) == 1 or not supply.joined or holds_several(several[0]) or _in_one(several[0])
    runs = [] if apart else [_answers(model, _joined(several), dtype, asked)]
    # Or lay all of them in one row, or sum over them.
    if apart or any(len(answer) % (BATCH * len(several)) for answer in runs[0].values()):
        runs = [_answers(model, inputs, dtype, asked) for inputs in several]
    outputs = {path: torch.cat([run[path] for run in runs]) for path in runs[0]}
    tokens = _greedy(model) if generates else None
    return Observed(dtype, outputs, _has_logits(model), tokens, unloaded)


def _in_one(inputs: Mapping[str, Any]) -> bool:
    """Whether all examples of a batch are laid in one, side by side, so that a first axis counts none."""
    return any(isinstance(value, Tensor) and value.shape[:1] == (1,) for value in inputs.values())


def _joined(several: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Some batches as one."""
    return {
        name: torch.cat([inputs[name] for inputs in several]) if isinstance(value, Tensor) else value
        for name, value in several[0].items()
    }


def _answers(
    model: Any, inputs: Mapping[str, Any], dtype: torch.dtype, asked: tuple[str, ...]
) -> dict[str, Tensor]:
    """The outputs that are asked for and given, whole numbers as float64. What a trace has, stock need not
    give, as what a part of it saw on the way."""
    device = next(model.parameters()).device
    with torch.no_grad():
        result = model(**tree_map(lambda value: _cast(value, dtype, device), dict(inputs)))
    seen = {path: found for path in asked if (found := _at(result, path)) is not None}
    # Floats stay in their own dtype: over many words, their float64 would be the largest tensor of all.
    return {p: torch.atleast_1d(v if v.is_floating_point() else v.double()) for p, v in seen.items()}


def _at(result: Any, path: str) -> Tensor | None:
    """The output to which the names and numbers of `path` lead."""
    for part in path.split("."):
        if isinstance(result, Mapping):
            result = result.get(part)
        else:
            result = result[int(part)] if isinstance(result, (list, tuple)) else None
    return result if isinstance(result, Tensor) else None


def compare_stock(
    plan: Plan,
    source: Observed,
    wider: Observed | None,
    exact: Mapping[str, Tensor],
    grown: Observed,
    otherwise: Sequence[Observed] = (),
) -> NativeReport:
    """Hold what the grown model gives against the source's. The source's noise is its distance from itself in
    a wider dtype; without one that from its graph in float64, which is known on the first inputs (`exact`);
    and that from itself rounding otherwise, where it was seen so."""
    floor = torch.finfo(source.dtype).eps
    nodes = dict(plan.anatomy.captured.outputs)
    compared: list[tuple[float, float, float, float]] = []
    for path, before in source.outputs.items():
        after = grown.outputs.get(path, before[:0])  # of another shape: no agreement
        truth = exact.get(path) if wider is None else wider.outputs[path]
        own = 0.0 if truth is None else difference(before[: len(truth)], truth, None)
        moves = (difference(before, other.outputs[path], None) for other in otherwise)
        own = max(own, *(move for move in moves if move < floor**0.5), 0.0)  # more: a choice fell
        wanted, mask = expected(unbounded(before).double(), nodes[path].name, 0, plan)
        relative = difference(unbounded(after), wanted, mask)  # infinite where either holds NaN
        compared.append((relative, relative * largest(wanted), own, NOISE_FACTOR * max(own, floor)))
    relative, max_abs, noise, tolerance = max(compared, key=_nearness)
    kl = top1 = None
    a, b = (next(iter(seen.outputs.values())) for seen in (source, grown))
    if a.shape == b.shape and source.has_logits:
        apart, agree = [], []
        for x, y in zip(a.flatten(0, -2), b.flatten(0, -2), strict=True):  # each over all words
            p, q = torch.log_softmax(x.double(), -1), torch.log_softmax(y.double(), -1)
            apart.append(float((p.exp() * (p - q)).sum()))
            agree.append(bool(x.argmax() == y.argmax()))
        kl, top1 = mean(apart), mean(agree)
    against = "its graph in float64" if wider is None else str(WIDER[source.dtype]).removeprefix("torch.")
    return NativeReport(
        str(source.dtype).removeprefix("torch."),
        max_abs,
        relative,
        noise,
        tolerance,
        kl,
        top1,
        None if source.tokens is None else _equal(source.tokens, grown.tokens),
        grown.unloaded,
        ROUNDED if otherwise else against,
        grown.loaded_by,
    )


def _nearness(compared: tuple[float, float, float, float]) -> float:
    """How near a relative error is to its tolerance; beyond all others where it is not finite."""
    relative, _, _, tolerance = compared
    return relative / tolerance if math.isfinite(relative) else math.inf


def _equal(tokens: Tensor, others: Tensor | None) -> bool:
    return others is not None and torch.equal(tokens, others)


def _cast(value: Any, dtype: torch.dtype, device: torch.device) -> Any:
    if not isinstance(value, Tensor):
        return value
    return value.to(device, dtype if value.is_floating_point() else value.dtype)


def _has_logits(model: nn.Module) -> bool:
    return bool(getattr(model, "get_output_embeddings", lambda: None)() is not None)


def _greedy(model: Any, new_tokens: int = 4) -> Tensor | None:
    """The tokens of greedy generation; None for a model that does not generate."""
    can = getattr(model, "can_generate", None)
    if can is None or not can() or getattr(model, "main_input_name", "") != "input_ids":
        return None
    # One sequence: the last position of several is no contiguous tensor, and a linear layer then makes
    # a copy of its weights for each of them.
    ids = words(model, SEEDS[-1] + 1)["input_ids"][:1]
    ids = ids.to(next(model.parameters()).device)
    options = {
        "max_new_tokens": new_tokens,
        "do_sample": False,
        "pad_token_id": 0,
        "attention_mask": torch.ones_like(ids),
    }
    try:
        with torch.no_grad():
            tokens = model.generate(ids, **options)
    except Exception:  # some classes that say they generate want more than tokens
        return None
    return tokens if isinstance(tokens, Tensor) else None  # or give more
