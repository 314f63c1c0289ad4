"""Small readers of lark trees: children by name, numbers, strings, words with a fixed set."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction

from lark import Token, Tree

from surgeon.language.report import Report, listing

MAX_DIGITS = 24


def tokens(tree: Tree, *types: str) -> list[Token]:
    """The direct tokens of a tree of these types."""
    return [c for c in tree.children if isinstance(c, Token) and c.type in types]


def token(tree: Tree, *types: str) -> Token:
    return tokens(tree, *types)[0]


def trees(tree: Tree, *names: str) -> list[Tree]:
    """The direct subtrees of a tree with these names, or all of them."""
    return [c for c in tree.children if isinstance(c, Tree) and (not names or c.data in names)]


def tree(parent: Tree, *names: str) -> Tree | None:
    """The first direct subtree with one of these names."""
    found = trees(parent, *names)
    return found[0] if found else None


def unquoted(text: Token) -> str:
    return str(text)[1:-1]


def number(text: Token, report: Report) -> Fraction | None:
    """A number's exact value, or None with a finding for one that does not exist or that nothing
    here could mean."""
    if len(text) > MAX_DIGITS:
        report.error(
            "S119", f"this number has {len(text)} characters", text, expected=f"at most {MAX_DIGITS}"
        )
        return None
    try:
        return Fraction(str(text))
    except ZeroDivisionError:
        report.error("S119", f"`{text}` divides by zero", text)
        return None


def one_of(word: Token, known: Iterable[str], what: str, code: str, report: Report) -> bool:
    """Whether a word is among the known ones; a finding otherwise."""
    known = list(known)
    if str(word) in known:
        return True
    report.error(
        code,
        f"there is no {what} `{word}`",
        word,
        expected=listing(known),
        near=(word, known),
    )
    return False


def unrepeated(words: Iterable[Token], what: str, report: Report) -> None:
    """A finding for every word that an earlier one already is."""
    seen: dict[str, Token] = {}
    for word in words:
        if word != "_" and str(word) in seen:
            first = seen[str(word)]
            report.error(
                "S111",
                f"the {what} `{word}` is declared twice",
                word,
                help=f"the first is in line {first.line}",
            )
        seen.setdefault(str(word), word)
