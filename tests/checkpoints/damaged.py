"""The damage that is tried: to configs, weights, shards and recipes, with the code and the words that tell
of each."""

from __future__ import annotations

import json
import os
import shutil

import damage
import torch
from damage import EMBEDDING, NORM, Damage

from surgeon.checkpoints.reading import INDEX, SINGLE

Case = tuple[Damage, str, str]
UNSOUND = "model.safetensors is not a sound safetensors file: "
INDEX_UNSOUND = f"{INDEX} is not a readable index: "
ONE = '{"a": 1, "hidden_size": 16, '


def spoiled(old: str, new: str) -> Damage:
    """A stretch of config.json replaced."""
    return damage.config_text(lambda text: text.replace(old, new))


def broken_link(name: str) -> Damage:
    return damage.as_link(name, "nowhere")


CONFIGS: dict[str, Case] = {
    "missing": (damage.without("config.json"), "S202", "has no config.json"),
    "empty": (damage.text("config.json", ""), "S202", "config.json is not readable JSON: Expecting value"),
    "half": (damage.config_text(lambda t: t[:200]), "S202", "config.json is not readable JSON"),
    "binary": (damage.text("config.json", bytes(range(256))), "S202", "can't decode byte 0x80"),
    "utf-16": (damage.text("config.json", "{}".encode("utf-16")), "S202", "can't decode byte 0xff"),
    "byte order mark": (damage.text("config.json", b"\xef\xbb\xbf{}"), "S202", "Unexpected UTF-8 BOM"),
    "a list": (damage.text("config.json", "[1]"), "S202", "config.json holds no JSON object"),
    "null": (damage.text("config.json", "null"), "S202", "config.json holds no JSON object"),
    "too deep": (damage.text("config.json", '{"a":' * 100_000), "S202", "maximum recursion depth"),
    "a deep value": (damage.config(x=json.loads("[" * 900 + "]" * 900)), "S220", "maximum recursion"),
    "a name twice": (spoiled('"hidden_size"', ONE[9:] + '"hidden_size"'), "S202", "hidden_size stands twice"),
    "a number too long": (spoiled(": 16,", ": 1" + "0" * 5000 + ","), "S202", "Exceeds the limit"),
    "no number": (spoiled('"hidden_size": 16', '"hidden_size": NaN'), "S220", "expected int, got float"),
    "a folder": (damage.as_folder("config.json"), "S403", "config.json is no file"),
    "a broken link": (broken_link("config.json"), "S403", "config.json cannot be read: No such file"),
    "a link to itself": (damage.as_link("config.json", "config.json"), "S403", "Too many levels of symbolic"),
    "a pipe": (damage.as_pipe("config.json"), "S403", "config.json is no file"),
    "a device": (damage.as_link("config.json", "/dev/zero"), "S403", "config.json is no file"),
    "unreadable": (damage.unreadable("config.json"), "S202", "config.json cannot be read: Permission denied"),
    "no model type": (damage.config(model_type=None), "S204", "its config names no model_type"),
    "unknown model type": (damage.config(model_type="lama"), "S204", "knows no model type 'lama'"),
    "a list of types": (damage.config(model_type=["llama"]), "S204", "knows no model type ['llama']"),
    "architectures a text": (damage.config(architectures="Llama"), "S202", "`architectures` in its config"),
    "unknown class": (damage.config(architectures=["Nope"]), "S205", "no model class Nope"),
    "another's class": (
        damage.config(architectures=["BertModel"]),
        "S220",
        "LlamaConfig refuses this config",
    ),
    "own code": (damage.config(auto_map={"AutoConfig": "x.Y"}, model_type="own"), "S203", "code of its own"),
    "a text for a size": (damage.config(hidden_size="many"), "S220", "Field 'hidden_size' expected int"),
    "a fraction": (damage.config(hidden_size=16.5), "S220", "Field 'hidden_size' expected int, got float"),
    "no size at all": (spoiled('"hidden_size": 16', '"hidden_size": null'), "S220", "got NoneType"),
    "hidden size 0": (damage.config(hidden_size=0), "S310", "hidden (hidden_size) is 0"),
    "a negative size": (damage.config(hidden_size=-16), "S220", "negative dimension -16"),
    "a huge size": (
        damage.config(hidden_size=2**62),
        "S220",
        "overflowed with sizes=[31, 4611686018427",
    ),
    "no vocabulary": (damage.config(vocab_size=0), "S220", "LlamaConfig has an empty vocabulary"),
    "huge vocabulary": (damage.config(vocab_size=2**62), "S220", "overflowed"),
    "too many layers": (damage.config(num_hidden_layers=10**9), "S220", "asks for more than 99 tensors"),
    "no heads": (damage.config(num_attention_heads=0), "S220", "integer modulo by zero"),
    "heads that do not divide": (
        damage.config(num_attention_heads=3, head_dim=None),
        "S220",
        "not a multiple of the number of attention heads (3)",
    ),
    "no key/value heads": (damage.config(num_key_value_heads=0), "S220", "modulo by zero"),
    "key/value heads that do not divide": (
        damage.config(num_key_value_heads=3),
        "S210",
        "LlamaForCausalLM fails when it is called, traced or not: The size of tensor a",
    ),
    "head size 0": (damage.config(head_dim=0), "S220", "0.0 cannot be raised to a negative power"),
    "unknown activation": (damage.config(hidden_act="nope"), "S220", "KeyError: 'nope'"),
    "rope a text": (damage.config(rope_parameters="x"), "S220", "Field 'rope_parameters'"),
    "unknown dtype": (damage.config(dtype="float99"), "S220", "no attribute 'float99'"),
    "padding outside": (damage.config(pad_token_id=10**9), "S220", "Padding_idx must be within"),
    "labels no names": (damage.config(id2label=[1]), "S220", "its class refuses its config"),
}

