"""Random small modules: each move adds an op or a known figure (a residual block, an attention) to a
program, or does nothing where it does not fit."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

from drawn_ops import POINTWISE, SHAPED, Blueprint
from drawn_program import MOST, Builder
from hypothesis import strategies as st


def linear(b: Builder) -> None:
    x = b.pick(lambda s: len(s) >= 1)
    if x is not None:
        b.linear(x, b.size())


def weighed(b: Builder) -> None:
    """A weight that stands twice in a product."""
    x = b.pick(lambda s: len(s) >= 1)
    if x is not None and b.chance(2):
        b.add("einsum_twice", (x,), (b.tensor((b.shape(x)[-1],)),))
    elif x is not None:
        b.add("dot_twice", (x,), (b.tensor((b.size(), b.shape(x)[-1])),))


def einsum(b: Builder) -> None:
    x = b.pick(lambda s: len(s) in (1, 2))
    if x is None:
        return
    shape, h, d = b.shape(x), b.choose([2, 3]), b.choose([2, 4, 5])
    if len(shape) == 1:
        way = b.choose(["heads", "both"])
        if way == "heads":
            b.read("einsum", (x,), (shape[0], h, d), "bi,ihd->bhd")
        else:
            b.read("einsum", (x, x), (shape[0], shape[0], h), "bi,bj,ijh->bh")
        return
    way = b.choose(["heads", "merge", "each", "weigh"])
    if way == "heads":
        b.read("einsum", (x,), (h, shape[1], d), "bti,hid->bhtd")
    elif way == "merge":
        b.read("einsum", (x,), (*shape, d), "bhi,hid->bd")
    elif way == "each":
        b.read("einsum", (x,), (*shape, d), "bhi,hid->bhd")
    else:
        b.read("einsum", (x,), (shape[0],), "bti,t->bi")


def norm(b: Builder) -> None:
    x = b.pick(lambda s: len(s) >= 1 and s[-1] >= 2)
    if x is None:
        return
    shape = b.shape(x)
    n, c = shape[-1], shape[0]
    ways = ["layer", "rms", "layer", "plain", "own_rms", "batch"]
    way = b.choose([*ways, "group", "plane"] if len(shape) >= 2 else ways)
    if way == "layer":
        b.add("layer_norm", (x,), (b.tensor((n,)), b.tensor((n,))))
    elif way == "rms":
        b.add("rms_norm", (x,), (b.tensor((n,)),))
    elif way == "plain":
        b.add(b.choose(["layer_norm", "rms_norm"]), (x,))
    elif way == "plane":
        b.add("plane_norm", (x,))
    elif way == "own_rms":
        b.add("own_rms_norm", (x,), (b.tensor((n,)),))
    elif way == "group":
        groups = b.choose([g for g in range(1, c + 1) if c % g == 0])
        b.add("group_norm", (x,), (b.tensor((c,)), b.tensor((c,))), groups)
    else:
        stored = b.tensor((c,)), b.tensor((c,)), b.tensor((c,), "buffer"), b.tensor((c,), "variance")
        b.add("batch_norm", (x,), stored)


def pointwise(b: Builder) -> None:
    x = b.pick()
    if x is not None:
        way = b.choose([*POINTWISE, "times", "plus", "over", "clipped"])
        b.add(way, (x,), (), *([] if way in POINTWISE else [b.choose([0.5, 2.0, -1.5, 3])]))


def combine(b: Builder) -> None:
    """A residual, a gate, or another op of two values of one shape."""
    x = b.pick(lambda s: len(s) >= 1)
    if x is not None:
        way = b.choose(["add", "mul", "add", "mul", "sub", "soft_divide", "maximum", "choice", "row_scaled"])
        y = b.twin(x)
        b.add(way, (x, y) if b.chance(2) else (y, x))


def broadcast(b: Builder) -> None:
    """A stored tensor meets a value, broadcast."""
    x = b.pick(lambda s: len(s) >= 1)
    if x is None:
        return
    shape = b.shape(x)
    options = [shape[-1:], shape, (1, *shape[1:]), (*shape[:-1], 1), (*shape[:1], *(1 for _ in shape[1:]))]
    kind = b.choose(["parameter", "parameter", "buffer"])
    b.add(
        b.choose(["add", "mul", "sub", "maximum", "soft_divide"]), (x,), (b.tensor(b.choose(options), kind),)
    )


def concatenate(b: Builder) -> None:
    x = b.pick(lambda s: len(s) >= 1)
    if x is None:
        return
    shape = b.shape(x)
    dim = b.draw(st.integers(0, len(shape) - 1))
    rest = shape[:dim] + shape[dim + 1 :]
    others = b.batched(lambda s: len(s) == len(shape) and s[:dim] + s[dim + 1 :] == rest)
    y = b.choose(others)
    pieces = (x, y, x) if b.chance(4) else (x, y)
    if sum(prod(b.shape(i)) for i in pieces) <= MOST:
        b.add("cat", pieces, (), dim + 1)


def split(b: Builder) -> None:
    x = b.pick(lambda s: len(s) >= 1 and max(s) >= 2)
    if x is None:
        return
    shape = b.shape(x)
    dim = b.choose([i for i in reversed(range(len(shape))) if shape[i] >= 2])
    size = shape[dim]
    way = b.choose(["split", "chunk", "slice", "slice", "select", "unbind", "roll_halves"])
    if way == "split":
        at = b.draw(st.integers(1, size - 1))
        b.add("split", (x,), (), (at, size - at), dim + 1)
    elif way == "chunk":
        b.add("chunk", (x,), (), b.choose([2, 3]), dim + 1)
    elif way == "slice":
        step = b.choose([1, 1, 1, *(d for d in (2, 3) if size % d == 0)])
        start = b.draw(st.integers(0, max(0, (size if step == 1 else step) - 1)))
        stop = b.draw(st.integers(start + 1, size)) if step == 1 else size
        low = b.choose([start, start - size])
        high = b.choose([stop, None if stop == size else stop - size])
        b.add("slice", (x,), (), dim + 1, None if low == 0 else low, high, step)
    elif way == "select":
        b.add("select", (x,), (), dim + 1, b.draw(st.integers(-size, size - 1)))
    elif way == "unbind" and size <= 4:
        b.add("unbind", (x,), (), dim + 1)
    elif shape[-1] % 2 == 0:
        y = b.add("roll_halves", (x,))
        if b.chance(2):
            b.add("add", (x, y))


def layout(b: Builder) -> None:
    """A reshape, permutation, or axis of size one."""
    x = b.pick(lambda s: len(s) >= 1)
    if x is None:
        return
    shape = b.shape(x)
    divisible = [i for i, s in enumerate(shape) if any(s % d == 0 for d in range(2, s))]
    way = b.choose(
        ["heads", "heads", "merge", "permute", "transpose", "unsqueeze", "squeeze", "expand", "mix"]
    )
    view = b.choose(["view", "view", "fixed_view"])
    if way == "heads" and divisible and len(shape) < 4:
        i = b.choose(divisible)
        d = b.choose([d for d in range(2, shape[i]) if shape[i] % d == 0])
        b.add(view, (x,), (), (*shape[:i], d, shape[i] // d, *shape[i + 1 :]))
    elif way == "merge" and len(shape) >= 2:
        i = b.draw(st.integers(0, len(shape) - 2))
        if b.chance(2):
            b.add("flatten", (x,), (), i + 1, i + 2)
        else:
            b.add(view, (x,), (), (*shape[:i], shape[i] * shape[i + 1], *shape[i + 2 :]))
    elif way == "mix" and len(shape) >= 2:
        total = prod(shape)
        d = b.choose([d for d in range(1, total + 1) if total % d == 0])
        b.add(view, (x,), (), (d, total // d))
    elif way == "permute" and len(shape) >= 2:
        order = b.draw(st.permutations(range(1, len(shape) + 1)))
        b.add("permute", (x,), (), (0, *order))
    elif way == "transpose" and len(shape) >= 2:
        b.add("transpose", (x,), (), *b.choose([(-1, -2), (1, len(shape))]))
    elif way == "unsqueeze" and len(shape) < 4:
        b.add("unsqueeze", (x,), (), b.draw(st.integers(1, len(shape) + 1)))
    elif way == "squeeze" and 1 in shape:
        b.add("squeeze", (x,), (), shape.index(1) + 1)
    elif way == "expand" and 1 in shape:
        i, n = shape.index(1), b.choose([2, 3])
        b.add("expand", (x,), (), (*shape[:i], n, *shape[i + 1 :]))


def reduce(b: Builder) -> None:
    x = b.pick(lambda s: len(s) >= 1)
    if x is None:
        return
    rank = len(b.shape(x))
    dims = b.draw(st.lists(st.integers(1, rank), min_size=1, max_size=2, unique=True))
    keep = b.chance(2) or len(dims) == rank
    b.add(b.choose(["mean", "sum", "mean", "amax"]), (x,), (), tuple(dims), keep)


def softmax(b: Builder) -> None:
    x = b.pick(lambda s: len(s) >= 1)
    if x is not None:
        b.add("softmax", (x,), (), b.choose([-1, 1]))


def attention(b: Builder) -> None:
    """Self-attention over the next to last axis, its projection fused or not; or over given values."""
    x = b.pick(lambda s: len(s) == 2)
    if x is None:
        return
    (t, n), h, d = b.shape(x), b.choose([2, 3, 1]), b.choose([2, 3, 4])
    e = d if b.chance(2) else b.choose([2, 5])
    if b.chance(2):
        fused = b.linear(x, h * (2 * d + e))
        if b.chance(2):
            heads = b.add("view", (fused,), (), (t, h, 2 * d + e))
            q = b.add("split", (heads,), (), (d, d, e), -1)
            pieces = [q, q + 1, q + 2]
        else:
            q = b.add("split", (fused,), (), (h * d, h * d, h * e), -1)
            pieces = [b.add("view", (q + i,), (), (t, h, w)) for i, w in enumerate((d, d, e))]
    else:
        pieces = [b.add("view", (b.linear(x, h * w),), (), (t, h, w)) for w in (d, d, e)]
    q, k, v = (b.add("transpose", (p,), (), 1, 2) for p in pieces)
    if b.chance(4):
        out = b.add("masked_attention", (q, k, v), (b.tensor((t, t), b.choose(["parameter", "buffer"])),))
    elif b.chance(4):
        wide = b.add("view", (b.linear(x, 2 * h * d),), (), (t, 2 * h, d))
        out = b.add("grouped", (b.add("transpose", (wide,), (), 1, 2), k, v), (), 2)
        h *= 2
    elif b.chance(2):
        out = b.add("attention", (q, k, v), (), b.chance(2), b.choose([None, 0.5]))
    else:
        out = b.add("scores", (q, k, v), (), b.choose([0.5, d**-0.5]))
    back = b.add("transpose", (out,), (), 1, 2)
    flat = b.add("view", (back,), (), (t, h * e))
    if b.chance(2):
        b.add("add", (x, b.linear(flat, n)))


def multiply(b: Builder) -> None:
    """A product of two values, one transposed."""
    x = b.pick(lambda s: len(s) >= 2)
    if x is not None:
        y = b.add("transpose", (b.twin(x),), (), -1, -2)
        b.add("bmm", (x, y) if b.chance(2) else (y, x))


def mlp(b: Builder) -> None:
    """A residual block, perhaps gated, perhaps behind a norm."""
    x = b.pick(lambda s: len(s) >= 1)
    if x is None:
        return
    n, width = b.shape(x)[-1], b.size()
    y = b.add("layer_norm", (x,), (b.tensor((n,)), b.tensor((n,)))) if n > 1 and b.chance(2) else x
    inner = b.add(b.choose(["gelu", "relu", "silu"]), (b.linear(y, width),))
    if b.chance(3):
        inner = b.add("mul", (inner, b.linear(y, width)))
    b.add("add", (x, b.linear(inner, n)))


def convolve(b: Builder) -> None:
    x = b.pick(lambda s: len(s) in (2, 3))
    if x is None:
        return
    shape = b.shape(x)
    c, spatial = shape[0], shape[1:]
    groups = b.choose([1, 1, c, *(g for g in range(2, c) if c % g == 0)])
    out = groups * b.choose([1, 2, 3, 4])
    kernel = tuple(b.choose([k for k in (3, 1, 2) if k <= s]) for s in spatial)
    if b.chance(6):
        b.read("deconvolve", (x,), (c, out // groups, *kernel), groups)
        return
    bias = (b.tensor((out,)),) if b.chance(2) else ()
    padding = "same" if b.chance(4) else 0
    b.read("convolve", (x,), (out, c // groups, *kernel), groups, padding, bias=bias)


def pool(b: Builder) -> None:
    x = b.pick(lambda s: len(s) in (2, 3) and min(s[1:]) >= 2)
    if x is not None:
        b.add("pool", (x,), (), b.choose(["max", "avg"]))


def shaped(b: Builder) -> None:
    x = b.pick(lambda s: 1 <= len(s) < 4 and prod(s) * s[-1] <= MOST)
    if x is not None:
        b.add(b.choose(SHAPED), (x,))


def sequence(b: Builder) -> None:
    """What models do to sequences: positions, a token before them, stored queries."""
    x = b.pick(lambda s: len(s) == 2)
    if x is None:
        return
    t, n = b.shape(x)
    way = b.choose(["positions", "begun", "cross"])
    if way == "positions":
        b.add(way, (x,), (b.tensor((t + 2, n)),))
    elif way == "begun":
        b.add(way, (x,), (b.tensor((1, 1, n)),))
    else:
        h = b.choose([h for h in (1, 2, 3) if n % h == 0])
        b.add(way, (x,), (b.tensor((h, b.choose([2, 3, t]), n // h)),), b.chance(3))


def stack(b: Builder) -> None:
    x = b.pick(lambda s: 1 <= len(s) < 4 and 2 * prod(s) <= MOST)
    if x is not None:
        b.add("stack", (x, b.twin(x)), (), b.draw(st.integers(1, len(b.shape(x)) + 1)))


MOVES = [
    *(linear, linear, linear, mlp, mlp, mlp, combine, combine, norm, norm, pointwise, pointwise, layout),
    *(layout, attention, attention, concatenate, split, broadcast, broadcast, reduce, einsum, convolve),
    *(weighed, multiply, stack, pool, softmax, shaped, sequence),
]


@st.composite
def blueprints(draw: Callable[[st.SearchStrategy[Any]], Any], most: int = 7) -> Blueprint:
    """Random modules of up to `most` moves, most of them with a linear head."""
    b = Builder(draw)
    if not b.vocabulary and not b.chance(6):
        if len(b.input) > 1 and b.chance(3):
            convolve(b)
        else:
            b.linear(0, b.size())
        b.first = 1
    for move in draw(st.lists(st.sampled_from(MOVES), min_size=min(3, most), max_size=most)):
        move(b)
        if max(prod(b.shape(i)) for i in b.batched()) > MOST:
            break
    last = b.batched()[0]
    if b.shape(last) and not b.chance(5):
        last = b.linear(last, b.size())
    outputs = [last]
    if b.chance(5):
        other = b.pick()
        outputs += [other] if other is not None and other != last else []
    return Blueprint(b.input, b.vocabulary, b.stored, b.aliases, tuple(b.steps), tuple(outputs))
