"""Folders of torch.distributed.checkpoint: grown into what its own ``load`` fills a stock class with."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import damage
import pytest
import torch
import torch.distributed.checkpoint as dcp
from families import tiny
from torch import Tensor
from torch.distributed.checkpoint.metadata import _MEM_FORMAT_ENCODING, ChunkStorageMetadata
from transformers import AutoConfig, LlamaForCausalLM

import surgeon
from surgeon import cli
from surgeon.checkpoints import distributed_writing
from surgeon.checkpoints.distributed import METADATA, Saved, prefix_of
from surgeon.checkpoints.distributed_writing import distributed_files, write_distributed, write_metadata
from surgeon.checkpoints.journal import Journal
from surgeon.checkpoints.pickles import read_table
from surgeon.checkpoints.reading import open_checkpoint
from surgeon.checkpoints.writing import Spec, shards_of
from surgeon.errors import CheckpointError

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.distributed is disabled:UserWarning")

FILE = "__0_0.distcp"
IDS = torch.tensor([[5, 11, 4, 7, 6], [9, 12, 6, 5, 8]])
TENSORS = {
    "a": torch.arange(12.0).reshape(3, 4),
    "b": torch.ones(5, dtype=torch.bfloat16),
    "c": torch.tensor(7),
    "d": torch.zeros(0, 3),
    "e": torch.arange(24).reshape(2, 3, 4),
}


def saved(plain: Path, folder: Path, wrap: Callable[[dict[str, Tensor]], dict[str, Any]]) -> Path:
    """The folder of a model that torch.distributed.checkpoint saved."""
    dcp.save(wrap(LlamaForCausalLM.from_pretrained(plain).state_dict()), checkpoint_id=folder)
    shutil.copy(plain / "config.json", folder)
    return folder


def bare(state: Any) -> Any:
    return state


def training(state: Any) -> Any:
    """As a training loop has it, with more than weights."""
    return {
        "app": {"model": state},
        "optimizer": {name: {"exp_avg": torch.ones_like(value)} for name, value in state.items()},
        "step": 7,
    }


def loaded(folder: Path, wrap: Callable[[dict[str, Tensor]], Any] = bare) -> LlamaForCausalLM:
    """What torch.distributed.checkpoint itself makes of a folder."""
    model = LlamaForCausalLM(AutoConfig.from_pretrained(folder))
    dcp.load(wrap(model.state_dict()), checkpoint_id=folder)
    return model.eval()


def differ(one: Any, other: Any) -> float:
    with torch.no_grad():
        a, b = one.double()(IDS).logits, other.double()(IDS).logits
    return float((a - b).abs().max() / a.abs().max())


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tiny.llama(2), tmp_path_factory.mktemp("models") / "plain")


@pytest.fixture(scope="module")
def source(plain: Path) -> Path:
    return saved(plain, plain.parent / "source", bare)


# ── grown ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("wrap", [bare, training])
@pytest.mark.parametrize("tied", [True, False])
def test_a_grown_folder_loads_as_the_source_does(
    wrap: Callable[[Any], Any], tied: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed_writing, "CHUNK_BYTES", 4000)
    plain = tiny.save(tiny.llama(2, tie_word_embeddings=tied), tmp_path / "plain")
    source, out = saved(plain, tmp_path / "source", wrap), tmp_path / "out"
    result = surgeon.apply("grow", source, out, device="cpu", shard_size="60KB")
    assert result.report.preserved and result.report.native is not None
    assert "not from_pretrained" in result.report.native.loaded_by
    names = {p.name for p in out.iterdir()}
    assert {METADATA, "config.json", FILE, "__1_0.distcp", "surgery.json", "README.md"} <= names
    assert all(n.endswith(".distcp") for n in names - {METADATA, "config.json", "surgery.json", "README.md"})
    place = (lambda state: {"app": {"model": state}}) if wrap is training else bare
    grown = loaded(out, place)
    assert grown.config.hidden_size == 2 * AutoConfig.from_pretrained(source).hidden_size
    assert differ(LlamaForCausalLM.from_pretrained(plain), grown) < 1e-5  # written in float32
    state = LlamaForCausalLM.from_pretrained(plain).state_dict()
    table = pickle.loads((out / METADATA).read_bytes())
    prefix = "app.model." if wrap is training else ""
    assert table.state_dict_metadata.keys() == {prefix + name for name in state}
    assert max(len(about.chunks) for about in table.state_dict_metadata.values()) > 3
    original = pickle.loads((source / METADATA).read_bytes())
    assert table.planner_data == {name: original.planner_data[name] for name in table.planner_data}
    said = [note for note in result.notes if "no weights of the model" in note]
    assert bool(said) == (wrap is training)
    if said:
        assert f"{len(state) + 1} values (optimizer." in said[0]
    assert surgeon.verify(source, out, device="cpu").preserved


@pytest.fixture(scope="module")
def two_ranks(plain: Path) -> Path:
    folder = plain.parent / "two"
    script = Path(__file__).with_name("sharded_save.py")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    told = subprocess.run(
        [*launch, script, plain, folder], env=environment, stderr=subprocess.PIPE, text=True, timeout=100
    )
    assert told.returncode == 0, told.stderr
    shutil.copy(plain / "config.json", folder)
    return folder


def test_what_two_ranks_saved_along_either_axis_is_read_and_grown(
    two_ranks: Path, plain: Path, tmp_path: Path
) -> None:
    checkpoint = open_checkpoint(two_ranks).rooted(open_checkpoint(plain).entries)
    stock = LlamaForCausalLM.from_pretrained(plain).state_dict()
    sides = {piece.at[1:] for e in checkpoint.entries.values() for piece in e.pieces}
    assert len(sides) > 2  # some along the second axis
    for name, tensor in stock.items():
        assert torch.equal(checkpoint.read(name), tensor), name
        rows = torch.tensor([len(tensor) - 1, 0, 1, 1, 2, len(tensor) // 2])
        assert torch.equal(checkpoint.open(name).select(rows.numpy()), tensor[rows]), name
    out = tmp_path / "out"
    assert surgeon.apply("hyperclone", two_ranks, out, device="cpu", verify="sample").report.sampled
    grown = loaded(out, lambda state: {"model": state})
    assert differ(LlamaForCausalLM.from_pretrained(plain), grown) < 1e-5
    assert surgeon.verify(plain, out, device="cpu").preserved  # of safetensors and of this, side by side


@pytest.fixture(scope="module")
def trained(plain: Path) -> tuple[Path, Path]:
    """A folder that two ranks of FSDP2 saved after a step of training, optimizer and all, and the plain model
    that the step made."""
    sharded, whole = plain.parent / "fsdp", plain.parent / "trained"
    script = Path(__file__).with_name("fsdp_save.py")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    told = subprocess.run(
        [*launch, script, plain, sharded, whole],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
        timeout=100,
    )
    assert told.returncode == 0, told.stderr
    return sharded, whole


def test_what_fsdp_saved_grows_as_the_plain_model_does(trained: tuple[Path, Path], tmp_path: Path) -> None:
    sharded, whole = trained
    files = {piece.file for e in open_checkpoint(sharded).entries.values() for piece in e.pieces}
    assert len(files) == 2  # each rank wrote its own
    result = surgeon.apply("grow", sharded, tmp_path / "sharded", device="cpu")
    assert result.report.preserved
    (left_out,) = [note for note in result.notes if "no weights of the model" in note]
    assert "(optimizer." in left_out
    surgeon.apply("grow", whole, tmp_path / "plain", device="cpu", verify="none")
    grown, wanted = open_checkpoint(tmp_path / "sharded"), open_checkpoint(tmp_path / "plain")
    assert grown.entries.keys() == {f"model.{name}" for name in wanted.entries}
    for name in wanted.entries:
        assert torch.equal(grown.read(f"model.{name}"), wanted.read(name)), name
    state = loaded(tmp_path / "sharded", lambda state: {"model": state}).state_dict()
    assert all(torch.equal(state[name], wanted.read(name)) for name in wanted.entries)


def test_two_ranks_write_what_one_does(source: Path, tmp_path: Path) -> None:
    words = [
        "-m",
        "surgeon",
        "apply",
        "grow",
        str(source),
        "--device",
        "cpu",
        "--shard-size",
        "60KB",
        "--out",
    ]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    told = subprocess.run(
        [sys.executable, *launch, *words, str(tmp_path / "two")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert told.returncode == 0, told.stderr
    assert "not from_pretrained" in " ".join(told.stdout.split())
    surgeon.apply("grow", source, tmp_path / "one", device="cpu", shard_size="60KB")
    files = sorted(p.name for p in (tmp_path / "one").glob("*.distcp"))
    assert len(files) > 2
    for name in (METADATA, *files):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


def test_what_is_finished_is_not_written_again(tmp_path: Path) -> None:
    specs = [Spec(n, tuple(t.shape), t.dtype) for n, t in TENSORS.items()]
    shards, journal = distributed_files(shards_of(specs, 60)), Journal(tmp_path)
    assert len(shards) > 2
    asked: list[str] = []

    def produce(name: str) -> tuple[Tensor, ...]:
        asked.append(name)
        return (TENSORS[name],)

    write_distributed(tmp_path, shards[:2], produce, lambda done: None, journal)
    first = list(asked)
    write_distributed(tmp_path, shards, produce, lambda done: None, journal)
    assert sorted(asked) == sorted(TENSORS) and first
    write_metadata(tmp_path, shards, Saved("x.", {}, ()), journal)
    journal.forget()
    assert sorted(p.name for p in tmp_path.iterdir()) == [METADATA, *sorted(s.file for s in shards)]
    found = {f"x.{name}": torch.empty_like(tensor) for name, tensor in TENSORS.items()}
    dcp.load(found, checkpoint_id=tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    for name, tensor in TENSORS.items():
        assert torch.equal(found[f"x.{name}"], tensor)
        assert torch.equal(checkpoint.read(f"x.{name}"), tensor)
        assert checkpoint.entries[f"x.{name}"].dtype == tensor.dtype


def test_a_stopped_run_is_gone_on_with(source: Path, tmp_path: Path) -> None:
    out, options = tmp_path / "out", {"device": "cpu", "shard_size": "60KB", "resume": True}

    def stop(done: int, total: int) -> None:
        if 2 * done > total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        surgeon.apply("grow", source, out, progress=stop, **options)
    (left,) = tmp_path.glob(".out.surgeon-*")
    finished = {p.name: p.stat().st_mtime_ns for p in left.glob("*.distcp") if Journal(left).chunks(p.name)}
    assert finished
    surgeon.apply("grow", source, out, **options)
    assert {name: (out / name).stat().st_mtime_ns for name in finished} == finished
    assert not [p for p in out.iterdir() if p.name.startswith(".") and p.name != METADATA]
    assert differ(loaded(source), loaded(out)) < 1e-5


@pytest.mark.parametrize("name", [FILE, METADATA])
def test_a_file_that_changes_while_it_is_read_is_refused(name: str, source: Path, tmp_path: Path) -> None:
    folder = damage.copied(source, tmp_path / "model")
    checkpoint = open_checkpoint(folder)
    tensor = checkpoint.open(NAME)
    assert len(tensor.rows(0, 1)) == 1
    os.truncate(folder / name, 4096)
    if name == FILE:
        with pytest.raises(CheckpointError, match="changed while surgeon was reading it") as caught:
            tensor.whole()
        assert caught.value.code == "S415"
    with pytest.raises(CheckpointError, match=f"{name} changed while surgeon was reading it"):
        checkpoint.refuse_changes()


def test_a_tie_that_is_none_is_refused(tmp_path: Path) -> None:
    plain = tiny.save(tiny.llama(2, tie_word_embeddings=True), tmp_path / "plain")
    source = saved(plain, tmp_path / "source", lambda s: {**s, "lm_head.weight": s["lm_head.weight"] + 1})
    with pytest.raises(CheckpointError, match="are one parameter of the class, and differ") as caught:
        surgeon.apply("grow", source, tmp_path / "out", device="cpu")
    assert caught.value.code == "S408"
    assert not (tmp_path / "out").exists()


# ── whose tensors ────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("stored", "prefix"),
    [
        (["h.0.w", "head.w"], ""),
        (["model.h.0.w", "model.head.w", "optim.h.0.w.exp_avg"], "model."),
        (["h.0.w", "head.w", "ema.h.0.w", "ema.head.w"], ""),
        (["a.h.0.w", "a.head.w", "b.h.0.w"], "a."),
        (["other"], ""),
    ],
)
def test_the_prefix_is_what_stands_before_the_most_names(stored: list[str], prefix: str) -> None:
    assert prefix_of(stored, ["h.0.w", "head.w"]) == prefix


def test_of_two_sets_none_is_chosen() -> None:
    with pytest.raises(
        CheckpointError, match=r"2 sets of the class's tensors: under ema\., model\."
    ) as caught:
        prefix_of(["model.h.w", "ema.h.w"], ["h.w"])
    assert caught.value.code == "S422"


# ── damaged ──────────────────────────────────────────────────────────────────────────────

NAME = "model.layers.0.mlp.up_proj.weight"


class Hostile:
    def __reduce__(self) -> Any:
        return os.system, ("touch hostile",)


def table(change: Callable[[Any], Any]) -> damage.Damage:
    """The table with something changed in it."""

    def make(folder: Path) -> None:
        found = pickle.loads((folder / METADATA).read_bytes())
        change(found)
        (folder / METADATA).write_bytes(pickle.dumps(found))

    return make


def chunk(at: list[int], sizes: list[int]) -> damage.Damage:
    """Another box for the one chunk of a tensor of (56, 48)."""
    other = ChunkStorageMetadata(torch.Size(at), torch.Size(sizes))
    return table(lambda t: setattr(t.state_dict_metadata[NAME], "chunks", [other]))


def added(t: Any) -> None:
    t.state_dict_metadata[NAME].chunks.append(ChunkStorageMetadata(torch.Size([55, 0]), torch.Size([1, 1])))


def info(**changes: Any) -> damage.Damage:
    """Another place for the chunk of a tensor."""

    def make(t: Any) -> None:
        (place,) = (p for p in t.storage_data if p.fqn == NAME)
        vars(t.storage_data[place]).update(changes)

    return table(make)


def other_dtype(dtype: torch.dtype) -> damage.Damage:
    return table(lambda t: setattr(t.state_dict_metadata[NAME].properties, "dtype", dtype))


def cut(folder: Path) -> None:
    os.truncate(folder / FILE, (folder / FILE).stat().st_size // 2)


def columnwise(folder: Path) -> None:
    dcp.save({NAME: torch.ones(48, 56).t()}, checkpoint_id=folder)


def scribbled(folder: Path) -> None:
    """A chunk's archive without its first signature and its list of members."""
    found = pickle.loads((folder / METADATA).read_bytes())
    (at,) = (i for p, i in found.storage_data.items() if p.fqn == NAME)
    with (folder / FILE).open("r+b") as file:
        file.seek(at.offset + at.length - 200)
        file.write(b"\0" * 200)


