"""Log-scales as linear forms: what changes nothing makes nothing, equal cells are one equation, and a
conflict is told with what it contradicts."""

from __future__ import annotations

import random

import numpy as np

from surgeon.planning.scales import ZERO, Form, System, distinct


def at(form: Form, values: list[float]) -> float:
    return form.constant + sum(c * values[u] for u, c in form.terms.items())


def test_arithmetic_is_that_of_the_values_and_shares_what_it_does_not_change() -> None:
    draw = random.Random(0)
    values = [draw.uniform(-1, 1) for _ in range(4)]
    forms = [ZERO, Form(), Form({}, 0.5), Form({1: 2.0}), Form({1: -2.0, 3: 1.0}, -0.5), Form({0: 1.0}, 3.0)]
    for a in forms:
        for b in forms:
            assert abs(at(a + b, values) - at(a, values) - at(b, values)) < 1e-12
            assert abs(at(a - b, values) - at(a, values) + at(b, values)) < 1e-12
        for number in (0, 1, -1.0, 0.25):
            assert abs(at(a * number, values) - at(a, values) * number) < 1e-12
            assert abs(at(a + number, values) - at(a, values) - number) < 1e-12
        assert a * 1.0 is a and a + 0.0 is a and a + ZERO is a and a - a is ZERO


def test_cells_that_share_their_forms_are_one_equation() -> None:
    """Each combination once, in the order in which it first stands: what is solved for depends on it."""
    x, y, z = (Form({n: 1.0}) for n in range(3))
    a, b = np.array([[x, x], [y, x]], dtype=object), np.array([[y, z], [z, z]], dtype=object)
    assert list(distinct(a, b)) == [(x, y), (x, z), (y, z)]
    once, all_of_them = System(3), System(3)
    for p, q in distinct(a, b):
        once.require_zero(p - q, "", "")
    for p, q in zip(a.flat, b.flat, strict=True):
        all_of_them.require_zero(p - q, "", "")
    assert once == all_of_them and len(once.solved) == 2


def test_what_a_conflict_contradicts_is_all_of_it_and_no_more() -> None:
    """By linear algebra: with the conflict's own equation the grounds have no solution, and any of them left
    out, the rest have one. There is but one way to add them up, with no factor zero."""
    draw, seen = random.Random(1), 0
    for _ in range(200):
        system, asked = System(7), []
        for n in range(9):
            several = draw.sample(range(7), draw.randint(1, 3))
            terms = {u: draw.choice((-2.0, -1.0, 0.5, 1.0)) for u in several}
            form = Form(terms, draw.choice((0.0, 0.0, 0.7)))
            asked.append(form)
            system.require_zero(form, str(n), "")
        for conflict in system.conflicts:
            several = [int(e.node) for e in system.grounds(conflict)]
            assert len(set(several)) == len(several) and max(several, default=-1) < int(conflict.node)
            rows = [asked[n] for n in [*several, int(conflict.node)]]
            left = np.array([[f.terms.get(u, 0.0) for u in range(7)] for f in rows])
            right = np.array([-f.constant for f in rows])
            assert not _solvable(left, right)
            for n in range(len(rows)):
                assert _solvable(np.delete(left, n, 0), np.delete(right, n))
            seen += 1
    assert seen > 100


def _solvable(left: np.ndarray, right: np.ndarray) -> bool:
    if not len(left):
        return True
    found = np.linalg.lstsq(left, right, rcond=None)[0]
    return bool(np.abs(left @ found - right).max() < 1e-9)
