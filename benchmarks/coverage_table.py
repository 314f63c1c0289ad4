"""The table of a coverage sweep: what grew, what was refused and whether rightly, and what is a gap."""

from __future__ import annotations

import re
from collections import Counter
from statistics import median
from typing import Any

RIGHT: tuple[tuple[str, str, str], ...] = (
    ("S323", "", "numbers the class makes of the size itself, and which a larger size makes otherwise"),
    ("S322", "", "a number of the class that depends on the size, where no scale makes up for it"),
    ("S330", "new channels of|all channels of", "statistics over channels among which new ones stand"),
    ("S330", "the class has .* there where it has", "a number of the class that depends on the size"),
    (
        "S330",
        r"an output of the model[\s\S]*are one tensor",
        "a tied weight, and no gain behind the norms (docs/algebra.md)",
    ),
    (
        "S330",
        r"an output of the model[\s\S]*against it stands: the op must read x unscaled",
        "an output that is a product of values which norms must read as they are",
    ),
    (
        "S330",
        r"must read x unscaled[\s\S]*a constant replaces some of it",
        "a number of the class that cuts what norms must read as it is",
    ),
    ("S306", r"aten\.fft_", "a Fourier transform over the dim"),
    ("S302", "counted in different orders", "axes laid out in two orders: sizes decide which places meet"),
    (
        "S220",
        r"at models/.*: emb\[:, :, :, 0::2\] = i_indices \* inv_freq",
        "positions that the class makes for one number of heads alone",
    ),
    (
        "S210",
        r"if (?:duration_labels\.sum|torch\.stack\(structure_ids_list|torch\.any\(early_stopped)",
        "how many rows there are, or when it ends, is told by the weights",
    ),
    (
        "S301",
        "an input of the model is as wide",
        "an input is as wide as what would grow, and stays as it is",
    ),
    ("S303", "", "a softmax over the dim"),
    ("S331", "statistics are taken over them", "statistics over numbers that only a larger size makes"),
    ("S331", "they are an output of the model", "an output of numbers that only a larger size makes"),
    ("S210", "has no forward pass", "a class that is a set of parts, and computes nothing itself"),
    ("S211", "only a pass of tensors can be traced", "an input that is an object with a state, no tensors"),
    ("S216", "", "random numbers that the class draws as it runs, and does not take as an input"),
)
"""Refusals that are right: by code and what their text says, what it is that no weight can change.
All others are gaps until someone shows the same of them."""

OUTCOMES = (
    "grown as asked",
    "grown in part, and the rest refused rightly",
    "refused rightly",
    "grown in part",
    "refused",
    "without a size of these names",
    "not captured",
    "not tried",
)
Row = dict[str, Any]


def rightly(attempt: Row) -> str:
    """Why a refusal is right; empty where it is a gap."""
    found = (why for code, said, why in RIGHT if attempt["code"] == code and re.search(said, attempt["text"]))
    return next(found, "")


def outcome(row: Row) -> str:
    if "together" not in row:
        if "refusal" not in row:
            return "not tried"
        return "refused rightly" if rightly(row) else "not captured"
    together = row["together"]
    if "exact" in together:
        return "grown as asked" if together["fields"] else "without a size of these names"
    if not together["code"]:
        return "without a size of these names"
    if any(a.get("fields") for a in row["alone"].values()):
        return "grown in part, and the rest refused rightly" if rightly(together) else "grown in part"
    return "refused rightly" if rightly(together) else "refused"


def table(rows: list[Row]) -> str:
    """The rows as a page."""
    lines = ["# Coverage", ""]
    lines += [
        "Every class of the auto mappings of transformers, tiny, with all parameters at random, grown by",
        "`grow hidden, ffn, heads by 2` with uneven shares and noise; where the three together are refused,",
        "each alone and head_dim alone. *Exact* is the error of the outputs in float64, *stock* that of",
        "stock transformers in float32 on the written folder. Made by `benchmarks/coverage.py`. † marks",
        "classes on inputs of one's own, as `--inputs` gives them (`benchmarks/tiny_inputs.py`).",
        "",
        "A refusal is *right* where the larger class has something in the way that no weight can change.",
        "That is told by the refusal's code and text, for all classes alike:",
        "",
        *(f"- {code}{f' with `{said}`' if said else ''}: {why}." for code, said, why in RIGHT),
        "",
        *_summary(rows),
        "",
    ]
    for group in dict.fromkeys(row["group"] for row in rows):
        mine = [row for row in rows if row["group"] == group]
        lines += [f"## {group}", ""]
        lines += ["| class | dims | config fields grown | exact | stock | other ways | why not |"]
        lines += ["|---|---|---|---|---|---|---|"]
        lines += [_row(row) for row in sorted(mine, key=lambda r: (OUTCOMES.index(outcome(r)), r["class"]))]
        lines.append("")
    return "\n".join(lines)


