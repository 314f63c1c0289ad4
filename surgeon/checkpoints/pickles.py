"""The pickles of torch.distributed.checkpoint, read without what makes pickles dangerous: with stand-ins for
the few classes that torch puts there, which hold what is said and do nothing. Anything else is refused."""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from typing import Any

import torch


def read_table(data: bytes) -> Any:
    """The table in ``.metadata``. Raises ValueError for what is named and not known, and whatever a broken
    pickle makes its reader stumble over."""
    return _Reader(data, _TABLE).load()


def read_chunk(data: bytes) -> Any:
    """What ``torch.save`` says of a tensor: its storage, where it begins there, shape, strides and more.
    Raises as :func:`read_table`."""
    return _Reader(data, _CHUNK).load()


class Part:
    """Stands in for an object of torch: holds what the pickle says of it, and does nothing."""

    def __init__(self, *_: Any):
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def get(self, name: str) -> Any:
        """A field. Raises ValueError for an object that has none."""
        state = self.__dict__.get("state")
        if not isinstance(state, dict):
            raise ValueError(f"something in it has no {name}")
        return state.get(name)


class TablePart(Part):
    """All of ``.metadata``."""


class TensorPart(Part):
    """A tensor: its dtype, shape and chunks."""


class BytesPart(Part):
    """A value that is no tensor."""


class PlacePart(Part):
    """Which chunk of which tensor a place in a file is of."""


def _rebuilt(*about: Any) -> tuple[Any, ...]:
    return about


def _member(_: Any, name: str) -> str:
    """A member of an enumeration, which some releases of Python put down as an attribute's name:
    the name, and nothing is looked up."""
    return name


_TORCH = "torch.distributed.checkpoint.metadata"
_TABLE: dict[tuple[str, str], Any] = {
    (_TORCH, "Metadata"): TablePart,
    (_TORCH, "TensorStorageMetadata"): TensorPart,
    (_TORCH, "BytesStorageMetadata"): BytesPart,
    (_TORCH, "ChunkStorageMetadata"): Part,
    (_TORCH, "TensorProperties"): Part,
    (_TORCH, "MetadataIndex"): PlacePart,
    (_TORCH, "StorageMeta"): Part,
    (_TORCH, "_MEM_FORMAT_ENCODING"): int,
    ("builtins", "getattr"): _member,
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"): Part,
    ("torch", "Size"): tuple,
    ("torch.serialization", "_get_layout"): str,
    ("collections", "OrderedDict"): dict,
    **{
        (module, f"{kind}Path"): Part
        for module in ("pathlib", "pathlib._local")
        for kind in ("Posix", "Windows")
    },
}
_CHUNK: dict[tuple[str, str], Any] = {
    ("torch._utils", "_rebuild_tensor_v2"): _rebuilt,
    ("collections", "OrderedDict"): dict,
    **{
        ("torch", f"{name}Storage"): dtype
        for name, dtype in (
            *(("Double", torch.float64), ("Float", torch.float32), ("Half", torch.float16)),
            *(("BFloat16", torch.bfloat16), ("Long", torch.int64), ("Int", torch.int32)),
            *(("Short", torch.int16), ("Char", torch.int8), ("Byte", torch.uint8), ("Bool", torch.bool)),
        )
    },
}
DTYPES = frozenset(dtype for dtype in _CHUNK.values() if isinstance(dtype, torch.dtype))


class _Reader(pickle.Unpickler):
    """Makes nothing but what `known` names, and torch's dtypes."""

    def __init__(self, data: bytes, known: Mapping[tuple[str, str], Any]):
        super().__init__(io.BytesIO(data))
        self._known = known

    def find_class(self, module: str, name: str) -> Any:
        found = self._known.get((module, name))
        if found is None and module == "torch":
            found = vars(torch).get(name)
            found = found if isinstance(found, torch.dtype) else None
        if found is None:
            raise ValueError(f"it names {module}.{name}, which no such file needs")
        return found

    def persistent_load(self, pid: Any) -> Any:
        return pid
