"""The one canonical layout of a text.

Works on the parser's own tokens, so it cannot misread what it lays out, and keeps every comment. A
statement stands on one line, wrapped after commas; blocks are indented; `:=` and the `=` of dims
stand under each other. Of blank lines one is kept; one stands around every block.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby

from lark import Token

from surgeon.language.parsing import grammar, parse
from surgeon.language.report import Report

WIDTH, INDENT = 100, 4
_COMMENT = re.compile(r'"[^"\n]*"|#[^\n]*')
TIGHT_BEFORE = {"COMMA", "RPAR", "RSQB", "QUESTION"}
TIGHT_AFTER = {"LPAR", "LSQB"}
BREAKS_AFTER = {"COMMA", "BAR"}


@dataclass
class Line:
    """One statement, block head, closing brace or comment."""

    tokens: list[Token]
    depth: int
    first: int  # line numbers in the source
    last: int
    comment: str | None = None  # behind the tokens, or alone when there are none
    opens: bool = False
    pieces: list[str] = field(default_factory=list)

    @property
    def aligned(self) -> str | None:
        """The token type at which neighbours are aligned."""
        if any(t.type == "BECOMES" for t in self.tokens[:2]):
            return "BECOMES"
        return "EQUAL" if self.tokens and self.tokens[0].type == "DIM" else None


def format_text(text: str, name: str = "<string>") -> str:
    """The text in canonical layout.

    Raises LanguageError when the text does not parse, and RuntimeError should the layout ever read
    differently from the text (a bug, in which case nothing must be written)."""
    text = text.replace("\r\n", "\n")
    report = Report(text, name)
    before = parse(report)
    report.finish()
    result = _render(_lines(text))
    again = Report(result, name)
    if parse(again) != before or again.diagnostics or sorted(_comments(text)) != sorted(_comments(result)):
        raise RuntimeError(f"the layout of {name} would change what it says; this is a bug in surgeon")
    return result


def _line(token: Token) -> int:
    return token.line or 0


def _start(token: Token) -> int:
    return token.start_pos or 0


def _comments(text: str) -> list[str]:
    return [m.group().rstrip() for m in _COMMENT.finditer(text) if m.group().startswith("#")]


# ── tokens to lines ──────────────────────────────────────────────────────────────────────


def _stream(text: str) -> Iterator[Token]:
    """The tokens of a text, comments among them at their places."""
    comments = []
    line, counted = 1, 0
    for match in _COMMENT.finditer(text):
        if match.group().startswith("#"):
            line += text.count("\n", counted, match.start())
            counted = match.start()
            comments.append(Token("COMMENT", match.group().rstrip(), match.start(), line, end_line=line))
    parser = grammar().parse_interactive(text, start="start")
    comments.reverse()
    for token in parser.iter_parse():
        while comments and _start(comments[-1]) < _start(token):
            yield comments.pop()
        yield token
    yield from reversed(comments)


class _Splitter:
    """Tokens and comments to lines."""

    def __init__(self, one_line_blocks: set[int]) -> None:
        self.lines: list[Line] = []
        self.one_line_blocks = one_line_blocks
        self.depth = 0
        self.tokens: list[Token] = []
        self.waiting: list[Token] = []  # comments among them

    def flush(self, opens: bool = False) -> None:
        """End the line. A comment behind its last token stays there; the others go before it."""
        if not self.tokens:
            return
        first, last = _line(self.tokens[0]), _line(self.tokens[-1])
        trailing = None
        if self.waiting and self.waiting[-1].line == last:
            trailing = str(self.waiting.pop())
        self.lines += [Line([], self.depth, first, first, str(c)) for c in self.waiting]
        self.lines.append(Line(self.tokens, self.depth, first, last, trailing, opens))
        self.tokens, self.waiting = [], []

    def balanced(self) -> bool:
        """Whether a closing brace here closes a block that was opened on an earlier line."""
        braces = [t.type for t in self.tokens if t.type in ("LBRACE", "RBRACE")]
        return braces.count("LBRACE") == braces.count("RBRACE")

    def comment(self, comment: Token) -> None:
        if self.tokens:
            self.waiting.append(comment)
        elif self.lines and self.lines[-1].last == comment.line and self.lines[-1].comment is None:
            self.lines[-1].comment = str(comment)
        else:
            self.lines.append(Line([], self.depth, _line(comment), _line(comment), str(comment)))

    def feed(self, token: Token) -> None:
        if token.type == "COMMENT":
            self.comment(token)
        elif token.type == "_NEWLINE":
            self.flush()
        elif token.type == "LBRACE" and _start(token) not in self.one_line_blocks:
            self.tokens.append(token)
            self.flush(opens=True)
            self.depth += 1
        elif token.type == "RBRACE" and self.balanced():
            self.flush()
            self.depth -= 1
            self.tokens.append(token)
        else:
            self.tokens.append(token)


def _lines(text: str) -> list[Line]:
    stream = list(_stream(text))
    splitter = _Splitter(_one_line_blocks(stream))
    for token in stream:
        splitter.feed(token)
    splitter.flush()
    return splitter.lines


def _one_line_blocks(stream: list[Token]) -> set[int]:
    """Where blocks open that may stay on their head's line: written so, and short enough."""
    found: set[int] = set()
    depth, opening = 0, None
    statement: list[Token] = []
    for token in stream:
        if token.type == "COMMENT":
            continue
        statement.append(token)
        if token.type == "LBRACE":
            depth, opening = depth + 1, token
        elif token.type == "RBRACE":
            depth -= 1
            if opening is not None and opening.line == token.line:
                width = depth * INDENT + len("".join(_spaced(statement)))
                found |= {_start(opening)} if width <= WIDTH else set()
            opening = None
        if token.type == "_NEWLINE":
            opening = None
        if token.type == "_NEWLINE" or (opening is None and token.type == "RBRACE"):
            statement = []
    return found


