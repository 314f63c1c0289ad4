"""What a module keeps of a call beside its tensors, such as biases that it looked up once."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import Tensor, nn
from torch.nn.modules.module import _global_buffer_registration_hooks

TORCHS = vars(nn.Module()).keys()  # of which torch itself keeps account


@contextlib.contextmanager
def left_as_it_is(module: nn.Module) -> Iterator[None]:
    """Lists and tables hold afterwards what they held, and so do plain attributes that are tensors, its own
    and those of objects that it has. A call without data, or with tensors that stand in for its own, would
    leave what is wrong for the next. A trace that fails also leaves a hook for the buffers of all modules
    (torch 2.11)."""
    hooks = dict(_global_buffer_registration_hooks)
    kept = [value for m in module.modules() for name, value in vars(m).items() if name not in TORCHS]
    objects = {id(value): value for value in kept if hasattr(value, "__dict__") and not callable(value)}
    before = [(vars(part), dict(vars(part))) for part in (*module.modules(), *objects.values())]
    values = [value for _, held in before for name, value in held.items() if name not in TORCHS]
    within = [(value, value.copy()) for value in values if type(value) in (dict, list)]
    try:
        yield
    finally:
        _global_buffer_registration_hooks.clear()
        _global_buffer_registration_hooks.update(hooks)
        for value, held in within:
            value.clear()
            (value.update if isinstance(value, dict) else value.extend)(held)
        for now, then in before:
            for name in [name for name, value in now.items() if isinstance(value, Tensor)]:
                del now[name]
            now.update({name: value for name, value in then.items() if isinstance(value, Tensor)})
