"""Pictures among words: what a model that reads both is given to look at, and how many ids stand for it.

Each picture is put in the place of ids that the config names. How many there are is no field of the
config: the class is asked for what it makes of a picture, without data, and that many ids are laid.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

from surgeon.graph.branches import Branches
from surgeon.models.kept import left_as_it_is
from surgeon.models.native import build_meta

CUTS = 5  # of one picture, at most
READS = {"get_image_features": "image_token_id", "get_video_features": "video_token_id"}
"""What classes call the method that makes rows of pictures, and the config the ids in whose place they are
put; a class that wraps another has the method within."""
PIXELS = "pixel_values"
PLACES = "image_embeds_position_mask"
"""What classes call the input that tells at which ids pictures stand."""
GRIDS = frozenset({"grid_thw", "image_grid_thw"})
"""What classes call the input that tells how many patches each picture is long, high and wide."""
TABLE = "hidden_states"
"""What a class that reads patches beside a grid may call them, if not pixel_values."""
LAYOUTS = 3  # of patches in one table
LOOKS = "image_attention_mask"
"""What classes call the input that tells which word looks at which picture, where no ids stand for them."""


def pictures_among_words(
    module: Any, pixels: Tensor, inputs: Mapping[str, Tensor], generator: torch.Generator
) -> dict[str, Tensor] | None:
    """The ids (batch × length) of `inputs` and their mask with pictures among them, and the pictures, of
    which `pixels` are a plain batch; None where the class or its config does not tell where pictures go. What
    else the class asks of pictures is taken from `inputs`."""
    accepted = inspect.signature(module.forward).parameters
    reader = _reader(module)
    if PIXELS not in accepted:
        return None
    if reader is None and LOOKS in accepted:
        return {PIXELS: pixels[:, None], LOOKS: _looks(inputs["input_ids"])}
    token = getattr(module.config, READS[reader.__name__], None) if reader else None
    if token is None and PLACES in accepted:  # the places are told beside the ids, which may be any
        token = int(inputs["input_ids"][0, 0])
    if not isinstance(token, int) or reader is None:
        return None
    asked = inspect.signature(reader).parameters
    known = {name: value for name, value in inputs.items() if name in asked}
    if "image_grid_thw" in asked:
        layouts = _grids(getattr(module.config, "vision_config", None), len(pixels), generator)
    else:
        layouts = _layouts(pixels, asked)
    empty = _on_meta(module)
    for layout in layouts:
        given = {name: value for name, value in layout.items() if name in asked or name in accepted}
        count = _rows(empty, known | given, len(pixels))
        if count:
            return given | _laid(inputs, token, count, accepted)
    return None


def table_of(
    vision: Any, accepted: Collection[str], count: int, layout: int, generator: torch.Generator
) -> dict[str, Tensor]:
    """As many pictures in one of the LAYOUTS, by the names that a class which reads nothing else accepts."""
    made = list(_grids(vision, count, generator))[layout]
    named = {TABLE: made[PIXELS], **made, **dict.fromkeys(GRIDS, made["image_grid_thw"])}
    return {name: value for name, value in named.items() if name in accepted}


def runs_on(module: nn.Module, inputs: Mapping[str, Any]) -> bool:
    """Whether the class runs on inputs of these shapes, without data. It is told that it is traced: what it
    keeps for the next call would have none either."""
    empty, fake, asked = _on_meta(module), FakeTensorMode(allow_non_fake_inputs=True), Branches()
    given = {k: fake.from_tensor(v.to("meta")) if isinstance(v, Tensor) else v for k, v in inputs.items()}
    asked.know(given, inputs)
    try:
        # fake: what a class wants on CPU it gets there
        told = patch.object(torch.compiler, "is_compiling", return_value=True)
        with torch.no_grad(), left_as_it_is(empty), fake, asked, told:
            empty(**given)
    except Exception:  # of whatever kind: a class has its own way to refuse
        return False
    return True


def _reader(module: nn.Module) -> Callable[..., Any] | None:
    """The method that makes rows of pictures, of the module or of a model within it."""
    named = (getattr(m, name, None) for name in READS for m in (module, *module.children()))
    return next((r for r in named if r and PIXELS in inspect.signature(r).parameters), None)


def _layouts(pixels: Tensor, asked: Mapping[str, inspect.Parameter]) -> Iterator[dict[str, Tensor]]:
    """A batch of pictures as classes take them: one for each text; or several, cut of one, in an axis of
    their own, with a mask of those that are no padding where the class cannot do without."""
    sizes = {}
    if "image_sizes" in asked:
        sizes["image_sizes"] = torch.tensor([pixels.shape[-2:]] * len(pixels))
    yield {PIXELS: pixels, **sizes}
    for several in range(1, CUTS + 1):
        cut = torch.stack([pixels.roll(n, -1) for n in range(several)], 1)
        yield {PIXELS: cut, **sizes}
        if "pixel_attention_mask" in asked:
            yield {PIXELS: cut, **sizes, "pixel_attention_mask": torch.ones(cut.shape[:2], dtype=torch.bool)}


def _grids(vision: Any, pictures: int, generator: torch.Generator) -> Iterator[dict[str, Tensor]]:
    """Pictures cut into patches, all patches in one table, with how many each picture is long, high and wide;
    squares of neighbours become one row. A patch is a row of numbers, or itself a small picture; or such a
    square is a small picture, its channels last, and what is counted."""
    merged = _side(vision, "spatial_merge_size", "merge_kernel_size", "merge_size")
    size, depth = _side(vision, "patch_size"), _side(vision, "temporal_patch_size", "patch_temporal")
    high, wide = 2 * merged, merged
    channels = _side(vision, "in_channels", "num_channels", default=3)
    patch = torch.randn((pictures * high * wide, channels, depth, size, size), generator=generator)
    counts = {
        "image_grid_thw": torch.tensor([[1, high, wide]] * pictures),
        "image_merge_sizes": torch.full((pictures,), merged),
    }
    yield {PIXELS: patch.flatten(1), **counts}
    yield {PIXELS: patch[:, :, 0], **counts}
    squares = torch.randn((pictures * 2, merged * size, merged * size, channels), generator=generator)
    yield {PIXELS: squares, "image_grid_thw": torch.tensor([[1, 2, 1]] * pictures)}


def _side(vision: Any, *fields: str, default: int = 1) -> int:
    """The first of the fields that the config states; of a pair the first number."""
    stated = next((getattr(vision, f) for f in fields if getattr(vision, f, None)), default)
    return int(stated[0] if isinstance(stated, (list, tuple)) else stated)


def _rows(module: Any, given: dict[str, Tensor], pictures: int) -> int | None:
    """How many rows the class makes of one picture; None where it does not say, or not without data."""
    weight = next(module.parameters())
    dtype = weight.dtype
    values = {name: v.to(dtype) if v.is_floating_point() else v for name, v in given.items()}
    traced = {name: value.to(weight.device) for name, value in values.items()}
    asked, reader = Branches(), _reader(module)
    asked.know(traced, values)
    assert reader is not None
    try:
        with torch.no_grad(), left_as_it_is(module), asked:
            made = reader(**traced)
    except Exception:  # it wants more than pictures
        return None
    outputs = (getattr(made, name, None) for name in ("pooler_output", "last_hidden_state"))
    found = next((value for value in outputs if value is not None), made)
    rows = sum(math.prod(tensor.shape[:-1]) for tensor in _tensors(found))
    return rows // pictures if rows % pictures == 0 else None


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)


def _on_meta(module: nn.Module) -> nn.Module:
    """The class without data: whatever the weights are, and wherever, the answer is the same."""
    if all(p.is_meta for p in module.parameters()):
        return module
    made: nn.Module = build_meta(module.config, type(module))[0]
    return made


def _laid(ids: Mapping[str, Tensor], token: int, count: int, accepted: Any) -> dict[str, Tensor]:
    """A picture after the first id of each row."""
    words, mask = ids["input_ids"], ids["attention_mask"]
    place = torch.full((len(words), count), token)
    laid = torch.cat([words[:, :1], place, words[:, 1:]], 1)
    seen = torch.cat([mask[:, :1], torch.ones_like(place), mask[:, 1:]], 1)
    kinds = torch.zeros_like(laid)
    kinds[:, 1 : 1 + count] = 1
    named = {name: kinds for name in ("token_type_ids", "mm_token_type_ids", PLACES) if name in accepted}
    return {"input_ids": laid, "attention_mask": seen, **named}


def _looks(words: Tensor) -> Tensor:
    """Which words look at which of one picture: all but the first."""
    looks = torch.ones((*words.shape, 1), dtype=torch.long)
    looks[:, 0] = 0
    return looks