WEIGHTS: dict[str, Case] = {
    "missing": (damage.without(SINGLE), "S401", "holds no model.safetensors"),
    **{f"{part:.2%} of it": (damage.cut(part), "S403", UNSOUND) for part in (0, 0.001, 0.01, 0.1)},
    **{
        f"{part:.2%} of it": (damage.cut(part), "S403", "does not fit the file")
        for part in (0.4, 0.8, 0.9999)
    },
    "header a byte longer": (damage.length(lambda true, size: true + 1), "S403", UNSOUND),
    "header a byte shorter": (damage.length(lambda true, size: true - 1), "S403", UNSOUND),
    "no header": (damage.length(lambda true, size: 0), "S403", UNSOUND + "Expecting value"),
    "header as long as the file": (damage.length(lambda true, size: size), "S403", "shorter than its header"),
    "header beyond all": (
        damage.length(lambda true, size: 2**64 - 1),
        "S403",
        "shorter than its header says",
    ),
    "header a list": (damage.header(lambda about: b"[]"), "S403", UNSOUND + "the header is no JSON object"),
    "header too deep": (damage.header(lambda about: b"[" * 100_000), "S403", "maximum recursion depth"),
    "header with a mark": (
        damage.header(lambda about: b"\xef\xbb\xbf" + json.dumps(about).encode()),
        "S403",
        "Unexpected UTF-8 BOM",
    ),
    "header in utf-16": (damage.header(lambda about: json.dumps(about).encode("utf-16")), "S403", UNSOUND),
    "metadata a text": (damage.header(lambda a: a.update(__metadata__="x")), "S403", "its __metadata__"),
    "metadata nested": (
        damage.header(lambda a: a.update(__metadata__={"x": {}})),
        "S403",
        "its __metadata__",
    ),
    "a name twice": (damage.header(damage.twice), "S403", f"{NORM} stands twice"),
    "not described": (damage.header(lambda a: a.update({NORM: [1]})), "S403", f"{NORM} is not described"),
    "overlapping": (damage.header(damage.overlapping), "S403", "does not fit the file"),
    "a gap": (damage.header(damage.shifted, lambda body: bytes(8) + body), "S403", "does not fit the file"),
    "shifted": (damage.header(damage.shifted), "S403", "does not fit the file"),
    "bytes behind": (damage.header(lambda a: None, lambda body: body + b"x"), "S403", "the file is longer"),
    "unknown dtype": (damage.entry(dtype="F99"), "S403", f"{NORM} has the dtype F99, which is not supported"),
    "dtype a list": (damage.entry(dtype=[1]), "S403", f"{NORM} has no dtype"),
    "shorter dtype": (damage.entry(dtype="F16"), "S403", f"{NORM} does not fit the file"),
    "negative shape": (damage.entry(shape=[-16]), "S403", f"{NORM} has a size that is no whole number"),
    "huge shape": (damage.entry(shape=[2**40, 2**40]), "S403", f"{NORM} does not fit the file"),
    "no shape": (damage.entry(shape=None), "S403", f"{NORM} has no shape and two offsets"),
    "three offsets": (damage.entry(data_offsets=[0, 1, 2]), "S403", f"{NORM} has no shape and two offsets"),
    "offsets texts": (damage.entry(data_offsets=["a", "b"]), "S403", f"{NORM} has a size that is no whole"),
    "offsets beyond": (damage.entry(data_offsets=[0, 10**15]), "S403", f"{NORM} does not fit the file"),
    "nan": (damage.value(EMBEDDING, float("nan")), "S404", f"{EMBEDDING} in {SINGLE} holds NaN or infinity"),
    "infinity": (damage.value(NORM, float("inf")), "S404", f"{NORM} in {SINGLE} holds NaN or infinity"),
    "a tensor missing": (damage.tensors(lambda s: s.pop(NORM)), "S405", "1 tensor is missing"),
    "no tensors": (damage.tensors(dict.clear), "S407", "holds no float32, bfloat16 or float16 weights"),
    "another name": (damage.tensors(lambda s: s.update(x=s.pop(NORM))), "S405", NORM),
    "twice under two names": (
        damage.tensors(lambda s: s.update({"norm.weight": s[NORM]})),
        "S408",
        f"holds {NORM} twice, as {NORM} and as norm.weight",
    ),
    "another shape": (
        damage.tensors(lambda s: s.update({NORM: torch.ones(17)})),
        "S406",
        f"{NORM} in {SINGLE} has the shape (17,) where the config asks for (16,)",
    ),
    "size zero": (damage.tensors(lambda s: s.update({NORM: torch.ones(0)})), "S406", "has the shape (0,)"),
    "whole numbers": (
        damage.entry(dtype="I32"),
        "S407",
        f"{NORM} in {SINGLE} holds int32 where",
    ),
    "only whole numbers": (
        damage.tensors(lambda s: s.update({n: t.int() for n, t in s.items()})),
        "S407",
        "holds no float32, bfloat16 or float16 weights",
    ),
    "only float64": (
        damage.tensors(lambda s: s.update({n: t.double() for n, t in s.items()})),
        "S407",
        "convert them first: from_pretrained(folder, dtype=torch.float32), then save_pretrained",
    ),
    "complex": (
        damage.tensors(lambda s: s.update({NORM: torch.ones(16, dtype=torch.complex64)})),
        "S407",
        "has the dtype C64, which is not supported",
    ),
    "another model's": (damage.config(hidden_size=32), "S406", "where the config asks for (31, 32)"),
    "a layer more": (damage.config(num_hidden_layers=2), "S405", "9 tensors are missing"),
    "quantised": (damage.config(quantization_config={"quant_method": "fp8"}), "S223", "are quantised (fp8)"),
    "a folder": (damage.as_folder(SINGLE), "S403", f"{SINGLE} is no file"),
    "a broken link": (broken_link(SINGLE), "S403", f"{SINGLE} cannot be read: No such file"),
    "a link to itself": (damage.as_link(SINGLE, SINGLE), "S403", "Too many levels of symbolic links"),
    "a pipe": (damage.as_pipe(SINGLE), "S403", f"{SINGLE} is no file"),
    "unreadable": (damage.unreadable(SINGLE), "S403", f"{SINGLE} cannot be read: Permission denied"),
    "a git-lfs pointer": (damage.text(SINGLE, "version https://git-lfs"), "S403", "is a git-lfs pointer"),
    "a web page": (damage.text(SINGLE, "<!DOCTYPE html>" * 99), "S403", "shorter than its header says"),
    "a pickle": (
        damage.all_of(damage.without(SINGLE), damage.text("pytorch_model.bin", "x")),
        "S401",
        "only as pickles (pytorch_model.bin)",
    ),
    "a side file unreadable": (
        damage.all_of(damage.text("tokenizer.json", "{}"), damage.unreadable("tokenizer.json")),
        "S413",
        "tokenizer.json cannot be read: Permission denied",
    ),
    "a generation config that is none": (
        damage.text("generation_config.json", "[]"),
        "S222",
        "stock transformers cannot load and run",
    ),
}

