"""Dims and axes, unified as a type checker unifies types.

A *dim* is an undividable dimension, named by an integer. An *axis* is a tuple of factors (their
ordered product, row-major); a factor is a dim or a :class:`Cat` of axes laid end to end. The empty
tuple is the axis of size one. A dim starts fresh and may later turn out to be another dim, a product
or a concatenation: then it is *bound*, as a type variable is, and :meth:`Store.resolve` replaces it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from math import gcd, prod


@dataclass(frozen=True)
class Cat:
    """Axes laid end to end: ``Cat((q, k, v))`` is a fused projection's axis."""

    parts: tuple[Axis, ...]


Factor = int | Cat
Axis = tuple[Factor, ...]
UNIT: Axis = ()
MAX_DEPTH = 64


class AxisConflict(Exception):
    """Two axes cannot be the same, or one cannot be divided so; ``dims`` are those involved."""

    def __init__(self, message: str, dims: Iterable[int]):
        super().__init__(message)
        self.dims = tuple(dims)


@dataclass(frozen=True)
class Pin:
    """Why a dim may not grow: the reason in words, its code, and the place in the model."""

    code: str
    reason: str
    node: str = ""


@dataclass
class Store:
    """The union-find of dims, with sizes, structure, pins and the record of what tied what.

    This is the one mutable value of the inference; it is closed when the inference ends.
    """

    sizes: list[int] = field(default_factory=list)
    parent: list[int] = field(default_factory=list)
    bound: dict[int, Axis] = field(default_factory=dict)
    pins: dict[int, dict[Pin, None]] = field(default_factory=dict)
    labels: list[str] = field(default_factory=list)
    ties: list[tuple[int, int, str]] = field(default_factory=list)
    apart: dict[Axis, Axis] = field(default_factory=dict)
    """Axes that were cut at places which data decides, by their pieces laid end to end."""
    _depth: int = 0  # of concatenations within concatenations that are being unified
    here: str = ""  # the graph node under inference: ties and pins are recorded against it

    # ── dims ────────────────────────────────────────────────────────────────────────────

    def fresh(self, size: int, label: str = "") -> Axis:
        """A new axis of one fresh dim; an axis of size one needs no dim."""
        if size == 1:
            return UNIT
        self.sizes.append(size)
        self.parent.append(len(self.parent))
        self.labels.append(label)
        return (len(self.parent) - 1,)

    def root(self, dim: int) -> int:
        while self.parent[dim] != dim:
            self.parent[dim] = self.parent[self.parent[dim]]
            dim = self.parent[dim]
        return dim

    def pin(self, axis: Axis, code: str, reason: str) -> None:
        """No dim of `axis` may grow, for `reason`."""
        for dim in self.leaves(axis):
            self.pins.setdefault(dim, {})[Pin(code, reason, self.here)] = None

    def pins_of(self, dim: int) -> tuple[Pin, ...]:
        return tuple(self.pins.get(self.root(dim), ()))

    # ── reading axes ────────────────────────────────────────────────────────────────────

    def size(self, axis: Axis) -> int:
        return prod(self.factor_size(f) for f in axis)

    def factor_size(self, factor: Factor) -> int:
        if isinstance(factor, Cat):
            return sum(self.size(part) for part in factor.parts)
        return self.sizes[factor]

    def resolve(self, axis: Axis) -> Axis:
        """`axis` in its normal form: one for all ways to write the same axis.

        Roots only; a product that begins with a concatenation is multiplied out, ``(a ++ b)·d`` to
        ``a·d ++ b·d``; and what all pieces then end with is drawn out again.
        """
        factors = self._flat(axis)
        if not factors or isinstance(factors[0], int):
            return self._word(factors)
        words = self._words(factors)
        if len(words) == 1:
            return words[0]
        tail: list[Factor] = []
        while all(words) and all(word[-1] == words[0][-1] for word in words):
            tail.insert(0, words[0][-1])
            words = [word[:-1] for word in words]
        return (Cat(tuple(words)), *tail)

    def words(self, axis: Axis) -> list[Axis]:
        """The pieces that `axis` consists of, end to end, each a product that begins with a dim."""
        return self._words(self._flat(axis))

    def _words(self, factors: Axis) -> list[Axis]:
        if not factors or isinstance(factors[0], int):
            return [self._word(factors)]
        head, *rest = factors
        assert isinstance(head, Cat)
        return [word for part in head.parts for word in self._words((*self._flat(part), *rest))]

    def _word(self, factors: Axis) -> Axis:
        return (*factors[:1], *self.resolve(factors[1:])) if factors else UNIT

    def _flat(self, axis: Axis) -> Axis:
        """The factors of `axis`, bound dims replaced by what they are."""
        out: list[Factor] = []
        for factor in axis:
            dim = self.root(factor) if isinstance(factor, int) else factor
            if isinstance(dim, int) and dim in self.bound:
                self.bound[dim] = self.resolve(self.bound[dim])
                out.extend(self.bound[dim])
            else:
                out.append(dim)
        return tuple(out)

    def leaves(self, axis: Axis) -> Iterator[int]:
        """The dims of `axis`, left to right, with repetition."""
        for factor in self.resolve(axis):
            if isinstance(factor, Cat):
                for part in factor.parts:
                    yield from self.leaves(part)
            else:
                yield factor

    def show(self, axis: Axis, names: dict[int, str] | None = None) -> str:
        """`axis` as text: ``kv·group·(q ++ k)``."""

        def factor(f: Factor) -> str:
            if isinstance(f, Cat):
                return "(" + " ++ ".join(self.show(p, names) for p in f.parts) + ")"
            return (names or {}).get(f, f"d{f}:{self.sizes[f]}")

        return "·".join(factor(f) for f in self.resolve(axis)) or "1"

    # ── unification ─────────────────────────────────────────────────────────────────────

    def unify(self, a: Axis, b: Axis) -> Axis:
        """Make two axes one. Raises AxisConflict where they cannot be."""
        a, b = self.resolve(a), self.resolve(b)
        if a == b:
            return a
        if self.size(a) != self.size(b):
            raise self._conflict("axes of different sizes meet", a, b)
        whole = a
        while a and b and a != b:
            x, y = a[-1], b[-1]
            sx, sy = self.factor_size(x), self.factor_size(y)
            if x == y:
                a, b = a[:-1], b[:-1]
            elif sx == sy:
                self._unify_factors(x, y)
                a, b = self.resolve(a[:-1]), self.resolve(b[:-1])
            elif gcd(sx, sy) == 1 and isinstance(x, int) and isinstance(y, int):
                raise self._conflict("axes meet whose places are counted in different orders", a, b)
            elif sx > sy:
                head, tail = self._divide(x, sy)
                self.unify(tail, (y,))
                a, b = self.resolve((*a[:-1], *head)), self.resolve(b[:-1])
            else:
                head, tail = self._divide(y, sx)
                self.unify((x,), tail)
                a, b = self.resolve(a[:-1]), self.resolve((*b[:-1], *head))
        return self.resolve(whole)

    def _conflict(self, message: str, *axes: Axis) -> AxisConflict:
        shown = " and ".join(self.show(axis) for axis in axes)
        return AxisConflict(f"{message}: {shown}", [d for axis in axes for d in self.leaves(axis)])

    def _unify_factors(self, x: Factor, y: Factor) -> None:
        if isinstance(x, Cat) and isinstance(y, Cat):
            self._unify_cats(x, y)
        elif isinstance(x, Cat):
            assert isinstance(y, int)
            self._bind(y, (x,))
        elif isinstance(y, Cat):
            self._bind(x, (y,))
        else:
            keep, drop = min(x, y), max(x, y)
            self.ties.append((keep, drop, self.here))
            self.parent[drop] = keep
            self.labels[keep] = self.labels[keep] or self.labels[drop]
            self.pins.setdefault(keep, {}).update(self.pins.pop(drop, {}))

    def _unify_cats(self, x: Cat, y: Cat) -> None:
        """Piece by piece. An axis laid against itself, shifted, is cut anew by each cut, to single places."""
        if self._depth >= MAX_DEPTH:
            raise self._conflict("an axis meets itself, shifted", (x,), (y,))
        self._depth += 1
        try:
            self._unify_pieces(list(x.parts), list(y.parts))
        finally:
            self._depth -= 1

    def _unify_pieces(self, a: list[Axis], b: list[Axis]) -> None:
        while a and b:
            p, q = a.pop(0), b.pop(0)
            sp, sq = self.size(p), self.size(q)
            if sp > sq:
                p, rest = self.cut(p, sq)
                a.insert(0, rest)
            elif sq > sp:
                q, rest = self.cut(q, sp)
                b.insert(0, rest)
            self.unify(p, q)

    def _bind(self, dim: int, axis: Axis) -> None:
        if dim in set(self.leaves(axis)):
            raise self._conflict("an axis would contain itself", (dim,), axis)
        self.ties += [(dim, leaf, self.here) for leaf in self.leaves(axis)]
        self.bound[dim] = axis
        for pin in self.pins.pop(dim, {}):
            for leaf in self.leaves(axis):
                self.pins.setdefault(leaf, {})[pin] = None

    # ── division ────────────────────────────────────────────────────────────────────────

    def _divide(self, factor: Factor, low: int) -> tuple[Axis, Axis]:
        """`factor` as a product of two axes, the last of size `low`."""
        size = self.factor_size(factor)
        if size % low:
            raise self._conflict(f"an axis of size {size} does not divide by {low}", (factor,))
        if isinstance(factor, int):
            label = self.labels[factor]
            high, last = self.fresh(size // low, label), self.fresh(low, label)
            self._bind(factor, (*high, *last))
            return high, last
        heads: list[Axis] = []
        tail: Axis | None = None
        row: list[Axis] = []  # pieces of a row that is not yet full
        parts = list(factor.parts)
        while parts:
            part, missing = parts.pop(0), low - sum(self.size(piece) for piece in row)
            if row or self.size(part) % low:
                if self.size(part) > missing:
                    part, rest = self.cut(part, missing)
                    parts.insert(0, rest)
                row.append(part)
                if self.size(part) < missing:
                    continue
                head, this, row = UNIT, self.resolve((Cat(tuple(row)),)), []
            else:
                head, this = self.regroup(part, (self.size(part) // low, low))
            tail = this if tail is None else self.unify(tail, this)
            heads.append(head)
        assert tail is not None
        return (Cat(tuple(heads)),), tail

    def regroup(self, axis: Axis, sizes: tuple[int, ...]) -> tuple[Axis, ...]:
        """`axis` as the product of axes of the given sizes: what a view does."""
        if prod(sizes) != self.size(axis):
            raise self._conflict(f"cannot be regrouped into {list(sizes)}", axis)
        pending = list(self.resolve(axis))
        groups: list[Axis] = []
        for size in reversed(sizes):
            group: list[Factor] = []
            need = size
            while need > 1:
                factor = pending.pop()
                have = self.factor_size(factor)
                if need % have == 0:
                    group.insert(0, factor)
                    need //= have
                else:
                    head, tail = self._divide(factor, need)
                    group[:0] = tail
                    pending = list(self.resolve((*pending, *head)))
                    need = 1
            groups.insert(0, tuple(group))
        return tuple(self.resolve(group) for group in groups)

    def cut(self, axis: Axis, at: int) -> tuple[Axis, Axis]:
        """`axis` as two axes laid end to end, the first of size `at`: what a slice does."""
        lefts: list[Axis] = []
        rights: list[Axis] = []
        for word in self.words(axis):
            size = self.size(word)
            if at >= size:
                lefts.append(word)
            elif at <= 0:
                rights.append(word)
            else:
                left, right = self._cut_word(word, at)
                lefts.append(left)
                rights.append(right)
            at -= size
        return self.resolve((Cat(tuple(lefts)),)), self.resolve((Cat(tuple(rights)),))

    def _cut_word(self, word: Axis, at: int) -> tuple[Axis, Axis]:
        head, *rest = word
        assert isinstance(head, int)
        inner = self.size(tuple(rest))
        if at % inner:
            raise self._conflict(f"a cut at {at} falls inside a product", word)
        label, rows = self.labels[head], at // inner
        left, right = self.fresh(rows, label), self.fresh(self.sizes[head] - rows, label)
        self._bind(head, (Cat((left, right)),))
        return (*left, *rest), (*right, *rest)

    def slice(self, axis: Axis, start: int, stop: int) -> Axis:
        """The piece of `axis` from `start` to `stop`."""
        if stop - start == self.size(axis):
            return self.resolve(axis)
        if stop == start:
            return self.fresh(0, "nothing")
        if start:
            _, axis = self.cut(axis, start)
        if stop - start < self.size(axis):
            axis, _ = self.cut(axis, stop - start)
        return self.resolve(axis)

    def units(self, axis: Axis) -> None:
        """Take an axis apart into single positions, each of which an op reads by its index."""
        for at in range(1, self.size(axis)):
            self.cut(axis, at)


def parts(store: Store, axis: Axis) -> int:
    """How many pieces of `axis` may each have a scale of their own."""
    return prod(
        sum(parts(store, p) for p in f.parts) if isinstance(f, Cat) else 1 for f in store.resolve(axis)
    )
