"""What MODEL may be, and what is said when it is something else."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import transformers
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import surgeon
from surgeon.errors import ModelError
from surgeon.models.source import ModuleSource, TransformersSource, from_factory_value, open_source

LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
    "vocab_size": 31,
}
OWN_CODE = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A current folder with a module of factories."""
    (tmp_path / "factories_here.py").write_text(
        """
import sys
from torch import nn, zeros
def pair(): return nn.Linear(2, 3), (zeros(1, 2),)
def triple(): return nn.Linear(2, 3), (), {"input": zeros(1, 2)}
def alone(): return nn.Linear(2, 3)
def bare_tensor(): return nn.Linear(2, 3), zeros(1, 2)
def odd_keywords(): return nn.Linear(2, 3), (), 7
def broken(): raise RuntimeError("no luck")
def leaving(): sys.exit(4)
number = 3
"""
    )
    (tmp_path / "imports_nothing_here.py").write_text("import nothing_like_this_exists")
    (tmp_path / "leaves_here.py").write_text("import sys; sys.exit(0)")
    monkeypatch.chdir(tmp_path)
    path = list(sys.path)
    yield
    sys.path[:] = path
    for name in ("factories_here", "imports_nothing_here", "leaves_here"):
        sys.modules.pop(name, None)


def put(folder: Path, **changes: object) -> str:
    folder.mkdir(exist_ok=True)
    content = {k: v for k, v in {**LLAMA, **changes}.items() if v is not None}
    (folder / "config.json").write_text(json.dumps(content))
    return str(folder)


def test_a_folder_and_a_config(tmp_path: Path) -> None:
    source = open_source(put(tmp_path / "m"))
    assert isinstance(source, TransformersSource)
    assert source.model_class is transformers.LlamaForCausalLM
    assert (source.model_type, source.config.hidden_size) == ("llama", 16)
    assert source.folder == tmp_path / "m"
    bare = open_source(str(tmp_path / "m" / "config.json"))
    assert isinstance(bare, TransformersSource)
    assert bare.folder is None
    assert bare.config.to_dict() == source.config.to_dict()


@pytest.mark.parametrize(
    ("model_type", "named"), [("llama", "LlamaForCausalLM"), ("bert", "BertLMHeadModel"), ("vit", "ViTModel")]
)
def test_without_architectures_the_class_that_generates_else_the_bare_one(
    model_type: str, named: str, tmp_path: Path
) -> None:
    source = open_source(put(tmp_path / "m", architectures=None, model_type=model_type))
    assert isinstance(source, TransformersSource)
    assert source.model_class is getattr(transformers, named)


def test_the_first_architecture_counts(tmp_path: Path) -> None:
    source = open_source(put(tmp_path / "m", architectures=["LlamaModel", "LlamaForCausalLM"]))
    assert isinstance(source, TransformersSource)
    assert source.model_class is transformers.LlamaModel


def test_a_folder_with_code_of_its_own_that_transformers_does_not_need(tmp_path: Path) -> None:
    source = open_source(put(tmp_path / "m", auto_map=OWN_CODE))
    assert isinstance(source, TransformersSource)
    assert source.model_class is transformers.LlamaForCausalLM


def test_remote_code_is_run_only_when_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "m"
    spec = put(folder, auto_map=OWN_CODE, model_type="own", architectures=["OwnModel"])
    (folder / "own.py").write_text(
        f"""
from pathlib import Path
Path({str(tmp_path / "ran")!r}).touch()
from transformers import LlamaConfig, LlamaForCausalLM
class OwnConfig(LlamaConfig):
    model_type = "own"
class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
"""
    )
    refused(spec, "S203", f"{folder} brings Python code of its own, which surgeon does not run unasked")
    refused(str(folder / "config.json"), "S203", "needs the code beside it", trust=True)
    assert not (tmp_path / "ran").exists()
    source = open_source(spec, trust_remote_code=True)
    assert (tmp_path / "ran").exists()
    assert isinstance(source, TransformersSource)
    assert source.model_class.__name__ == "OwnModel"
    assert type(source.config).__name__ == "OwnConfig"
    (folder / "own.py").write_text("raise RuntimeError('broken')")
    refused(spec, "S205", "its own code gave no model class", trust=True)