# ── lines to text ────────────────────────────────────────────────────────────────────────


def _spaced(tokens: list[Token]) -> list[str]:
    """The tokens as text, each with the space before it."""
    pieces: list[str] = []
    brackets, pattern = 0, False
    for i, token in enumerate(tokens):
        previous = tokens[i - 1].type if i else None
        tag = i > 1 and tokens[i - 2].type == "AS"
        tight = (
            previous is None
            or token.type in TIGHT_BEFORE
            or previous in TIGHT_AFTER
            or (token.type == "LPAR" and previous in ("NAME", "DOTTED") and not tag)
            or (token.type == "LSQB" and previous == "NAME")
            or (token.type == "COLON" and brackets > 0)
            or (pattern and "STAR" in (token.type, previous))
            or (token.type == "RBRACE" and previous == "LBRACE")
        )
        brackets += (token.type == "LPAR") - (token.type == "RPAR")
        pattern = token.type != "RSQB" and (pattern or token.type == "LSQB")
        pieces.append(str(token) if tight else f" {token}")
    return pieces


def _align(lines: list[Line]) -> None:
    """Pad neighbours of one block so that their `:=` or `=` stand under each other."""
    for kind, run in groupby(lines, key=lambda line: (line.aligned, line.depth)):
        if kind[0] is None:
            continue
        members = list(run)
        at = [next(i for i, t in enumerate(line.tokens) if t.type == kind[0]) for line in members]
        widths = [len("".join(line.pieces[:i])) for line, i in zip(members, at, strict=True)]
        for line, i, width in zip(members, at, widths, strict=True):
            line.pieces[i] = " " * (max(widths) - width) + line.pieces[i]


def _wrapped(line: Line) -> str:
    """The line as text, broken after commas where it is too long."""
    indent = " " * (INDENT * line.depth)
    rows, row = [], indent
    chunk = ""
    for token, piece in zip(line.tokens, line.pieces, strict=True):
        chunk += piece
        if token.type in BREAKS_AFTER or token is line.tokens[-1]:
            if len(row + chunk) > WIDTH and row.strip():
                rows.append(row)
                row, chunk = indent + " " * 2 * INDENT, chunk.lstrip()
            row += chunk
            chunk = ""
    if line.comment is not None:
        row += f"  {line.comment}" if line.tokens else line.comment
    return "\n".join([*rows, row])


def _blank(before: Line, line: Line) -> bool:
    """Whether a blank line stands between two lines."""
    closes = bool(line.tokens) and line.tokens[0].type == "RBRACE"
    if before.opens or closes:
        return False
    if line.depth == 0 and before.tokens and (line.opens or before.tokens[0].type == "RBRACE"):
        return True
    return line.first - before.last > 1


def _render(lines: list[Line]) -> str:
    for line in lines:
        line.pieces = _spaced(line.tokens)
    _align(lines)
    rows = []
    for i, line in enumerate(lines):
        if i and _blank(lines[i - 1], line):
            rows.append("")
        rows.append(_wrapped(line))
    return "\n".join(rows) + "\n" if rows else ""
