"""A grown folder judged by stock transformers alone: what surgeon's own proof does not look at, or what it
might get wrong together with the plan.

Each check gives what it found wrong, in words; nothing found is an empty list.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from torch.utils._pytree import tree_leaves

from surgeon.models.inputs import real_inputs
from surgeon.models.supply import alone, in_choices, nested
from surgeon.verification.rounding import DRAWS, round_otherwise

SETTLED = 1e-4  # more moves no rounding of float32: a choice fell otherwise
ENDLESS = 1e37  # float32's smallest number stands where words are ruled out
ROUNDED = 4  # source and target round apart (twice), and shares such as 1/3 round once more


def judge(
    source: Path,
    grown: Path,
    model_class: Any,
    fields: Mapping[str, Any],
    tolerance: float,
    inputs: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """All checks. `fields` are the config fields that surgeon says it changed, with both values; `tolerance`
    is that of the stock proof, used where the class knows no float64; `inputs` are the user's own."""
    small, _ = _loaded(model_class, source)
    large, account = _loaded(model_class, grown)
    built = model_class(large.config)
    return {
        "config": _config(source, grown, _by_own_name(large.config, fields)),
        "keys": [f"{what}: {', '.join(sorted(map(str, names)))}" for what, names in account.items() if names],
        "shapes": _unlike(_shapes(built), _shapes(large)),
        "ties": _unlike(_ties(small), _ties(large)) + _untied(model_class, small, large, built),
        "saved": _saved_again(large, grown, _saved_again(small, source, [])),
        "unpadded": _unpadded(
            small, large, inputs or _inputs(small), tolerance, lambda: _loaded(model_class, source)[0]
        ),
    }


def wrong(judged: Mapping[str, Any]) -> list[str]:
    """What the checks found, in one list."""
    said = [f"{check}: {text}" for check, found in judged.items() if check != "unpadded" for text in found]
    run = judged["unpadded"]
    if not run["error"] <= run["tolerance"]:  # infinite or NaN, too
        said.append(f"unpadded: {run['error']:.1e} where {run['tolerance']:.1e} is allowed")
    return said


def _loaded(model_class: Any, folder: Path) -> tuple[Any, dict[str, Any]]:
    model, account = model_class.from_pretrained(folder, output_loading_info=True)
    names = ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")
    return model.eval(), {name: account.get(name) for name in names}


def _unlike(wanted: Mapping[str, Any], seen: Mapping[str, Any]) -> list[str]:
    names = dict.fromkeys((*wanted, *seen))
    return [f"{n} is {seen.get(n)}, not {wanted.get(n)}" for n in names if wanted.get(n) != seen.get(n)]


def _shapes(model: Any) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _untied(model_class: Any, small: Any, large: Any, built: Any) -> list[str]:
    """Where the grown model is not tied as its class ties it, and the source is."""
    before = _unlike(_ties(model_class(small.config)), _ties(small))
    return [text for text in _unlike(_ties(built), _ties(large)) if text not in before]


def _ties(model: Any) -> dict[str, str]:
    """Each name of a shared tensor, and the first of those that share it."""
    first: dict[int, str] = {}
    named = model.state_dict(keep_vars=True).items()
    owner = {name: first.setdefault(tensor.data_ptr(), name) for name, tensor in named if tensor.numel()}
    return {name: other for name, other in owner.items() if name != other}


