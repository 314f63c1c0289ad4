"""Pictures among words: what a model that reads both is given to look at, and how many ids stand for it.

Each picture is put in the place of ids that the config names. How many there are is no field of the
config: the class is asked for what it makes of a picture, without data, and that many ids are laid.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils._pytree import tree_map

from surgeon.graph.branches import Branches
from surgeon.graph.capture import silently
from surgeon.graph.kept import left_as_it_is
from surgeon.models.native import build_meta, reason

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
APART, STRIP = "spatial_shapes", "target_sizes"
COUNTED = frozenset({"image_grid_thw", "image_grid_hw", APART, STRIP})
"""What classes call the input that tells how many patches of each picture among words there are."""
LAYOUTS, STRIPS = 9, 3  # of patches in one table, or in one strip
OF_PART = "_" + PIXELS
"""What follows the name of a part that looks at pictures of its own."""
DEEP = "deepstack_features"
"""What classes call rows that are added in several layers: pairs of which layer, and the rows."""
LOOKS, TILES_LOOKED_AT = "image_attention_mask", "cross_attention_mask"
"""What classes call the input that tells which word looks at which picture, or at which tile of it, where no
ids stand for them."""
RATIOS, TILES = "aspect_ratio_ids", "aspect_ratio_mask"
"""What classes call the inputs that tell how a picture is cut into tiles, and which of them hold any."""


def pictures_among_words(
    module: Any, pixels: Tensor, inputs: Mapping[str, Tensor], generator: torch.Generator
) -> dict[str, Tensor] | str:
    """The ids (batch × length) of `inputs` and their mask with pictures among them, and the pictures, of
    which `pixels` are a plain batch; in words why not, where the class or its config does not tell where
    pictures go. What else the class asks of pictures is taken from `inputs`."""
    accepted = inspect.signature(module.forward).parameters
    reader = _reader(module)
    if PIXELS not in accepted:
        return f"takes no {PIXELS}"
    if reader is None and LOOKS in accepted:
        return {PIXELS: pixels[:, None], LOOKS: _looks(inputs["input_ids"])}
    owner: Any = getattr(reader, "__self__", module)
    tiles = getattr(getattr(module.config, "vision_config", None), "max_num_tiles", None)
    if reader is None and {RATIOS, TILES, TILES_LOOKED_AT} <= accepted.keys() and tiles:
        return _tiled(pixels, tiles, inputs["input_ids"])
    token = getattr(owner.config, READS[reader.__name__], None) if reader else None
    if token is None and PLACES in accepted:  # the places are told beside the ids, which may be any
        token = int(inputs["input_ids"][0, 0])
    if reader is None:
        return f"has no method that makes rows of pictures ({' or '.join(READS)})"
    if not isinstance(token, int):
        return f"names no id in its config in whose place pictures stand ({READS[reader.__name__]})"
    asked = inspect.signature(reader).parameters
    known = {name: value for name, value in inputs.items() if name in asked}
    if COUNTED & asked.keys():
        vision = getattr(owner.config, "vision_config", None)
        layouts = _grids(vision, len(pixels), asked.keys(), generator)
    else:
        layouts = _layouts(owner.config, pixels, asked, generator)
    empty, refused = _on_meta(module), ""
    for layout in layouts:
        given = {name: value for name, value in layout.items() if name in asked or name in accepted}
        missing = [name for name, i in asked.items() if needs(i) and name not in known | given]
        if missing:
            refused = refused or f"wants {' and '.join(missing)} of a picture, which surgeon cannot make up"
            continue
        count = _rows(empty, known | given, len(pixels))
        if isinstance(count, int) and count:
            laid = given | _laid(inputs, token, count, accepted)
            return laid if owner.config is module.config else _as_it_runs(module, inputs, laid, len(pixels))
        refused = refused or f"takes pictures in no way that surgeon lays them: {count or 'no rows'}"
    return refused


def needs(input_: inspect.Parameter) -> bool:
    """Whether a function cannot do without."""
    varied = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return input_.default is inspect._empty and input_.kind not in varied


def table_of(
    vision: Any, accepted: Collection[str], count: int, layout: int, generator: torch.Generator
) -> dict[str, Tensor]:
    """As many pictures in one of the LAYOUTS, or of the STRIPS, by the names that a class which reads nothing
    else accepts."""
    made = list(_grids(vision, count, accepted, generator))[layout]
    grids = dict.fromkeys(GRIDS, made["image_grid_thw"]) if "image_grid_thw" in made else {}
    named = {TABLE: made[PIXELS], **made, **grids}
    return {name: value for name, value in named.items() if name in accepted}


def runs_on(module: nn.Module, inputs: Mapping[str, Any]) -> bool:
    """Whether the class runs on inputs of these shapes, without data."""
    return failure(module, inputs) is None


def failure(module: nn.Module, inputs: Mapping[str, Any]) -> Exception | None:
    """The error with which the class, called without data, fails on inputs of these shapes; None where it
    runs. It is told that it is traced: what it keeps for the next call would have no data either."""
    empty = _on_meta(module)
    told = patch.object(torch.compiler, "is_compiling", return_value=True)
    try:
        with left_as_it_is(empty), _without_data(inputs) as given, told:
            empty(**given)
    except Exception as error:  # of whatever kind: a class has its own way to refuse
        return error
    return None


def _reader(module: nn.Module) -> Callable[..., Any] | None:
    """The method that makes rows of pictures, of the module or of a model within it."""
    named = (getattr(m, name, None) for name in READS for m in (module, *module.children()))
    return next((r for r in named if r and PIXELS in inspect.signature(r).parameters), None)


def _layouts(
    config: Any, pixels: Tensor, asked: Mapping[str, inspect.Parameter], generator: torch.Generator
) -> Iterator[dict[str, Tensor]]:
    """A batch of pictures as classes take them: one for each text; or several, cut of one, in an axis of
    their own, with a mask of those that are no padding where the class cannot do without; or one patch for
    each text, its channels last. A part that looks at pictures of its own gets them of the size that its
    config states."""
    beside = {}
    if "image_sizes" in asked:
        beside["image_sizes"] = torch.tensor([pixels.shape[-2:]] * len(pixels))
    for name in asked:
        if name.endswith(OF_PART):
            part = getattr(config, name.removesuffix(PIXELS) + "vision_config", None)
            side = getattr(part, "image_size", None) or pixels.shape[-1]
            shape = (*pixels.shape[:-2], side, side)
            beside[name] = torch.randn(shape, generator=generator)
    yield {PIXELS: pixels, **beside}
    several = [torch.stack([pixels.roll(n, -1) for n in range(count)], 1) for count in range(1, CUTS + 1)]
    for cut in several:
        yield {PIXELS: cut, **beside}
        if "pixel_attention_mask" in asked:
            yield {PIXELS: cut, **beside, "pixel_attention_mask": torch.ones(cut.shape[:2], dtype=torch.bool)}
    vision = getattr(config, "vision_config", None)
    size, depth = _side(vision, "patch_size"), _side(vision, "temporal_patch_size")
    alone = (len(pixels), depth, size, size, pixels.shape[-3])
    yield {PIXELS: torch.randn(alone, generator=generator)}


def _grids(
    vision: Any, pictures: int, asked: Collection[str], generator: torch.Generator
) -> Iterator[dict[str, Tensor]]:
    """Pictures cut into patches, with how many each picture is long, high and wide. As the name of that
    input tells, those of each picture stand apart, all of them held; or all in one strip, side by side; or
    all in one table, where a patch is a row of numbers, or itself a small picture. Squares of neighbours
    become one row, of as many as the config states or of twice or four times as many; or such a square is a
    small picture, its channels last, and what is counted."""
    stated = _side(vision, "spatial_merge_size", "merge_kernel_size", "merge_size")
    size, depth = _side(vision, "patch_size"), _side(vision, "temporal_patch_size", "patch_temporal")
    channels = _side(vision, "in_channels", "num_channels", default=3)
    for merged in (stated, 2 * stated, 4 * stated):
        high, wide = 2 * merged, merged
        patch = torch.randn((pictures * high * wide, channels, depth, size, size), generator=generator)
        each = torch.tensor([[high, wide]] * pictures)
        counts = {
            "image_grid_thw": torch.tensor([[1, high, wide]] * pictures),
            "image_grid_hw": each,
            **dict.fromkeys(("image_merge_sizes", "merge_sizes"), torch.full((pictures,), merged)),
        }
        if APART in asked:
            apart = patch.movedim(1, -1).reshape(pictures, high * wide, -1)
            held = torch.ones(apart.shape[:2], dtype=torch.long)
            yield {PIXELS: apart, "pixel_attention_mask": held, APART: each}
            continue
        if STRIP in asked:
            yield {PIXELS: patch[:, :, 0].permute(1, 2, 0, 3).flatten(2)[None], STRIP: each}
            continue
        yield {PIXELS: patch.flatten(1), **counts}
        yield {PIXELS: patch[:, :, 0], **counts}
        squares = torch.randn((pictures * 2, merged * size, merged * size, channels), generator=generator)
        yield {PIXELS: squares, "image_grid_thw": torch.tensor([[1, 2, 1]] * pictures)}


def _side(vision: Any, *fields: str, default: int = 1) -> int:
    """The first of the fields that the config states; of a pair the first number."""
    stated = next((getattr(vision, f) for f in fields if getattr(vision, f, None)), default)
    return int(stated[0] if isinstance(stated, (list, tuple)) else stated)


def _rows(module: Any, given: dict[str, Tensor], pictures: int) -> int | str:
    """How many rows the class makes of one picture; in words why it does not say, or not without data."""
    dtype = next(module.parameters()).dtype
    values = {name: v.to(dtype) if v.is_floating_point() else v for name, v in given.items()}
    try:
        made = _made(module, values)
    except Exception as error:  # it wants more than pictures, or others
        return reason(error)
    outputs = (getattr(made, name, None) for name in ("pooler_output", "last_hidden_state"))
    found = next((value for value in outputs if value is not None), made)
    deep = getattr(made, DEEP, None)
    if found is made and deep:
        found = deep[0][1]
    rows = sum(math.prod(tensor.shape[:-1]) for tensor in _tensors(found))
    return rows // pictures if rows % pictures == 0 else f"{rows} rows of {pictures} pictures"


def _made(module: Any, values: Mapping[str, Tensor]) -> Any:
    """What the class makes of pictures. What it makes of numbers it does on CPU, and looks at it; where it
    wants what it is given there as well, without data."""
    branches, reader = Branches(), _reader(module)
    traced = {name: value.to("meta") for name, value in values.items()}
    branches.know(traced, values)
    assert reader is not None
    try:
        with torch.no_grad(), left_as_it_is(module), branches:
            return reader(**traced)
    except Exception:
        copied = _reader(copy.deepcopy(module))  # of what it keeps for later nothing stays
        assert copied is not None
        with contextlib.suppress(Exception), _without_data(values) as given:
            return copied(**given)
        raise


@contextlib.contextmanager
def _without_data(values: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Inputs of a class on meta, by name, of these values: what it wants on CPU it gets there, and what it
    asks of them it is told."""
    fake, branches = FakeTensorMode(allow_non_fake_inputs=True), Branches()
    given = tree_map(lambda v: fake.from_tensor(v.to("meta")) if isinstance(v, Tensor) else v, dict(values))
    branches.know(given, values)
    with torch.no_grad(), silently(), fake, branches:
        yield given


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
    named = {
        name: kinds
        for name in ("token_type_ids", "mm_token_type_ids", "moe_mm_token_type_ids", PLACES)
        if name in accepted
    }
    return {"input_ids": laid, "attention_mask": seen, **named}


