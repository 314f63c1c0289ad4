"""transformers classes: configs changed, modules built on meta with their buffers real."""

from __future__ import annotations

import contextlib
import copy
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from surgeon.errors import ModelError, SurgeonError, fail
from surgeon.language.report import nearest
from surgeon.models.ties import untie
from surgeon.running.memory import give_back

SIZE_LIMIT = 1 << 30
HUGE = 1 << 26  # elements
PICKED = "batched_mm"  # experts as one tensor, from which those of each token are picked
MAX_PARAMETERS = 200_000  # tensors; a config that asks for more has a wrong number of layers


def field_value(config: Any, field: str) -> Any:
    """A field by name, with dots for what is within: `text_config.hidden_size`, and `widths.1` for an entry
    of a list. None when the config has none, only says what follows from others and takes no value, or has
    another in some layers and says none for all."""
    for part in field.split("."):
        said = getattr(type(config), part, None)
        if isinstance(said, property) and said.fset is None:
            return None
        if isinstance(config, (list, tuple)) and part.isdigit():
            config = config[int(part)] if int(part) < len(config) else None
        else:
            try:
                config = getattr(config, part, None)
            except RuntimeError:  # so transformers answers for a field that differs by layer
                return None
    return config


def numeric_fields(config: Any) -> dict[str, int]:
    """Every field that may be a size, nested ones with dots."""
    found: dict[str, int] = {}
    for name, value in config.to_dict().items():
        if name.endswith("_token_id"):
            continue
        if isinstance(value, int) and not isinstance(value, bool) and 1 < value < SIZE_LIMIT:
            found[name] = value
        elif isinstance(value, dict) and hasattr(getattr(config, name, None), "to_dict"):
            found.update({f"{name}.{k}": v for k, v in numeric_fields(getattr(config, name)).items()})
    return found


def own_name(config: Any, field: str) -> str:
    """The name that a file has a field under, of a class that knows it by two."""
    *parents, last = field.split(".")
    part = field_value(config, ".".join(parents)) if parents else config
    return ".".join([*parents, getattr(type(part), "attribute_map", {}).get(last, last)])


def build_config(config: Any, changes: Mapping[str, Any]) -> Any:
    """A config of the same class with some fields changed.

    Fields that follow from others, such as a head's size, stay as they are unless changed. Raises
    ModelError S220 for a field that the class lacks, and when the class refuses the values, with its
    own message.
    """
    state = copy.deepcopy(config.to_dict())
    for field, value in changes.items():
        *parents, last = field.split(".")
        place, part = state, config
        for parent in parents:
            place, part = place.get(parent), getattr(part, parent, None)
            if not isinstance(place, dict):
                raise _no_field(config, field)
        if last not in place and not hasattr(part, last):
            raise _no_field(config, field)
        place[last if last in place else own_name(config, field).rpartition(".")[2]] = value
    try:
        return type(config).from_dict(state)
    except Exception as error:
        raise refusal(config, changes, error) from error