def _leaves(value: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _leaves(inner, f"{at}.{name}".lstrip("."))
    else:
        yield at, value


def _by_own_name(config: Any, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields by the names that a config file has them under: some have two."""
    found = {}
    for field, change in fields.items():
        part, (*parents, last) = config, field.split(".")
        for parent in parents:
            part = getattr(part, parent, None)
        own = getattr(type(part), "attribute_map", {}).get(last, last)
        found[".".join([*parents, own])] = change
    return found


def _config(source: Path, grown: Path, fields: Mapping[str, Any]) -> list[str]:
    """Numbers of config.json that changed though surgeon does not say so, or otherwise than it says."""
    old, new = (dict(_leaves(json.loads((f / "config.json").read_text()))) for f in (source, grown))
    changed = sorted(repr([old.get(n), new.get(n)]) for n in {*old, *new} if old.get(n) != new.get(n))
    stated = json.loads(json.dumps([list(change) for change in fields.values()]))  # tuples are lists there
    said = sorted(repr(change) for change in stated)
    absent = {repr([None, after]) for _, after in stated}  # a default that the source's file leaves out
    if len(changed) == len(said) and all(c in said or c in absent for c in changed):
        return []
    return [f"changes {changed} where {said} are said"]


def _saved_again(model: Any, folder: Path, expected: list[str]) -> list[str]:
    """How what stock ``save_pretrained`` writes of the loaded model differs from the folder; `expected` is
    how it differs for the source."""
    with tempfile.TemporaryDirectory() as place:
        model.save_pretrained(place)
        ours, theirs = dict(_tensors(folder)), dict(_tensors(Path(place)))
    found = [f"{n} is not written by stock" for n in ours if n not in theirs]
    found += [f"{n} is written by stock alone" for n in theirs if n not in ours]
    for name in ours.keys() & theirs.keys():
        one, other = ours[name], theirs[name]
        if one.shape != other.shape or one.dtype != other.dtype:
            kinds = [f"{t.dtype} {tuple(t.shape)}" for t in (one, other)]
            found.append(f"{name}: {kinds[0]}, by stock {kinds[1]}")
        elif not torch.equal(one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8)):
            found.append(f"{name} has other bytes")
    return sorted(set(found) - set(expected))


def _tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as stored:
            for name in stored.keys():  # noqa: SIM118  it is no mapping
                tensor = stored.get_tensor(name)
                yield name, tensor.reshape(1) if tensor.ndim == 0 else tensor


def _unpadded(
    small: Any, large: Any, inputs: Mapping[str, Any], tolerance: float, again: Callable[[], Any]
) -> dict[str, float]:
    """The error of all outputs that keep their shapes, or else of those that hold the source's numbers once
    more, on inputs without a mask; and what the source's own rounding allows. Where that is not enough, the
    source, loaded `again`, rounds otherwise a few times: one draw of its noise may be small by luck."""
    ours, theirs = _outputs(large, inputs), _outputs(small, inputs)
    pairs = [(a, b) for a, b in zip(ours, theirs, strict=True) if a.shape == b.shape]
    pairs = pairs or [_numbers(a, b) for a, b in zip(ours, theirs, strict=True)]
    error = max((_difference(a, b) for a, b in pairs), key=_rank, default=float("nan"))

    def noise(others: list[Tensor]) -> float:
        return max((_difference(b, c) for b, c in zip(theirs, others, strict=True)), key=_rank)

    try:
        wide = _outputs(small.double(), {n: _double(v) for n, v in inputs.items()})
        known = noise(wide)
        if math.isfinite(known):  # there are classes that give no numbers in float64
            tolerance = ROUNDED * max(known, torch.finfo(torch.float32).eps)
    except RuntimeError:  # as torch says that two dtypes do not go together
        pass
    for draw in DRAWS if error > tolerance else ():
        model = again()
        round_otherwise(model, draw)
        moved = noise(_outputs(model, inputs))
        tolerance = max(tolerance, ROUNDED * moved if moved < SETTLED else 0.0)
    return {"error": error, "tolerance": tolerance, "outputs": len(pairs)}


def _numbers(large: Tensor, small: Tensor) -> tuple[Tensor, Tensor]:
    """The numbers of both along the axes that grew, in order: whichever copy stands where, each of the
    source's is there as often as the others."""
    grown = [i for i, (a, b) in enumerate(zip(large.shape, small.shape, strict=True)) if a != b]
    copies = [a // b for a, b in zip(large.shape, small.shape, strict=True)]
    kept = [i for i in range(large.ndim) if i not in grown]
    several = (large, small.repeat(copies))
    one, other = (t.permute(*kept, *grown).flatten(len(kept)).sort(-1).values for t in several)
    return one, other


def _inputs(model: Any) -> dict[str, Any]:
    """Inputs without a mask, or with one that masks nothing, with pictures among the words where the class
    itself runs on them; as a plain batch, or laid as the class takes it."""
    failure: Exception | None = None
    for lay, pictures in product((dict, in_choices, alone), (True, False)):
        inputs = lay(real_inputs(model, seed=7, pictures=pictures))
        mask = inputs.pop("attention_mask", None)
        masked = [] if mask is None else [{**inputs, "attention_mask": torch.ones_like(mask)}]
        for found in (inputs, *masked):
            try:
                _outputs(model, found)
                return found
            except Exception as error:
                failure = failure or error
    assert failure is not None
    raise failure


def _double(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def _outputs(model: Any, inputs: Mapping[str, Any]) -> list[Tensor]:
    with torch.no_grad():
        result = model(**nested(inputs))
    plain = [v for v in result.values() if isinstance(v, Tensor)]
    several = plain or [v for v in tree_leaves(tuple(result.values())) if isinstance(v, Tensor)]
    return [v.double() for v in several if v.is_floating_point()] or [v.double() for v in several]


def _rank(difference: float) -> float:
    """Beyond all others where it is no number."""
    return difference if difference == difference else math.inf


def _difference(a: Tensor, b: Tensor) -> float:
    """Relative to the largest magnitude; places where both are the same infinity, or the number that a class
    writes for it, are alike."""
    a, b = (torch.where(t.abs() >= ENDLESS, t.sign() * math.inf, t) for t in (a, b))
    apart = torch.where(a == b, torch.zeros_like(a), a - b).abs()
    if not apart.numel():
        return 0.0
    finite = b[b.isfinite()].abs()
    scale = finite.max().clamp_min(1e-30) if finite.numel() else torch.ones(())
    return float(apart.max() / scale)
