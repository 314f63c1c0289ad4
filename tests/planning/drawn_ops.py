"""The ops that random modules are made of, and a module that carries out a list of them.

A :class:`Blueprint` is plain data, so that a failing example prints as the program that fails.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BATCH = 3


@dataclass(frozen=True)
class Step:
    """One op: the values and stored tensors that it reads, and its numbers."""

    op: str
    inputs: tuple[int, ...] = ()
    stored: tuple[str, ...] = ()
    numbers: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Blueprint:
    """A module: the shape of its input (behind the batch), its stored tensors, steps and outputs.

    `stored` maps names to shape and kind (``parameter``, ``buffer`` or ``variance``); `aliases` gives
    second names to parameters. With `vocabulary` the input is whole numbers below it.
    """

    input: tuple[int, ...]
    vocabulary: int
    stored: dict[str, tuple[tuple[int, ...], str]]
    aliases: dict[str, str]
    steps: tuple[Step, ...]
    outputs: tuple[int, ...]


Op = Callable[..., Any]


def _attention(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float | None) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale)


def _scores(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    return torch.softmax(q @ k.transpose(-1, -2) * scale, dim=-1) @ v


def _batch_norm(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    return F.batch_norm(x, mean, var, weight, bias)


def _view(x: Tensor, sizes: tuple[int, ...]) -> Tensor:
    return x.reshape(x.shape[0], *sizes)


def _fixed_view(x: Tensor, sizes: tuple[int, ...]) -> Tensor:
    return x.reshape(-1, *sizes)


def _convolve(x: Tensor, weight: Tensor, *rest: Any) -> Tensor:
    *bias, groups, padding = rest
    op = F.conv1d if weight.ndim == 3 else F.conv2d
    return op(x, weight, bias[0] if bias else None, padding=padding, groups=groups)


def _deconvolve(x: Tensor, weight: Tensor, groups: int) -> Tensor:
    return (F.conv_transpose1d if weight.ndim == 3 else F.conv_transpose2d)(x, weight, groups=groups)


def _pool(x: Tensor, how: str) -> Tensor:
    spatial = x.ndim - 2
    return getattr(F, f"{how}_pool{spatial}d")(x, 2)


def _clipped(x: Tensor, low: float) -> Tensor:
    return torch.where(x > low, x, torch.zeros_like(x))


def _cross(queries: Tensor, x: Tensor, causal: bool) -> Tensor:
    """Stored queries [h, s, d] read values [batch, t, h·d]."""
    heads = x.reshape(*x.shape[:2], queries.shape[0], -1).transpose(1, 2)
    q = queries.expand(x.shape[0], *queries.shape)
    return F.scaled_dot_product_attention(q, heads, heads, is_causal=causal)


def _grouped(q: Tensor, k: Tensor, v: Tensor, times: int) -> Tensor:
    """Several query heads read one key and value head."""
    wide = [t[:, :, None].expand(-1, -1, times, -1, -1).reshape(t.shape[0], -1, *t.shape[2:]) for t in (k, v)]
    return F.scaled_dot_product_attention(q, *wide)


def _masked_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def _positions(x: Tensor, table: Tensor) -> Tensor:
    return x + F.embedding(torch.arange(x.shape[1], device=x.device), table)


def _begun(x: Tensor, token: Tensor) -> Tensor:
    """A stored token laid before a sequence."""
    return torch.cat([token.expand(x.shape[0], 1, -1), x], 1)


POINTWISE: dict[str, Op] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "sin": torch.sin,
    "neg": torch.neg,
    "abs": torch.abs,
    "square": torch.square,
    "leaky_relu": F.leaky_relu,
    "softplus": F.softplus,
    "clone": torch.clone,
    "root": lambda x: (x.square() + 1).sqrt(),
    "rsqrt": lambda x: torch.rsqrt(x * x + 0.5),
    "cube": lambda x: x**3,
    "masked": lambda x: x.masked_fill(x > 0.5, 0.0),
    "capped": lambda x: x.masked_fill(x > 0.5, 1.5),
    "ones": lambda x: x + torch.ones_like(x),
    "scalar": lambda x: x * torch.tensor(2.5, dtype=x.dtype, device=x.device),
    "clamp": lambda x: x.clamp(-1, 1),
    "dropout": lambda x: F.dropout(x, 0.5, training=False),
    "float": lambda x: x.to(torch.float64),
    "elu": F.elu,
}

# Ops of one value that change its shape or read its positions along the last axis.
SHAPED: dict[str, Op] = {
    "zeros_after": lambda x: torch.cat([x, torch.zeros_like(x)], -1),
    "ones_before": lambda x: torch.cat([x.new_ones(x.shape), x], -1),
    "repeat": lambda x: x.repeat(*(1 for _ in x.shape[1:]), 2),
    "repeat_interleave": lambda x: x.repeat_interleave(2, -1),
    "pad": lambda x: F.pad(x, (0, 1)),
    "glu": lambda x: F.glu(x.repeat_interleave(2, -1), -1),
    "halves": lambda x: F.glu(torch.cat([x, x], -1), -1),
    "ramp": lambda x: x * torch.arange(x.shape[-1], dtype=x.dtype, device=x.device),
    "indexed": lambda x: x[..., torch.tensor([0, 0], device=x.device)],
    "outer": lambda x: x.unsqueeze(-1) * x.unsqueeze(-2),
    "gram": lambda x: x.unsqueeze(-1) @ x.unsqueeze(-2),
    "dot": lambda x: torch.einsum("...i,...i->...", x, x),
    "normalized": lambda x: F.normalize(x, dim=-1),
    "std": lambda x: (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True) + 1).sqrt(),
    "centred": lambda x: x - x.mean(-1, keepdim=True),
    "channels_mean": lambda x: x - x.mean(1, keepdim=True),
    "max_values": lambda x: x.max(-1).values,
    "log_softmax": lambda x: F.log_softmax(x, -1),
    "tril": lambda x: x.tril() if x.ndim > 2 else x,
    "cumsum": lambda x: x.cumsum(-1),
    "flip": lambda x: x.flip(-1),
    "running": lambda x: x.cumsum(1),
    "top_rows": lambda x: x.topk(1, 1).values,
    "twice_rows": lambda x: torch.cat([x, x.flip(1)], 1).repeat(1, 2, *(1 for _ in x.shape[2:])),
    "over_norm": lambda x: x / (x.norm(dim=-1, keepdim=True) + 0.1),
    "over_sum": lambda x: F.normalize(x, p=1, dim=1),
}

OPS: dict[str, Op] = {
    **POINTWISE,
    **SHAPED,
    "linear": F.linear,
    "transposed_linear": lambda x, w: F.linear(x, w.t()),
    "matmul": lambda x, w: x @ w,
    "front": lambda w, n: w[:n],
    "reverse": lambda w: w.permute(*range(w.ndim - 1, -1, -1)),
    "shape": lambda w, shape: w.view(shape),
    "plus_one": lambda w: 1 + w,
    "own_square": lambda w: w * w,
    "even_rows": lambda w: w / (w.square().mean(-1, keepdim=True) + 0.1).sqrt(),
    "wide": lambda w, shape: w.expand(shape),
    "ones_times": lambda w: w * torch.ones(w.shape, dtype=w.dtype, device=w.device),
    "counted": lambda w: w / torch.ones(w.shape[-1], dtype=w.dtype, device=w.device).cumsum(0),
    "einsum_twice": lambda x, w: torch.einsum("...i,i,i->...i", x, w, w),
    "dot_twice": lambda x, w: torch.einsum("...i,oi,oi->...o", x, w, w),
    "embedding": F.embedding,
    "einsum": lambda *given: torch.einsum(given[-1], *given[:-1]),
    "layer_norm": lambda x, *wb: F.layer_norm(x, x.shape[-1:], *wb),
    "plane_norm": lambda x: F.layer_norm(x, x.shape[-2:]),
    "rms_norm": lambda x, *w: F.rms_norm(x, x.shape[-1:], *w, eps=1e-6),
    "own_rms_norm": lambda x, g: x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * (1 + g),
    "group_norm": lambda x, w, b, groups: F.group_norm(x, groups, w, b),
    "batch_norm": _batch_norm,
    "softmax": lambda x, dim: torch.softmax(x, dim),
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "soft_divide": lambda x, y: x / (1 + y * y),
    "maximum": torch.maximum,
    "times": lambda x, number: x * number,
    "plus": lambda x, number: x + number,
    "over": lambda x, number: x / number,
    "clipped": _clipped,
    "cat": lambda *given: torch.cat(given[:-1], dim=given[-1]),
    "stack": lambda *given: torch.stack(given[:-1], dim=given[-1]),
    "split": lambda x, sizes, dim: torch.split(x, list(sizes), dim=dim),
    "chunk": lambda x, n, dim: torch.chunk(x, n, dim=dim),
    "unbind": lambda x, dim: torch.unbind(x, dim),
    "slice": lambda x, dim, start, stop, step: x[(slice(None),) * dim + (slice(start, stop, step),)],
    "select": lambda x, dim, at: x.select(dim, at),
    "roll_halves": lambda x: torch.cat([-x[..., x.shape[-1] // 2 :], x[..., : x.shape[-1] // 2]], -1),
    "view": _view,
    "fixed_view": _fixed_view,
    "flatten": lambda x, start, stop: x.flatten(start, stop),
    "permute": lambda x, order: x.permute(order),
    "transpose": lambda x, a, b: x.transpose(a, b),
    "unsqueeze": lambda x, dim: x.unsqueeze(dim),
    "squeeze": lambda x, dim: x.squeeze(dim),
    "expand": lambda x, sizes: x.expand(x.shape[0], *sizes),
    "mean": lambda x, dims, keep: x.mean(dims, keepdim=keep),
    "sum": lambda x, dims, keep: x.sum(dims, keepdim=keep),
    "amax": lambda x, dims, keep: x.amax(dims, keepdim=keep),
    "bmm": torch.matmul,
    "scores": _scores,
    "attention": _attention,
    "convolve": _convolve,
    "deconvolve": _deconvolve,
    "pool": _pool,
    "cross": lambda x, queries, causal: _cross(queries, x, causal),
    "grouped": _grouped,
    "masked_attention": _masked_attention,
    "positions": _positions,
    "begun": _begun,
    "choice": lambda x, y: torch.where(x > y, x, y),
    "row_scaled": lambda x, y: x * y.mean(-1, keepdim=True),
}


class Drawn(nn.Module):
    """A blueprint as a module in float64, its tensors random."""

    def __init__(self, blueprint: Blueprint, seed: int) -> None:
        super().__init__()
        self.blueprint = blueprint
        generator = torch.Generator().manual_seed(seed)
        for name, (shape, kind) in blueprint.stored.items():
            value = torch.randn(shape, generator=generator, dtype=torch.float64)
            if kind == "parameter":
                self.register_parameter(name, nn.Parameter(0.6 * value))
            else:
                self.register_buffer(name, value.abs() + 0.5 if kind == "variance" else value)
        for alias, name in blueprint.aliases.items():
            self.register_parameter(alias, self.get_parameter(name))
        self.eval()

    def forward(self, x: Tensor) -> Any:
        values: list[Tensor] = [x]
        for step in self.blueprint.steps:
            given = [values[i] for i in step.inputs] + [getattr(self, name) for name in step.stored]
            out = OPS[step.op](*given, *step.numbers)
            values.extend(out if isinstance(out, (tuple, list)) else [out])
        chosen = [values[i] for i in self.blueprint.outputs]
        return chosen[0] if len(chosen) == 1 else tuple(chosen)


def inputs_for(blueprint: Blueprint, seed: int, batch: int = BATCH) -> Tensor:
    """Random inputs of a blueprint's module."""
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, *blueprint.input)
    if blueprint.vocabulary:
        return torch.randint(blueprint.vocabulary, shape, generator=generator)
    return torch.randn(shape, generator=generator, dtype=torch.float64)
