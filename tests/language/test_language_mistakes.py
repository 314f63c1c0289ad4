"""Every mistake that the language knows, by example: code, message, a fragment of the hints, text."""

# ruff: noqa: E501 (tables read best one entry to a line)
from __future__ import annotations

import re

import pytest

from surgeon.catalogue import EXPLANATIONS
from surgeon.errors import LanguageError
from surgeon.language import loads
from surgeon.language.parsing import grammar


def body(*statements: str, parameters: str = "") -> str:
    return f"recipe r({parameters}) {{\n" + "".join(f"    {s}\n" for s in statements) + "}\n"


def rule(statement: str) -> str:
    return f"op a.b(x[... i], weight[o i], eps) -> [... o] {{\n    {statement}\n}}\n"


G = "grow ffn by 2"
MISTAKES = [
    ("S101", "`3` does not belong here", "expected: `by`, `to`", body("grow ffn 3")),
    ("S101", "the statement is not finished", "`multiple`", body("grow ffn to")),
    ("S101", "`at` does not belong here", "patterns follow `in`", body('noise linear at 1 dB at "x"')),
    ("S101", "`in` does not belong here", "module patterns follow `at`", body('grow ffn by 2 in "x"')),
    ("S101", "`recipe` does not belong here", "close the block", "recipe r() {\n grow a by 2\n recipe s() {}\n}\n"),
    ("S102", "there is no statement `grwo`", "did you mean `grow`?", body("grwo ffn by 2")),
    ("S102", "there is no declaration `famly`", "did you mean `family`?", 'famly x for "a" {}\n'),
    ("S103", "`;` does not belong here", "no `;` is needed", body("grow ffn by 2;")),
    ("S103", "this string has no closing quote", "end of the line", 'use "ops\n'),
    ("S104", "the block is not closed", "expected: `}`", "recipe r() {\n    grow ffn by 2\n"),
    ("S105", "larger than 256 KiB", "split it", "#" * 262_145),
    ("S107", "there is no file ops/atan.surgery", "did you mean `ops/aten.surgery`?", 'use "ops/atan.surgery"\n'),
    ("S107", "`use` takes .surgery files, and /etc/passwd is none", "", 'use "/etc/passwd"\n'),
    ("S110", "the op rule `a.b` is declared twice", "in line 1", "op a.b : reshape\nop a.b : permute\n"),
    ("S110", "the recipe `r` is declared twice", "in line 1", body(G) + body(G)),
    ("S111", "the parameter `n` is declared twice", "in line 1", body(G, parameters="n: int = 2, n: int = 3")),
    ("S111", "the argument `x` is declared twice", "in line 1", "op a.b(x[i], x[i]) -> [i]\n"),
    ("S112", "there is no type `integer`", "`int`, `ratio`", body(G, parameters="n: integer = 2")),
    ("S113", "this is a string, not of type int", "a whole number", body(G, parameters='n: int = "2"')),
    ("S113", "the parameter `m` is `symmetric`, not of type ratio", "3/2", body("grow ffn by m", parameters="m: spread = symmetric")),
    ("S113", "this is a number, not of type decibel", "`10 dB`", body(G, "noise linear at 10")),
    ("S114", "the parameter `n` has no value", "--set n=VALUE", body("grow ffn by n", parameters="n: int")),
    ("S116", "there is no parameter `m`", "", body("grow ffn by m")),
    ("S116", "there is no parameter `facto`", "did you mean `factor`?", body("grow ffn by facto", parameters="factor: int = 2")),
    ("S117", "a growth factor of 1/2 would not grow", "1 or more", body("grow ffn by 1/2")),
    ("S117", "a growth factor of 0 would not grow", "1 or more", body("grow ffn by 0")),
    ("S117", "nothing has the size -4", "1 or more", body("grow ffn to -4")),
    ("S118", "there is no target `axes`", "did you mean `axis`?", body('grow axes("x", 0) by 2')),
    ("S118", "`axis` takes a parameter and an axis", 'axis("*.fc1.weight", 0)', body('grow axis("x") by 2')),
    ("S119", "`1/0` divides by zero", "", body("grow ffn by 1/0")),
    ("S119", "this number has 30 characters", "at most 24", body("grow ffn to " + "9" * 30)),
    ("S120", "there is no op or group of ops `liner`", "did you mean `linear`?", body(G, "spread liner with first")),
    ("S120", "there is no op rule `aten.liner`", "did you mean `aten.linear`?", body(G, "noise aten.liner at 3 dB")),
    ("S121", "there is no kind `pointwse`", "did you mean `pointwise`?", "op a.b : pointwse nonlinear\n"),
    ("S122", "`pointwise` needs a flag", "`nonlinear`", "op a.b : pointwise\n"),
    ("S122", "the kind `reshape` takes no flag", "write only `reshape`", "op a.b : reshape sum\n"),
    ("S122", "`power` needs its number", "`arg`", "op a.b : pointwise power\n"),
    ("S122", "`nonlinear` takes no number", "write only `nonlinear`", "op a.b : pointwise nonlinear(2)\n"),
    ("S123", "there is no role `nrm`", "did you mean `norm`?", rule("nrm i")),
    ("S124", "there is no expansion `cpy`", "did you mean `copy`?", rule("weight := cpy(o)")),
    ("S125", "the signature has no axis `j`", "`i` or `o`", rule("norm j")),
    ("S125", "`x` has no axis `o`", "expected: `i`", rule("x := copy(o)")),
    ("S125", "`weight` of `aten.linear` has no axis `q`", "`o` or `i`", body(G, "expand aten.linear { weight := copy(q) }")),
    ("S126", "the signature has no argument `wieght`", "did you mean `weight`?", rule("wieght := copy(o)")),
    ("S126", "the argument `eps` is not a tensor", "`x` or `weight`", rule("eps := copy(o)")),
    ("S127", "no argument has the axis `p` of the output", "", "op a.b(x[i]) -> [p]\n"),
    ("S127", "no argument has the axes `...` of the output", "", "op a.b(x[i]) -> [... i]\n"),
    ("S128", "an axis cannot be fixed to 3", "`1`", "op a.b(x[3]) -> []\n"),
    ("S128", "`...` can stand only once", "", "op a.b(x[... i ...]) -> [i]\n"),
    ("S128", "what an axis is a product of needs names", "", "op a.b(x[_*i], y[i]) -> [i]\n"),
    ("S128", "`r` is part of `g*r`, and no output has it", "", "op a.b(x[g*r], y[g]) -> [g]\n"),
    ("S128", "the sizes of `g*r` are not known", "", "op a.b(x[g*r]) -> [g r]\n"),
    ("S129", "there is no spread `symetric`", "did you mean `symmetric`?", body(G, "spread * with symetric")),
    ("S129", "`uneven` needs a weight for each copy", "uneven(1, 2)", body(G, "spread * with uneven(1)")),
    ("S129", "`uneven` needs a weight for each copy", "uneven(1, 2)", body(G, "spread * with uneven")),
    ("S129", "a weight of 0 is not positive", "above 0", body(G, "spread * with uneven(0, 1)")),
    ("S130", "`model.d` is not a config field", "`config.model.d`", body("grow model.d by 2")),
    ("S131", "the recipe `r` grows nothing", "a `grow` statement", body("preserve logits")),
    ("S133", "the seed is set twice", "in line 3", body(G, "seed 1", "seed 2")),
    ("S134", "`a.b.c.d` is not an op name", "overload", "op a.b.c.d : reshape\n"),
    ("S136", "a brace without its partner", "{0..3}", body('grow ffn by 2 at "layers.{0..3"')),
    ("S136", "more than 4096 patterns", "{0..3}", body('grow ffn by 2 at "{0..999}.{0..999}"')),
]  # fmt: skip