def test_a_model_of_its_own_code_grows_into_a_folder_that_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "cache"))
    sizes = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2)).eval()
    model.save_pretrained(tmp_path / "m")
    file = tmp_path / "m" / "config.json"
    own = {"auto_map": OWN_CODE, "model_type": "own", "architectures": ["OwnModel"]}
    file.write_text(json.dumps(json.loads(file.read_text()) | own))
    (tmp_path / "m" / "own.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'own'\n"
        "class OwnModel(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    source, out = tmp_path / "m", tmp_path / "grown"
    result = surgeon.apply("grow", source, out, device="cpu", trust_remote_code=True)
    assert result.report.preserved and not any("own.py" in note for note in result.notes)
    grown = AutoModelForCausalLM.from_pretrained(out, trust_remote_code=True).eval()
    ids = torch.arange(3, 12)[None]
    torch.testing.assert_close(grown(ids).logits, model(ids).logits, rtol=1e-5, atol=1e-6)
    assert surgeon.verify(source, out, device="cpu", trust_remote_code=True).preserved
    plan = surgeon.plan("grow", source, trust_remote_code=True)
    assert plan.config_changes["hidden_size"] == (16, 32)


def test_code_that_stays_behind_is_named_in_no_grown_config(tmp_path: Path) -> None:
    """The stock class is what grows and is proved; with the code named and not there nothing would load."""
    sizes = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2)).save_pretrained(tmp_path / "m")
    file = tmp_path / "m" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"auto_map": OWN_CODE}))
    (tmp_path / "m" / "own.py").write_text("raise RuntimeError('is not to run')")
    (tmp_path / "m" / "tokenizer_config.json").write_text(
        '{"auto_map": {"AutoTokenizer": ["own.Own", null]}}'
    )
    result = surgeon.apply("grow", tmp_path / "m", tmp_path / "grown", device="cpu")
    assert any(note.startswith("config.json: auto_map is left out") for note in result.notes)
    assert "code stays behind that is named in tokenizer_config.json" in result.notes
    grown = AutoModelForCausalLM.from_pretrained(tmp_path / "grown", trust_remote_code=True)
    assert type(grown) is LlamaForCausalLM


def refused(spec: str, code: str, *texts: str, trust: bool = False) -> None:
    with pytest.raises(ModelError) as caught:
        open_source(spec, trust)
    assert caught.value.code == code, str(caught.value)
    for text in texts:
        assert text in str(caught.value)
    assert "\n" not in caught.value.diagnostics[0].message


