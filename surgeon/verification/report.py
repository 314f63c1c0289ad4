"""The proof as one value: what was checked, how large the errors are, whether it holds."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from surgeon.verification.coexecution import ExactReport
from surgeon.verification.native import NativeReport
from surgeon.verification.trainability import Asymmetry


@dataclass(frozen=True)
class Report:
    """The four parts of the proof. `static` is the number of nodes whose invariant is known; parts
    that were not run are None."""

    static: int
    exact: ExactReport
    native: NativeReport | None = None
    trainability: tuple[Asymmetry, ...] | None = None
    untrained: str | None = None  # why trainability was not run

    @property
    def preserved(self) -> bool:
        return self.exact.passed and (self.native is None or self.native.passed)

    def as_dict(self) -> dict[str, Any]:
        """The proof as JSON values."""
        exact = asdict(self.exact)
        return {
            "preserved": self.preserved,
            "static": {"nodes": self.static, "open_obligations": 0},
            "exact": exact | {"passed": self.exact.passed},
            "native": asdict(self.native) | {"passed": self.native.passed} if self.native else None,
            "untrained": self.untrained,
            "trainability": [asdict(a) for a in self.trainability] if self.trainability is not None else None,
        }
