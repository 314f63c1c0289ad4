"""What travels with the weights, what stays behind, and what the model card says."""

from __future__ import annotations

import errno
import json
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
import yaml

from surgeon.checkpoints import carry
from surgeon.checkpoints.carry import carry_files, left_behind, say_grown_sizes, write_card, write_surgery
from surgeon.checkpoints.reading import INDEX
from surgeon.errors import CheckpointError
from surgeon.language import builtin_families
from surgeon.language.syntax import FileField
from surgeon.planning.growth import file_fields

RECORD = {
    "recipe_text": "recipe r() {\n    grow ffn by 2  # ```\n}\n",
    "plan": {
        "recipe": "r",
        "parameters": {"source": 1000, "target": 2000},
        "dims": [{"label": "ffn", "size": 8, "target": 16, "dims": 2}],
    },
    "proof": {"preserved": True, "verdict": "Preserved.", "exact": {"outputs": 1e-15, "tolerance": 1e-12}},
}


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    source, folder = tmp_path / "source", tmp_path / "folder"
    source.mkdir()
    folder.mkdir()
    return source, folder


def test_side_files_are_carried_and_weights_and_code_are_not(tmp_path: Path) -> None:
    source, folder = tmp_path / "source", tmp_path / "folder"
    (source / "1_Pooling").mkdir(parents=True)
    folder.mkdir()
    names = ["tokenizer.json", "1_Pooling/config.json", "vocab.txt"]
    names += ["pytorch_model.bin", "UPPER.BIN", "states.pkl", "code.py", ".hidden"]
    for name in [*names, "model.safetensors", INDEX, "config.json", "README.md"]:
        (source / name).write_bytes(name.encode() + b"\r\n\x00\xff")
    carried = carry_files(source, folder)
    assert sorted(carried) == ["1_Pooling/config.json", "tokenizer.json", "vocab.txt"]
    for name in carried:
        assert (folder / name).read_bytes() == (source / name).read_bytes()
    files = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert files == set(carried)
    behind = left_behind(source, carried, {"model.safetensors"})
    assert behind == ["README.md", "UPPER.BIN", "code.py", "pytorch_model.bin", "states.pkl"]


def test_models_in_subfolders_and_what_is_large_stay_behind(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, folder = folders
    monkeypatch.setattr(carry, "MAX_SIDE_FILE", 10)
    monkeypatch.setattr(carry, "MAX_SIDE_FILES", 15)
    (source / "checkpoint-500").mkdir()
    (source / "checkpoint-500" / "model.safetensors").write_bytes(b"")
    (source / "checkpoint-500" / "tokenizer.json").write_bytes(b"{}")
    for name, size in (("a", 9), ("b", 11), ("c", 9), ("d", 6)):
        (source / name).write_bytes(b"x" * size)
    assert carry_files(source, folder) == ["a", "d"]
    assert left_behind(source, ["a", "d"], ()) == ["b", "c", "checkpoint-500/"]


def test_links_are_followed_as_in_a_hub_cache(folders: tuple[Path, Path]) -> None:
    source, folder = folders
    (source.parent / "blob").write_bytes(b"tokens")
    (source / "tokenizer.json").symlink_to(source.parent / "blob")
    (source / "dangling.json").symlink_to(source.parent / "nothing")
    assert carry_files(source, folder) == ["tokenizer.json"]
    assert not (folder / "tokenizer.json").is_symlink()
    assert (folder / "tokenizer.json").read_bytes() == b"tokens"


def test_a_file_that_may_not_be_read_is_told(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, folder = folders
    (source / "tokenizer.json").write_text("{}")

    def denied(self: Path) -> bytes:
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "read_bytes", denied)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json cannot be read: Permission denied") as caught:
        carry_files(source, folder)
    assert caught.value.code == "S413"


@pytest.mark.parametrize(
    ("source", "name"),
    [("owner/name", "owner/name"), ("/home/me/model", "model"), ("a: b", "a: b"), ("/home/on", "on")],
)
def test_the_card_has_sound_front_matter_and_the_whole_recipe(source: str, name: str, tmp_path: Path) -> None:
    write_card(tmp_path, source, RECORD)
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    _, front, body = text.split("---\n", 2)
    expected: dict[str, object] = {"tags": ["surgeon", "model-growth"], "library_name": "transformers"}
    if source == "owner/name":
        expected["base_model"] = source
    assert yaml.safe_load(front) == expected
    assert f"# {name}, grown" in body
    assert "/home" not in text
    assert "1,000 to\n2,000 parameters" in body
    assert "| ffn | 8 | 16 | 2 |" in body
    assert body.endswith(f"\n````\n{str(RECORD['recipe_text']).strip()}\n````\n")


def test_the_record_is_json(tmp_path: Path) -> None:
    write_surgery(tmp_path, {**RECORD, "path": tmp_path})
    assert json.loads((tmp_path / "surgery.json").read_text()) == {**RECORD, "path": str(tmp_path)}


POOLING = b'{\r\n  "word_embedding_dimension":  384,\r\n  "max": 384, "pooling_mode_mean_tokens": true}'
SAYS = FileField("*/config.json", "word_embedding_dimension", ("n_embd", "hidden_size"))


@pytest.mark.parametrize(
    ("name", "content", "changed", "note"),
    [
        (
            "1_Pooling/config.json",
            POOLING,
            POOLING.replace(b'dimension":  384', b'dimension":  768'),
            "1_Pooling/config.json: word_embedding_dimension 384 → 768, as config.hidden_size",
        ),
        (
            "a/config.json",
            b'{"word_embedding_dimension": 384, "x": {"word_embedding_dimension": 384}}',
            None,
            "a/config.json still says word_embedding_dimension 384; config.hidden_size is 768 now",
        ),
        ("a/config.json", b'{"word_embedding_dimension": 3840}', None, None),
        ("a/config.json", b'{"word_embedding_dimension": "384"}', None, None),
        ("a/config.json", b"[384]", None, None),
        ("a/config.json", b"\xff{", None, None),
        ("other.json", POOLING, None, None),
    ],
)
def test_a_side_file_says_the_grown_number_where_a_family_names_it(
    name: str, content: bytes, changed: bytes | None, note: str | None, tmp_path: Path
) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(content)
    changes = {"hidden_size": (384, 768), "intermediate_size": (3840, 7680)}
    said = say_grown_sizes(tmp_path, [name], [SAYS], changes)
    assert said == ([note] if note else [])
    assert (tmp_path / name).read_bytes() == (changed or content)


def test_the_library_names_the_pooling_size_of_sentence_encoders() -> None:
    said = file_fields("bert", builtin_families())
    assert any(fnmatchcase("1_Pooling/config.json", f.files) and "hidden_size" in f.fields for f in said)
