"""Syntax trees to the checked dataclasses, collecting every mistake instead of stopping at the first."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from fractions import Fraction
from typing import Any

from lark import Token, Tree

from surgeon.errors import Diagnostic, Span
from surgeon.language import syntax as s
from surgeon.language.parsing import Source, span_of

SPREADS = ("symmetric", "diagonal", "first", "uneven")
TYPES = ("int", "ratio", "decibel", "spread", "string", "glob", "bool")
PRESERVES = ("logits", "outputs")


def nearest(word: str, known: Iterable[str]) -> str | None:
    found = get_close_matches(word, list(known), 1, 0.5)
    return f"did you mean {found[0]}?" if found else None


@dataclass(frozen=True)
class Level:
    """A number of decibels."""

    decibel: float

    def __str__(self) -> str:
        return f"{self.decibel:g} dB"


@dataclass
class Builder:
    """Builds the declarations of one file; `errors` gathers what is wrong."""

    source: Source
    settings: Mapping[str, Any] = field(default_factory=dict)
    errors: list[Diagnostic] = field(default_factory=list)
    offset: int = 0
    values: dict[str, Any] = field(default_factory=dict)

    def span(self, node: Tree | Token) -> Span:
        return span_of(node, self.source.name, self.offset)

    def error(
        self, code: str, message: str, node: Tree | Token, expected: str | None = None, help: str | None = None
    ) -> None:
        self.errors.append(self.source.diagnostic(code, message, self.span(node), expected, help))

    def known(self, code: str, what: str, token: Token, names: Iterable[str]) -> str:
        names = tuple(names)
        if str(token) not in names:
            self.error(code, f"unknown {what} {token}", token, ", ".join(names), nearest(token, names))
        return str(token)

    # ── values ──────────────────────────────────────────────────────────────────────────

    def number(self, tree: Tree) -> Fraction:
        sign, top, bottom = tree.children
        if bottom is not None and Fraction(str(bottom)) == 0:
            self.error("S113", "a ratio over zero", tree)
            return Fraction(1)
        value = Fraction(str(top)) / (Fraction(str(bottom)) if bottom is not None else 1)
        return -value if sign is not None else value

    def value(self, tree: Tree) -> Any:
        """A Fraction, Level, str, Spread, or None; names are looked up among the parameters."""
        kind = tree.data
        if kind == "ratio":
            return self.number(tree.children[0])
        if kind == "decibel":
            return Level(float(self.number(tree.children[0])))
        if kind == "string":
            return str(tree.children[0])[1:-1]
        if kind == "call":
            name, *numbers = tree.children
            weights = tuple(self.number(n) for n in numbers)
            if name != "uneven":
                self.error("S112", f"{name} takes no numbers", tree, "uneven(a, b, …)")
            elif len(weights) < 2 or any(w <= 0 for w in weights):
                self.error("S112", "uneven wants two or more positive weights", tree)
            return s.Spread("uneven", weights)
        (name,) = tree.children
        word = str(name)
        if word in self.values:
            return self.values[word]
        if word in ("symmetric", "diagonal", "first"):
            return s.Spread(word)
        if word in ("none", "true", "false"):
            return {"none": None, "true": True, "false": False}[word]
        if word == "uneven":
            self.error("S112", "uneven wants its weights", tree, "uneven(1, 2)")
            return s.Spread("symmetric")
        names = [*self.values, "symmetric", "diagonal", "first", "uneven", "none"]
        self.error("S110", f"unknown name {word}", tree, None, nearest(word, names))
        return None

    def typed(self, tree: Tree, want: type | tuple[type, ...], words: str) -> Any:
        count = len(self.errors)
        value = self.value(tree)
        if not isinstance(value, want) and len(self.errors) == count:
            self.error("S111", f"{shown(value)} is not {words}", tree, words)
        return value

    def fits(self, value: Any, type_name: str) -> bool:
        return {
            "int": isinstance(value, Fraction) and value.denominator == 1,
            "ratio": isinstance(value, Fraction),
            "decibel": isinstance(value, Level),
            "spread": isinstance(value, s.Spread),
            "string": isinstance(value, str),
            "glob": isinstance(value, str),
            "bool": isinstance(value, bool),
        }.get(type_name, True)

    # ── recipes ─────────────────────────────────────────────────────────────────────────

    def recipe(self, tree: Tree) -> s.Recipe:
        name, *rest = tree.children
        self.values = {}
        for parameter in (t for t in rest if isinstance(t, Tree) and t.data == "parameter"):
            self._parameter(parameter)
        parts: dict[str, list[Any]] = {}
        for statement in rest:
            if isinstance(statement, Tree) and statement.data != "parameter":
                built = getattr(self, f"_{statement.data}")(statement)
                parts.setdefault(str(statement.data), []).append(built)
        if not parts.get("grow"):
            self.error("S114", f"the recipe {name} grows nothing", name, "grow DIM by FACTOR")
        return s.Recipe(
            str(name),
            tuple((k, shown(v)) for k, v in self.values.items()),
            tuple(parts.get("grow", ())),
            tuple(parts.get("spread", ())),
            tuple(parts.get("noise", ())),
            tuple(parts.get("expand", ())),
            tuple(parts.get("preserve", ())),
            parts.get("seed", [0])[-1],
            self.source.text,
            self.span(tree),
        )

    def _parameter(self, tree: Tree) -> None:
        name, type_name, optional, default = tree.children
        self.known("S115", "type", type_name, TYPES)
        if str(name) in self.values:
            self.error("S116", f"the parameter {name} is declared twice", name)
        if str(name) in self.settings:
            value = self.settings[str(name)]
        elif default is None:
            self.error("S117", f"the parameter {name} has no value", name, None, f"give it one with --set {name}=…")
            value = Fraction(2)
        else:
            value = self.value(default)
        empty = value is None and optional is not None
        if not empty and not self.fits(value, str(type_name)):
            where = name if str(name) in self.settings else (default or name)
            self.error("S111", f"{shown(value)} is not of type {type_name}", where, str(type_name))
        self.values[str(name)] = value

    def _patterns(self, tree: Tree | None) -> tuple[str, ...]:
        return tuple(str(t)[1:-1] for t in tree.children) if tree is not None else ()

    def _grow(self, tree: Tree) -> s.Grow:
        *targets, amount, patterns = tree.children
        value = self.typed(amount.children[0], Fraction, "a number")
        value = value if isinstance(value, Fraction) else Fraction(1)
        if value <= 0 or (amount.data == "by" and value < 1):
            self.error("S118", f"cannot grow by {value}", amount, "a factor of 1 or more")
        if amount.data != "by" and value.denominator != 1:
            self.error("S118", f"a size is a whole number, not {value}", amount)
        return s.Grow(
            tuple(self._target(t) for t in targets),
            by=value if amount.data == "by" else None,
            to=int(value) if amount.data == "to" else None,
            multiple_of=int(value) if amount.data == "multiple" else None,
            at=self._patterns(patterns),
            span=self.span(tree),
        )

    def _target(self, tree: Tree) -> s.Target:
        first = tree.children[0]
        if tree.data == "axis":
            return s.AxisDim(str(first)[1:-1], int(float(tree.children[1])), self.span(tree))
        if tree.data == "dotted":
            head, _, rest = str(first).partition(".")
            if head != "config":
                self.error("S119", f"{first} names no dim", tree, "config.FIELD", f"config.{rest}")
            return s.ConfigDim(rest, self.span(tree))
        return s.NamedDim(str(first), self.span(tree))

    def _ops(self, tree: Tree) -> tuple[str, ...]:
        return tuple(str(t if isinstance(t, Token) else t.children[0]) for t in tree.children)

    def _spread(self, tree: Tree) -> s.SpreadRule:
        ops, value, patterns = tree.children
        spread = self.typed(value, s.Spread, "a spread: symmetric, diagonal, first or uneven(a, b)")
        if not isinstance(spread, s.Spread):
            spread = s.Spread("symmetric")
        return s.SpreadRule(self._ops(ops), spread, self._patterns(patterns), self.span(tree))

    def _noise(self, tree: Tree) -> s.NoiseRule:
        ops, value, patterns = tree.children
        level = self.typed(value, (Level, type(None)), "a level such as 10 dB, or none")
        snr = level.decibel if isinstance(level, Level) else None
        return s.NoiseRule(self._ops(ops), snr, self._patterns(patterns), self.span(tree))

    def _expand(self, tree: Tree) -> s.ExpandRule:
        op, patterns, *expansions = tree.children
        built = tuple(self._expansion(e) for e in expansions if isinstance(e, Tree))
        return s.ExpandRule(str(op.children[0]), self._patterns(patterns), built, self.span(tree))

    def _preserve(self, tree: Tree) -> str:
        return self.known("S120", "thing to preserve", tree.children[0], PRESERVES)

    def _seed(self, tree: Tree) -> int:
        value = self.typed(tree.children[0], Fraction, "a whole number")
        return int(value) if isinstance(value, Fraction) else 0

    # ── op rules ────────────────────────────────────────────────────────────────────────

    def op(self, tree: Tree) -> s.OpRule:
        names, tag, meaning, *statements = tree.children
        parts: dict[str, list[Any]] = {}
        for statement in statements:
            if isinstance(statement, Tree):
                built = getattr(self, f"_{statement.data}")(statement)
                parts.setdefault(str(statement.data), []).append(built)
        signature = self._signature(meaning) if meaning.data == "signature" else None
        rule = s.OpRule(
            self._ops(names),
            str(tag.children[0]) if tag is not None else None,
            signature,
            self._kind(meaning) if meaning.data == "kind" else None,
            tuple(parts.get("role", ())),
            tuple(parts.get("expansion", ())),
            tuple(parts.get("exact", ())),
            tuple(parts.get("default", ())),
            self.span(tree),
        )
        self._check_names(rule, tree)
        return rule

    def _kind(self, tree: Tree) -> s.KindUse:
        name, flag, given = tree.children
        self.known("S121", "kind", name, s.KINDS)
        flags = s.KINDS.get(str(name), ())
        if flag is None and flags:
            self.error("S122", f"the kind {name} wants one of its flags", name, ", ".join(flags))
        if flag is not None and str(flag) not in flags:
            self.error("S122", f"{flag} is no flag of {name}", flag, ", ".join(flags) or "none", nearest(flag, flags))
        value = self.number(given) if isinstance(given, Tree) else None
        if flag == "power" and given is None:
            self.error("S122", "power wants its exponent", flag, "power(1/2) or power(arg)")
        return s.KindUse(str(name), str(flag) if flag is not None else None, value)

    def _signature(self, tree: Tree) -> s.Signature:
        args = [self._argument(t) for t in tree.children if t.data == "argument"]
        outputs = [self._axes(t) for t in tree.children if t.data == "axes"]
        return s.Signature(tuple(args), tuple(outputs))

    def _argument(self, tree: Tree) -> s.ArgPattern:
        name, axes, optional = tree.children
        pattern = self._axes(axes) if axes is not None else None
        return s.ArgPattern(str(name), pattern, optional is not None, self.span(tree))

    def _axes(self, tree: Tree) -> s.AxisPattern:
        words = [str(t.children[0]) for t in tree.children]
        if words.count("...") > 1:
            self.error("S123", "... stands twice among the axes of one tensor", tree)
        dots = words.index("...") if "..." in words else None
        return s.AxisPattern(tuple(w for w in words if w != "..."), dots)

    def _role(self, tree: Tree) -> s.Role:
        word, *axes = tree.children
        known = (*s.ROLES, "exact", "default")
        if str(word) not in s.ROLES:
            self.error("S124", f"unknown role {word}", word, ", ".join(s.ROLES), nearest(word, known))
        return s.Role(str(word), tuple(map(str, axes)), self.span(tree))

    def _expansion(self, tree: Tree) -> s.Expansion:
        argument, *factors = tree.children
        for factor in factors:
            self.known("S125", "expansion", factor.children[0], s.EXPANSIONS)
        pairs = tuple((str(f.children[0]), str(f.children[1])) for f in factors)
        return s.Expansion(str(argument), pairs, self.span(tree))

    def _exact(self, tree: Tree) -> s.Exact:
        return s.Exact(tuple(map(str, tree.children)), self.span(tree))

    def _default(self, tree: Tree) -> s.DefaultValue:
        argument, axis, exponent = tree.children
        return s.DefaultValue(str(argument), str(axis), self.number(exponent), self.span(tree))

    def _check_names(self, rule: s.OpRule, tree: Tree) -> None:
        """Every axis and argument that a rule speaks of must stand in its signature."""
        if rule.signature is None:
            if rule.roles or rule.exact or rule.defaults or rule.expansions:
                self.error("S126", "a rule that names a kind has no axes to speak of", tree)
            return
        arguments = [a.name for a in rule.signature.args]
        axes = {n for a in rule.signature.args if a.axes for n in a.axes.names}
        spoken = [(name, r.span, "axis", axes) for r in rule.roles for name in r.axes]
        spoken += [(n, e.span, "axis", axes) for e in rule.expansions for _, n in e.factors]
        spoken += [(e.argument, e.span, "argument", set(arguments)) for e in rule.expansions]
        spoken += [(m, e.span, "argument", set(arguments)) for e in rule.exact for m in e.members]
        spoken += [(d.argument, d.span, "argument", set(arguments)) for d in rule.defaults]
        spoken += [(d.axis, d.span, "axis", axes) for d in rule.defaults]
        for name, span, what, known in spoken:
            if name not in known:
                self.errors.append(
                    self.source.diagnostic(
                        "S127", f"the signature has no {what} {name}", span, ", ".join(sorted(known)), nearest(name, known)
                    )
                )
        for output in rule.signature.outputs:
            for name in output.names:
                if name not in axes and name not in ("_", "1"):
                    self.error("S128", f"the output's axis {name} comes from no argument", tree, None, nearest(name, axes))

    # ── families ────────────────────────────────────────────────────────────────────────

    def family(self, tree: Tree) -> s.Family:
        name, *rest = tree.children
        types = tuple(str(t)[1:-1] for t in rest if isinstance(t, Token))
        dims = tuple(self._dim(t) for t in rest if isinstance(t, Tree))
        return s.Family(str(name), types, dims, self.span(tree))

    def _dim(self, tree: Tree) -> s.DimName:
        name, *choices = tree.children
        fields = []
        for choice in choices:
            for token in choice.children:
                if not str(token).startswith("config."):
                    self.error("S119", f"{token} is no config field", token, "config.FIELD")
            fields.append(tuple(str(t).removeprefix("config.") for t in choice.children))
        return s.DimName(str(name), tuple(fields), self.span(tree))


def shown(value: Any) -> str:
    """A value as the language writes it."""
    if isinstance(value, s.Spread):
        return value.name + (f"({', '.join(map(str, value.weights))})" if value.weights else "")
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else str(value)