def _as_it_runs(
    module: nn.Module, inputs: Mapping[str, Tensor], laid: dict[str, Tensor], pictures: int
) -> dict[str, Tensor]:
    """Pictures for a class that gives them to a model within it, and may take the patches of each in a table
    of its own where that one takes all in one."""
    pixels = laid[PIXELS]
    if len(pixels) % pictures or runs_on(module, {**inputs, **laid}):
        return laid
    apart = {**laid, PIXELS: pixels.unflatten(0, (pictures, -1))}
    return apart if runs_on(module, {**inputs, **apart}) else laid


def _tiled(pixels: Tensor, tiles: int, words: Tensor) -> dict[str, Tensor]:
    """A picture for each text, cut into tiles in the first of the ways that the class knows."""
    cut = torch.stack([pixels.roll(n, -1) for n in range(tiles)], 1)[:, None]
    return {
        PIXELS: cut,
        RATIOS: torch.ones(cut.shape[:2], dtype=torch.long),
        TILES: torch.ones(cut.shape[:3], dtype=torch.long),
        TILES_LOOKED_AT: _looks(words)[..., None].expand(-1, -1, -1, tiles).contiguous(),
    }


def _looks(words: Tensor) -> Tensor:
    """Which words look at which of one picture: all but the first."""
    looks = torch.ones((*words.shape, 1), dtype=torch.long)
    looks[:, 0] = 0
    return looks
