"""The written folder judged by stock transformers: reloaded, run in its own dtype, and held against the
source. The tolerance is the noise that the source itself has in that dtype."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from surgeon.models.native import real_inputs
from surgeon.planning.plan import Plan
from surgeon.verification.coexecution import difference, expected, largest

NOISE_FACTOR = 4  # source and target round apart (twice), and shares such as 1/3 round once more
WIDER = {torch.float16: torch.float32, torch.bfloat16: torch.float32, torch.float32: torch.float64}


@dataclass(frozen=True)
class NativeReport:
    """Stock models compared in the checkpoint's dtype, on the graph's first output.

    Errors are relative to the output's largest magnitude; `noise` is the source's own distance from
    itself in the next wider dtype. `kl`, `top1` and `greedy` are None for models without logits.
    """

    dtype: str
    max_abs: float
    relative: float
    noise: float
    tolerance: float
    kl: float | None = None
    top1: float | None = None
    greedy: bool | None = None

    @property
    def passed(self) -> bool:
        return math.isfinite(self.relative) and self.relative <= self.tolerance


def load(folder: Path, model_class: Any, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """Stock ``from_pretrained``."""
    model = model_class.from_pretrained(folder, dtype=dtype, attn_implementation=None)
    return model.to(device).eval()


def outputs(model: nn.Module, inputs: Mapping[str, Any]) -> list[Tensor]:
    """The tensors that a model returns, in order."""
    with torch.no_grad():
        result = model(**inputs)
    return [v for v in result.values() if isinstance(v, Tensor)]


def compare_stock(
    plan: Plan, source: nn.Module, wider: nn.Module, grown: nn.Module, seeds: tuple[int, ...] = (0, 1, 2)
) -> NativeReport:
    """Run source, source in the wider dtype, and grown model on random inputs with padding."""
    name = next(n.name for n in plan.anatomy.captured.nodes[-1].all_input_nodes)
    device = next(source.parameters()).device
    dtype = next(source.parameters()).dtype
    worst_abs = worst = noise = 0.0
    kls, agreements = [], []
    for seed in seeds:
        inputs = {
            k: v.to(device) if isinstance(v, Tensor) else v for k, v in real_inputs(source, seed).items()
        }
        floats = {k: _cast(v, dtype) for k, v in inputs.items()}
        a = outputs(source, floats)[0].double()
        wide = {k: _cast(v, next(wider.parameters()).dtype) for k, v in inputs.items()}
        exact = outputs(wider, wide)[0].double()
        b = outputs(grown, floats)[0].double()
        wanted, mask = expected(a, name, 0, plan)
        relative = difference(b, wanted, mask)  # infinite where either holds NaN
        worst = max(worst, relative)
        worst_abs = max(worst_abs, relative * largest(wanted))
        noise = max(noise, difference(a, exact, None))
        if a.shape == b.shape and _has_logits(source):
            p, q = torch.log_softmax(a, -1), torch.log_softmax(b, -1)
            kls.append(float((p.exp() * (p - q)).sum(-1).mean()))
            agreements.append(float((a.argmax(-1) == b.argmax(-1)).double().mean()))
    tolerance = NOISE_FACTOR * max(noise, torch.finfo(dtype).eps)
    return NativeReport(
        str(dtype).removeprefix("torch."),
        worst_abs,
        worst,
        noise,
        tolerance,
        max(kls) if kls else None,
        min(agreements) if agreements else None,
        _greedy(source, grown),
    )


def _cast(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def _has_logits(model: nn.Module) -> bool:
    return bool(getattr(model, "get_output_embeddings", lambda: None)() is not None)


def _greedy(source: Any, grown: Any, new_tokens: int = 8) -> bool | None:
    """Whether greedy generation gives the same tokens; None for a model that does not generate."""
    can = getattr(source, "can_generate", None)
    if can is None or not can() or getattr(source, "main_input_name", "") != "input_ids":
        return None
    ids = real_inputs(source, 3, padded=False)["input_ids"].to(next(source.parameters()).device)
    options = {
        "max_new_tokens": new_tokens,
        "do_sample": False,
        "pad_token_id": 0,
        "attention_mask": torch.ones_like(ids),
    }
    with torch.no_grad():
        a, b = source.generate(ids, **options), grown.generate(ids, **options)
    return bool(a.shape == b.shape and (a == b).all())
