"""How a class stores its tensors: under other names than it holds them by, or in another layout.

A mixture of experts may hold one tensor for all experts and store one for each. The conversions are
transformers' own, run by its own code; here they are only told apart and gathered into bundles.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from surgeon.checkpoints.moves import Moved, record
from surgeon.checkpoints.tensors import Entry
from surgeon.errors import CheckpointError, ModelError, counted, fail


@dataclass(frozen=True)
class Bundle:
    """Tensors that are stored in another layout than they are held in, as far as they depend on one
    another: their names in the module, and on disk in the order in which they are converted. `moves` are the
    elements on disk that each one in the module consists of; None where it is made of them in another way."""

    held: tuple[str, ...]
    stored: tuple[str, ...]
    moves: Mapping[str, Moved] | None = field(default=None, repr=False)


# The tensors on meta, and the elements that each one consists of, or None where it is made in another way.
Written = tuple[dict[str, Tensor], Mapping[str, Moved] | None]


@dataclass(frozen=True)
class Layout:
    """How one module's tensors are stored. `names` leads from module names to disk names for those that
    are stored as they are held; the others are in `bundles`."""

    module: nn.Module = field(repr=False)
    names: Mapping[str, str]
    bundles: tuple[Bundle, ...]

    def of(self, module: nn.Module) -> Layout:
        """The same layout for a module of the same class and other sizes."""
        return Layout(module, self.names, self.bundles)

    def hold(self, bundle: Bundle, stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The module's tensors of a bundle, made of those on disk."""
        return _converted(self.module, {name: stored[name] for name in bundle.stored})

    def store(self, bundle: Bundle, held: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of a bundle as they stand on disk, made of the module's."""
        from transformers.core_model_loading import revert_weight_conversion

        module: Any = self.module
        module._weight_conversions = _used(module, bundle.stored)
        return dict(revert_weight_conversion(module, {name: held[name] for name in bundle.held}))

    def written(self, bundle: Bundle, held: Mapping[str, Tensor]) -> Written:
        """How tensors of a bundle, given on meta, stand on disk."""
        return record(lambda tensors: self.store(bundle, tensors), held)


def read_layout(module: nn.Module, entries: Mapping[str, Entry]) -> Layout:
    """The layout under which `module` finds its tensors on disk.

    Raises CheckpointError S408 when two are one parameter, S406 when those that are converted together do not
    make what the class holds, ModelError S221 when a conversion cannot be undone name for name and shape for
    shape.
    """
    on_disk = {n: torch.empty(e.shape, dtype=e.dtype, device="meta") for n, e in entries.items()}
    names: dict[str, str] = {}
    groups: dict[str, list[str]] = {}
    for disk, (name, pattern) in _renamed(module, on_disk).items():
        if pattern is None:
            if names.setdefault(name, disk) != disk and name in module.state_dict():
                raise fail(
                    CheckpointError,
                    "S408",
                    f"the checkpoint holds {name} twice, as {names[name]} and as {disk}",
                    help="which one counts cannot be known: remove the other",
                )
        else:
            groups.setdefault(name, []).append(disk)
    layout = Layout(module, names, ())
    bundles = []
    for stored in groups.values():
        given = {disk: on_disk[disk] for disk in stored}
        try:
            held, moves = record(lambda tensors: _converted(module, tensors), given)
        except (RuntimeError, ValueError, IndexError) as error:
            raise _unfit(module, entries, stored, str(error).strip()) from error
        _refuse_other_shapes(module, held, stored, entries)
        bundle = Bundle(tuple(held), tuple(stored), moves)
        back = layout.store(bundle, held)
        if {n: t.shape for n, t in back.items()} != {n: on_disk[n].shape for n in stored}:
            raise fail(
                ModelError,
                "S221",
                f"{stored[0]} is stored in a layout that {type(module).__name__} cannot be saved in again",
                help="load the model and save it with save_original_format=False",
            )
        bundles.append(bundle)
    return Layout(module, names, tuple(bundles))


def _refuse_other_shapes(
    module: nn.Module, held: Mapping[str, Tensor], stored: list[str], entries: Mapping[str, Entry]
) -> None:
    """Raises CheckpointError S406 where what a conversion makes is not of the shape that the class holds."""
    wanted = module.state_dict()
    for name, made in held.items():
        if name in wanted and made.shape != wanted[name].shape:
            shapes = tuple(made.shape), tuple(wanted[name].shape)
            raise _unfit(module, entries, stored, f"{name} would be {shapes[0]}, and is {shapes[1]}")


def _unfit(module: nn.Module, entries: Mapping[str, Entry], stored: list[str], why: str) -> CheckpointError:
    """Names, of the tensors that are converted together, the first of the shape that is rarest."""
    shapes = [entries[name].shape for name in stored]
    odd = min(stored, key=lambda name: shapes.count(entries[name].shape))
    beside = f", beside {counted(len(stored) - 1, 'tensor')} of its kind" if len(stored) > 1 else ""
    return fail(
        CheckpointError,
        "S406",
        f"{odd} in {entries[odd].file.name} has the shape {entries[odd].shape}{beside}, of which "
        f"{type(module).__name__} is not made: {why}",
        help="do config.json and the weights belong together?",
    )


def disk_names(module: nn.Module, on_disk: Iterable[str]) -> dict[str, str]:
    """Module name to disk name for every tensor that is stored as it is held."""
    return {name: disk for disk, (name, pattern) in _renamed(module, on_disk).items() if pattern is None}


def _mapping(module: Any) -> tuple[list[Any], list[Any]]:
    """The class's renamings and converters, new ones: they remember what they were used for."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming

    conversions = get_model_conversion_mapping(module)
    renamings = [c for c in conversions if isinstance(c, WeightRenaming)]
    return renamings, [c for c in conversions if isinstance(c, WeightConverter)]


def _renamed(module: Any, on_disk: Iterable[str]) -> dict[str, tuple[str, str | None]]:
    """For each disk name the module's name, and the pattern of the converter that takes it, if one does."""
    renamings, converters = _mapping(module)
    return _names(module, on_disk, renamings, converters)


def _names(
    module: Any, on_disk: Iterable[str], renamings: list[Any], converters: list[Any]
) -> dict[str, tuple[str, str | None]]:
    from transformers.core_model_loading import dot_natural_key, rename_source_key

    state = module.state_dict()
    prefix = getattr(module, "base_model_prefix", None)
    found = {}
    for disk in sorted(on_disk, key=dot_natural_key):
        name, pattern = rename_source_key(disk, renamings, converters, prefix, state)
        if name not in state and disk in state:
            name, pattern = rename_source_key(disk, [], [], prefix, state)
        found[disk] = name, pattern if name in state else None
    return found


def _used(module: Any, stored: Iterable[str]) -> list[Any]:
    """The conversions that are used in loading some tensors."""
    renamings, converters = _mapping(module)
    _names(module, stored, renamings, converters)
    return [c for c in (*renamings, *converters) if c.was_used()]


def _converted(module: Any, stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Stored tensors as the module holds them. All are of one bundle."""
    renamings, converters = _mapping(module)
    by_pattern = {pattern: c for c in converters for pattern in c.source_patterns}
    running: dict[str, Any] = {}
    for disk, (name, pattern) in _names(module, stored, renamings, converters).items():
        converter = running.setdefault(name, copy.deepcopy(by_pattern[pattern]))
        converter.add_tensor(name, disk, pattern, stored[disk])
    held: dict[str, Tensor] = {}
    for name, converter in running.items():
        made = converter.convert(name, model=module, config=module.config)
        held.update({n: t[0] if isinstance(t, list) else t for n, t in made.items()})
    return held
