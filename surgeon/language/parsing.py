"""Text to syntax trees, one declaration at a time, with every syntax error of a file reported at once.

The grammar is ``grammars/surgery.lark``; this module never says what the syntax is. It knows what the
terminals are called in words, and where one declaration ends and the next begins.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path

from lark import Lark, Token, Tree
from lark.exceptions import UnexpectedCharacters, UnexpectedEOF, UnexpectedInput, UnexpectedToken

from surgeon.errors import Diagnostic, LanguageError, Span

MAX_BYTES = 256 * 1024
DECLARATIONS = ("use", "recipe", "op", "family")
STATEMENTS = ("grow", "spread", "noise", "expand", "preserve", "seed", "dim", "exact", "default")

WORDS = {
    "NAME": "a name",
    "DOTTED": "a dotted name such as config.hidden_size",
    "NUMBER": "a number",
    "STRING": "a string in double quotes",
    "OPTIONAL": "?",
    "MINUS": "-",
    "STAR": "*",
    "DOTS": "...",
    "_NL": "a new line",
    "$END": "the end of the declaration",
    "LPAR": "(",
    "RPAR": ")",
    "LSQB": "[",
    "RSQB": "]",
    "LBRACE": "{",
    "RBRACE": "}",
    "COMMA": ",",
    "COLON": ":",
    "EQUAL": "=",
    "SLASH": "/",
    "CIRCUMFLEX": "^",
    "VBAR": "|",
}


def data_folder(name: str) -> Path:
    """``grammars`` or ``recipes``: beside the package in a checkout, inside it when installed."""
    package = Path(__file__).resolve().parent.parent
    inside = package / name
    return inside if inside.is_dir() else package.parent / name


@dataclass(frozen=True)
class Source:
    """A file's text, for diagnostics to quote."""

    name: str
    text: str

    def line(self, number: int) -> str:
        lines = self.text.splitlines()
        return lines[number - 1] if 0 < number <= len(lines) else ""

    def diagnostic(
        self,
        code: str,
        message: str,
        span: Span | None,
        expected: str | None = None,
        help: str | None = None,
    ) -> Diagnostic:
        line = self.line(span.line) if span else None
        return Diagnostic(code, message, span, line, expected, help)


@dataclass(frozen=True)
class Chunk:
    """One declaration's text and the number of lines before it."""

    text: str
    offset: int


@cache
def grammar(strict: bool = False) -> Lark:
    """The LALR parser; `strict` also refuses any ambiguity (needs interegular: for tests)."""
    text = (data_folder("grammars") / "surgery.lark").read_text(encoding="utf-8")
    return Lark(
        text,
        parser="lalr",
        start=["start", "settings"],
        propagate_positions=True,
        maybe_placeholders=True,
        strict=strict,
    )


def strip_comment(line: str) -> str:
    """`line` without its comment; a ``#`` inside a string is not one."""
    return re.sub(r'("[^"\n]*")|#.*', lambda m: m.group(1) or "", line)


def chunks(text: str) -> list[Chunk]:
    """The declarations of a file: each runs from its first line to where its braces close."""
    found: list[Chunk] = []
    lines: list[str] = []
    start = depth = 0
    for number, line in enumerate(text.splitlines()):
        bare = strip_comment(line)
        begins = bare.split(" ", 1)[0].strip() in DECLARATIONS and not line.startswith((" ", "\t"))
        if lines and (depth <= 0 or begins):  # a declaration at the margin ends an unclosed one
            found.append(Chunk("\n".join(lines) + "\n", start))
            lines, depth = [], 0
        if not lines:
            if not bare.strip():
                continue
            start = number
        lines.append(line)
        depth += bare.count("{") - bare.count("}")
    if lines:
        found.append(Chunk("\n".join(lines) + "\n", start))
    return found


