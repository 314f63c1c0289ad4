"""Text to declarations, by the grammar in ``grammars/surgery.lark``.

A sound text is parsed in one go. In a broken one every declaration is parsed alone, and a broken
statement inside it is blanked out and the rest parsed again, so that one mistake neither hides the
next nor makes false ones.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path

from lark import Lark, Token, Tree
from lark.exceptions import UnexpectedInput
from lark.lark import PostLex

from surgeon.language.report import Report, check_size
from surgeon.language.wording import explain

MAX_ROUNDS = 20
GOES_ON = {"COMMA", "BAR", "COLON", "BECOMES", "EQUAL", "ARROW"}
OPENS, CLOSES = {"LPAR", "LSQB"}, {"RPAR", "RSQB"}
_DECLARATION = re.compile(r"^(?=[^\s#{}()\[\],:|])", re.MULTILINE)
_PIECE = re.compile(r'"[^"\n]*"|#[^\n]*|[\n{}]|[^"#\n{}]+|"')


class Newlines(PostLex):
    """Drops the newlines that end no statement."""

    always_accept = ("_NEWLINE",)

    def process(self, stream: Iterator[Token]) -> Iterator[Token]:
        previous, inside, brackets = "_NEWLINE", False, 0
        for token in stream:
            kind = token.type
            if kind == "_NEWLINE" and (
                brackets > 0 or previous in ("_NEWLINE", "LBRACE") or previous in GOES_ON
            ):
                continue
            if kind in ("LBRACE", "RBRACE"):
                inside, brackets = kind == "LBRACE", 0
            elif not inside and kind in OPENS:
                brackets += 1
            elif not inside and kind in CLOSES:
                brackets -= 1
            previous = kind
            yield token


def beside_package(folder: str) -> Path:
    """A data folder: inside the package when installed, else next to it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    installed = package / folder
    return installed if installed.is_dir() else package.parent / folder


def _cache_file() -> str | None:
    """Where lark keeps the parse tables, which take longer to build than any file to parse. In a
    folder of the user's own, since what lies there is unpickled."""
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "surgeon"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        own = not hasattr(os, "getuid") or folder.stat().st_uid == os.getuid()
    except (OSError, RuntimeError):
        return None
    return str(folder / "grammar.pickle") if own and os.access(folder, os.W_OK) else None


@cache
def grammar() -> Lark:
    """The parser."""
    return Lark(
        (beside_package("grammars") / "surgery.lark").read_text(encoding="utf-8"),
        parser="lalr",
        start=["start", "value"],
        propagate_positions=True,
        maybe_placeholders=False,
        postlex=Newlines(),
        cache=_cache_file() or False,
    )


def parse(report: Report) -> list[Tree]:
    """The declarations of a text, as lark trees; what is wrong goes to the report. Raises
    LanguageError S105 for a text over the limit."""
    check_size(len(report.text.encode()), report.name)
    try:
        return _declarations(report.text)
    except UnexpectedInput:
        pass
    starts = sorted({0, *(match.start() for match in _DECLARATION.finditer(report.text))})
    found: list[Tree] = []
    line = 1
    for start, end in pairwise([*starts, len(report.text)]):
        part = report.text[start:end]
        found += _recovering(part, line, report)
        line += part.count("\n")
        if len(report.diagnostics) >= MAX_ROUNDS:
            break
    if not report.diagnostics:  # each part is sound, the whole is not: an indented head, say
        _recovering(report.text, 1, report)
    return found


def _declarations(text: str, line: int = 1) -> list[Tree]:
    """Parse a text whose first line has the number ``line``. Raises lark's UnexpectedInput."""
    parser = grammar().parse_interactive(text, start="start")
    state = parser.lexer_thread.state
    assert state is not None
    state.line_ctr.line = line
    return [child for child in parser.resume_parse().children if isinstance(child, Tree)]


def _recovering(text: str, line: int, report: Report) -> list[Tree]:
    """Parse, and blank out each statement that is wrong; a wrong head drops its declaration."""
    while len(report.diagnostics) < MAX_ROUNDS:
        try:
            return _declarations(text, line)
        except UnexpectedInput as error:
            at_end = explain(error, text, line, report)
            start, end, depth = _statement(text, _offset(error, text))
        if depth == 0 or at_end or not text[start:end].strip():
            return []
        text = text[:start] + re.sub(r"[^\n]", " ", text[start:end]) + text[end:]
    return []


def _offset(error: UnexpectedInput, text: str) -> int:
    """Where the error is; a newline that should not be there belongs to the statement it ends."""
    token = getattr(error, "token", None)
    place = error.pos_in_stream if error.pos_in_stream is not None else len(text)
    return max(place - 1, 0) if token is not None and token.type == "_NEWLINE" else place


def _statement(text: str, place: int) -> tuple[int, int, int]:
    """Start, end and brace depth of the statement around a place of the text."""
    start, depth = 0, 0
    for match in _PIECE.finditer(text):
        piece = match.group()
        if piece not in ("\n", "{", "}"):
            continue
        if match.start() > place or (match.start() == place and piece == "\n"):
            if piece == "{" and depth > 0:  # the block of a statement goes with it
                close = text.find("}", match.end())
                return start, (close + 1 if close >= 0 else len(text)), depth
            return start, match.start(), depth
        depth += {"{": 1, "}": -1, "\n": 0}[piece]
        start = match.end()
    return start, len(text), depth


def parse_value(report: Report) -> Tree | None:
    """What ``--set name=value`` holds, as one lark tree, or None with a finding."""
    try:
        tree = grammar().parse(report.text, start="value")
    except UnexpectedInput as error:
        explain(error, report.text, 1, report)
        return None
    (value,) = tree.children
    assert isinstance(value, Tree)
    return value
