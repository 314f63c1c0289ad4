"""Declarations ``op`` and ``family``: lark trees to checked dataclasses."""

from __future__ import annotations

from fractions import Fraction

from lark import Token, Tree

from surgeon.language.report import Report, listing
from surgeon.language.syntax import (
    EXPANSIONS,
    KINDS,
    ROLES,
    ArgPattern,
    AxisPattern,
    DefaultValue,
    DimName,
    Exact,
    Expansion,
    Family,
    FileField,
    KindUse,
    OpRule,
    Role,
    Signature,
)
from surgeon.language.trees import number, one_of, token, tokens, tree, trees, unquoted, unrepeated

WITH_NUMBER = ("power",)
"""Flags that take a number."""

ANONYMOUS = ("_", "1")
"""Axis names that bind nothing: one axis of any size, and one of size one."""


def op_rule(declaration: Tree, report: Report) -> OpRule:
    """An ``op`` declaration; what is wrong in it goes to the report."""
    names_tree, tag = tree(declaration, "names"), tree(declaration, "tag")
    assert names_tree is not None
    names = tokens(names_tree, "DOTTED")
    unrepeated(names, "op", report)
    for name in names:
        if name.count(".") > 2:
            report.error(
                "S134",
                f"`{name}` is not an op name",
                name,
                expected="`namespace.name` or `namespace.name.overload`",
            )
    kind, signature, block = (tree(declaration, part) for part in ("kind", "signature", "block"))
    checked = _signature(signature, report) if signature is not None else None
    rule = OpRule(
        names=tuple(map(str, names)),
        tag=str(token(tag, "NAME")) if tag else None,
        signature=checked,
        kind=_kind(kind, report) if kind else None,
        span=report.span(names_tree),
    )
    if block is None or checked is None:
        return rule
    body = _Body(checked, report)
    return OpRule(
        rule.names,
        rule.tag,
        rule.signature,
        rule.kind,
        roles=tuple(body.role(s) for s in trees(block, "role")),
        expansions=body.expansions(trees(block, "expansion")),
        exact=tuple(body.exact(s) for s in trees(block, "exact")),
        defaults=tuple(body.default(s) for s in trees(block, "default")),
        span=rule.span,
    )


def _kind(use: Tree, report: Report) -> KindUse | None:
    name = token(use, "NAME")
    if not one_of(name, KINDS, "kind", "S121", report):
        return None
    flags, flag = KINDS[str(name)], tree(use, "flag")
    if flag is None:
        if flags:
            report.error("S122", f"`{name}` needs a flag", name, expected=listing(flags))
        return KindUse(str(name))
    word = token(flag, "NAME")
    if not flags:
        report.error("S122", f"the kind `{name}` takes no flag", flag, help=f"write only `{name}`")
        return None
    if not one_of(word, flags, f"flag of `{name}` called", "S122", report):
        return None
    return KindUse(str(name), str(word), _flag_number(word, tree(flag, "number", "word"), report))


def _flag_number(flag: Token, value: Tree | None, report: Report) -> Fraction | None:
    if flag not in WITH_NUMBER:
        if value is not None:
            report.error("S122", f"`{flag}` takes no number", value, help=f"write only `{flag}`")
        return None
    hint = "a ratio such as `-1/2`, or `arg` for the op's second argument"
    if value is None:
        report.error("S122", f"`{flag}` needs its number", flag, expected=hint)
    elif value.data == "number":
        return number(token(value, "NUMBER"), report)
    elif token(value, "NAME") != "arg":
        report.error("S122", f"`{flag}` cannot take `{token(value, 'NAME')}`", value, expected=hint)
    return None


# ── signatures ───────────────────────────────────────────────────────────────────────────


def _signature(signature: Tree, report: Report) -> Signature:
    arguments = trees(signature, "argument")
    unrepeated((token(a, "NAME") for a in arguments), "argument", report)
    args = []
    for argument in arguments:
        axes = tree(argument, "pattern")
        args.append(
            ArgPattern(
                str(token(argument, "NAME")),
                _pattern(axes, report) if axes else None,
                bool(tokens(argument, "QUESTION")),
                report.span(argument),
            )
        )
    given = {name for arg in args if arg.axes for name in arg.axes.names}
    dots = any(arg.axes is not None and arg.axes.ellipsis is not None for arg in args)
    result = tree(signature, "outputs")
    assert result is not None
    outputs = []
    for output in trees(result, "pattern"):
        outputs.append(_pattern(output, report))
        for axis in tokens(output, "NAME", "ELLIPSIS"):
            if axis.type == "ELLIPSIS" and not dots:
                report.error("S127", "no argument has the axes `...` of the output", axis)
            if axis.type == "NAME" and axis != "_" and axis not in given:
                report.error(
                    "S127",
                    f"no argument has the axis `{axis}` of the output",
                    axis,
                    near=(axis, given - set(ANONYMOUS)),
                    help=None,
                )
    _products(trees(signature, "argument"), args, outputs, report)
    return Signature(tuple(args), tuple(outputs))


def _products(
    arguments: list[Tree], args: list[ArgPattern], outputs: list[AxisPattern], report: Report
) -> None:
    """An axis that is a product: its factors are kept, and all but one are axes of their own elsewhere."""
    alone = {axis[0] for arg in args if arg.axes for axis in arg.axes.axes if len(axis) == 1}
    alone, kept = alone | set(ANONYMOUS), {name for output in outputs for name in output.names}
    for written, argument in zip(arguments, args, strict=True):
        for axis in argument.axes.axes if argument.axes else ():
            lost = [name for name in axis if name not in {*kept, *ANONYMOUS}]
            product = "*".join(axis)
            if len(axis) > 1 and lost:
                report.error("S128", f"`{lost[0]}` is part of `{product}`, and no output has it", written)
            elif len(axis) > 1 and len(set(axis) - alone) > 1:
                said = f"the sizes of `{product}` are not known: more than one of them is no axis elsewhere"
                report.error("S128", said, written)


