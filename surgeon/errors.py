"""Every error surgeon raises on purpose: one root class, a stable code, one message.

Codes are grouped by room: S1xx language, S2xx models and capture, S3xx inference and
planning, S4xx checkpoints, S5xx verification. ``surgeon explain CODE`` shows the long form
(see :mod:`surgeon.catalogue`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeVar

EXIT_DONE, EXIT_NOT_PRESERVED, EXIT_USER, EXIT_INTERNAL = 0, 1, 2, 3


@dataclass(frozen=True)
class Span:
    """A stretch of source text: 1-based line and column, end exclusive."""

    file: str
    line: int
    column: int
    end_line: int
    end_column: int


@dataclass(frozen=True)
class Diagnostic:
    """One finding: what is wrong, where, why, and the nearest right thing."""

    code: str
    message: str
    span: Span | None = None
    source_line: str | None = None
    expected: str | None = None
    help: str | None = None
    notes: tuple[str, ...] = field(default=())

    def render(self) -> str:
        """The finding as plain text, with the source line and carets where there is a span."""
        lines = [f"error[{self.code}]: {self.message}"]
        if self.span is not None:
            lines.append(f"  --> {self.span.file}:{self.span.line}:{self.span.column}")
            if self.source_line is not None:
                number = str(self.span.line)
                same_line = self.span.end_line == self.span.line
                end = self.span.end_column if same_line else len(self.source_line) + 1
                width = max(1, end - self.span.column)
                gutter = " " * len(number)
                lines += [
                    f"{gutter} |",
                    f"{number} | {self.source_line}",
                    f"{gutter} | {' ' * (self.span.column - 1)}{'^' * width}",
                ]
        if self.expected:
            lines.append(f"  expected: {self.expected}")
        lines += [f"  note: {note}" for note in self.notes]
        if self.help:
            lines.append(f"  help: {self.help}")
        return "\n".join(lines)


class SurgeonError(Exception):
    """The root of all deliberate errors; carries one or more diagnostics."""

    exit_code = EXIT_USER

    def __init__(self, *diagnostics: Diagnostic):
        self.diagnostics = diagnostics
        super().__init__("\n\n".join(d.render() for d in diagnostics))

    @property
    def code(self) -> str:
        return self.diagnostics[0].code


class LanguageError(SurgeonError):
    """A ``.surgery`` file is wrong (S1xx)."""


class ModelError(SurgeonError):
    """A model cannot be found, built or captured (S2xx)."""


class PlanError(SurgeonError):
    """The growth asked for cannot be done exactly (S3xx)."""


class CheckpointError(SurgeonError):
    """Files on disk are missing, broken, or in the way (S4xx)."""


class NotPreserved(SurgeonError):
    """The proof failed: the grown model does not compute the same function (S5xx)."""

    exit_code = EXIT_NOT_PRESERVED


E = TypeVar("E", bound=SurgeonError)


def counted(number: int, one: str, several: str | None = None) -> str:
    """``1 tensor``, ``2 tensors``."""
    return f"{number:,} {one if number == 1 else several or one + 's'}"


def fail(kind: type[E], code: str, message: str, **details: Any) -> E:
    """Build an error with a single diagnostic, ready to raise."""
    return kind(Diagnostic(code, message, **details))