def following_fields(config: Any, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of sizes, or of lists of them, that say what the class derives from others, and what it derives
    where those are changed: left out, they come out as they are, and with `changes` otherwise."""
    found = {}
    for field, value in (numeric_fields(config) | _lists(config)).items():
        if field in changes:
            continue
        try:
            before, after = (_derived(config, field, given) for given in ({}, changes))
        except ModelError:  # the class cannot do without it
            continue
        if before == value and type(after) is type(value) and after != value:
            found[field] = after
    return found


def _lists(config: Any) -> dict[str, list[Any]]:
    """Every field, but for those of configs within, that is a list of whole numbers, or of lists of them."""
    return {
        name: value
        for name, value in config.to_dict().items()
        if isinstance(value, list) and value and all(type(leaf) is int for leaf in tree_leaves(value))
    }


def _derived(config: Any, field: str, changes: Mapping[str, Any]) -> Any:
    """What the class makes of a field that is left out."""
    state = copy.deepcopy(build_config(config, changes).to_dict())
    *parents, last = field.split(".")
    place = state
    for parent in parents:
        place = place[parent]
    place.pop(last)
    try:
        return field_value(type(config).from_dict(state), field)
    except Exception as error:
        raise refusal(config, changes, error) from error


def _no_field(config: Any, field: str) -> ModelError:
    return fail(
        ModelError,
        "S220",
        f"{type(config).__name__} has no field {field}",
        help=nearest(field, (*numeric_fields(config), *type(config).attribute_map)),
    )


def refusal(
    config: Any, changes: Mapping[str, Any], error: BaseException, notes: tuple[str, ...] = ()
) -> ModelError:
    """The class's refusal of a config, when it is built or when it first runs, in one line."""
    if not changes:
        message = f"{type(config).__name__} refuses this config: {reason(error)}"
        return fail(ModelError, "S220", message, help="is config.json sound, and the class the right one?")
    asked = ", ".join(f"{k} = {v}" for k, v in changes.items())
    return fail(
        ModelError,
        "S220",
        f"{type(config).__name__} refuses {asked}: {reason(error)}",
        notes=notes,
        help="grow the dims in another ratio, or together with those they must divide",
    )


def reason(error: BaseException) -> str:
    """The last line of an error that says anything: there strict classes tell what is wrong. Of one of ours
    what it says first."""
    if isinstance(error, SurgeonError):
        return str(error.diagnostics[0].message)
    lines = [line.strip() for line in str(error).splitlines()]
    lines = [x for x in lines if any(c.isalnum() for c in x) and not x.startswith(("frame #", "<omitting"))]
    if not lines or isinstance(error, KeyError):  # which only names the key
        lines.append(": ".join([type(error).__name__, *lines[-1:]]))
    return lines[-1]


class _HugeOnMeta(TorchFunctionMode):
    """What is only allocated, and larger than any buffer, never takes memory: fused experts of one layer
    can be more than a machine has."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        if func is torch.empty:
            meta = torch.empty(*args, **{**given, "device": "meta"})
            if meta.numel() > HUGE:
                return meta
        return func(*args, **given)


@contextlib.contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Parameters become meta the moment they are registered; buffers are really computed.

    An ``nn.Linear`` allocates its weight before it registers it, but nothing touches those pages.
    """
    register = nn.Module.register_parameter
    count = 0

    def on_meta(self: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal count
        count += 1
        if count > MAX_PARAMETERS:
            raise ValueError(f"it asks for more than {MAX_PARAMETERS} tensors")
        if parameter is not None and parameter.device.type != "meta":
            parameter = nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)
        register(self, name, parameter)

    # The one seam through which every parameter passes, whatever builds it.
    with patch.object(nn.Module, "register_parameter", on_meta), _HugeOnMeta():
        yield


def build_meta(
    config: Any,
    model_class: Any,
    changes: Mapping[str, Any] | None = None,
    dtype: torch.dtype | None = None,
    experts: str = PICKED,
    apart: Collection[str] = (),
) -> tuple[nn.Module, dict[str, Tensor]]:
    """A module on meta in eval mode, and the real values of all its buffers, by name.

    `changes` are those by which the config differs from the source's; `dtype` is that of parameters and of
    buffers which follow it, by default float32; `experts` is transformers' name of how experts are computed;
    `apart` are names of parameters that the class ties and the checkpoint does not.
    Raises ModelError S220 when the class refuses the config.
    """
    config = copy.deepcopy(config)
    for part in (config, *(v for v in getattr(config, "__dict__", {}).values() if hasattr(v, "to_dict"))):
        for name in ("use_cache", "output_attentions", "output_hidden_states"):
            if hasattr(part, name):
                setattr(part, name, False)
    construct = partial(_construct, config, model_class, {} if dtype is None else {"dtype": dtype}, experts)
    try:
        with parameters_on_meta(), torch.no_grad():
            module = construct()
            _hold_as_parameters(module, construct)
    except Exception as error:
        raise refusal(config, changes or {}, error) from error
    module.eval()
    untie(module, apart)
    _hold_as_buffers(module)
    buffers = {name: b.detach().clone() for name, b in module.named_buffers() if b.device.type != "meta"}
    module.to("meta")
    give_back()  # what was made to be parameters
    return module, buffers


def _hold_as_parameters(module: nn.Module, construct: Callable[[], nn.Module]) -> None:
    """Buffers that a checkpoint holds and the class draws at random, as it does directions in which places
    are projected: another building of it has others, so they are weights in all but name."""
    held = module.state_dict()
    named = {n: b for n, b in module.named_buffers(remove_duplicate=False) if n in held}
    floats = {n: b for n, b in named.items() if b.is_floating_point() and not b.is_meta}
    uneven = {n: b for n, b in floats.items() if (b != b.flatten()[:1]).any()}
    others = dict(construct().named_buffers(remove_duplicate=False)) if uneven else {}
    made: dict[int, nn.Parameter] = {}
    for name, buffer in uneven.items():
        if not torch.equal(buffer, others[name]):
            path, _, last = name.rpartition(".")
            owner = module.get_submodule(path)
            delattr(owner, last)
            owner.register_parameter(last, nn.Parameter(buffer, requires_grad=False))
            # What is registered may be another, without data: two names of one tensor stay names of one.
            owner._parameters[last] = made.setdefault(id(buffer), owner.get_parameter(last))


def _hold_as_buffers(module: Any) -> None:
    """Frozen weights that the class keeps out of its checkpoints, and tensors that are plain attributes: it
    makes them of its config whenever it is built, so they are buffers in all but name."""
    for owner in module.modules():
        for name, value in list(vars(owner).items()):
            if isinstance(value, Tensor):
                delattr(owner, name)
                owner.register_buffer(name, value.detach(), persistent=False)
    unsaved = getattr(module, "_keys_to_ignore_on_save", None) or ()
    for name, parameter in list(module.named_parameters()):
        if parameter.requires_grad or not any(re.search(pattern, name) for pattern in unsaved):
            continue
        path, _, last = name.rpartition(".")
        owner = module.get_submodule(path).to_empty(device="cpu")
        with torch.no_grad():
            module._init_weights(owner)
        made = getattr(owner, last).detach()
        delattr(owner, last)
        owner.register_buffer(last, made, persistent=False)


def _construct(config: Any, model_class: Any, options: Mapping[str, Any], experts: str) -> nn.Module:
    """The model with attention as one op, and with experts PICKED by index unless told otherwise: their sizes
    are then in the graph, where grouped kernels hide them and a loop over experts depends on the tokens.
    Where not all of it can have attention so, each part has it as the class itself chooses: what a mask
    means to a part may depend on that."""
    for attention in ("sdpa", None, "eager"):
        with contextlib.suppress(ValueError, ImportError):
            return model_class._from_config(
                config, attn_implementation=attention, experts_implementation=experts, **options
            )
    return model_class._from_config(config, **options)
