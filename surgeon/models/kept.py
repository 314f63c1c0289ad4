"""What a module keeps of a call beside its tensors, such as biases that it looked up once."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn


@contextlib.contextmanager
def left_as_it_is(module: nn.Module) -> Iterator[None]:
    """Attributes and the contents of lists and tables are afterwards what they were. A call without data, or
    with tensors that stand in for the module's own, would leave what is wrong for the next one."""
    before = [(part, dict(vars(part))) for part in module.modules()]
    values = [value for _, kept in before for value in kept.values()]
    within = [(value, value.copy()) for value in values if type(value) in (dict, list)]
    try:
        yield
    finally:
        for part, kept in before:
            vars(part).clear()
            vars(part).update(kept)
        for value, held in within:
            value.clear()
            (value.update if isinstance(value, dict) else value.extend)(held)
