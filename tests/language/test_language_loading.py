"""Files, settings, the library, and what loading costs."""

from __future__ import annotations

import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest
from lark import Lark

import surgeon
from surgeon.errors import LanguageError
from surgeon.language import builtin_families, builtin_rules, check, format_text, library, load, loads
from surgeon.language.parsing import Newlines, beside_package
from surgeon.language.syntax import (
    AxisDim,
    AxisPattern,
    ConfigDim,
    DefaultValue,
    Exact,
    Expansion,
    NamedDim,
    Role,
    Spread,
)


def codes(error: pytest.ExceptionInfo[LanguageError]) -> list[str]:
    return [d.code for d in error.value.diagnostics]


def test_the_grammar_is_strict() -> None:
    pytest.importorskip("interegular")
    text = (beside_package("grammars") / "surgery.lark").read_text()
    parser = Lark(text, parser="lalr", start=["start", "value"], strict=True, postlex=Newlines())
    assert not [t.name for t in parser.terminals if t.name.startswith("__ANON")]


def test_the_library_is_sound() -> None:
    for file in library().rglob("*.surgery"):
        assert check(file) == []
        text = file.read_text()
        assert format_text(format_text(text)) == format_text(text)


def test_rules_and_families_of_the_library() -> None:
    rules = {name: rule for rule in builtin_rules() for name in rule.names}
    linear = rules["aten.linear"]
    assert linear.tag == "linear" and linear.signature is not None
    assert linear.signature.args[0].axes == AxisPattern((("i",),), 0)
    attention = rules["aten.scaled_dot_product_attention"].signature
    assert attention is not None
    assert attention.args[0].axes == AxisPattern((("g", "r"), ("s",), ("e",)), 0)
    assert linear.signature.args[2].optional
    assert [e.factors for e in linear.expansions] == [(("copy", "o"), ("share", "i")), (("copy", "o"),)]
    power = rules["aten.rsqrt"].kind
    assert power is not None and power.value == Fraction(-1, 2)
    named = [model_type for family in builtin_families() for model_type in family.model_types]
    assert "*" in named and len(set(named)) == len(named)  # none stands in two: the later would win


def test_a_recipe_takes_its_settings() -> None:
    (recipe,) = load("hyperclone", {"n": "3", "mix": "uneven(1, 2, 3)", "snr": "10dB"}).recipes
    assert dict(recipe.parameters) == {
        "n": 3,
        "mix": Spread("uneven", (Fraction(1), Fraction(2), Fraction(3))),
        "snr": 10.0,
        "seed": 0,
    }
    assert recipe.grows[0].by == 3 and recipe.noises[0].snr == 10.0
    assert load("hyperclone").recipes[0].noises[0].snr is None
    with pytest.raises(LanguageError, match="did you mean `mix`") as error:
        load("hyperclone", {"mx": "first"})
    assert codes(error) == ["S115"]
    with pytest.raises(LanguageError, match="--set n:1:1") as error:
        load("hyperclone", {"n": "two"})
    assert codes(error) == ["S116"]


def test_everything_a_recipe_can_say() -> None:
    text = """recipe all(where: glob = "layers.{0..3}.*", mixed: spread = diagonal) {
    grow hidden, ffn by 3/2 at where, "h.5.*"
    grow config.d_model to 64
    grow axis("*.fc1.weight", 0) to multiple of 8
    spread linear, aten.bmm with uneven(1, 2) at "*.mlp"
    spread * with mixed
    noise linear at 10 dB in "*.mlp.*"
    expand aten.linear at "*.down_proj" { weight := copy(o) * first(i) }
    preserve logits
    seed 7
}
"""
    (recipe,) = loads(text).recipes
    first, second, third = recipe.grows
    assert [t.name for t in first.targets if isinstance(t, NamedDim)] == ["hidden", "ffn"]
    assert first.by == Fraction(3, 2) and first.at == ("layers.{0..3}.*", "h.5.*")
    assert (
        isinstance(second.targets[0], ConfigDim) and second.targets[0].field == "d_model" and second.to == 64
    )
    axis = third.targets[0]
    assert isinstance(axis, AxisDim) and (axis.parameter, axis.axis, third.multiple_of) == (
        "*.fc1.weight",
        0,
        8,
    )
    assert recipe.spreads[0].ops == ("linear", "aten.bmm") and recipe.spreads[1].spread == Spread("diagonal")
    assert (recipe.noises[0].snr, recipe.noises[0].at) == (10.0, ("*.mlp.*",))
    assert recipe.expands[0].expansions[0].factors == (("copy", "o"), ("first", "i"))
    assert (recipe.preserve, recipe.seed, recipe.text) == (("logits",), 7, text)


