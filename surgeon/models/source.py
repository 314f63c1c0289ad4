"""What MODEL on the command line means: a transformers folder or hub id, a config.json, or a factory."""

from __future__ import annotations

import contextlib
import importlib
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from os.path import isdir, isfile
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from surgeon.checkpoints.reading import is_file, no_duplicates
from surgeon.errors import ModelError, fail
from surgeon.language.report import nearest
from surgeon.models.native import reason

HF_MODULES = "transformers_modules"  # where transformers puts the code that a model brings


@dataclass(frozen=True)
class TransformersSource:
    """A transformers model: its config and class, and the folder with its weights, if any."""

    name: str
    config: Any = field(repr=False)
    model_class: Any = field(repr=False)
    folder: Path | None  # None: no weights, plan and dims only
    content: Mapping[str, Any] = field(default_factory=dict, repr=False)  # of config.json, as it was read
    inputs: Mapping[str, Tensor] | None = field(default=None, repr=False)  # the user's own, to run it on

    @property
    def model_type(self) -> str:
        return str(self.config.model_type)

    @property
    def brings_code(self) -> bool:
        """Whether its class is made of Python code in its own folder."""
        return self.model_class.__module__.partition(".")[0] == HF_MODULES


@dataclass(frozen=True)
class ModuleSource:
    """A plain module with the inputs to capture it on."""

    name: str
    module: nn.Module = field(repr=False)
    args: tuple[Any, ...] = field(repr=False)
    kwargs: dict[str, Any] = field(repr=False)


Source = TransformersSource | ModuleSource


def open_source(model: str, trust_remote_code: bool = False) -> Source:
    """Find a model by what the user wrote.

    Code in a model's own folder is run only with `trust_remote_code`, and only where the installed
    transformers has no class of its own for the model. Raises ModelError S201..S208, S220 when the
    class refuses the config, and S225 for an adapter.
    """
    path = Path(model)
    if isdir(model):
        return _folder(path, model, trust_remote_code)
    if isfile(model):
        if path.suffix == ".pt2":
            raise _saved_module(path)
        if path.suffix != ".json":
            raise fail(ModelError, "S201", f"{model} is a file, not a model folder", help="name its folder")
        return _from_config(_read_json(path), model, None, trust_remote_code)
    if ":" in model:
        return _factory(model)
    if model.count("/") == 1 and not model.startswith((".", "/")):
        return _folder(_download(model, trust_remote_code), model, trust_remote_code)
    raise fail(
        ModelError,
        "S201",
        f"there is no model {model}",
        expected="a folder, a hub id such as owner/name, a config.json, or package.module:factory",
        help=_near(model),
    )


def _saved_module(file: Path) -> ModelError:
    """Of what ``torch.export.save`` wrote: loading it may run code, which only the user may ask for."""
    return fail(
        ModelError,
        "S201",
        f"{file} is a plain module that was exported, which surgeon does not load by itself",
        expected="package.module:factory",
        help="write a function, such as: def grown(): "
        f"return torch.export.load({str(file)!r}).module(), (inputs,)",
    )


def _near(model: str) -> str | None:
    """What stands in the same folder under almost the same name."""
    path = Path(model)
    try:
        beside = sorted(p.name for p in path.parent.iterdir())
    except OSError:
        return None
    near = get_close_matches(path.name, beside, 1)
    return f"did you mean `{path.parent / near[0]}`?" if near else None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=no_duplicates)
    except OSError as error:
        raise fail(ModelError, "S202", f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise fail(ModelError, "S202", f"{path} is not readable JSON: {error}") from error
    if not isinstance(content, dict):
        raise fail(ModelError, "S202", f"{path} holds no JSON object")
    return content


def _special_float(value: dict[str, Any]) -> Any:
    """transformers writes a float that JSON lacks as ``{"__float__": "Infinity"}``."""
    return float(value["__float__"]) if value.keys() == {"__float__"} else value


def _folder(path: Path, name: str, trust_remote_code: bool) -> TransformersSource:
    config = path / "config.json"
    if is_file(path / "adapter_config.json"):
        raise fail(
            ModelError,
            "S225",
            f"{name} holds an adapter (adapter_config.json), which is more than the weights that would grow",
            help="merge it into its base model (peft: merge_and_unload, then save_pretrained), and grow that",
        )
    if not is_file(config) and is_file(path / "model.pt2"):
        raise _saved_module(path / "model.pt2")
    if not is_file(config):
        raise fail(
            ModelError, "S202", f"{name} has no config.json", help="is it a transformers model folder?"
        )
    return _from_config(_read_json(config), name, path, trust_remote_code)


def _from_config(
    content: dict[str, Any], name: str, folder: Path | None, trust_remote_code: bool
) -> TransformersSource:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    model_type = content.get("model_type")
    architecture = _architecture(content, name)
    stock = _stock_class(architecture)
    # A part of a model, saved by itself, has a type that only its class knows.
    own = getattr(stock, "config_class", None)
    listed = isinstance(model_type, str) and model_type in CONFIG_MAPPING
    known = listed or (model_type is not None and getattr(own, "model_type", None) == model_type)
    if content.get("auto_map") and not (known and stock is not None):
        if not trust_remote_code:
            raise fail(
                ModelError,
                "S203",
                f"{name} brings Python code of its own, which surgeon does not run unasked",
                help="read the code, then add --trust-remote-code",
            )
        return _remote(content, architecture, name, folder)
    if model_type is None:
        raise fail(ModelError, "S204", f"{name}: its config names no model_type")
    if not known:
        raise fail(
            ModelError,
            "S204",
            f"{name}: transformers knows no model type {model_type!r}",
            help=nearest(str(model_type), CONFIG_MAPPING) or "does it need a newer transformers?",
        )
    try:
        config_class: Any = CONFIG_MAPPING[model_type] if listed else own
        config = config_class.from_dict(json.loads(json.dumps(content), object_hook=_special_float))
    except Exception as error:
        raise fail(ModelError, "S220", f"{name}: its class refuses its config: {reason(error)}") from error
    return TransformersSource(name, config, _model_class(architecture, config, name), folder, content)


def refuse_quantised(source: TransformersSource) -> None:
    """Raises ModelError S223 where the config says so of the weights."""
    method = source.content.get("quantization_config")
    if method:
        name = method.get("quant_method", "some method") if isinstance(method, dict) else method
        raise fail(
            ModelError,
            "S223",
            f"{source.name}: its config says that the weights are quantised ({name})",
            help="grow the model it was made of, and quantise that",
        )


def _architecture(content: dict[str, Any], name: str) -> str | None:
    """The first of the classes that the config names."""
    named = content.get("architectures") or []
    if not isinstance(named, list) or not all(isinstance(a, str) for a in named):
        raise fail(ModelError, "S202", f"{name}: `architectures` in its config is no list of names")
    return named[0] if named else None


def _stock_class(architecture: str | None) -> Any:
    """A model class by name; None when transformers has no such model, or cannot import it here."""
    import transformers

    try:
        found = getattr(transformers, architecture or "", None)
    except Exception:  # a class whose own imports fail
        return None
    return found if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel) else None


