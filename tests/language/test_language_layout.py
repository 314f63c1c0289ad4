"""The canonical layout: by example, and on random programs."""

# ruff: noqa: E501 (tables read best one entry to a line)
from __future__ import annotations

import re

from hypothesis import given, settings
from hypothesis import strategies as st

from surgeon.errors import SurgeonError
from surgeon.language import format_text, loads
from surgeon.language.parsing import parse
from surgeon.language.report import Report

EXAMPLE = """# first
use   "ops/aten.surgery"# tail
recipe r( n:int=2 , mix : spread=symmetric,)  {  # head


  grow  hidden ,ffn by n   # why
  # alone
  expand aten.linear at "*.x" {weight:=copy( o )*first(i)}
}
op a.b as t(weight[o i],  # inside
   x[... i],b[o] ?)->[... o]{
 weight:=copy(o)
 b:=copy(o)
}
op a.c:pointwise power( -1/2 )
op a.d : reshape
op a.e(x[... g * r],y[g]) -> [g r]
"""
LAID_OUT = """# first
use "ops/aten.surgery"  # tail

recipe r(n: int = 2, mix: spread = symmetric,) {  # head
    grow hidden, ffn by n  # why
    # alone
    expand aten.linear at "*.x" { weight := copy(o) * first(i) }
}

# inside
op a.b as t (weight[o i], x[... i], b[o]?) -> [... o] {
    weight := copy(o)
    b      := copy(o)
}

op a.c : pointwise power(-1/2)
op a.d : reshape
op a.e(x[... g*r], y[g]) -> [g r]
"""


def test_layout_by_example() -> None:
    assert format_text(EXAMPLE) == LAID_OUT
    assert format_text("") == ""
    both = "recipe r() { expand a.b { x := copy(o) } }\n"
    assert format_text(both) == "recipe r() {\n    expand a.b { x := copy(o) }\n}\n"
    assert format_text("# only\n\n\n\n#this") == "# only\n\n#this\n"


def test_long_lines_are_wrapped_after_commas() -> None:
    names = ", ".join(f"aten.operation_number_{i}" for i in range(12))
    result = format_text(f"op {names} : reshape\n")
    assert max(map(len, result.splitlines())) <= 100 and result.count("\n") > 2
    assert loads(result).rules[0].names == loads(f"op {names} : reshape").rules[0].names


# ── random programs ──────────────────────────────────────────────────────────────────────

name = st.sampled_from(["a", "hidden", "ffn", "seed", "at", "grow_2", "_x", "op", "dim"])
safe = st.sampled_from(["a", "hidden", "ffn", "grow_2", "_x"])
dotted = st.sampled_from(["aten.linear", "aten.pow.Tensor_Scalar", "my.op"])
string = st.sampled_from(['"*"', '"layers.{0..3}.#"', '"a b"', '""'])
number = st.sampled_from(["2", "3/2", "-1/2", "0.5"])
value = st.one_of(number, safe, string, st.just("10 dB"), st.just("uneven(1, 2)"))


def listed(element: st.SearchStrategy[str], least: int = 1) -> st.SearchStrategy[str]:
    return st.lists(element, min_size=least, max_size=6).map(" , ".join)


def said(form: str, **parts: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.fixed_dictionaries(parts).map(lambda given: form.format(**given))


expansion = said(
    "{a} := {f}", a=safe, f=st.lists(said("{w}({x})", w=safe, x=name), min_size=1, max_size=3).map(" * ".join)
)
target = st.one_of(safe, st.just("config.x"), said("axis({s}, 0)", s=string))
where = st.one_of(st.just(""), said(" at {s}", s=listed(string)))
statement = st.one_of(
    said(
        "grow {t} {by} {v}{w}",
        t=listed(target),
        by=st.sampled_from(["by", "to", "to multiple of"]),
        v=number,
        w=where,
    ),
    said("spread {o} with {v}{w}", o=listed(st.one_of(safe, dotted, st.just("*"))), v=value, w=where),
    said("noise {o} at {v} in {s}", o=listed(dotted), v=value, s=listed(string)),
    said("expand {o}{w} {{ {e} }}", o=dotted, w=where, e=expansion),
    said("seed {v}", v=value),
    st.just("preserve logits"),
    st.just("preserve text_embeds, text_model_output.pooler_output"),
)
pattern = st.lists(st.one_of(name, st.just("..."), st.just("1"), st.just("a*b")), max_size=4).map(
    lambda n: f"[{' '.join(n)}]"
)
argument = said("{n}{p}{q}", n=name, p=st.one_of(st.just(""), pattern), q=st.sampled_from(["", "?"]))
rule_statement = st.one_of(
    expansion, said("norm {n}", n=listed(name)), st.just("exact a * b"), st.just("default a = e ^ -1/2")
)


def block(element: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.lists(element, max_size=4).map(lambda lines: "{\n" + "".join(f"{x}\n" for x in lines) + "}")


declaration = st.one_of(
    said("use {s}", s=string),
    said("recipe {n}({p}) {b}", n=name, p=listed(said("{n} : {t}? = {v}", n=name, t=safe, v=value), 0), b=block(statement)),
    said("op {n} as {t} ({a}) -> {o} {b}", n=listed(dotted), t=name, a=listed(argument, 0), o=listed(pattern), b=block(rule_statement)),
    said("op {n} : {k} {f}", n=listed(dotted), k=safe, f=st.sampled_from(["", "power(arg)", "power(-1/2)", "sum"])),
    said("family {n} for {s} {b}", n=name, s=listed(string), b=block(st.one_of(said("dim {n} = config.a | config.b", n=name), said("file {s} {n} = config.a", s=string, n=name)))),
)  # fmt: skip


@st.composite
def programs(draw: st.DrawFn) -> str:
    """A program with comments, blank lines and breaks where they may stand."""
    lines = "\n".join(draw(st.lists(declaration, max_size=5))).split("\n")
    noise = st.sampled_from(["", "", "", "  # note", "#x", "\n", "\n\n\n# alone", "\t "])
    text = "".join(line + draw(noise) + "\n" for line in lines)
    if draw(st.booleans()):  # break after commas, with a comment in the break
        text = re.sub(" , ", lambda _: draw(st.sampled_from([", ", ",\n", ", # in\n  "])), text)
    return text


def comments(text: str) -> list[str]:
    return sorted(m for m in re.findall(r'"[^"\n]*"|#[^\n]*', text) if m.startswith("#"))


@settings(max_examples=300, deadline=None)
@given(programs())
def test_layout_keeps_tree_and_comments_and_is_idempotent(text: str) -> None:
    report = Report(text, "random")
    before = parse(report)
    assert not report.diagnostics, report.diagnostics[0].render()
    result = format_text(text)
    assert format_text(result) == result
    assert parse(Report(result, "laid out")) == before
    assert comments(result) == comments(text)


@settings(max_examples=300, deadline=None)
@given(programs(), st.data())
def test_broken_programs_give_findings_and_nothing_else(text: str, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(text)))
    cut = data.draw(st.integers(0, 12))
    junk = data.draw(st.sampled_from(["", "{", "}", '"', ")", "§", "grow", "..", "\n", "1/0"]))
    try:
        loads(text[:at] + junk + text[at + cut :])
    except SurgeonError as error:
        for found in error.diagnostics:
            assert found.code.startswith("S1") and found.render()