UNSOUND = ".metadata is not a sound table of torch.distributed.checkpoint: "
DAMAGE: dict[str, tuple[damage.Damage, str, str]] = {
    "hostile": (
        damage.text(METADATA, pickle.dumps(Hostile())),
        "S420",
        "it names posix.system, which no such",
    ),
    "hostile in a path": (table(lambda t: t.planner_data.update(x=Hostile())), "S420", "posix.system"),
    "another class": (damage.text(METADATA, pickle.dumps(Path)), "S420", UNSOUND),
    "no table": (damage.text(METADATA, pickle.dumps([1])), "S420", UNSOUND + "it holds something else"),
    "empty": (damage.text(METADATA, b""), "S420", UNSOUND),
    "no pickle": (damage.text(METADATA, b"\xff" * 99), "S420", UNSOUND),
    "half": (
        lambda f: (f / METADATA).write_bytes((f / METADATA).read_bytes()[:900]),
        "S420",
        UNSOUND,
    ),
    "missing file": (damage.without(FILE), "S402", f"the file {FILE} is missing"),
    "a pipe": (damage.as_pipe(FILE), "S402", f"the file {FILE} is missing"),
    "truncated": (cut, "S403", f"{FILE} holds no sound chunk of"),
    "empty file": (damage.text(FILE, b""), "S403", "the file ends before it does"),
    "scribbled": (scribbled, "S403", f"{FILE} holds no sound chunk of {NAME}: "),
    "beyond": (chunk([0, 0], [57, 48]), "S421", f"the chunks of {NAME}, of shape (56, 48), reach out of it"),
    "gap": (chunk([0, 0], [55, 48]), "S421", "leave a gap"),
    "overlap": (table(added), "S421", "overlap"),
    "other axes": (chunk([0], [56]), "S421", "have another number of axes"),
    "no chunks": (
        table(lambda t: t.state_dict_metadata[NAME].chunks.clear()),
        "S421",
        "leave a gap",
    ),
    "another's place": (info(offset=0), "S403", f"holds no sound chunk of {NAME}"),
    "outside": (info(relative_path="../x.distcp"), "S402", "points outside the folder: ../x.distcp"),
    "compressed": (info(transform_descriptors=["zstd"]), "S403", "compressed or changed by an extension"),
    "negative": (info(offset=-1), "S403", "its place is no whole number"),
    "unknown dtype": (other_dtype(torch.float8_e4m3fn), "S407", f"{NAME} has the dtype float8_e4m3fn"),
    "lying dtype": (other_dtype(torch.bfloat16), "S403", "of another shape or dtype than the table says"),
    "by columns": (columnwise, "S403", "it is not laid out row by row"),
    "nowhere": (table(lambda t: t.storage_data.clear()), "S402", "does not say where a chunk of"),
}