@pytest.mark.parametrize(
    ("code", "message", "hint", "text"), MISTAKES, ids=[m[0] + " " + m[1] for m in MISTAKES]
)
def test_a_mistake_is_one_finding_with_its_text(code: str, message: str, hint: str, text: str) -> None:
    with pytest.raises(LanguageError) as caught:
        loads(text, "bad.surgery")
    shown = str(caught.value)
    assert [d.code for d in caught.value.diagnostics] == [code], shown
    assert message in caught.value.diagnostics[0].message
    assert hint in shown
    span = caught.value.diagnostics[0].span
    assert code == "S105" or (span is not None and f"bad.surgery:{span.line}:{span.column}" in shown)


def test_lark_names_are_never_shown() -> None:
    own = {t.name for t in grammar().terminals}
    for _, _, _, text in MISTAKES:
        with pytest.raises(LanguageError) as caught:
            loads(text)
        for found in caught.value.diagnostics:
            said = " ".join([found.message, found.expected or "", found.help or ""])
            assert not own & set(re.findall(r"_?[A-Z$]{2,}_?[A-Z]*", said)) - {"VALUE"}, said


def test_every_code_is_explained_and_shown_by_example() -> None:
    elsewhere = {"S106", "S108", "S109", "S115", "S135", "S137"}  # need files, settings or a command
    assert {m[0] for m in MISTAKES} | elsewhere == {c for c in EXPLANATIONS if c.startswith("S1")}


def test_a_finding_shows_line_and_carets() -> None:
    with pytest.raises(LanguageError) as caught:
        loads(body("grwo ffn by 2"), "my.surgery")
    assert str(caught.value) == "\n".join([
        "error[S102]: there is no statement `grwo`",
        "  --> my.surgery:2:5",
        "  |",
        "2 |     grwo ffn by 2",
        "  |     ^^^^",
        "  expected: `grow`, `spread`, `noise`, `expand`, `preserve` or `seed`",
        "  help: did you mean `grow`?",
    ])  # fmt: skip


def test_all_mistakes_of_a_file_are_found_at_once() -> None:
    text = (
        body("grwo a by 2", 'grow axis("x", 0 by 2', "grow ffn at 3", "grow ffn by 1/2")
        + 'op a.b(x[... "i]) -> [i]\n'
        + "op a.b(x[i]) [i]\n"
        + "op a.c(x[i]) -> [j]\n"
        + 'famly x for "a" {\n    dm x = config.d\n}\n'
        + 'family y for "a" {\n    dm x = config.d\n    dim z = config.d\n'
    )
    with pytest.raises(LanguageError) as caught:
        loads(text)
    found = [(d.code, d.span.line) for d in caught.value.diagnostics if d.span]
    assert found == [
        ("S102", 2), ("S101", 3), ("S101", 4), ("S117", 5), ("S103", 7), ("S101", 8), ("S127", 9), ("S102", 10),
        ("S102", 14), ("S104", 15),
    ]  # fmt: skip
