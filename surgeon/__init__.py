"""surgeon grows trained neural networks: wider, and computing the same function.

>>> import surgeon
>>> surgeon.apply("hyperclone", "path/to/model", "path/to/grown")  # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from surgeon.version import VERSION

if TYPE_CHECKING:
    from surgeon.operations import Result, apply, dims, plan, verify

__version__ = VERSION
__all__ = ["Result", "apply", "dims", "plan", "verify"]


def __getattr__(name: str) -> Any:
    """The operations load torch; import them when first asked for."""
    if name in __all__:
        from surgeon import operations

        return getattr(operations, name)
    raise AttributeError(f"module 'surgeon' has no attribute {name!r}")