def _overview(rows: list[Row]) -> list[str]:
    """What became of the classes of each group, in a table."""
    groups = [*dict.fromkeys(row["group"] for row in rows)]
    several = [(group, [row for row in rows if row["group"] == group]) for group in groups]
    lines = [f"| | classes | {' | '.join(OUTCOMES)} |", f"|---|---|{'---|' * len(OUTCOMES)}"]
    for group, mine in (*several, ("all", rows)):
        counts = Counter(outcome(row) for row in mine)
        numbers = (str(counts[what] or "") for what in OUTCOMES)
        lines.append(f"| {group} | {len(mine)} | {' | '.join(numbers)} |")
    return lines


def _summary(rows: list[Row]) -> list[str]:
    """Counts over all groups, and what planning takes."""
    lines = _overview(rows)
    judged = [a for row in rows for a in _attempts(row) if "judged" in a]
    if judged:
        good = sum(not a["wrong"] for a in judged)
        lines += [
            "",
            f"Of {len(judged)} folders written, stock transformers finds {good} in order: no key missing, "
            "unexpected or of another shape; shapes and shared tensors those of the class built of the grown "
            "config, and shared as in the source; no number of config.json changed but those reported; "
            "`save_pretrained` of the loaded model writes the same names, shapes, dtypes and bytes; the same "
            "outputs on inputs without padding.",
        ]
    choices = [row["otherwise"] for row in rows if row.get("otherwise")]
    if choices:
        good = sum("exact" in a for a in choices)
        what = "with embeddings tied instead of untied, or the other way round"
        lines += ["", f"{good} of {len(choices)} grow {what}."]
    several = [a for r in rows if "exact" in r.get("together", {}) for a in r.get("alone", {}).values()]
    sized = [a for a in several if a.get("code") != ""]
    if sized:
        alone, divided = sum("exact" in a for a in sized), sum(a.get("code") == "S316" for a in sized)
        lines += [
            "",
            f"One dim at a time: {alone} of {len(sized)} grow by themselves; {divided} are divided out of "
            "another, such as heads out of the hidden size, and would shrink what each of them has.",
        ]
    tried = {row["class"]: row.get("together", {}) for row in rows}
    seconds = {name: a["plan_seconds"] for name, a in tried.items() if "plan_seconds" in a}
    if seconds:
        worst = max(seconds, key=lambda name: seconds[name])
        lines += [
            "",
            f"Planning a tiny model takes {median(seconds.values()):.1f} s (median), "
            f"{seconds[worst]:.0f} s at worst ({worst}), with both classes traced.",
        ]
    return lines


def _attempts(row: Row) -> list[Row]:
    several = [row.get("together"), row.get("otherwise"), *row.get("alone", {}).values()]
    return [a for a in several if a is not None]


def _row(row: Row) -> str:
    together = row.get("together", {})
    alone = {d: a for d, a in row.get("alone", {}).items() if a.get("fields")}
    fields = together.get("fields") or [name for a in alone.values() for name in a["fields"]]
    grown = ", ".join(dict.fromkeys(fields))
    best = together if "exact" in together else next(iter(alone.values()), {})
    why = row.get("crash") or row.get("unbuilt") or row.get("refusal") or together.get("refusal", "")
    errors = " | ".join(f"{best[k]:.1e}" if k in best else "" for k in ("exact", "native"))
    text = why.splitlines()[0].replace("|", "\\|")[:150] if why else ""
    text = re.sub(r"/\S*/(?=source)", "", text)  # the sweep's own folder
    refused = together or row
    if refused.get("code") and rightly(refused):
        text = f"rightly, {rightly(refused)}: {text}"
    name = row["class"] + (" †" if row.get("given") else "")
    return f"| {name} | {row.get('dims', '')} | {grown} | {errors} | {_ways(row)} | {text} |"


def _ways(row: Row) -> str:
    """What the other ways to grow it came to, in a few words."""
    said = []
    otherwise = row.get("otherwise")
    if otherwise:
        word = "untied" if row["tied"] else "tied"
        said.append(word if "exact" in otherwise else f"not {word} ({otherwise['code']})")
    if "exact" in row.get("together", {}):
        alone = {d: a for d, a in row.get("alone", {}).items() if a.get("code") != ""}
        if alone:
            failed = [f"{d} ({a['code']})" for d, a in alone.items() if "exact" not in a]
            said.append(f"not alone: {', '.join(failed)}" if failed else "each alone")
    return "; ".join(said)
