"""The command line: its commands parse, call and render."""

from __future__ import annotations

import gc
import os
import sys
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from surgeon.errors import (
    EXIT_NOT_PRESERVED,
    EXIT_USER,
)
from surgeon.running.stops import Unwinding
from surgeon.shell import (
    json_to,
    open_console,
    quiet_libraries,
    stages,
    tell,
    telling_of,
    unwritable,
    write_json,
)

if TYPE_CHECKING:
    pass

app = typer.Typer(
    name="surgeon",
    help="Grow trained neural networks: wider, and computing the same function.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

INTERRUPTED = 130  # what typer makes of Ctrl-C
FEWER_COLLECTIONS = (100_000, 50, 100)  # modules and graphs are many objects that stay: 1 s less of 15


def _show_version(wanted: bool) -> None:
    if wanted:
        from surgeon.version import VERSION

        typer.echo(f"surgeon {VERSION}")
        raise typer.Exit


@app.callback()
def start(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Show it and exit.")
    ] = False,
) -> None:
    """What comes before a command."""


RecipeArg = Annotated[
    str, typer.Argument(help="A .surgery file (FILE:NAME where it declares several), or one in the library.")
]
ModelArg = Annotated[
    str, typer.Argument(help="A model folder or hub id, a config.json, or package.module:factory.")
]
Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="A value for the recipe.")
]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
InputsFile = Annotated[
    Path | None,
    typer.Option("--inputs", help="A safetensors file to run a transformers model on: tensors by name."),
]
Trust = Annotated[bool, typer.Option("--trust-remote-code", help="Run the model's code.")]
JsonFile = Annotated[
    Path | None, typer.Option("--json", help="Also write the result here, as JSON; or the errors.")
]


def _settings(given: list[str] | None) -> dict[str, str]:
    settings: dict[str, str] = {}
    for pair in given or []:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise typer.BadParameter(f"{pair!r} is not of the form NAME=VALUE", param_hint="--set")
        if name in settings:
            raise typer.BadParameter(f"{name} is set twice", param_hint="--set")
        settings[name] = value
    return settings


@app.command()
def apply(
    recipe: RecipeArg,
    model: ModelArg,
    out: Annotated[Path, typer.Option("--out", help="The folder to write; it must not exist.")],
    set_: Settings = None,
    device: Device = "auto",
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16; the source's own.")] = None,
    inputs: InputsFile = None,
    json_file: JsonFile = None,
    force: Annotated[bool, typer.Option("--force", help="Replace what stands at --out.")] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from what a stopped run finished; leave it when stopped.")
    ] = False,
    shard_size: Annotated[str, typer.Option(help="Of the files written, at most.")] = "5GB",
    verify: Annotated[str, typer.Option(help="full; sample: some layers; none: the plan alone.")] = "full",
    trust_remote_code: Trust = False,
) -> None:
    """Grow MODEL by RECIPE, write it to DIR, and prove that it computes the same function."""
    options = {
        "example_inputs": inputs,
        "settings": _settings(set_),
        "device": device,
        "dtype": dtype,
        "force": force,
        "resume": resume,
        "shard_size": shard_size,
        "verify": verify,
        "trust_remote_code": trust_remote_code,
    }
    _run_apply(recipe, model, out, json_file, options)


def _run_apply(recipe: str, model: str, out: Path, json_file: Path | None, options: dict[str, Any]) -> None:
    console = open_console()
    with stages(console):
        from surgeon import operations, rendering

    with json_to(json_file), telling_of(out, bool(options.get("resume"))):
        with rendering.Progress(console) as progress:
            result = operations.apply(
                recipe,
                model,
                out,
                **options,
                stage=progress.stage,
                progress=progress.bytes,
                planned=lambda plan, forecast: rendering.show_planned(console, plan, forecast),
            )
        rendering.show_report(console, result.report)
        for note in result.notes:
            console.print(f"note: {note}", soft_wrap=True)
        console.print(f"Grown: {out}", soft_wrap=True)
        write_json(json_file, {"plan": result.plan.as_dict(), "proof": result.report.as_dict()})


