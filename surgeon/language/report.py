"""A source text and the findings about it, gathered so that a file's errors come all at once."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from surgeon.errors import Diagnostic, LanguageError, Span, fail

MAX_BYTES = 256 * 1024
MAX_FINDINGS = 100
"""Of one file; more help nobody."""


class Report:
    """One source text; gathers diagnostics with their place in it."""

    def __init__(self, text: str, name: str) -> None:
        self.text, self.name = text, name
        self.lines = text.split("\n")
        self.diagnostics: list[Diagnostic] = []
        self.inherited: list[Diagnostic] = []  # of the files that this one uses

    def span(self, where: Any) -> Span:
        """The stretch of a lark token or tree (an empty tree stands at the start of the file)."""
        where = getattr(where, "meta", where)
        line, column = getattr(where, "line", 1), getattr(where, "column", 1)
        return Span(
            self.name, line, column, getattr(where, "end_line", line), getattr(where, "end_column", column)
        )

    def error(
        self,
        code: str,
        message: str,
        where: Any,
        *,
        expected: str | None = None,
        help: str | None = None,
        near: tuple[str, Iterable[str]] | None = None,
    ) -> None:
        """Add a finding. ``where`` is a Span or a lark token or tree; ``near`` is a word and the
        words it could have been: the closest becomes the help line when none is given."""
        if len(self.diagnostics) >= MAX_FINDINGS:
            return
        span = where if isinstance(where, Span) else self.span(where)
        if near is not None and help is None:
            help = nearest(*near)
        line = self.lines[span.line - 1] if span.line <= len(self.lines) else ""
        finding = Diagnostic(code, message, span, line, expected, help)
        if finding not in self.diagnostics:
            self.diagnostics.append(finding)

    def finish(self) -> None:
        """Raise LanguageError with every finding in the order of the text, if there is one; those
        of used files first."""
        if self.inherited or self.diagnostics:
            raise LanguageError(*self.inherited, *in_order(self.diagnostics))


def in_order(diagnostics: Iterable[Diagnostic]) -> list[Diagnostic]:
    return sorted(diagnostics, key=lambda d: (d.span.line, d.span.column) if d.span else (0, 0))


def nearest(word: str, known: Iterable[str]) -> str | None:
    """``did you mean `grow`?`` for the known word closest to `word`, if one is close."""
    known = sorted(set(known))
    close = get_close_matches(word, known, n=1, cutoff=0.6)
    if not close:  # `AXIS`, `dec`: another case, or the beginning of a word
        close = [k for k in known if k.lower() == word.lower() or (len(word) > 1 and k.startswith(word))][:1]
    return f"did you mean `{close[0]}`?" if close else None


def listing(words: Iterable[str]) -> str | None:
    """``a, b or c`` with each word in backquotes; None for no words."""
    quoted = [f"`{word}`" for word in words]
    if len(quoted) < 2:
        return quoted[0] if quoted else None
    return f"{', '.join(quoted[:-1])} or {quoted[-1]}"


def read(path: Path) -> str:
    """The text of a source file. Raises LanguageError S106 when it cannot be read and S105 when it
    is larger than any honest recipe, before all of it is in memory."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        reason = error.strerror or str(error)
        raise fail(LanguageError, "S106", f"cannot read {path}: {reason.lower()}") from None
    check_size(len(data), str(path))
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        where = f"byte {error.start} is not UTF-8"
        raise fail(
            LanguageError, "S106", f"cannot read {path}: {where}", help="save it as UTF-8 text"
        ) from None


def check_size(size: int, name: str) -> None:
    """Raises LanguageError S105 above the limit on a source text."""
    if size > MAX_BYTES:
        raise fail(
            LanguageError,
            "S105",
            f"{name} is larger than {MAX_BYTES // 1024} KiB",
            help="split it into files and join them with `use`",
        )
