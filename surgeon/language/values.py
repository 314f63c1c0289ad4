"""Values: numbers, decibels, strings, words, spreads, and what type each must have."""

from __future__ import annotations

import re
from collections.abc import Mapping
from fractions import Fraction

from lark import Tree

from surgeon.errors import Span
from surgeon.language.parsing import parse_value
from surgeon.language.report import Report, listing, nearest
from surgeon.language.syntax import Spread
from surgeon.language.trees import number, token, trees, unquoted

TYPES = {
    "int": "a whole number such as `2`",
    "ratio": "a number such as `2` or `3/2`",
    "decibel": "a level such as `10 dB`",
    "spread": "`symmetric`, `diagonal`, `first` or `uneven(1, 2)`",
    "string": "a string in double quotes",
    "glob": 'a pattern in double quotes such as `"layers.*"`',
    "bool": "`true` or `false`",
}
"""The types a parameter can have, and how a value of each is written."""

MAX_CHOICES = 4096
"""How many patterns the braces of one may stand for."""

PLAIN_SPREADS = ("symmetric", "diagonal", "first")
BOOLS = {"true": True, "false": False}
NO_WEIGHTS = "`uneven` needs a weight for each copy, so two or more"


class Unknown:
    """The value of something that is wrong; a finding says so already, so nothing more is said."""

    def __repr__(self) -> str:
        return "unknown"


UNKNOWN = Unknown()
Value = int | float | Fraction | str | bool | Spread | Unknown | None


def read(where: Tree, type_name: str, optional: bool, values: Mapping[str, Value], report: Report) -> Value:
    """What a value tree stands for, of the type asked for; UNKNOWN, with a finding, when it is
    not. ``values`` are the parameters that a word may refer to."""
    if where.data == "word":
        return _word(where, type_name, optional, values, report)
    found: Value = UNKNOWN
    if where.data == "text":
        found = unquoted(token(where, "STRING"))
    elif where.data in ("number", "decibel"):
        exact = number(token(where, "NUMBER"), report)
        if exact is None:
            return UNKNOWN
        found = _whole(exact) if where.data == "number" else float(exact)
    elif where.data == "call":
        if type_name != "spread":
            return _mismatch(where, type_name, optional, report)
        return _uneven(where, values, report)
    if not fits(found, type_name, optional):
        return _mismatch(where, type_name, optional, report)
    if type_name == "glob" and _bad_glob(str(found), where, report):
        return UNKNOWN
    return found


def _bad_glob(pattern: str, where: Tree | Span, report: Report) -> bool:
    """A finding, and True, for a pattern whose braces mean nothing or too much."""
    groups = re.findall(r"\{([^{}]*)\}", pattern)
    fault, written_out = None, 1
    if "{" in re.sub(r"\{[^{}]*\}", "", pattern) or "}" in re.sub(r"\{[^{}]*\}", "", pattern):
        fault = "has a brace without its partner"
    for group in groups:
        low, dots, high = group.partition("..")
        if not dots:
            written_out *= group.count(",") + 1
        elif not (re.fullmatch("[0-9]{1,6}", low) and re.fullmatch("[0-9]{1,6}", high)):
            fault = f"has no numbers around the dots of {{{group}}}"
        elif int(low) > int(high):
            fault = f"counts downwards in {{{group}}}"
        else:
            written_out *= int(high) - int(low) + 1
    if written_out > MAX_CHOICES or len(pattern) > MAX_CHOICES:
        fault = f"stands for more than {MAX_CHOICES} patterns"
    if fault is not None:
        expected = '`"layers.{0..3}.*"` or `"*.{fc1,fc2}.weight"`'
        report.error("S136", f"the pattern {fault}", where, expected=expected)
    return fault is not None


def _whole(value: Fraction) -> int | Fraction:
    return value.numerator if value.denominator == 1 else value


def fits(value: Value, type_name: str, optional: bool) -> bool:
    """Whether a value is of a type."""
    if value is None:
        return optional
    if isinstance(value, bool) or type_name == "bool":
        return isinstance(value, bool) and type_name == "bool"
    kinds: dict[str, type | tuple[type, ...]] = {
        "int": int,
        "ratio": (int, Fraction),
        "decibel": float,
        "spread": Spread,
        "string": str,
        "glob": str,
    }
    return isinstance(value, kinds[type_name])


