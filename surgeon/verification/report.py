"""The proof as one value: what was checked, how large the errors are, whether it holds."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from surgeon.planning.outputs import Factors, in_words
from surgeon.verification.coexecution import ExactReport
from surgeon.verification.native import NativeReport
from surgeon.verification.trainability import Trainability


@dataclass(frozen=True)
class Sampled:
    """What a sample of the proof looked at: which repeated layers, of how many. Of every tensor that they
    and the rest of the model read, what was written was read back; `unlike` is the first that was not what
    the plan says."""

    layers: int
    run: tuple[str, ...]
    tensors: int
    unlike: str | None = None

    @property
    def passed(self) -> bool:
        return self.unlike is None


@dataclass(frozen=True)
class Report:
    """The four parts of the proof. `static` is the number of nodes whose invariant is known; parts
    that were not run are None. `verified` is full, sample or none. `scaled` are the outputs that come out
    scaled, which were held to that scale; `notes` say what the proof takes for granted, or leaves out, where
    no plan has said so."""

    static: int
    exact: ExactReport | None
    native: NativeReport | None = None
    trainability: Trainability | None = None
    untrained: str | None = None  # why trainability was not run
    verified: str = "full"
    sampled: Sampled | None = None
    scaled: Factors = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def failed(self) -> bool:
        """Whether something that was checked is wrong."""
        return any(part is not None and not part.passed for part in (self.exact, self.native, self.sampled))

    @property
    def preserved(self) -> bool:
        """Whether all was checked, and nothing is wrong: a sample proves no whole."""
        return self.verified == "full" and not self.failed

    @property
    def verdict(self) -> str:
        """The proof in one sentence, which claims no more than was checked."""
        if self.failed:
            return "NOT preserved."
        if self.sampled is not None:
            run = f"{len(self.sampled.run)} of {self.sampled.layers} repeated layers"
            return (
                f"Sampled: {run} and what is outside of them were checked, without stock transformers; "
                "the whole was not."
            )
        if not self.preserved:
            return "Not verified: only the plan says that it is the same."
        return f"Preserved; {in_words(self.scaled)}." if self.scaled else "Preserved."

    def as_dict(self) -> dict[str, Any]:
        """The proof as JSON values."""
        return {
            "preserved": self.preserved,
            "verified": self.verified,
            "verdict": self.verdict,
            "scaled_outputs": {name: list(factors) for name, factors in self.scaled.items()},
            "static": {"nodes": self.static, "open_obligations": 0},
            "exact": asdict(self.exact) | {"passed": self.exact.passed} if self.exact else None,
            "sampled": asdict(self.sampled) if self.sampled else None,
            "native": asdict(self.native) | {"passed": self.native.passed} if self.native else None,
            "untrained": self.untrained,
            "notes": list(self.notes),
            "trainability": asdict(self.trainability) if self.trainability is not None else None,
        }