@app.command()
def plan(
    recipe: RecipeArg,
    model: ModelArg,
    set_: Settings = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Where it would be written: says room and time there.")
    ] = None,
    inputs: InputsFile = None,
    json_file: JsonFile = None,
    trust_remote_code: Trust = False,
) -> None:
    """Show what RECIPE would change in MODEL, and what that takes. Reads no weights."""
    settings, console = _settings(set_), open_console()
    with json_to(json_file), stages(console) as stage:
        from surgeon import operations, rendering

        planned, forecast = operations.plan_with_forecast(
            recipe, model, out, inputs, settings, stage, trust_remote_code=trust_remote_code
        )
    rendering.show_planned(console, planned, forecast)
    write_json(json_file, planned.as_dict() | {"forecast": forecast.as_dict() if forecast else None})


@app.command()
def dims(
    model: ModelArg,
    inputs: InputsFile = None,
    json_file: JsonFile = None,
    trust_remote_code: Trust = False,
) -> None:
    """Show the anatomy of MODEL: each dim, what it ties, and whether it can grow or why not."""
    console = open_console()
    with json_to(json_file), stages(console) as stage:
        from surgeon import operations, rendering

        anatomy = operations.dims(model, inputs, stage, trust_remote_code=trust_remote_code)
    rows = rendering.dim_rows(anatomy)
    rendering.show_dims(console, rows)
    write_json(json_file, {"dims": [vars(row) for row in rows]})


@app.command()
def verify(
    source: Annotated[str, typer.Argument(help="The source model's folder, or package.module:factory.")],
    target: Annotated[str, typer.Argument(help="The grown model's folder, or package.module:factory.")],
    device: Device = "auto",
    inputs: InputsFile = None,
    json_file: JsonFile = None,
    trust_remote_code: Trust = False,
) -> None:
    """Prove, or disprove, that TARGET computes the function of SOURCE."""
    console = open_console()
    with json_to(json_file), stages(console) as stage:
        from surgeon import operations, rendering

        report = operations.verify(
            source,
            target,
            example_inputs=inputs,
            device=device,
            trust_remote_code=trust_remote_code,
            stage=stage,
        )
    rendering.show_report(console, report)
    write_json(json_file, report.as_dict())
    if not report.preserved:
        raise typer.Exit(EXIT_NOT_PRESERVED)


@app.command()
def check(
    files: Annotated[list[Path], typer.Argument(help=".surgery files.")],
    rules: Annotated[bool, typer.Option("--rules", help="Also try op rules on the real ops.")] = False,
) -> None:
    """Parse and check .surgery files; with --rules, try their op rules on the real ops."""
    from surgeon.language import check as check_file

    bad = 0
    for file in files:
        found = check_file(file)
        for diagnostic in found:
            typer.echo(diagnostic.render() + "\n", err=True)
        bad += len(found)
        if not found:
            typer.echo(f"{file}: sound")
    if bad:
        raise typer.Exit(EXIT_USER)
    if rules and not _certified(files):
        raise typer.Exit(EXIT_NOT_PRESERVED)


def _certified(files: list[Path]) -> bool:
    """Print what the real ops say of the files' rules; whether none is wrong."""
    from surgeon.certification import certify
    from surgeon.language import load

    quiet_libraries()
    findings = [finding for file in files for finding in certify(load(file).rules)]
    for finding in findings:
        typer.echo(f"{finding.verdict:9} {finding.op}: {finding.detail}")
    return all(finding.verdict != "wrong" for finding in findings)


