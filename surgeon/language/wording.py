"""Syntax errors in human words: lark's terminal names stay in this module."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from lark import Token
from lark.exceptions import UnexpectedCharacters, UnexpectedEOF, UnexpectedInput, UnexpectedToken

from surgeon.errors import Span
from surgeon.language.report import Report, listing

WORDS = {
    "DOTTED": "a dotted name such as `aten.linear`",
    "NAME": "a name",
    "NUMBER": "a number",
    "STRING": "a string in double quotes",
    "_NEWLINE": "the end of the line",
    "DECIBEL": "`dB`",
    "LBRACE": "`{`",
    "RBRACE": "`}`",
    "LPAR": "`(`",
    "RPAR": "`)`",
    "LSQB": "`[`",
    "RSQB": "`]`",
    "COMMA": "`,`",
    "COLON": "`:`",
    "BECOMES": "`:=`",
    "EQUAL": "`=`",
    "QUESTION": "`?`",
    "STAR": "`*`",
    "BAR": "`|`",
    "CARET": "`^`",
    "ARROW": "`->`",
    "ELLIPSIS": "`...`",
    "$END": "the end of the file",
}
"""Terminals that are not simply their own name in lower case, as keywords are."""

STATEMENT_WORDS = {
    "USE": "declaration",
    "RECIPE": "declaration",
    "OP": "declaration",
    "FAMILY": "declaration",
    "GROW": "statement",
    "SPREAD": "statement",
    "NOISE": "statement",
    "EXPAND": "statement",
    "PRESERVE": "statement",
    "SEED": "statement",
    "DIM": "statement",
    "FILE": "statement",
}

HABITS = {
    ";": "a statement ends with its line; no `;` is needed",
    "'": "strings stand in double quotes",
    "//": "comments start with `#`",
    "%": "growth is a factor such as `3/2`",
}


def terminal(name: str) -> str:
    """How a user would call a terminal."""
    return WORDS.get(name, f"`{name.lower()}`")


def expectation(names: Iterable[str]) -> str:
    """``a name, `by` or `to``` for a set of terminals; the plainest first."""
    names = set(names)
    if len(names) > 1:
        names -= {"_NEWLINE", "$END"}
    if not names:
        return "the end of the line"
    ranked = sorted(
        names, key=lambda n: (n not in ("NAME", "DOTTED", "NUMBER", "STRING"), n in WORDS, terminal(n))
    )
    words = [terminal(name) for name in ranked]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def accepted(error: UnexpectedInput) -> set[str]:
    """The terminals that would really have gone on from here (lark's own set has more)."""
    state = getattr(error, "interactive_parser", None)
    if state is not None:
        return set(state.accepts())
    return set(getattr(error, "allowed", None) or ())


def explain(error: UnexpectedInput, text: str, line: int, report: Report) -> bool:
    """Turn a lark error, in a text whose first line is ``line``, into a finding. Returns whether it
    is that the text ended too early."""
    names = accepted(error)
    if isinstance(error, UnexpectedCharacters):
        _character(error, text, names, report)
        return False
    token = error.token if isinstance(error, UnexpectedToken) else None
    if token is None or token.type == "$END" or isinstance(error, UnexpectedEOF):
        _too_early(text, line, names, report)
        return True
    _token(token, names, report)
    return False


def _character(error: UnexpectedCharacters, text: str, names: set[str], report: Report) -> None:
    place = Span(report.name, error.line, error.column, error.line, error.column + 1)
    at = error.pos_in_stream or 0
    char = text[at]
    if char == '"':
        rest = text[at:].split("\n", 1)[0]
        place = Span(report.name, error.line, error.column, error.line, error.column + len(rest))
        report.error(
            "S103", "this string has no closing quote", place, expected='`"` before the end of the line'
        )
        return
    habit = next((h for sign, h in HABITS.items() if text.startswith(sign, at)), None)
    report.error("S103", f"`{char}` does not belong here", place, expected=expectation(names), help=habit)


def _too_early(text: str, line: int, names: set[str], report: Report) -> None:
    lines = text.rstrip().split("\n")
    line += len(lines) - 1
    place = Span(report.name, line, len(lines[-1]) + 1, line, len(lines[-1]) + 2)
    message = "the block is not closed" if "RBRACE" in names else "the text ends in the middle of a statement"
    report.error("S104", message, place, expected="`}`" if "RBRACE" in names else expectation(names))


def _token(token: Token, names: set[str], report: Report) -> None:
    keywords = [n for n in STATEMENT_WORDS if n in names]
    word = str(token)
    if keywords and word.isidentifier() and token.type not in STATEMENT_WORDS:
        what = STATEMENT_WORDS[keywords[0]]
        known = [k.lower() for k in keywords]
        report.error(
            "S102", f"there is no {what} `{word}`", token, expected=listing(known), near=(word, known)
        )
        return
    if token.type == "_NEWLINE":
        place = report.span(token)
        place = replace(place, end_line=place.line, end_column=place.column + 1)
        report.error("S101", "the statement is not finished", place, expected=expectation(names))
        return
    help = None
    if token.type == "IN" and "AT" in names:
        help = "module patterns follow `at`; only `noise`, whose level follows `at`, takes them after `in`"
    elif token.type == "AT" and "IN" in names:
        help = 'after the level of `noise`, module patterns follow `in`: noise linear at 10 dB in "*.mlp.*"'
    elif token.type in STATEMENT_WORDS and "RBRACE" in names and STATEMENT_WORDS[token.type] == "declaration":
        help = "close the block before with `}`"
    elif keywords:
        help = "each line of a block starts with its keyword" if "RBRACE" in names else None
    elif "NAME" in names and word.isidentifier():
        help = f"`{word}` is a keyword here; choose another name"
    near = None
    if help is None and word.isidentifier():
        units = ["dB"] if "DECIBEL" in names else []
        near = (word, [*units, *(n.lower() for n in names if n not in WORDS)])
    report.error(
        "S101", f"`{word}` does not belong here", token, expected=expectation(names), help=help, near=near
    )
