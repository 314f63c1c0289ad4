"""The long form of every diagnostic: what ``surgeon explain CODE`` shows."""

from __future__ import annotations

EXPLANATIONS: dict[str, str] = {
    # ── S1xx: the language ───────────────────────────────────────────────────────────────
    "S101": """A word or sign stands where it cannot.
The carets show the first one that does not fit; what could have stood there follows `expected`. Often
the mistake is just before: a missing comma, or a statement begun and not finished.""",
    "S102": """No declaration or statement starts with this word.
A file holds `use`, `recipe`, `op` and `family`. A recipe holds `grow`, `spread`, `noise`, `expand`,
`preserve` and `seed`; a family holds `dim`; an op rule holds roles, `NAME := ...`, `exact` and `default`.""",
    "S103": """A character that the language does not have, or a string without its closing quote.
Strings stand in double quotes on one line, comments start with `#`, and the end of the line ends a
statement: there is no `;`.""",
    "S104": """The text ends inside a block or statement.
Every `{` needs its `}`. The place shown is the end of the declaration that was not closed.""",
    "S105": """The file is larger than the limit.
The limit keeps a stranger's recipe from filling memory. No honest recipe comes near it.""",
    "S106": """The file cannot be read.
It is missing, a folder, not readable for you, or not UTF-8 text. A name without a folder, such as
`hyperclone`, is also looked up in the library of recipes that comes with surgeon.""",
    "S107": """The file that `use` names was not found.
It is looked up beside the file that uses it first, then in the library: `use "ops/aten.surgery"`.""",
    "S108": """A file uses itself, directly or through others.
Put what both need in a third file.""",
    "S109": """Files use files too deeply.""",
    "S110": """One file declares the same thing twice.
Two rules for one op in one file cannot both hold. A file may replace the rule of a file it uses, or of
the library: there the later one wins.""",
    "S111": """A name is given twice where each may stand once: a parameter, an argument, an expansion.""",
    "S112": """There is no such type of parameter.
The types are int, ratio, decibel, spread, string, glob and bool; a `?` behind the type allows `none`.""",
    "S113": """A value is not of the type wanted.
int is `2`; ratio is `3/2`; decibel is `10 dB`; spread is `symmetric`, `diagonal`, `first` or
`uneven(1, 2)`; string and glob stand in double quotes; bool is `true` or `false`. `none` goes only where
the type has a `?`.""",
    "S114": """A recipe's parameter has no default, and no value was given.
Set it with `--set NAME=VALUE`, or write a default: `n: int = 2`.""",
    "S115": """`--set` names a parameter that the recipe does not have.""",
    "S116": """A word stands for a value, but no parameter of the recipe has this name.""",
    "S117": """Growth must not shrink.
A factor is 1 or more, and may be a ratio: `grow ffn by 3/2`. Sizes are 1 or more.""",
    "S118": """A target of `grow` is malformed.
A target is a name from the family (`hidden`), a config field (`config.d_model`), or an axis of a
parameter: `axis("*.mlp.fc1.weight", 0)`.""",
    "S119": """A number that does not exist (`1/0`) or that is longer than any meaning it could have.""",
    "S120": """No op rule has this name or tag.
`spread`, `noise` and `expand` address an op by its name (`aten.linear`), several by the tag that their
rules carry (`op aten.linear as linear`), or all by `*`. Rules come from the library, from the file, and
from what it uses.""",
    "S121": """There is no such kind of op.
An op without a signature names a built-in kind: `op aten.silu : pointwise nonlinear`.""",
    "S122": """A kind has the wrong flag.
`pointwise` and `reduce` say how values change: `pointwise nonlinear`, `reduce mean`. `power` takes its
exponent, `power(-1/2)`, or `power(arg)` where the op's second argument is the exponent.""",
    "S123": """There is no such role of an axis.
`norm`: statistics are taken over it; `soft`: normalised to one over it; `order`: position along it
matters; `frozen`: it may not grow.""",
    "S124": """There is no such expansion.
`copy`: every copy gets the value; `share`: the value is shared out over the copies; `first`: the first
copy carries it all and the others are zero.""",
    "S125": """An axis name that the signature, or this argument, does not have.""",
    "S126": """An argument that the op's signature does not have, or that is not a tensor.""",
    "S127": """An output has an axis that no argument brings in.
The axes of outputs are named by those of the arguments. An axis of unknown origin is written `_`.""",
    "S128": """An axis pattern is malformed.
A pattern holds names, at most one `...`, `_` for one axis without a name, and `1` for an axis of size one:
`[... h s 1]`.""",
    "S129": """A spread is wrong.
A spread is `symmetric`, `diagonal`, `first`, or `uneven` with one positive weight for each copy:
`uneven(1, 2)`.""",
    "S130": """A field of the model's config is written `config.FIELD`.""",
    "S131": """A recipe without a `grow` statement would do nothing.""",
    "S132": """`preserve` names something that is not preserved; it takes `logits`.""",
    "S133": """A statement that may stand once stands twice.""",
    "S134": """An op is named as PyTorch names it: `namespace.name`, or `namespace.name.overload`.""",
    "S135": """It is not clear which recipe of the file is meant.
A file may declare several; name the one to use.""",
    "S136": """A pattern cannot be read.
`*` stands for any characters, `?` for one, `{0..3}` for the numbers 0 to 3, `{fc1,fc2}` for either.""",
}