def test_a_folder_without_config(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    refused(str(tmp_path / "m"), "S202", "m has no config.json", "is it a transformers model folder?")


@pytest.mark.parametrize("alone", [True, False])
def test_an_adapter_is_to_be_merged_first(alone: bool, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    if not alone:
        (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    refused(str(tmp_path), "S225", "holds an adapter", "merge_and_unload")


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "is not readable JSON"),
        (b"{", "is not readable JSON"),
        (b"\xff\xfe\x00", "is not readable JSON"),
        (b"[" * 100_000, "is not readable JSON"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is not readable JSON"),
        (b"[1, 2]", "holds no JSON object"),
        (b'"llama"', "holds no JSON object"),
    ],
)
def test_a_config_that_is_no_config(content: bytes, text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(content)
    refused(str(tmp_path), "S202", f"{tmp_path / 'config.json'} {text}")


CONFIGS: list[tuple[dict[str, object], str, tuple[str, ...]]] = [
    ({"model_type": None}, "S204", ("its config names no model_type",)),
    ({"model_type": "lama"}, "S204", ("transformers knows no model type 'lama'", "did you mean `llama`?")),
    ({"model_type": "zzzzzz"}, "S204", ("does it need a newer transformers?",)),
    ({"model_type": ["llama"]}, "S204", ("transformers knows no model type ['llama']",)),
    ({"model_type": 7}, "S204", ("transformers knows no model type 7",)),
    (
        {"architectures": ["LlamaForCasualLM"]},
        "S205",
        ("transformers has no model class LlamaForCasualLM", "did you mean `LlamaForCausalLM`?"),
    ),
    ({"architectures": ["Zzzzzzzz"]}, "S205", ("does it need a newer transformers?",)),
    ({"architectures": ["AutoTokenizer"]}, "S205", ("transformers has no model class AutoTokenizer",)),
    ({"architectures": ["logging"]}, "S205", ("transformers has no model class logging",)),
    ({"architectures": "LlamaForCausalLM"}, "S202", ("`architectures` in its config is no list of names",)),
    ({"architectures": [3]}, "S202", ("`architectures` in its config is no list of names",)),
    (
        {"architectures": None, "model_type": "llama4_vision_model"},
        "S205",
        ("no class for the model type llama4_vision_model",),
    ),
    ({"hidden_size": "many"}, "S220", ("its class refuses its config", "hidden_size")),
    ({"num_attention_heads": 3}, "S220", ("its class refuses its config", "number of attention heads")),
]


@pytest.mark.parametrize(("changes", "code", "texts"), CONFIGS, ids=lambda v: str(v)[:40])
def test_a_config_that_fits_no_class(
    changes: dict[str, object], code: str, texts: tuple[str, ...], tmp_path: Path
) -> None:
    refused(put(tmp_path / "m", **changes), code, *texts)


def test_what_is_nothing() -> None:
    expected = "expected: a folder, a hub id such as owner/name, a config.json, or package.module:factory"
    for spec in ("nothing_here", "./a/b", "a/b/c", "/a/b"):
        refused(spec, "S201", f"there is no model {spec}", expected)


def test_a_file_that_is_no_config(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    refused("model.safetensors", "S201", "is a file, not a model folder", "name its folder")


def test_a_hub_id_without_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    text = "owner/name is no folder here, and the hub did not give it"
    refused("owner/name", "S206", text, "check the name and the network")


def test_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, object]] = []

    def download(model: str, **options: object) -> str:
        asked.append({"model": model, **options})
        return put(tmp_path / "m")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    source = open_source("owner/name")
    assert (source.name, getattr(source, "folder", None)) == ("owner/name", tmp_path / "m")
    patterns = asked[0]["allow_patterns"]
    assert isinstance(patterns, list)
    assert not {"*.bin", "*.pt", "*.py", "*"} & set(patterns)
    open_source("owner/name", trust_remote_code=True)
    assert asked[1]["allow_patterns"] == [*patterns, "*.py"]


def test_a_factory_in_the_current_folder() -> None:
    pair, triple = open_source("factories_here:pair"), open_source("factories_here:triple")
    assert isinstance(pair, ModuleSource) and isinstance(triple, ModuleSource)
    assert (len(pair.args), pair.kwargs) == (1, {})
    assert (triple.args, list(triple.kwargs)) == ((), ["input"])
    assert not pair.module.training


FACTORIES = [
    ("factories_here:", "S207", "is not of the form package.module:factory"),
    (":pair", "S207", "is not of the form package.module:factory"),
    ("a:b:c", "S207", "is not of the form package.module:factory"),
    ("https://example.org/m", "S207", "is not of the form package.module:factory"),
    ("no_module_here:pair", "S207", "no_module_here cannot be imported: ModuleNotFoundError"),
    ("imports_nothing_here:pair", "S207", "No module named 'nothing_like_this_exists'"),
    ("leaves_here:pair", "S207", "leaves_here cannot be imported: SystemExit: 0"),
    ("factories_here:pear", "S207", "factories_here has no function pear\n  help: did you mean `pair`?"),
    ("factories_here:number", "S207", "factories_here has no function number"),
    ("factories_here:broken", "S207", "factories_here:broken failed: RuntimeError: no luck"),
    ("factories_here:leaving", "S207", "factories_here:leaving failed: SystemExit: 4"),
    ("factories_here:alone", "S208", "factories_here:alone returned Linear"),
    ("factories_here:bare_tensor", "S208", "factories_here:bare_tensor returned (Linear, Tensor)"),
    ("factories_here:odd_keywords", "S208", "returned (Linear, tuple, int)"),
]


@pytest.mark.parametrize(("spec", "code", "text"), FACTORIES)
def test_a_factory_that_is_none(spec: str, code: str, text: str) -> None:
    refused(spec, code, text)


def test_a_module_in_memory() -> None:
    module = nn.Linear(2, 3)
    source = from_factory_value((module, [torch.zeros(1, 2)]), "mine")
    assert source.module is module
    assert isinstance(source.args, tuple)


def test_a_part_that_was_saved_by_itself_grows(tmp_path: Path) -> None:
    """Its model type stands in no table of transformers: the class that its config names knows it."""
    config = transformers.BarkSemanticConfig(
        input_vocab_size=50, output_vocab_size=50, hidden_size=16, num_layers=1, num_heads=2, block_size=32
    )
    torch.manual_seed(0)
    model = transformers.BarkSemanticModel(config)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(tmp_path / "part")
    source = open_source(str(tmp_path / "part"))
    assert isinstance(source, TransformersSource) and source.model_class is transformers.BarkSemanticModel
    (tmp_path / "wide.surgery").write_text("recipe wide() {\n    grow hidden, heads by 2\n}\n")
    surgeon.apply(tmp_path / "wide.surgery", tmp_path / "part", tmp_path / "wide", device="cpu")
    ids = torch.arange(12).reshape(2, 6)
    small, large = (
        transformers.BarkSemanticModel.from_pretrained(tmp_path / place).eval() for place in ("part", "wide")
    )
    with torch.no_grad():
        torch.testing.assert_close(large(ids).logits, small(ids).logits, rtol=0, atol=1e-5)
    assert large.config.hidden_size == 32
