"""Random modules grown by random recipes: the same function, or a deliberate refusal.

``SURGEON_HUNT=2000 pytest tests/planning`` draws that percentage of the cases, larger ones and other
ones each time.
"""

from __future__ import annotations

import os
import random
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from surgeon.surgery import module as module_surgery

sys.path.insert(0, str(Path(__file__).parent))
from drawn_modules import blueprints
from drawn_ops import Blueprint, Drawn, Step, inputs_for
from drawn_recipes import DrawnRecipe, Growth, recipes
from oracle import as_tuple, attempt, check

import surgeon.surgery.tracing

HUNT = int(os.environ.get("SURGEON_HUNT", "0"))
ROUND = 10
Case = tuple[Blueprint, tuple[DrawnRecipe, ...]]


def drawn(examples: int, body: Callable[[Case], None]) -> None:
    """Hold `body` against random cases: always the same ones, or others and more when hunting. In
    several rounds, each from its own seed, since within one the cases come to resemble each other."""
    start = random.randrange(2**30) if HUNT else 0
    for number in range(max(1, examples * max(HUNT, 100) // 100 // ROUND)):

        @seed(start + number)
        @settings(max_examples=ROUND, database=None, deadline=None, suppress_health_check=list(HealthCheck))
        @given(cases())
        def run(case: Case) -> None:
            body(case)

        run()


@st.composite
def cases(draw: Any) -> Case:
    """A module and three recipes for it."""
    blueprint = draw(
        blueprints(12 if HUNT else 7).filter(lambda b: any(max(s) > 1 for s, _ in b.stored.values()))
    )
    return blueprint, tuple(draw(recipes(blueprint)) for _ in range(3))


@pytest.fixture(autouse=True)
def _traced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tracing takes nearly all of the time: a module that several recipes grow is traced once."""
    last: list[Any] = [None, None]
    capture = surgeon.surgery.tracing.capture

    def remembered(module: torch.nn.Module, *given: Any) -> Any:
        if last[0] is not module:
            last[:] = module, capture(module, *given)
        return last[1]

    monkeypatch.setattr(surgeon.surgery.tracing, "capture", remembered)


def test_a_grown_module_computes_the_same_or_the_growth_is_refused() -> None:
    outcomes: Counter[str] = Counter()

    def body(case: Case) -> None:
        blueprint, several = case
        module = Drawn(blueprint, 0)
        outcomes.update(check(module, recipe).word for recipe in several)

    drawn(40, body)
    assert outcomes["grown"] > outcomes.total() / 2, f"most cases must grow: {outcomes}"
    assert len(outcomes) > 4, f"refusals must be of several kinds: {outcomes}"


def test_the_same_recipe_gives_the_same_weights() -> None:
    def body(case: Case) -> None:
        blueprint, several = case
        modules = Drawn(blueprint, 0), Drawn(blueprint, 0)
        runs = [[attempt(module, recipe) for recipe in several] for module in modules]
        for once, twice in zip(*runs, strict=True):
            assert once.word == twice.word
            if once.result is None or twice.result is None:
                continue
            assert once.result.model is not None and twice.result.model is not None
            first, second = once.result.model.state_dict(), twice.result.model.state_dict()
            assert first.keys() == second.keys()
            assert all(torch.equal(value, second[name]) for name, value in first.items())

    drawn(10, body)


def test_growth_by_one_changes_nothing() -> None:
    def body(case: Case) -> None:
        blueprint, (recipe, *_) = case
        statements = tuple(s for s in recipe.statements if not s.startswith("expand"))
        still = DrawnRecipe(tuple(Growth(g.name, g.axis, "by 1") for g in recipe.growths), statements)
        module = Drawn(blueprint, 0)
        outcome = attempt(module, still)
        if outcome.result is None:
            return
        assert outcome.word == "unchanged" and outcome.result.model is not None
        state = outcome.result.model.state_dict()
        assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())
        x = inputs_for(blueprint, 7)
        with torch.no_grad():
            pairs = zip(as_tuple(outcome.result.model(x)), as_tuple(module(x)), strict=True)
        assert all(torch.equal(ours, theirs) for ours, theirs in pairs)

    drawn(10, body)


def test_the_oracle_sees_a_wrong_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    """The proof expands weights for itself; what is handed out is judged by the oracle alone."""
    blueprint = Blueprint(
        (5,),
        0,
        {"p0": ((4, 5), "parameter"), "p1": ((2, 4), "parameter")},
        {},
        (Step("linear", (0,), ("p0",)), Step("gelu", (1,)), Step("linear", (2,), ("p1",))),
        (3,),
    )
    recipe = DrawnRecipe((Growth("p0", 0, "by 2"),), ("spread linear with uneven(1, 2)",))
    module = Drawn(blueprint, 0)
    assert check(module, recipe).word == "grown"
    right = module_surgery.expand
    monkeypatch.setattr(module_surgery, "expand", lambda *given: right(*given) * (1 + 1e-8))
    with pytest.raises(AssertionError, match="another function"):
        check(module, recipe)
