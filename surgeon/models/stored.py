"""A checkpoint seen as its module holds it: tensors by module name, tied ones under any of their names."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from surgeon.checkpoints.moves import MovedTensor
from surgeon.checkpoints.reading import Checkpoint, resolve_names
from surgeon.checkpoints.tensors import Held, InFiles
from surgeon.errors import CheckpointError, fail
from surgeon.models.layout import Bundle, Layout, disk_names, read_layout
from surgeon.models.ties import are_alike


@dataclass
class StoredModel:
    """The weights of a module in a checkpoint. `names` leads from module names to disk names."""

    checkpoint: Checkpoint
    layout: Layout
    names: Mapping[str, str]
    persistent: frozenset[str] = frozenset()  # the module's buffers that belong into a checkpoint
    twins: Mapping[str, str] = field(default_factory=dict)  # further disk names of a tied tensor
    _held: dict[str, Tensor] = field(default_factory=dict, repr=False)  # of the bundle made whole last

    def read(self, name: str) -> Tensor:
        """One tensor as the module holds it. Raises CheckpointError S403, S404."""
        held = self.open(name)
        return held.whole() if isinstance(held, InFiles) else held

    def holds(self, name: str) -> bool:
        """Whether :meth:`read` knows a name; of a tied tensor it knows one."""
        return name in self.names or any(name in bundle.held for bundle in self.layout.bundles)

    def open(self, name: str) -> Held:
        """The same, left in its files where its elements are only moved from how they are stored."""
        if name in self.names:
            return self.checkpoint.open(self.names[name])
        bundle = self.bundle_of(name)
        if bundle.moves is not None:
            return MovedTensor(bundle.moves[name], self.checkpoint.open)
        if name not in self._held:
            self._held = {}  # before the next one is made
            self._held = self.layout.hold(bundle, {n: self.checkpoint.read(n) for n in bundle.stored})
        return self._held[name]

    def buffers(self) -> dict[str, Tensor]:
        """The buffers that the checkpoint holds: running statistics, say."""
        return {name: self.read(name) for name in self.names if name in self.persistent}

    def unused(self) -> list[str]:
        """The tensors on disk that the module has no place for."""
        used = {
            *self.names.values(),
            *self.twins,
            *(disk for bundle in self.layout.bundles for disk in bundle.stored),
        }
        return sorted(self.checkpoint.entries.keys() - used)

    def refuse_unlike_twins(self) -> None:
        """Raises CheckpointError S408 where a tied tensor is stored twice and differs."""
        for disk, name in self.twins.items():
            if not are_alike(self.checkpoint, self.names[name], disk):
                raise fail(
                    CheckpointError,
                    "S408",
                    f"{self.names[name]} and {disk} are one parameter of the class, and differ",
                    help="which one counts cannot be known: is `tie_word_embeddings` right in config.json?",
                )

    def bundle_of(self, name: str) -> Bundle:
        return next(b for b in self.layout.bundles if name in b.held)


def open_stored(module: nn.Module, aliases: Mapping[str, str], checkpoint: Checkpoint) -> StoredModel:
    """Find a module's tensors in a checkpoint.

    Args:
        module: on meta.
        aliases: every name of a tied parameter, to the one that is looked for.

    Raises CheckpointError S405 (missing), S406 (another shape), S407 (no floating-point numbers), S408
    (two of one), S422 (several sets of them), ModelError S221 (an unknown layout).
    """
    checkpoint = checkpoint.rooted(module.state_dict().keys())
    shapes = {n: tuple(p.shape) for n, p in module.named_parameters(remove_duplicate=False)}
    layout = read_layout(module, checkpoint.entries)
    bundled = {name for bundle in layout.bundles for name in bundle.held}
    wanted = {n: s for n, s in shapes.items() if aliases.get(n, n) == n and n not in bundled}
    names = resolve_names(wanted, aliases, checkpoint, _preferred(module, aliases, layout.names))
    parameters = dict(module.named_parameters(remove_duplicate=False))
    for name, disk in names.items():
        entry = checkpoint.entries[disk]
        if parameters[name].is_floating_point() and not entry.dtype.is_floating_point:
            raise fail(
                CheckpointError,
                "S407",
                f"{disk} in {entry.file.name} holds {str(entry.dtype).removeprefix('torch.')} where "
                "the class has floating-point numbers",
                help="quantised weights cannot be grown: use the model they were made of",
            )
    persistent = frozenset(module.state_dict().keys() - shapes.keys())
    names.update({b: layout.names[b] for b in persistent if b in layout.names})
    twins: dict[str, str] = {}
    if checkpoint.saved is not None:  # torch.distributed.checkpoint holds, and asks for, all names of a tie
        tied = ((layout.names[n], to) for n, to in aliases.items() if n in layout.names and to in names)
        twins = {disk: name for disk, name in tied if disk not in names.values()}
    return StoredModel(checkpoint, layout, names, persistent, twins)


def few_numbers(module: nn.Module, checkpoint: Checkpoint, most: int) -> dict[str, Tensor]:
    """The buffers that a checkpoint holds, those of at most so many numbers: they may tell a path. What it
    holds in another shape, or as no numbers, is left out: whoever needs it says so."""
    saved = module.state_dict().keys()
    checkpoint = checkpoint.rooted(saved)
    on_disk, found = disk_names(module, checkpoint.entries), {}
    for name, buffer in module.named_buffers():
        small = name in saved and name in on_disk and buffer.numel() <= most
        if small and checkpoint.entries[on_disk[name]].shape == tuple(buffer.shape):
            with contextlib.suppress(CheckpointError):
                found[name] = checkpoint.read(on_disk[name]).to(buffer.dtype)
    return found


def _preferred(module: nn.Module, aliases: Mapping[str, str], on_disk: Mapping[str, str]) -> dict[str, str]:
    """Module names to disk names, without those of a tie that the class would fill from another one that is
    stored as well: stock transformers writes that one alone, and finds all of them by it."""
    filled_from = getattr(module, "all_tied_weights_keys", None) or {}

    def is_spare(name: str) -> bool:
        source = filled_from.get(name, name)
        return source != name and source in on_disk and aliases.get(name, name) == aliases.get(source, source)

    return {name: disk for name, disk in on_disk.items() if not is_spare(name)}