@pytest.mark.filterwarnings("ignore:Detected an existing checkpoint:UserWarning")
@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_folder_is_refused(
    case: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil, code, text = DAMAGE[case]
    folder = damage.copied(source, tmp_path / "model", spoil)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(folder)
    assert caught.value.code == code
    assert text in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["model"]  # nothing was run


def test_a_chunk_with_a_hostile_pickle_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tmp_path / "model"
    dcp.save({NAME: torch.ones(2, 3)}, checkpoint_id=model)
    torch.save(Hostile(), model / FILE)
    found = pickle.loads((model / METADATA).read_bytes())
    (at,) = found.storage_data.values()
    at.length = (model / FILE).stat().st_size
    (model / METADATA).write_bytes(pickle.dumps(found))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=r"it names posix\.system, which no such file needs") as caught:
        open_checkpoint(model)
    assert caught.value.code == "S403"
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_the_command_line_plans_and_refuses(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["surgeon", "plan", "grow", str(source)])
    assert cli.run() == 0
    assert "in one file" in " ".join(capsys.readouterr().out.split())
    model = damage.copied(source, tmp_path / "model", cut)
    words = ["surgeon", "apply", "grow", str(model), "--out", str(tmp_path / "out"), "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", words)
    assert cli.run() == 2
    assert capsys.readouterr().err.startswith("error[S403]: __0_0.distcp holds no sound chunk of ")
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_a_member_put_down_as_an_attribute_is_its_name_and_nothing_is_looked_up() -> None:
    """So some releases of Python pickle enumerations, and any of them reads what they saved."""

    class ByName:
        def __init__(self, *what: Any):
            self.what = what

        def __reduce__(self) -> Any:
            return getattr, self.what

    member = ByName(_MEM_FORMAT_ENCODING, "TORCH_CONTIGUOUS_FORMAT")
    assert read_table(pickle.dumps(member)) == "TORCH_CONTIGUOUS_FORMAT"
    assert read_table(pickle.dumps(ByName(torch.Size, "__subclasses__"))) == "__subclasses__"
