"""Running statistics: of the checkpoint, grown, and held against the source's by `verify`."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from coverage import make
from safetensors.torch import load_file, save_file

import surgeon

RECIPE = "recipe wide() {\n    grow hidden by 2\n    preserve logits\n}\n"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    place = tmp_path_factory.mktemp("models")
    make("resnet", "ResNetForImageClassification", place / "source")
    (place / "wide.surgery").write_text(RECIPE)
    surgeon.apply(place / "wide.surgery", place / "source", place / "grown", device="cpu")
    return place / "source", place / "grown"


def test_they_are_copied_as_their_channels_are(folders: tuple[Path, Path]) -> None:
    before, after = (load_file(folder / "model.safetensors") for folder in folders)
    means = [name for name in before if name.endswith("running_mean")]
    assert means and all(torch.equal(after[n], before[n].repeat(2)) for n in means)


def test_a_wrong_one_is_found_where_it_is_read(folders: tuple[Path, Path], tmp_path: Path) -> None:
    source, grown = folders[0], shutil.copytree(folders[1], tmp_path / "wrong")
    assert surgeon.verify(source, grown, device="cpu").preserved
    tensors = load_file(grown / "model.safetensors")
    name = next(n for n in sorted(tensors) if "stages.1" in n and n.endswith("running_mean"))
    tensors[name][0] += 0.5
    save_file(tensors, grown / "model.safetensors", {"format": "pt"})
    report = surgeon.verify(source, grown, device="cpu")
    assert not report.preserved
    assert report.exact is not None and report.exact.divergence is not None
    assert name.removesuffix(".running_mean") in report.exact.divergence.where
