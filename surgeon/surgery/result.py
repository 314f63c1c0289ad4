"""What is asked of a surgery's output, what it gives back, and what is recorded of it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from surgeon.planning.plan import Plan
from surgeon.surgery.subject import Surgery
from surgeon.verification.report import Report
from surgeon.version import VERSION


@dataclass(frozen=True)
class Delivery:
    """How and where the grown model is to be made. Shards, dtype and resuming are for model folders."""

    out: Path | None  # None: a grown module that is only returned
    force: bool  # replace what stands there
    resume: bool
    shard_bytes: int
    dtype: torch.dtype | None  # None for each tensor's own
    device: torch.device
    verify: str = "full"  # or sample, or none


@dataclass(frozen=True)
class Result:
    """A finished surgery: the plan, the proof, where or what the grown model is, and what to know of it."""

    plan: Plan
    report: Report
    model: nn.Module | None = field(default=None, repr=False)
    folder: Path | None = None
    notes: tuple[str, ...] = ()


def record_of(surgery: Surgery, report: Report, source: str) -> dict[str, Any]:
    """The content of ``surgery.json``."""
    text = surgery.plan.recipe.text
    return {
        "surgeon": VERSION,
        "source": source,
        "recipe_text": text,
        "recipe_sha256": hashlib.sha256(text.encode()).hexdigest(),
        "plan": surgery.plan.as_dict(),
        "proof": report.as_dict(),
    }
