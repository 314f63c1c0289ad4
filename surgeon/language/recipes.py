"""The declaration ``recipe``: parameters bound to their values, statements to checked dataclasses."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fractions import Fraction

from lark import Token, Tree

from surgeon.language.report import Report, listing
from surgeon.language.rules import config_field, expansion
from surgeon.language.syntax import (
    AxisDim,
    ConfigDim,
    ExpandRule,
    Grow,
    NamedDim,
    NoiseRule,
    OpRule,
    Recipe,
    Spread,
    SpreadRule,
    Target,
)
from surgeon.language.trees import one_of, token, tokens, tree, trees, unrepeated
from surgeon.language.values import TYPES, UNKNOWN, Value, read, setting

MAX_DECIBEL = 300
"""Noise a million million million times weaker or stronger than the signal is none, or all there is."""


def recipe(
    declaration: Tree,
    report: Report,
    settings: Mapping[str, str],
    rules: Iterable[OpRule] | None,
    open_parameters: bool = False,
) -> Recipe:
    """A ``recipe`` with every parameter replaced by its value: that of ``settings``, else its
    default, else, if ``open_parameters``, nothing. What is wrong goes to the report; a recipe with a
    finding or an open parameter has holes and must not be used. ``rules`` are the known ops, None
    when they cannot be known for sure."""
    name = token(declaration, "NAME")
    parameters = tree(declaration, "parameters")
    values = _bind(
        trees(parameters, "parameter") if parameters else [], name, report, settings, open_parameters
    )
    body = _Body(values, rules, report)
    grows = tuple(body.grow(s) for s in trees(declaration, "grow"))
    spreads = tuple(body.spread(s) for s in trees(declaration, "spread"))
    noises = tuple(body.noise(s) for s in trees(declaration, "noise"))
    expands = tuple(body.expand(s) for s in trees(declaration, "expand"))
    preserve = tuple(str(w) for s in trees(declaration, "preserve") for w in tokens(s, "NAME", "DOTTED"))
    seed = body.seed(trees(declaration, "seed"))
    if not grows and rules is not None:
        report.error("S131", f"the recipe `{name}` grows nothing", name, expected="a `grow` statement")
    return Recipe(
        str(name),
        tuple(values.items()),
        grows,
        spreads,
        noises,
        expands,
        preserve,
        seed,
        report.text,
        report.span(name),
    )


def _bind(
    parameters: list[Tree],
    recipe_name: Token,
    report: Report,
    settings: Mapping[str, str],
    open_parameters: bool,
) -> dict[str, Value]:
    names = [tokens(p, "NAME")[0] for p in parameters]
    unrepeated(names, "parameter", report)
    for given in settings:
        if given not in names:
            report.error(
                "S115",
                f"the recipe `{recipe_name}` has no parameter `{given}`",
                recipe_name,
                expected=listing(sorted(map(str, names))) if names else "no setting: it has no parameters",
                near=(given, names),
            )
    values: dict[str, Value] = {}
    for parameter, name in zip(parameters, names, strict=True):
        type_name, optional = tokens(parameter, "NAME")[1], bool(tokens(parameter, "QUESTION"))
        default = trees(parameter)
        values[str(name)] = UNKNOWN
        if not one_of(type_name, TYPES, "type", "S112", report):
            continue
        value: Value = UNKNOWN
        if default:
            value = read(default[0], str(type_name), optional, {}, report)
        elif name not in settings and not open_parameters:
            report.error(
                "S114",
                f"the parameter `{name}` has no value",
                name,
                help=f"give it a default, or set it with --set {name}=VALUE",
            )
        if name in settings:
            value = setting(str(name), settings[str(name)], str(type_name), optional, report)
        values[str(name)] = value
    return values


class _Body:
    """The statements of a recipe, with the values of its parameters and the known ops."""

    def __init__(self, values: Mapping[str, Value], rules: Iterable[OpRule] | None, report: Report) -> None:
        self.values, self.report = values, report
        self.rules = {name: rule for rule in rules or () for name in rule.names}
        self.sure = rules is not None
        self.tags = {rule.tag for rule in self.rules.values() if rule.tag}

    def value(self, where: Tree, type_name: str, optional: bool = False) -> Value:
        return read(where, type_name, optional, self.values, self.report)

    def patterns(self, clause: Tree | None) -> tuple[str, ...]:
        globs = [self.value(v, "glob") for v in trees(clause)] if clause else []
        return tuple(g for g in globs if isinstance(g, str))

    def op(self, name: Token) -> str:
        """A tag, an op name, or ``*``."""
        plain = str(name)
        if not self.sure or name.type == "STAR" or plain in self.tags or self.known(plain):
            return plain
        kind = "op or group of ops" if name.type == "NAME" else "op rule"
        self.report.error(
            "S120",
            f"there is no {kind} `{plain}`",
            name,
            near=(plain, self.tags | set(self.rules)),
            expected=f"an op name, `*`, or a group: {listing(sorted(self.tags))}" if self.tags else None,
        )
        return plain

    def known(self, name: str) -> bool:
        """Whether a rule has this name, with or without its overload."""
        return name in self.rules or name.rpartition(".")[0] in self.rules

    def grow(self, statement: Tree) -> Grow:
        targets = tree(statement, "targets")
        assert targets is not None
        found = [self.target(t) for t in targets.children if isinstance(t, Tree) or t.type != "COMMA"]
        at = self.patterns(tree(statement, "where"))
        amount = tree(statement, "by", "to", "to_multiple")
        assert amount is not None
        by = to = multiple = None
        (value,) = trees(amount)
        if amount.data == "by":
            by = self.factor(value)
        elif amount.data == "to":
            to = self.size(value)
        else:
            multiple = self.size(value)
        return Grow(tuple(t for t in found if t), by, to, multiple, at, self.report.span(statement))

    def factor(self, where: Tree) -> Fraction | None:
        value = self.value(where, "ratio")
        if not isinstance(value, Fraction | int):
            return None
        if value < 1:
            self.report.error(
                "S117", f"a growth factor of {value} would not grow", where, expected="a factor of 1 or more"
            )
        return Fraction(value)

    def size(self, where: Tree) -> int | None:
        value = self.value(where, "int")
        if not isinstance(value, int):
            return None
        if value < 1:
            self.report.error("S117", f"nothing has the size {value}", where, expected="a size of 1 or more")
        return value

    def target(self, where: Tree | Token) -> Target | None:
        span = self.report.span(where)
        if isinstance(where, Token):
            if where.type == "NAME":
                return NamedDim(str(where), span)
            return ConfigDim(config_field(where, self.report), span)
        name, arguments = token(where, "NAME"), trees(where)
        if not one_of(name, ("axis",), "target", "S118", self.report):
            return None
        if len(arguments) != 2:
            self.report.error(
                "S118", "`axis` takes a parameter and an axis", where, expected='axis("*.fc1.weight", 0)'
            )
            return None
        parameter, axis = self.value(arguments[0], "glob"), self.value(arguments[1], "int")
        if isinstance(parameter, str) and isinstance(axis, int):
            return AxisDim(parameter, axis, span)
        return None

    def ops(self, statement: Tree) -> tuple[str, ...]:
        ops = tree(statement, "ops")
        assert ops is not None
        return tuple(self.op(o) for o in tokens(ops, "NAME", "DOTTED", "STAR"))

    def spread(self, statement: Tree) -> SpreadRule:
        value = self.value(trees(statement, "word", "call", "number", "decibel", "text")[0], "spread")
        spread = value if isinstance(value, Spread) else Spread("symmetric")
        at = self.patterns(tree(statement, "where"))
        return SpreadRule(self.ops(statement), spread, at, self.report.span(statement))

    def noise(self, statement: Tree) -> NoiseRule:
        level = self.value(
            trees(statement, "word", "call", "number", "decibel", "text")[0], "decibel", optional=True
        )
        within = self.patterns(tree(statement, "within"))
        snr = level if isinstance(level, float) else None
        if snr is not None and abs(snr) > MAX_DECIBEL:
            self.report.error(
                "S119",
                f"{snr:.12g} dB is beyond what floating-point numbers hold",
                statement,
                expected=f"a level from -{MAX_DECIBEL} dB to {MAX_DECIBEL} dB",
            )
        return NoiseRule(self.ops(statement), snr, within, self.report.span(statement))

    def expand(self, statement: Tree) -> ExpandRule:
        name = token(statement, "DOTTED")
        op = self.op(name)
        rule = self.rules.get(op) or self.rules.get(op.rpartition(".")[0])
        expansions = tuple(expansion(s, self.report) for s in trees(statement, "expansion"))
        if rule is not None and rule.signature is not None:
            self._in_signature(rule, trees(statement, "expansion"))
        at = self.patterns(tree(statement, "where"))
        return ExpandRule(op, at, expansions, self.report.span(statement))

    def _in_signature(self, rule: OpRule, statements: list[Tree]) -> None:
        assert rule.signature is not None
        axes = {a.name: a.axes.names for a in rule.signature.args if a.axes is not None and a.name != "_"}
        for statement in statements:
            argument = token(statement, "NAME")
            if argument not in axes:
                self.report.error(
                    "S126",
                    f"`{rule.names[0]}` has no tensor argument `{argument}`",
                    argument,
                    expected=listing(axes),
                    near=(argument, axes),
                )
                continue
            own = axes[str(argument)]
            for factor in trees(statement, "factor"):
                axis = tokens(factor, "NAME")[1]
                if axis not in own:
                    self.report.error(
                        "S125",
                        f"`{argument}` of `{rule.names[0]}` has no axis `{axis}`",
                        axis,
                        expected=listing(own),
                        near=(axis, own),
                    )

    def seed(self, statements: list[Tree]) -> int:
        for again in statements[1:]:
            self.report.error(
                "S133", "the seed is set twice", again, help=f"the first is in line {statements[0].meta.line}"
            )
        if not statements:
            return 0
        value = self.value(trees(statements[0])[0], "int")
        return value if isinstance(value, int) else 0