def _pattern(pattern: Tree, report: Report) -> AxisPattern:
    axes: list[tuple[str, ...]] = []
    ellipsis = None
    joins = False
    for part in tokens(pattern, "NAME", "NUMBER", "ELLIPSIS", "STAR"):
        if part.type == "STAR":
            joins = True
        elif part.type != "ELLIPSIS":
            if part.type == "NUMBER" and part != "1":
                report.error(
                    "S128", f"an axis cannot be fixed to {part}", part, expected="a name, `_`, `1` or `...`"
                )
            before = axes.pop() if joins else ()
            axes.append((*before, str(part)))
            if joins and set(ANONYMOUS) & {*axes[-1]}:
                report.error("S128", "what an axis is a product of needs names", part)
            joins = False
        elif ellipsis is None:
            ellipsis = len(axes)
        else:
            report.error("S128", "`...` can stand only once in a pattern", part)
    return AxisPattern(tuple(axes), ellipsis)


class _Body:
    """The statements of a rule, checked against its signature."""

    def __init__(self, signature: Signature, report: Report) -> None:
        self.report = report
        self.arguments = {a.name: a for a in signature.args if a.name != "_"}
        self.axes = {n for a in signature.args if a.axes for n in a.axes.names} - set(ANONYMOUS)

    def axis(self, word: Token) -> str:
        if word not in self.axes:
            self.report.error(
                "S125",
                f"the signature has no axis `{word}`",
                word,
                near=(word, self.axes),
                expected=listing(sorted(self.axes)),
            )
        return str(word)

    def argument(self, word: Token, *, tensor: bool = False) -> str:
        known = [name for name, a in self.arguments.items() if a.axes is not None or not tensor]
        if word not in known:
            message = f"the signature has no argument `{word}`"
            if word in self.arguments:
                message = f"the argument `{word}` is not a tensor"
            self.report.error("S126", message, word, near=(word, known), expected=listing(known))
        return str(word)

    def role(self, statement: Tree) -> Role:
        word, *axes = tokens(statement, "NAME")
        one_of(word, ROLES, "role", "S123", self.report)
        return Role(str(word), tuple(self.axis(a) for a in axes), self.report.span(statement))

    def expansions(self, statements: list[Tree]) -> tuple[Expansion, ...]:
        unrepeated((token(s, "NAME") for s in statements), "expansion of", self.report)
        return tuple(self.expansion(s) for s in statements)

    def expansion(self, statement: Tree) -> Expansion:
        name = token(statement, "NAME")
        argument = self.arguments.get(self.argument(name, tensor=True))
        own = set(argument.axes.names) if argument and argument.axes else self.axes
        checked = expansion(statement, self.report)
        for factor in trees(statement, "factor"):
            axis = tokens(factor, "NAME")[1]
            if self.axis(axis) in self.axes and axis not in own:
                self.report.error(
                    "S125",
                    f"`{name}` has no axis `{axis}`",
                    axis,
                    expected=listing(sorted(own)),
                    near=(axis, own),
                )
        return checked

    def exact(self, statement: Tree) -> Exact:
        members = tuple(self.argument(m) for m in tokens(statement, "NAME"))
        return Exact(members, self.report.span(statement))

    def default(self, statement: Tree) -> DefaultValue:
        argument, axis = tokens(statement, "NAME")
        exponent = number(token(statement, "NUMBER"), self.report)
        return DefaultValue(
            self.argument(argument), self.axis(axis), exponent or Fraction(0), self.report.span(statement)
        )


def expansion(statement: Tree, report: Report) -> Expansion:
    """``weight := copy(o) * share(i)``; that its names are in the signature is the caller's check."""
    factors = []
    axes = []
    for factor in trees(statement, "factor"):
        word, axis = tokens(factor, "NAME")
        one_of(word, EXPANSIONS, "expansion", "S124", report)
        factors.append((str(word), str(axis)))
        axes.append(axis)
    unrepeated(axes, "axis", report)
    return Expansion(str(token(statement, "NAME")), tuple(factors), report.span(statement))


# ── families ─────────────────────────────────────────────────────────────────────────────


def config_field(name: Token, report: Report) -> str:
    """``config.hidden_size`` without its ``config.``"""
    head, _, field = str(name).partition(".")
    if head != "config":
        report.error("S130", f"`{name}` is not a config field", name, help=f"write `config.{name}`")
        return str(name)
    return field


def family(declaration: Tree, report: Report) -> Family:
    """A ``family`` declaration; what is wrong in it goes to the report."""
    types = tokens(declaration, "STRING")
    unrepeated(types, "model type", report)
    dims = trees(declaration, "dim")
    unrepeated((token(d, "NAME") for d in dims), "dim", report)
    return Family(
        str(token(declaration, "NAME")),
        tuple(map(unquoted, types)),
        tuple(
            DimName(
                str(token(dim, "NAME")),
                tuple(
                    tuple(config_field(f, report) for f in tokens(fields, "DOTTED"))
                    for fields in trees(dim, "fields")
                ),
                report.span(dim),
            )
            for dim in dims
        ),
        tuple(_file_field(file, report) for file in trees(declaration, "file")),
        report.span(token(declaration, "NAME")),
    )


def _file_field(file: Tree, report: Report) -> FileField:
    fields = tree(file, "fields")
    assert fields is not None
    return FileField(
        unquoted(token(file, "STRING")),
        str(token(file, "NAME")),
        tuple(config_field(f, report) for f in tokens(fields, "DOTTED")),
        report.span(file),
    )