def _word(where: Tree, type_name: str, optional: bool, values: Mapping[str, Value], report: Report) -> Value:
    word = token(where, "NAME")
    if word in values:
        value = values[str(word)]
        if isinstance(value, Unknown) or fits(value, type_name, optional):
            return value
        return _mismatch(where, type_name, optional, report, note=f"the parameter `{word}` is {shown(value)}")
    if word == "none" and optional:
        return None
    if word in BOOLS and type_name == "bool":
        return BOOLS[str(word)]
    if type_name == "spread" and word in PLAIN_SPREADS:
        return Spread(str(word))
    if type_name == "spread" and word == "uneven":
        report.error("S129", NO_WEIGHTS, where, expected="uneven(1, 2)")
        return UNKNOWN
    if word in ("none", *BOOLS):
        return _mismatch(where, type_name, optional, report)
    known = {*values, *(PLAIN_SPREADS if type_name == "spread" else ()), *(["none"] if optional else [])}
    if type_name == "spread":
        known.add("uneven")
        what, code = "spread", "S129"
    else:
        what, code = "parameter", "S116"
    report.error(
        code,
        f"there is no {what} `{word}`",
        where,
        expected=_expected(type_name, optional),
        near=(word, known),
    )
    return UNKNOWN


def _expected(type_name: str, optional: bool) -> str:
    return TYPES[type_name] + (", or `none`" if optional else "")


def _mismatch(where: Tree, type_name: str, optional: bool, report: Report, note: str | None = None) -> Value:
    given = note or f"this is {described(where)}"
    report.error("S113", f"{given}, not of type {type_name}", where, expected=_expected(type_name, optional))
    return UNKNOWN


def described(where: Tree) -> str:
    """What a value looks like, for a message."""
    kinds = {"text": "a string", "decibel": "a level in decibel", "number": "a number", "call": "a call"}
    return kinds.get(where.data) or f"the word `{token(where, 'NAME')}`"


def shown(value: Value) -> str:
    """A value as it would be written."""
    if value is None or isinstance(value, bool):
        return {None: "`none`", True: "`true`", False: "`false`"}[value]
    if isinstance(value, Spread):
        return f"`{value.name}`"
    if isinstance(value, float):
        return f"`{value:g} dB`"
    return f'`"{value}"`' if isinstance(value, str) else f"`{value}`"


def _uneven(where: Tree, values: Mapping[str, Value], report: Report) -> Value:
    name, arguments = token(where, "NAME"), trees(where)
    if name != "uneven":
        known = ("uneven", *PLAIN_SPREADS)
        if name in PLAIN_SPREADS:
            report.error("S129", f"`{name}` takes no weights", where, help=f"write only `{name}`")
        else:
            report.error(
                "S129",
                f"there is no spread `{name}`",
                where,
                expected=listing(known),
                help=nearest(name, known),
            )
        return UNKNOWN
    weights = [read(a, "ratio", False, values, report) for a in arguments]
    if len(weights) < 2:
        report.error("S129", NO_WEIGHTS, where, expected="uneven(1, 2)")
        return UNKNOWN
    exact = []
    for weight, argument in zip(weights, arguments, strict=True):
        if not isinstance(weight, int | Fraction):
            return UNKNOWN
        if weight <= 0:
            report.error(
                "S129", f"a weight of {weight} is not positive", argument, expected="weights above 0"
            )
        exact.append(Fraction(weight))
    return Spread("uneven", tuple(exact))


def setting(name: str, text: str, type_name: str, optional: bool, report: Report) -> Value:
    """The value of ``--set name=text``. A string may stand without its quotes, which a shell
    would have taken anyway."""
    source = Report(text, f"--set {name}")
    bare = type_name in ("string", "glob") and not text.lstrip().startswith('"')
    if bare and not (optional and text.strip() == "none"):
        everything = Span(source.name, 1, 1, 1, len(text) + 1)
        bad = type_name == "glob" and _bad_glob(text, everything, source)
        report.diagnostics += source.diagnostics
        return UNKNOWN if bad else text
    tree = parse_value(source)
    value = UNKNOWN if tree is None else read(tree, type_name, optional, {}, source)
    report.diagnostics += source.diagnostics
    return value
