"""Inputs made up for a model of transformers by the names its forward takes: tokens, pictures, films, sounds.

What shapes a model takes is read from its config; no class is known by name.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from surgeon.errors import ModelError, fail
from surgeon.models.pictures import pictures_among_words

BATCH, SEQUENCE = 3, 7  # of the inputs that graphs are traced with and the proof runs on
IMAGE_SIZE = 64  # where the config names none: the class takes any
FRAMES = 48  # of a spectrogram whose length the class leaves open
SAMPLES = 3840  # of a sound, where the config tells no convolutions: whole frames of 5, 10, 20 and 80 ms


def real_inputs(module: nn.Module, seed: int, pictures: bool = True) -> dict[str, Any]:
    """Keyword inputs for one forward pass on CPU: random tokens with some padding, random pictures and
    sounds. A model that generates, or that gives words, can do with its main input and its words; with
    `pictures` they stand among the words, where the class tells how. Another model gets all it takes.

    Raises ModelError S211 when the model's main input is not known.
    """
    generator = torch.Generator().manual_seed(seed)
    config: Any = module.config
    accepted = inspect.signature(module.forward).parameters
    inputs: dict[str, Any] = {}
    for name in _looked_at(module, accepted):
        if name == "pixel_values" and "spatial_shapes" in accepted:
            inputs |= _patches(config, generator)
        elif name in SHAPES:
            shape = SHAPES[name](config)
            if name == "input_values" and "padding_mask" in accepted:  # such sounds come with their channels
                shape = (_stated(config, "audio_channels") or 1, *shape)
            inputs[name] = torch.randn((BATCH, *shape), generator=generator)
        else:
            inputs |= _tokens(module, generator, padded=True)
    for name, input_ in accepted.items():
        if name.endswith("_input_ids") and input_.default is inspect._empty and name not in inputs:
            inputs[name] = _ids_of_part(config, name.removesuffix("_input_ids"), generator)
    if pictures and "input_ids" in inputs:
        pixels = torch.randn((BATCH, *_picture(config)), generator=generator)
        inputs |= pictures_among_words(module, pixels, inputs, generator) or {}
    if "decoder_input_ids" in accepted:
        inputs["decoder_input_ids"] = _decoder_ids(module, inputs, generator)
    if "use_cache" in accepted:
        inputs["use_cache"] = False
    return {name: value for name, value in inputs.items() if name in accepted}


def _looked_at(module: Any, accepted: Mapping[str, inspect.Parameter]) -> tuple[str, ...]:
    """The names of what the model is given to look at, its main input first."""
    main = str(getattr(module, "main_input_name", "input_ids"))
    if main == "inputs":  # says nothing of what it is
        main = next((name for name in MADE if name in accepted), main)
    if main not in MADE:
        raise fail(
            ModelError,
            "S211",
            f"{type(module).__name__} reads {main}, which surgeon cannot make up",
            help="give inputs of your own: --inputs FILE, a safetensors file with tensors by name",
        )
    others = [name for name in MADE if name in accepted and name != main]
    speaks = getattr(module, "get_output_embeddings", lambda: None)() is not None
    if speaks or getattr(module, "can_generate", lambda: False)():
        # Of a decoder that looks at an encoder the words that it goes on from are its own.
        one = "decoder_input_ids" not in accepted or not module.config.is_encoder_decoder
        others = [n for n in others if n == "input_ids" and (one or accepted[n].default is inspect._empty)]
    return main, *others


def blind_to(module: nn.Module) -> str:
    """Why a model that reads pictures beside words is given words alone; empty for any other."""
    reads, given = inspect.signature(module.forward).parameters, real_inputs(module, 0)
    if "input_ids" not in given or "pixel_values" not in reads or "pixel_values" in given:
        return ""
    return f"{type(module).__name__} does not say where pictures stand among its words, or how they are laid"


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
    chosen = torch.randint(len(ordinary), shape, generator=generator)
    mask = torch.ones(BATCH, SEQUENCE, dtype=torch.long)
    if padded:
        mask[-1, SEQUENCE - 3 :] = 0
    return {"input_ids": ordinary[chosen], "attention_mask": mask}


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


def _patches(config: Any, generator: torch.Generator) -> dict[str, Tensor]:
    """Pictures cut into patches, each laid in a row; how many stand beside and above each other, and which
    of the rows hold any: not all do, and the pictures are not alike."""
    count, size = _stated(config, "num_patches"), _stated(config, "patch_size")
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    channels = _stated(config, "num_channels") or 3
    high = [1 + n for n in range(BATCH)]
    wide = [count // (h + 1) for h in high]
    held = torch.arange(count) < torch.tensor([h * w for h, w in zip(high, wide, strict=True)])[:, None]
    return {
        "pixel_values": torch.randn((BATCH, count, channels * height * width), generator=generator),
        "pixel_attention_mask": held.long(),
        "spatial_shapes": torch.tensor(list(zip(high, wide, strict=True))),
    }


def _ordinary_ids(config: Any) -> Tensor:
    """The ids of the vocabulary that the config gives no special meaning, such as padding."""
    text = config.get_text_config()
    size = _stated(text, "vocab_size") or _stated(config, "vocab_size") or 0
    ordinary = torch.ones(size, dtype=torch.bool)
    for field, value in (*config.to_dict().items(), *text.to_dict().items()):
        if field.endswith(("_token_id", "_token_ids", "_token_index")):
            ids = value if isinstance(value, (list, tuple)) else [value]
            for number in ids:
                if isinstance(number, int) and 0 <= number < len(ordinary):
                    ordinary[number] = False
    return ordinary.nonzero().flatten() if ordinary.any() else torch.arange(len(ordinary))


def _stated(config: Any, *fields: str) -> Any:
    """The first of the fields that the config, or else one of those within it, gives a value."""
    inner = [value for value in vars(config).values() if hasattr(value, "to_dict")]
    for place in (config, *inner):
        for field in fields:
            if getattr(place, field, None) is not None:
                return getattr(place, field)
    return None


def _picture(config: Any) -> tuple[int, ...]:
    """Channels, height and width; of a film the number of pictures first."""
    size = _stated(config, "image_size") or IMAGE_SIZE
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    ratios = getattr(config, "scaled_images_ratios", None)
    if ratios:  # patches are cut of the picture made smaller, too: at least one of the smallest
        height = width = max(height, int(config.patch_size / min(ratios)))
    channels = _stated(config, "num_channels", "in_channels", "in_chans") or 3
    frames = _stated(config, "num_frames", "frames_per_clip")
    if hasattr(config, "audio_samples_per_frame"):  # frames are those of a film with sound, not of pictures
        frames = None
    return (*([frames] if frames else []), channels, height, width)


def _sound(config: Any) -> tuple[int, ...]:
    """As many samples as make SEQUENCE steps of the convolutions that read them; for a model that reads
    spectrograms, its steps and frequencies."""
    kernels, strides = _stated(config, "conv_kernel"), _stated(config, "conv_stride")
    bins = _stated(config, "num_mel_bins")
    if kernels and strides:
        samples = SEQUENCE
        for kernel, stride in zip(reversed(kernels), reversed(strides), strict=True):
            samples = (samples - 1) * stride + kernel
        return (samples,)
    if bins is not None:
        return _stated(config, "max_length") or FRAMES, bins
    return (SAMPLES,)


def _spectrogram(config: Any) -> tuple[int, ...]:
    """Frequencies and steps where the config states how many positions there are, two steps each; else
    steps and frequencies."""
    bins, positions = _stated(config, "num_mel_bins"), _stated(config, "max_source_positions")
    if bins is not None and positions is not None:
        return bins, 2 * positions
    return FRAMES, bins or _stated(config, "input_feat_per_channel", "feature_projection_input_dim") or 80


SHAPES: Mapping[str, Callable[[Any], tuple[int, ...]]] = {
    "pixel_values": _picture,
    "pixel_values_videos": _picture,
    "input_values": _sound,
    "input_features": _spectrogram,
}
"""By the name of an input that is made of random numbers: the shape of one example."""

MADE = ("input_ids", *SHAPES)
"""What a model may look at, as far as it can be made up."""
