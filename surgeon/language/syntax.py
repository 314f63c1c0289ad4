"""The checked form of a ``.surgery`` file: immutable values that the other rooms read.

Three kinds of declaration (recipe, op, family). Nothing here knows torch or transformers.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from surgeon.errors import Span

# ── op rules ─────────────────────────────────────────────────────────────────────────────

ROLES = ("norm", "soft", "order", "frozen")
"""Role words: statistics over the axis; normalised to one over it; position along it matters;
it may not grow."""

EXPANSIONS = ("copy", "share", "first")
"""How one axis of a parameter grows: copied (produced), shared out (consumed), or carried by
the first copy alone."""

KINDS = {
    "pointwise": (
        "nonlinear",
        "homogeneous",
        "additive",
        "multiplicative",
        "quotient",
        "power",
        "select",
        "over",
    ),
    "group_norm": (),
    "reshape": (),
    "permute": (),
    "unsqueeze": (),
    "squeeze": (),
    "expand": (),
    "slice": (),
    "select": (),
    "split": (),
    "concatenate": (),
    "stack": (),
    "reduce": ("sum", "mean", "extreme", "norm", "soft", "variance", "deviation"),
    "softmax": (),
    "einsum": (),
    "convolution": (),
    "window": (),
    "index": (),
    "put": (),
    "unfold": (),
    "patches": (),
    "fold": (),
    "strided": (),
    "repeat": (),
    "along": ("homogeneous", "nonlinear"),
    "pad": (),
    "complex": ("joined", "parted"),
    "uniform": ("zero", "number"),
    "made": (),
    "identity": (),
    "ignore": (),
}
"""Built-in kinds for ops that have no fixed signature, with the flags each takes."""


@dataclass(frozen=True)
class AxisPattern:
    """``[... o i]``: the axes of one tensor, each by its name or, where it is a product ``g*r``, by those of
    its factors. ``ellipsis`` is the index at which ``...`` stands among the axes, or None. A name ``_``
    matches one axis and binds nothing."""

    axes: tuple[tuple[str, ...], ...]
    ellipsis: int | None = None

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for axis in self.axes for name in axis)


@dataclass(frozen=True)
class ArgPattern:
    """One argument of an op. ``axes`` is None for an argument that is not a tensor;
    ``name`` is ``_`` for an ignored one."""

    name: str
    axes: AxisPattern | None = None
    optional: bool = False
    span: Span | None = None


@dataclass(frozen=True)
class Signature:
    args: tuple[ArgPattern, ...]
    outputs: tuple[AxisPattern, ...]


@dataclass(frozen=True)
class KindUse:
    """``: pointwise power(-1/2)``: a built-in kind, a flag of it, and that flag's number."""

    name: str
    flag: str | None = None
    value: Fraction | None = None


@dataclass(frozen=True)
class Role:
    word: str
    axes: tuple[str, ...]
    span: Span | None = None


@dataclass(frozen=True)
class Expansion:
    """``weight := copy(o) * share(i)``"""

    argument: str
    factors: tuple[tuple[str, str], ...]  # (expansion word, axis name)
    span: Span | None = None


@dataclass(frozen=True)
class Exact:
    """``exact q * k * scale``: this product, summed over the axes its members share and the
    output lacks, must keep scale one. Its members do not enter the output's scale."""

    members: tuple[str, ...]
    span: Span | None = None


@dataclass(frozen=True)
class DefaultValue:
    """``default scale = e ^ -1/2``: what an absent number argument means, as a power of an
    axis size."""

    argument: str
    axis: str
    exponent: Fraction
    span: Span | None = None


@dataclass(frozen=True)
class OpRule:
    """What an op means for axes and how its parameters expand. Has a signature or a kind."""

    names: tuple[str, ...]  # "aten.linear", or with an overload "aten.add.Scalar"
    tag: str | None  # `as linear`: the group that `spread` and `noise` address
    signature: Signature | None
    kind: KindUse | None
    roles: tuple[Role, ...] = ()
    expansions: tuple[Expansion, ...] = ()
    exact: tuple[Exact, ...] = ()
    defaults: tuple[DefaultValue, ...] = ()
    span: Span | None = None


# ── families ─────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class DimName:
    """``dim heads = config.num_attention_heads, config.num_key_value_heads``: fields that grow
    together under one name. ``a | b`` takes the first field that the config has."""

    name: str
    fields: tuple[tuple[str, ...], ...]  # each entry: alternatives, first present wins
    span: Span | None = None


@dataclass(frozen=True)
class FileField:
    """``file "*/config.json" word_embedding_dimension = config.hidden_size``: in side files of this name,
    a JSON field that says a config field's number once more. Of several the first that grows counts."""

    files: str  # glob over paths in the model's folder
    name: str
    fields: tuple[str, ...]
    span: Span | None = None


@dataclass(frozen=True)
class Family:
    name: str
    model_types: tuple[str, ...]  # "*" stands for any
    dims: tuple[DimName, ...]
    files: tuple[FileField, ...] = ()
    span: Span | None = None


# ── recipes ──────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Spread:
    """How a consumed axis is shared out over the copies: `symmetric`, `diagonal`, `first`, or
    `uneven` with its weights."""

    name: str
    weights: tuple[Fraction, ...] = ()


@dataclass(frozen=True)
class NamedDim:
    name: str
    span: Span | None = None


@dataclass(frozen=True)
class ConfigDim:
    field: str
    span: Span | None = None


@dataclass(frozen=True)
class AxisDim:
    parameter: str  # glob over parameter names
    axis: int
    span: Span | None = None


Target = NamedDim | ConfigDim | AxisDim


@dataclass(frozen=True)
class Grow:
    """``grow hidden, ffn by 2`` | ``grow ffn to 4096`` | ``grow ffn to multiple of 64``."""

    targets: tuple[Target, ...]
    by: Fraction | None = None
    to: int | None = None
    multiple_of: int | None = None
    at: tuple[str, ...] = ()
    span: Span | None = None


@dataclass(frozen=True)
class SpreadRule:
    """``spread linear with uneven(1, 2) at "*.mlp.*"``; ops are tags or op names, ``*`` all."""

    ops: tuple[str, ...]
    spread: Spread
    at: tuple[str, ...] = ()
    span: Span | None = None


@dataclass(frozen=True)
class NoiseRule:
    """``noise linear at 10 dB``; ``snr`` in decibel, None for no noise."""

    ops: tuple[str, ...]
    snr: float | None
    at: tuple[str, ...] = ()
    span: Span | None = None


@dataclass(frozen=True)
class ExpandRule:
    """``expand aten.linear at "*.down_proj" { weight := copy(o) * first(i) }``"""

    op: str
    at: tuple[str, ...]
    expansions: tuple[Expansion, ...]
    span: Span | None = None


@dataclass(frozen=True)
class Recipe:
    """A growth recipe with every parameter replaced by its value."""

    name: str
    parameters: tuple[tuple[str, object], ...]  # (name, value) as used, for the provenance
    grows: tuple[Grow, ...]
    spreads: tuple[SpreadRule, ...] = ()
    noises: tuple[NoiseRule, ...] = ()
    expands: tuple[ExpandRule, ...] = ()
    preserve: tuple[str, ...] = ()
    seed: int = 0
    text: str = ""
    span: Span | None = None


@dataclass(frozen=True)
class Program:
    """Everything a file and the files it uses declare."""

    recipes: tuple[Recipe, ...]
    rules: tuple[OpRule, ...]
    families: tuple[Family, ...]