@app.command()
def fmt(
    files: Annotated[list[Path], typer.Argument(help=".surgery files.")],
    check: Annotated[bool, typer.Option("--check", help="Change nothing; exit 1 if anything would.")] = False,
    diff: Annotated[bool, typer.Option("--diff", help="Change nothing; show what would.")] = False,
) -> None:
    """Lay out .surgery files in the one canonical way."""
    import difflib

    from surgeon.language import format_text
    from surgeon.language.loading import find
    from surgeon.language.report import read

    changed = 0
    for file in map(find, files):
        text = read(file)
        laid = format_text(text, str(file))
        if laid == text:
            continue
        changed += 1
        if diff:
            lines = difflib.unified_diff(text.splitlines(True), laid.splitlines(True), str(file), str(file))
            typer.echo("".join(lines), nl=False)
        elif check:
            typer.echo(f"would lay out {file}")
        else:
            try:
                file.write_text(laid, encoding="utf-8")
            except OSError as error:
                raise unwritable(file, error) from error
            typer.echo(f"laid out {file}")
    if changed and (check or diff):
        raise typer.Exit(1)


@app.command()
def explain(
    what: Annotated[str, typer.Argument(metavar="CODE|MODEL", help="A code such as S310, or a model.")],
    axis: Annotated[str | None, typer.Argument(help='A parameter\'s axis: "layers.0.fc.weight[0]".')] = None,
    trust_remote_code: Trust = False,
) -> None:
    """A diagnostic at length; or the chain of ops that ties a parameter's axis to its dim."""
    if axis is None:
        from surgeon.catalogue import EXPLANATIONS

        code = what.upper()
        if code not in EXPLANATIONS and (os.path.lexists(what) or "/" in what or ":" in what):
            typer.echo(
                f'error: an axis is to be named, too: surgeon explain {what} "layers.0.fc.weight[0]"\n'
                f"  help: surgeon dims {what} lists axes",
                err=True,
            )
            raise typer.Exit(EXIT_USER)
        if code not in EXPLANATIONS:
            first, last = min(EXPLANATIONS), max(EXPLANATIONS)
            typer.echo(f"error: there is no diagnostic {what}; codes run from {first} to {last}", err=True)
            raise typer.Exit(EXIT_USER)
        typer.echo(f"{code}: {EXPLANATIONS[code]}")
        return
    console = open_console()
    with stages(console) as stage:
        from surgeon import operations, rendering

        anatomy = operations.dims(what, stage=stage, trust_remote_code=trust_remote_code)
    rendering.show_axis(console, anatomy, axis)


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", help="Where to write the grown model.")] = Path("demo-out"),
    recipe: Annotated[str, typer.Option(help="The recipe to run.")] = "grow",
) -> None:
    """Widen a real pretrained sentence encoder that installs from PyPI, and compare before and after."""
    console = open_console()
    with stages(console):
        from surgeon import demonstration

    demonstration.refuse_foreign(out)
    source = demonstration.find_model()
    console.print(f"$ surgeon apply {recipe} MiniLM --out {out}\n", style="bold")
    _run_apply(recipe, str(source), out, None, {"force": True})
    demonstration.show_similarities(console, source, out)


def run(signals: Unwinding | None = None) -> int:
    """Run the command line, and return the exit code: 0 done and preserved, 1 not preserved, 2 wrong
    input, 3 anything else."""
    try:
        code = app(standalone_mode=False)
        if code == INTERRUPTED:
            raise KeyboardInterrupt
    except (Exception, KeyboardInterrupt) as error:
        if signals is not None:
            signals.over()
        return tell(error, signals is not None and signals.came)
    if signals is not None:
        signals.over()
    return int(code or 0)


def main() -> None:
    """Entry point of the process: :func:`run`, and signals that unwind it."""
    gc.set_threshold(*FEWER_COLLECTIONS)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal need not have the arrow of a plan
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # its warnings are none of the report's
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # spinning threads starve each other on busy cores
    code = run(Unwinding())
    gc.freeze()  # what is left goes with the process: no last search through it
    sys.exit(code)


if __name__ == "__main__":
    main()