def _remote(
    content: Mapping[str, Any], architecture: str | None, name: str, folder: Path | None
) -> TransformersSource:
    """A model of the code in its own folder, which the user has asked to run."""
    import transformers
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    if folder is None:
        raise fail(
            ModelError,
            "S203",
            f"{name} needs the code beside it",
            help="name the folder, not its config.json",
        )
    try:
        models = {k: v for k, v in content["auto_map"].items() if k.startswith("AutoModel")}
        by_name = {v.rpartition(".")[2]: v for v in models.values()}
        reference = (
            by_name.get(architecture) or models.get("AutoModelForCausalLM") or next(iter(models.values()))
        )
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=True)
        model_class = get_class_from_dynamic_module(reference, folder)
        return TransformersSource(name, config, model_class, folder, content)
    except Exception as error:
        raise fail(
            ModelError,
            "S205",
            f"{name}: its own code gave no model class: {type(error).__name__}: {reason(error)}",
        ) from error


def _model_class(architecture: str | None, config: Any, name: str) -> Any:
    """The class the config names, else the one that generates text, else the bare model."""
    import transformers

    if architecture is not None:
        found = _stock_class(architecture)
        if found is not None:
            return found
        raise fail(
            ModelError,
            "S205",
            f"{name}: transformers has no model class {architecture}",
            help=nearest(architecture, dir(transformers)) or "does it need a newer transformers?",
        )
    for auto in (transformers.AutoModelForCausalLM, transformers.AutoModel):
        if type(config) in auto._model_mapping:
            return auto._model_mapping[type(config)]
    raise fail(ModelError, "S205", f"{name}: no class for the model type {config.model_type}")


def _download(model: str, code: bool) -> Path:
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "*/config.json"]
    patterns += ["*.py"] if code else []
    try:
        return Path(snapshot_download(model, allow_patterns=patterns))
    except Exception as error:
        lines = [*str(error).strip().splitlines(), type(error).__name__]
        raise fail(
            ModelError,
            "S206",
            f"{model} is no folder here, and the hub did not give it: {lines[0]}",
            help=_near(model) or "check the name and the network, or download the model and name its folder",
        ) from error


def _factory(spec: str) -> ModuleSource:
    module_name, _, function = spec.partition(":")
    if not module_name or not function.isidentifier() or "/" in module_name:
        raise fail(ModelError, "S207", f"{spec!r} is not of the form package.module:factory")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        raise fail(
            ModelError, "S207", f"{module_name} cannot be imported: {type(error).__name__}: {reason(error)}"
        ) from error
    factory = getattr(module, function, None)
    if not callable(factory):
        raise fail(
            ModelError,
            "S207",
            f"{module_name} has no function {function}",
            help=nearest(function, dir(module)),
        )
    try:
        made = factory()
    except (Exception, SystemExit) as error:
        raise fail(ModelError, "S207", f"{spec} failed: {type(error).__name__}: {reason(error)}") from error
    return from_factory_value(made, spec)


def from_factory_value(made: Any, name: str) -> ModuleSource:
    """``(module, args)`` or ``(module, args, kwargs)``. Raises ModelError S208."""
    if not (
        isinstance(made, tuple)
        and len(made) in (2, 3)
        and isinstance(made[0], nn.Module)
        and isinstance(made[1], (tuple, list))
        and (len(made) == 2 or isinstance(made[2], Mapping))
    ):
        parts = ", ".join(type(part).__name__ for part in made) if isinstance(made, tuple) else None
        raise fail(
            ModelError,
            "S208",
            f"{name} returned {type(made).__name__ if parts is None else f'({parts})'}",
            expected="(module, args) or (module, args, kwargs)",
        )
    module, args, kwargs = made[0], tuple(made[1]), dict(made[2]) if len(made) == 3 else {}
    with contextlib.suppress(NotImplementedError):  # what torch.export loaded has one mode
        module.eval()
    return ModuleSource(name, module, args, kwargs)
