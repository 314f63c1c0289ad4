"""Inputs made up for a model of transformers by the names its forward takes: tokens, pictures, films, sounds.

What shapes a model takes is read from its config; where that leaves several ways to lay them, the class is
asked which it runs on, without data. No class is known by name.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import product
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from surgeon.errors import ModelError, fail
from surgeon.models.pictures import (
    GRIDS,
    LAYOUTS,
    STRIP,
    STRIPS,
    TABLE,
    needs,
    pictures_among_words,
    runs_on,
    table_of,
)
from surgeon.models.stated import (
    FRAMES,
    SEQUENCE,
    configs_in,
    picture_shape,
    picture_shapes,
    sound_shapes,
    spectrogram_shapes,
    stated,
    text_config,
)

Way = Callable[[torch.Generator], dict[str, Any]]

BATCH = 3  # of the inputs that graphs are traced with and the proof runs on
BOX = 1000  # what the corners of words on a page are counted in
FLAT = "flattened_patches"  # what classes call patches that begin with their places
HIGH, WIDE = 2, 3  # of a picture of these
FRACTIONS = "in fractions"  # of the page: how else they may be
CHARACTERS = range(32, 127)  # code points, for a class that reads characters and states no vocabulary


def real_inputs(module: nn.Module, seed: int, pictures: bool = True) -> dict[str, Any]:
    """Keyword inputs for one forward pass on CPU: random tokens with some padding, random pictures and
    sounds. A model that generates, or that gives words, can do with its main input and its words; with
    `pictures` they stand among the words, where the class tells how. Another model gets all it takes.

    Raises ModelError S210 for a class without a forward pass, S211 when an input that it needs is not known.
    """
    accepted = inspect.signature(module.forward).parameters
    names = _looked_at(module, accepted)
    ways = _ways(module.config, accepted, names)
    inputs = _given(module, names, ways[_fitting(module, names, ways)], seed, pictures)
    _refuse_unknown(module, accepted, inputs)
    return inputs


def _given(module: nn.Module, names: Sequence[str], way: Way, seed: int, pictures: bool) -> dict[str, Any]:
    """The inputs as one of the ways lays what is looked at."""
    generator = torch.Generator().manual_seed(seed)
    config: Any = module.config
    accepted = inspect.signature(module.forward).parameters
    inputs: dict[str, Any] = way(generator)
    if "input_ids" in names:
        inputs |= _tokens(module, generator, padded=True)
    for name, input_ in accepted.items():
        if name.endswith("_input_ids") and input_.default is inspect._empty and name not in inputs:
            inputs[name] = _ids_of_part(config, name.removesuffix("_input_ids"), generator)
    if pictures and "input_ids" in inputs:
        found = _among_words(module, inputs, generator)
        inputs |= found if isinstance(found, dict) else {}
    if "bbox" in accepted and "input_ids" in inputs:
        whole = not inputs.pop(FRACTIONS, False)
        inputs["bbox"] = _boxes(config, inputs["input_ids"], whole, generator)
    if "decoder_input_ids" in accepted:
        inputs["decoder_input_ids"] = _decoder_ids(module, inputs, generator)
    if "input_ids" in inputs and getattr(config, "is_encoder_decoder", False):
        _end(inputs["input_ids"], inputs["attention_mask"], getattr(config, "eos_token_id", None))
    if "use_cache" in accepted:
        inputs["use_cache"] = False
    return {name: value for name, value in inputs.items() if name in accepted}


def _among_words(
    module: Any, inputs: Mapping[str, Any], generator: torch.Generator
) -> dict[str, Tensor] | str:
    pixels = torch.randn((BATCH, *picture_shape(module.config)), generator=generator)
    return pictures_among_words(module, pixels, inputs, generator)


def _looked_at(module: Any, accepted: Mapping[str, inspect.Parameter]) -> tuple[str, ...]:
    """The names of what the model is given to look at, its main input first."""
    if type(module).forward is nn.Module.forward:
        said = f"{type(module).__name__} has no forward pass"
        raise fail(ModelError, "S210", said, help=_instead(module))
    main = str(getattr(module, "main_input_name", "input_ids"))
    if main == "inputs" or main not in accepted:  # says nothing of what it is, or is only inherited
        needed = (name for name, input_ in accepted.items() if needs(input_))
        main = next((name for name in MADE if name in accepted), next(needed, main))
    if main not in MADE and not (main == TABLE and GRIDS & accepted.keys()):
        raise _unknown(module, main)
    others = [name for name in MADE if name in accepted and name != main]
    speaks = getattr(module, "get_output_embeddings", lambda: None)() is not None
    if speaks or getattr(module, "can_generate", lambda: False)():
        # Of a decoder that looks at an encoder the words that it goes on from are its own.
        one = "decoder_input_ids" not in accepted or not module.config.is_encoder_decoder
        others = [n for n in others if n == "input_ids" and (one or accepted[n].default is inspect._empty)]
    return main, *others


def _refuse_unknown(
    module: nn.Module, accepted: Mapping[str, inspect.Parameter], inputs: Mapping[str, Any]
) -> None:
    """Raises ModelError S211 where the class cannot do without an input that was not made."""
    missing = next((name for name, i in accepted.items() if needs(i) and name not in inputs), None)
    if missing is not None:
        raise _unknown(module, missing)


def _unknown(module: nn.Module, name: str) -> ModelError:
    accepted = inspect.signature(module.forward).parameters
    kind = accepted[name].annotation if name in accepted else None
    if isinstance(kind, type) and not _may_hold_tensors(kind):
        said = f"{type(module).__name__} reads {name}, a {kind.__name__}"
        said += ": only a pass of tensors can be traced"
        return fail(ModelError, "S211", said, help=_instead(module))
    return fail(
        ModelError,
        "S211",
        f"{type(module).__name__} reads {name}, which surgeon cannot make up",
        help="give inputs of your own: --inputs FILE, a safetensors file with tensors by name",
    )


def _may_hold_tensors(kind: type) -> bool:
    """Whether an input of this class can be made of tensors by name: not one of a class with a state."""
    return kind.__module__.partition(".")[0] in ("torch", "builtins", "inspect") or issubclass(kind, Mapping)


def _instead(module: nn.Module) -> str:
    """What can be grown of a class that cannot be run on tensors."""
    parts = [(name, part) for name, part in module.named_children() if hasattr(part, "save_pretrained")]
    if not parts:
        return "grow the model that it is a part of"
    named = ", ".join(f"{name} ({type(part).__name__})" for name, part in parts)
    return f"grow its parts, each as its own save_pretrained saves it: {named}"


def _ways(config: Any, accepted: Mapping[str, inspect.Parameter], names: Sequence[str]) -> list[Way]:
    """How the class may take what it looks at beside words, the likeliest first."""
    if any(needs(accepted[grid]) for grid in GRIDS & accepted.keys()):
        return [partial(table_of, config, accepted.keys(), BATCH, n) for n in range(LAYOUTS)]
    if "pixel_values" in names and STRIP in accepted:
        return [partial(table_of, config, accepted.keys(), BATCH, n) for n in range(STRIPS)]
    if FLAT in names:
        return [partial(_flattened, config)]
    if "pixel_values" in names and "spatial_shapes" in accepted:
        return [partial(_patches, config)]
    channels = "padding_mask" in accepted  # such sounds come with their channels
    shapes = {n: SHAPES[n](config) for n in names if n in SHAPES}
    if "input_values" in shapes:
        plain = shapes["input_values"]
        apart = [(stated(config, "audio_channels") or 1, *shape) for shape in plain]
        shapes["input_values"] = [*apart, *plain] if channels else [*plain, *apart]
    mask = accepted.get("input_features_mask") if "input_features" in shapes else None
    masked = (False,) if mask is None else (True,) if needs(mask) else (False, True)
    chosen = [dict(zip(shapes, several, strict=True)) for several in product(*shapes.values())]
    ways: list[Way] = [partial(_random, shape, with_mask) for with_mask in masked for shape in chosen]
    return ways + [partial(_in_fractions, way) for way in ways if "bbox" in accepted]


def _random(
    shapes: Mapping[str, tuple[int, ...]], masked: bool, generator: torch.Generator
) -> dict[str, Any]:
    """Random numbers of these shapes; `masked`, with which steps of a spectrogram hold any."""
    made = {name: torch.randn((BATCH, *shape), generator=generator) for name, shape in shapes.items()}
    if masked:
        shape = shapes["input_features"]
        mask = torch.ones(BATCH, FRAMES if FRAMES in shape else shape[-1], dtype=torch.long)
        mask[-1, mask.shape[1] * 3 // 4 :] = 0
        made["input_features_mask"] = mask
    return made


def _in_fractions(way: Way, generator: torch.Generator) -> dict[str, Any]:
    return {FRACTIONS: True, **way(generator)}


def _fitting(module: nn.Module, names: Sequence[str], ways: Sequence[Way]) -> int:
    """Which of the ways the class runs on, without data; the first where it runs on none."""
    if len(ways) == 1:
        return 0
    if module not in _FITTING:
        tried = (runs_on(module, _given(module, names, way, 0, False)) for way in ways)
        _FITTING[module] = next((n for n, ran in enumerate(tried) if ran), 0)
    return _FITTING[module]


def blind_to(module: nn.Module) -> str:
    """What a model reads beside words and is not given, and why; empty where there is nothing of the kind."""
    reads, given = inspect.signature(module.forward).parameters, real_inputs(module, 0)
    if "input_ids" not in given:
        return ""
    unseen = []
    for kind, names in BESIDE_WORDS.items():
        read = [name for name in names if name in reads]
        if not read or given.keys() & set(names):
            continue
        why = (
            _among_words(module, given, torch.Generator().manual_seed(0))
            if read[0] == "pixel_values"
            else f"reads them as {read[0]}, which surgeon makes up for no model of words"
        )
        if isinstance(why, str):
            unseen.append(f"{kind}: {type(module).__name__} {why}")
    return "; ".join(unseen)


def pictured(module: nn.Module) -> bool:
    """Whether pictures that can be left out stand among the words."""
    return real_inputs(module, 0).keys() != real_inputs(module, 0, pictures=False).keys()


def words(module: nn.Module, seed: int) -> dict[str, Tensor]:
    """Ids without padding or pictures, and their mask: to go on from."""
    return _tokens(module, torch.Generator().manual_seed(seed), padded=False)


def holds_several(inputs: Mapping[str, Any]) -> bool:
    """Whether a model is given more than one thing to look at, such as pictures and words."""
    return sum(name in MADE for name in inputs) > 1


def _tokens(module: Any, generator: torch.Generator, padded: bool) -> dict[str, Tensor]:
    """Ids and their mask; the last of the sequences is padded."""
    ordinary = _ordinary_ids(module.config)
    if not len(ordinary):
        raise fail(ModelError, "S220", f"{type(module.config).__name__} has an empty vocabulary")
    rows = BATCH * getattr(module, "num_codebooks", 1)  # each codebook's ids are rows of their own
    shape: tuple[int, ...] = (rows, SEQUENCE)
    sounds = getattr(module.config, "codebook_vocab_size", None)
    if sounds is not None:  # beside each word, one id of every codebook
        shape = (*shape, 1 + module.config.num_codebooks)
        ordinary = ordinary[ordinary < sounds]
    ids = ordinary[torch.randint(len(ordinary), shape, generator=generator)]
    mask = torch.ones(BATCH, SEQUENCE, dtype=torch.long)
    if padded:
        mask[-1, SEQUENCE - 3 :] = 0
    return {"input_ids": ids, "attention_mask": mask}


def _end(ids: Tensor, mask: Tensor, end: Any) -> None:
    """Let what an encoder reads end as its texts do: a head may look for that."""
    if isinstance(end, int) and ids.ndim == 2 and len(ids) == len(mask):
        ids[torch.arange(len(ids)), mask.sum(1) - 1] = end


def _decoder_ids(module: Any, inputs: Mapping[str, Any], generator: torch.Generator) -> Tensor:
    """The ids of the encoder in reverse; a decoder that reads several channels has ids for each."""
    decoder = getattr(module.config, "decoder_config", None)
    channels = getattr(decoder, "num_channels", None) if hasattr(decoder, "vocab_size") else None
    if channels is not None:
        ordinary = _ordinary_ids(decoder)
        return ordinary[torch.randint(len(ordinary), (BATCH, SEQUENCE, channels), generator=generator)]
    ids = inputs["input_ids"] if "input_ids" in inputs else _tokens(module, generator, False)["input_ids"]
    return Tensor.flip(ids, 1)


def _ids_of_part(config: Any, part: str, generator: torch.Generator) -> Tensor:
    """Ids for a part that reads words of its own; of its own vocabulary, where its config states one."""
    own = getattr(config, f"{part}_config", config)
    ordinary = _ordinary_ids(own if getattr(own, "vocab_size", None) else config)
    return ordinary[torch.randint(len(ordinary), (BATCH, SEQUENCE), generator=generator)]


def _boxes(config: Any, words: Tensor, whole: bool, generator: torch.Generator) -> Tensor:
    """Where each word stands on its page (batch × length × 4): left, top, right and bottom, in whole numbers
    or in fractions of the page."""
    if not whole:
        return torch.rand((*words.shape, 2, 2), generator=generator).sort(2).values.flatten(2)
    most = min(BOX, (stated(config, "max_2d_position_embeddings") or BOX + 1) - 1)
    corners = torch.randint(most + 1, (*words.shape, 2, 2), generator=generator)
    return corners.sort(2).values.flatten(2)


def _patches(config: Any, generator: torch.Generator) -> dict[str, Tensor]:
    """Pictures cut into patches, each laid in a row; how many stand beside and above each other, and which
    of the rows hold any: not all do, and the pictures are not alike."""
    count, size = stated(config, "num_patches"), stated(config, "patch_size")
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    channels = stated(config, "num_channels") or 3
    high = [1 + n for n in range(BATCH)]
    wide = [count // (h + 1) for h in high]
    held = torch.arange(count) < torch.tensor([h * w for h, w in zip(high, wide, strict=True)])[:, None]
    return {
        "pixel_values": torch.randn((BATCH, count, channels * height * width), generator=generator),
        "pixel_attention_mask": held.long(),
        "spatial_shapes": torch.tensor(list(zip(high, wide, strict=True))),
    }


def _flattened(config: Any, generator: torch.Generator) -> dict[str, Any]:
    """Pictures as patches, each a row of numbers behind its place: which row and column, from one on."""
    numbers = stated(config, "patch_embed_hidden_size")
    places = torch.cartesian_prod(torch.arange(1, HIGH + 1), torch.arange(1, WIDE + 1))
    pixels = torch.randn((BATCH, len(places), numbers), generator=generator)
    return {FLAT: torch.cat([places.expand(BATCH, -1, -1).to(pixels.dtype), pixels], 2)}


def _ordinary_ids(config: Any) -> Tensor:
    """The ids of the vocabulary that the config gives no special meaning, such as padding."""
    text = text_config(config)
    if not any(hasattr(part, "vocab_size") for part in (text, config)) and not stated(config, "vocab_size"):
        return torch.tensor(CHARACTERS)
    size = stated(text, "vocab_size") or stated(config, "vocab_size") or 0
    ordinary = torch.ones(size, dtype=torch.bool)
    for field, value in (item for part in configs_in(config) for item in part.to_dict().items()):
        if field.endswith(("_token_id", "_token_ids", "_token_index")):
            ids = value if isinstance(value, (list, tuple)) else [value]
            for number in ids:
                if isinstance(number, int) and 0 <= number < len(ordinary):
                    ordinary[number] = False
    return ordinary.nonzero().flatten() if ordinary.any() else torch.arange(len(ordinary))


SHAPES: Mapping[str, Callable[[Any], list[tuple[int, ...]]]] = {
    "pixel_values": picture_shapes,
    "pixel_values_videos": picture_shapes,
    "input_values": sound_shapes,
    "input_features": spectrogram_shapes,
}
"""By the name of an input that is made of random numbers: the shapes one example may have."""

BESIDE_WORDS = {"pictures": ("pixel_values", FLAT), "sounds": ("input_values", "input_features")}
"""What a model of words may read besides, and by which names."""

MADE = ("input_ids", *SHAPES, FLAT)
"""What a model may look at, as far as it can be made up."""

_FITTING: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()
"""Which way was found to fit: a pass of the whole class each time would be waited for."""