SHARDS: dict[str, Case] = {
    "no json": (damage.sharded(lambda f, i: "{"), "S402", INDEX_UNSOUND),
    "too deep": (damage.sharded(lambda f, i: "[" * 100_000), "S402", INDEX_UNSOUND + "maximum recursion"),
    "a list": (damage.sharded(lambda f, i: "[]"), "S402", INDEX_UNSOUND + "it has no weight_map"),
    "no map": (damage.sharded(lambda f, i: i.pop("weight_map") and "{}"), "S402", "it has no weight_map"),
    "an empty map": (damage.sharded(lambda f, i: i["weight_map"].clear()), "S402", "it has no weight_map"),
    "a map of pairs": (damage.sharded(lambda f, i: '{"weight_map": ["ab"]}'), "S402", "it has no weight_map"),
    "no metadata": (damage.sharded(lambda f, i: i.update(metadata=None)), "S402", "it has no metadata"),
    **{
        f"points to {name!r}": (damage.indexed(name), "S402", "points outside the folder")
        for name in ("../x.safetensors", "/etc/passwd", 3, None, "", "..", "a\0b")
    },
    "a name too long": (damage.indexed("a" * 5000), "S403", "cannot be read: File name too long"),
    "a name that cannot be": (damage.indexed("\ud800"), "S403", "surrogates not allowed"),
    "a missing shard": (damage.indexed("c.safetensors"), "S402", "the shard c.safetensors is missing"),
    "not in the shard": (
        damage.sharded(lambda f, i: i["weight_map"].update(x="a.safetensors")),
        "S402",
        "says that a.safetensors holds x, but it does not",
    ),
    "not in the index": (
        damage.sharded(lambda f, i: i["weight_map"].pop(NORM) and None),
        "S405",
        "1 tensor is missing",
    ),
    "a tensor twice": (
        damage.sharded(lambda f, i: json.dumps(i).replace("{", '{"metadata": {}, ', 1)),
        "S402",
        "metadata stands twice",
    ),
    "one shard for both": (
        damage.all_of(damage.sharded(), lambda f: shutil.copy(f / "a.safetensors", f / "b.safetensors")),
        "S402",
        "says that b.safetensors holds",
    ),
    "a truncated shard": (
        damage.all_of(damage.sharded(), lambda f: os.truncate(f / "a.safetensors", 999)),
        "S403",
        "a.safetensors is not a sound safetensors file",
    ),
    "a shard that is a folder": (
        damage.all_of(damage.sharded(), damage.as_folder("a.safetensors")),
        "S403",
        "a.safetensors is no file",
    ),
    "index a folder": (
        damage.all_of(damage.sharded(), damage.as_folder(INDEX)),
        "S403",
        f"{INDEX} is no file",
    ),
    "index unreadable": (
        damage.all_of(damage.sharded(), damage.unreadable(INDEX)),
        "S403",
        f"{INDEX} cannot be read: Permission denied",
    ),
}