def test_everything_a_rule_can_say() -> None:
    text = """op my.attend(q[... h s e],
             k[... h t e], _, scale) -> [... h s 1], [t] {
    soft t
    exact q * k * scale
    default scale = e ^ -1/2
    q := copy(h) * share(e)
}
op my.pow : pointwise power(arg)
"""
    rule, power = loads(text.replace("[... h s 1]", "[... h s]")).rules
    assert rule.signature is not None and [o.names for o in rule.signature.outputs] == [("h", "s"), ("t",)]
    assert isinstance(rule.roles[0], Role) and rule.roles[0].axes == ("t",)
    assert isinstance(rule.exact[0], Exact) and rule.exact[0].members == ("q", "k", "scale")
    assert isinstance(rule.defaults[0], DefaultValue) and rule.defaults[0].exponent == Fraction(-1, 2)
    assert isinstance(rule.expansions[0], Expansion)
    assert power.kind is not None and (power.kind.flag, power.kind.value) == ("power", None)
    assert loads(text).rules  # `1` as an axis of an output


def test_files_use_files(tmp_path: Path) -> None:
    (tmp_path / "mine.surgery").write_text("op my.op as mine : reshape\n")
    main = tmp_path / "main.surgery"
    main.write_text(
        'use "mine.surgery"\nuse "ops/aten.surgery"\n'
        "recipe r() {\n    grow a by 2\n    noise mine at 3 dB\n}\n"
    )
    program = load(main)
    assert {"my.op", "aten.linear"} <= {n for r in program.rules for n in r.names}
    (tmp_path / "mine.surgery").write_text("op my.op as mine : reshap\n")
    with pytest.raises(LanguageError) as error:
        load(main)
    assert codes(error) == ["S121"] and "mine.surgery:1:20" in str(error.value)


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    a, b = tmp_path / "a.surgery", tmp_path / "b.surgery"
    a.write_text('use "b.surgery"\n')
    b.write_text('use "a.surgery"\n')
    with pytest.raises(LanguageError, match="uses itself") as error:
        load(a)
    assert codes(error) == ["S108"]
    for i in range(20):
        (tmp_path / f"deep{i}.surgery").write_text(f'use "deep{i + 1}.surgery"\n')
    with pytest.raises(LanguageError) as error:
        load(tmp_path / "deep0.surgery")
    assert codes(error) == ["S109"]
    for broken in (tmp_path, tmp_path / "none.surgery", "hyperclon"):
        with pytest.raises(LanguageError) as error:
            load(broken)
        assert codes(error) == ["S106"]
    (tmp_path / "bytes.surgery").write_bytes(b"\xff\xfe")
    with pytest.raises(LanguageError, match="is not UTF-8") as error:
        load(tmp_path / "bytes.surgery")
    assert codes(error) == ["S106"]


def test_one_recipe_of_several() -> None:
    text = "recipe a() {\n grow x by 2\n}\nrecipe b(n: int) {\n grow y by n\n}\n"
    (recipe,) = loads(text, settings={"n": "4"}, recipe="b").recipes
    assert (recipe.name, recipe.grows[0].by) == ("b", 4)
    for wrong in ({"recipe": "c"}, {"settings": {"n": "4"}}):
        with pytest.raises(LanguageError) as error:
            loads(text, **wrong)  # type: ignore[arg-type]
        assert codes(error) == ["S135"]


@pytest.mark.parametrize(("count", "code"), [(0, "S137"), (2, "S135")])
def test_which_recipe_is_meant_is_asked_in_one_way(count: int, code: str, tmp_path: Path) -> None:
    file = tmp_path / "r.surgery"
    file.write_text("".join(f"recipe r{i}(n: int = 2) {{\n    grow x by n\n}}\n" for i in range(count)))
    said = []
    for settings in ({}, {"n": "3"}):
        with pytest.raises(LanguageError) as error:
            surgeon.plan(file, "no/model", settings=settings)
        said.append(str(error.value))
        assert codes(error) == [code]
    assert said[0] == said[1]


def test_an_open_parameter_is_no_fault_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "r.surgery"
    file.write_text("recipe r(n: int) {\n    grow x by n\n}\n")
    assert check(file) == []


def test_no_heavy_import() -> None:
    program = "import sys, surgeon.language as l; l.builtin_rules(); print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"torch", "numpy", "transformers", "rich"} & set(loaded)
