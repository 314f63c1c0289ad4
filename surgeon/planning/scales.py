"""Log-scales as linear forms, and the system of equations they must satisfy.

For every value v of the graph the grown value is ``σ·E(v)``. ``log σ`` is a linear form over one
unknown per parameter block; each op adds equations. The system is kept in triangular form: every new
equation is solved for its *latest* unknown in graph order, so what must move goes into the parameter
nearest to the place that needs it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Cells = NDArray[Any]  # object array of Form: one entry per piece that may have its own scale
EPSILON = 1e-9  # of log-scales: sums of a few logarithms of small integers


@dataclass(frozen=True)
class Form:
    """``constant + Σ coefficient·unknown``; unknowns are integers in graph order. What changes nothing gives
    the very same form: most cells share theirs, and an equation between equal ones need not be solved."""

    terms: Mapping[int, float] = field(default_factory=dict)
    constant: float = 0.0

    def __add__(self, other: Form | float) -> Form:
        if not isinstance(other, Form):
            return Form(self.terms, self.constant + float(other)) if other else self
        if not other.terms:
            return Form(self.terms, self.constant + other.constant) if other.constant else self
        if not self.terms and not self.constant:
            return other
        terms = dict(self.terms)
        for unknown, coefficient in other.terms.items():
            total = terms.get(unknown, 0.0) + coefficient
            if abs(total) < EPSILON:
                terms.pop(unknown, None)
            else:
                terms[unknown] = total
        return Form(terms, self.constant + other.constant)

    def __mul__(self, factor: float) -> Form:
        if factor == 1:
            return self
        if factor == 0 or self is ZERO:
            return ZERO
        return Form({u: c * factor for u, c in self.terms.items()}, self.constant * factor)

    def __sub__(self, other: Form | float) -> Form:
        if self is other:
            return ZERO
        return self + (other * -1.0 if isinstance(other, Form) else -float(other))


ZERO = Form()


@dataclass(frozen=True)
class Equation:
    """``form = 0``, and what asks for it."""

    form: Form
    node: str
    reason: str


@dataclass(frozen=True)
class Conflict:
    """An equation that no scale of any parameter can satisfy."""

    node: str
    reason: str
    factor: float  # by how much the value is off
    dims: tuple[int, ...] = ()  # whose channel maps are what is in the way
    form: Form = ZERO  # of the equation
    after: int = 0  # how many equations were solved before it


@dataclass
class System:
    """Equations over the unknowns, solved as they come."""

    count: int = 0
    solved: dict[int, Form] = field(default_factory=dict)
    equations: dict[int, Equation] = field(default_factory=dict)  # by the unknown that each is solved for
    conflicts: list[Conflict] = field(default_factory=list)

    def unknowns(self, shape: tuple[int, ...]) -> Cells:
        cells = np.empty(shape, dtype=object)
        for index in np.ndindex(*shape):
            cells[index] = Form({self.count: 1.0})
            self.count += 1
        return cells

    def reduce(self, form: Form) -> Form:
        """`form` in unknowns that are still free."""
        while True:
            bound = [u for u in form.terms if u in self.solved]
            if not bound:
                return form
            latest = max(bound)
            coefficient = form.terms[latest]
            rest = Form({u: c for u, c in form.terms.items() if u != latest}, form.constant)
            form = rest + self.solved[latest] * coefficient

    def require_zero(self, form: Form, node: str, reason: str) -> None:
        """Add the equation ``form = 0``."""
        asked, form = form, self.reduce(form)
        if not form.terms:
            if abs(form.constant) > EPSILON:
                factor = float(np.exp(form.constant))
                self.conflicts.append(Conflict(node, reason, factor, (), asked, len(self.solved)))
            return
        latest = max(form.terms)
        coefficient = form.terms[latest]
        rest = Form({u: c for u, c in form.terms.items() if u != latest}, form.constant)
        self.solved[latest] = rest * (-1.0 / coefficient)
        self.equations[latest] = Equation(asked, node, reason)

    def grounds(self, conflict: Conflict) -> list[Equation]:
        """The equations that a conflict contradicts: a sum of multiples of theirs and of its own leaves no
        unknown, and a constant that is not zero. Those solved later have no part in it."""
        order = {unknown: i for i, unknown in enumerate(self.solved)}
        weights = self._substituted(conflict.form, order, conflict.after)
        found = []
        while weights:
            unknown = max(weights, key=lambda u: order[u])
            weight = weights.pop(unknown)
            if abs(weight) < EPSILON:
                continue
            equation = self.equations[unknown]
            found.append(equation)
            inner = self._substituted(equation.form, order, order[unknown])
            own = equation.form.terms.get(unknown, 0.0) + sum(
                c * self.solved[u].terms.get(unknown, 0.0) for u, c in inner.items()
            )
            for other, coefficient in inner.items():
                weights[other] = weights.get(other, 0.0) - weight / own * coefficient
        return found[::-1]

    def _substituted(self, form: Form, order: Mapping[int, int], before: int) -> dict[int, float]:
        """Which unknowns `reduce` has put other things for, of those solved before some equation: with the
        coefficients that they had then."""
        found: dict[int, float] = {}
        while bound := [u for u in form.terms if order.get(u, before) < before]:
            latest = max(bound)
            found[latest] = form.terms[latest]
            rest = Form({u: c for u, c in form.terms.items() if u != latest}, form.constant)
            form = rest + self.solved[latest] * found[latest]
        return found

    def prefer_zero(self, form: Form) -> None:
        """Add the equation ``form = 0`` where an unknown is still free to solve it."""
        if self.reduce(form).terms:
            self.require_zero(form, "", "")

    def value(self, form: Form) -> float:
        """The scale (not its logarithm) that a form stands for; free unknowns are one."""
        constant = self.reduce(form).constant
        return 1.0 if abs(constant) < EPSILON else float(np.exp(constant))


def has_scale(number: float) -> bool:
    """Whether a number times a factor is another: neither zero nor an infinity is."""
    return number != 0 and math.isfinite(number)


def zeros(shape: tuple[int, ...]) -> Cells:
    cells = np.empty(shape, dtype=object)
    cells.fill(ZERO)
    return cells


def distinct(*several: Cells) -> Iterator[tuple[Form, ...]]:
    """The forms that stand at one place in arrays of one shape, each combination once."""
    seen: dict[tuple[int, ...], tuple[Form, ...]] = {}
    for forms in zip(*(cells.flat for cells in several), strict=True):
        seen.setdefault(tuple(map(id, forms)), forms)
    yield from seen.values()


def as_cells(value: Any) -> Cells:
    """A form that arithmetic on an array without axes has unwrapped, as an array again."""
    if isinstance(value, np.ndarray):
        return value
    cells = np.empty((), dtype=object)
    cells[()] = value
    return cells