def recipe(statement: str) -> bytes:
    return f"recipe r() {{\n    {statement}\n}}\n".encode()


RECIPES: dict[str, tuple[bytes, str, str]] = {
    "binary": (bytes(range(256)), "S106", "byte 128 is not UTF-8"),
    "utf-16": ("recipe r() {}".encode("utf-16"), "S106", "byte 0 is not UTF-8"),
    "empty": (b"", "S137", "declares no recipe"),
    "huge": (b"# x\n" * 100_000, "S105", "is larger than 256 KiB"),
    "deep": (b"recipe r() {" * 5000, "S101", "`recipe` does not belong here"),
    "deep brackets": (recipe("grow " + "(" * 50_000), "S101", "`(` does not belong here"),
    "uses itself": (b'use "r.surgery"\n', "S108", "r.surgery uses itself"),
    "uses nothing": (b'use "nope.surgery"\n', "S107", "there is no file nope.surgery"),
    "uses another's file": (b'use "/etc/passwd"\n', "S107", "`use` takes .surgery files"),
    "uses a name too long": (f'use "{"a" * 5000}.surgery"\n'.encode(), "S107", "there is no file"),
    "a huge number": (recipe("grow hidden by 1" + "0" * 9999), "S119", "this number has 10000 characters"),
    "a huge factor": (recipe("grow hidden by 1" + "0" * 15), "S220", "LlamaConfig refuses hidden_size"),
    "a huge pattern": (recipe('grow ffn by 2 at "{0..999999999}"'), "S136", "the pattern has no numbers"),
    "deep patterns": (recipe('grow ffn by 2 at "' + "{a,b}" * 40 + '"'), "S136", "more than 4096 patterns"),
    "loud noise": (recipe("grow ffn by 2\n    noise linear at -99999 dB"), "S119", "-99999 dB is"),
    "an axis of nothing": (recipe('grow axis("nope", 0) by 2'), "S311", "no parameter is named nope"),
    "no size": (recipe("grow config.eos_token_id by 2"), "S311", "has no size eos_token_id"),
}