def span_of(node: Tree | Token, file: str, offset: int) -> Span:
    meta = node if isinstance(node, Token) else node.meta
    if getattr(meta, "line", None) is None:
        return Span(file, offset + 1, 1, offset + 1, 2)
    end_line, end_column = meta.end_line or meta.line, meta.end_column or meta.column + 1
    return Span(file, meta.line + offset, meta.column, end_line + offset, end_column)


def parse(source: Source) -> list[tuple[Tree, int]]:
    """The declarations of a file as trees, each with its line offset.

    Raises LanguageError with one diagnostic (S101..S104) per declaration that does not parse.
    """
    if len(source.text.encode()) > MAX_BYTES:
        raise LanguageError(Diagnostic("S104", f"{source.name} is larger than {MAX_BYTES // 1024} KiB"))
    trees: list[tuple[Tree, int]] = []
    errors: list[Diagnostic] = []
    for chunk in chunks(source.text):
        try:
            trees.append((grammar().parse(chunk.text, start="start"), chunk.offset))
        except UnexpectedInput as error:
            errors.append(_diagnose(error, chunk, source))
    if errors:
        raise LanguageError(*errors)
    return trees


def parse_value(text: str) -> Tree:
    """The value of a ``--set`` option. Raises LanguageError S101."""
    source = Source("--set", text)
    try:
        return grammar().parse(text, start="settings").children[0]  # type: ignore[return-value]
    except UnexpectedInput as error:
        raise LanguageError(_diagnose(error, Chunk(text, 0), source)) from error


def _diagnose(error: UnexpectedInput, chunk: Chunk, source: Source) -> Diagnostic:
    if isinstance(error, UnexpectedToken):
        token, expected = error.token, error.accepts or error.expected
    elif isinstance(error, UnexpectedEOF):
        token, expected = Token("$END", ""), set(error.expected)
    else:
        assert isinstance(error, UnexpectedCharacters)
        token, expected = Token("CHARACTER", error.char), error.allowed or set()
        token.line, token.column = error.line, error.column
    lines = chunk.text.splitlines()
    if token.type == "$END" or token.line is None or token.line > len(lines):
        line, column, width = len(lines), len(lines[-1]) + 1, 1
        span = Span(source.name, line + chunk.offset, column, line + chunk.offset, column + width)
        return source.diagnostic(
            "S102", "the declaration ends too early", span, _in_words(expected), "is a closing } missing?"
        )
    line, column = token.line, token.column or 1
    width = 1 if token.type in ("_NL", "CHARACTER") else max(1, len(str(token)))
    span = Span(source.name, line + chunk.offset, column, line + chunk.offset, column + width)
    if token.type == "CHARACTER":
        word = re.match(r"\S+", lines[line - 1][column - 1 :])
        text = word.group(0) if word else str(token)
        if str(token) == '"':
            return source.diagnostic("S103", "the string does not end on its line", span, None, 'close it with "')
        near = _near(text, expected)
        return source.diagnostic("S101", f"cannot read {text!r} here", span, _in_words(expected), near)
    shown = "the end of the line" if token.type == "_NL" else repr(str(token))
    return source.diagnostic(
        "S101", f"{shown} does not belong here", span, _in_words(expected), _near(str(token), expected)
    )


def _near(text: str, expected: set[str] | frozenset[str]) -> str | None:
    """The nearest keyword that could stand here."""
    keywords = [name.lower() for name in expected if name not in WORDS and name.isupper()]
    found = get_close_matches(text, keywords, 1, 0.6)
    return f"did you mean {found[0]}?" if found else None


def _in_words(expected: set[str] | frozenset[str]) -> str:
    """What could stand here, in words a user knows."""
    by_name = {t.name: t.pattern.value for t in grammar().terminals if t.pattern.type == "str"}
    words = sorted({WORDS.get(name) or by_name.get(name) or name.lower() for name in expected})
    return " or ".join(words[:8]) + (" …" if len(words) > 8 else "")
