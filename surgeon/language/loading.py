"""Files and the files they use, loaded, resolved and checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from surgeon.errors import Diagnostic, LanguageError, fail
from surgeon.language import syntax as s
from surgeon.language.building import Builder, nearest
from surgeon.language.parsing import Source, data_folder, parse, parse_value, span_of

MAX_USES = 32  # files that one file may use, all told


@dataclass
class _Loaded:
    recipes: list[s.Recipe] = field(default_factory=list)
    rules: list[s.OpRule] = field(default_factory=list)
    families: list[s.Family] = field(default_factory=list)
    parameters: set[str] = field(default_factory=set)
    errors: list[Diagnostic] = field(default_factory=list)
    seen: list[Path] = field(default_factory=list)


def library() -> Path:
    """The folder of recipes that comes with surgeon."""
    return data_folder("recipes")


def find(name: str | Path, beside: Path | None = None) -> Path:
    """A ``.surgery`` file by path, or by name in the library. Raises LanguageError S105."""
    asked = Path(name)
    places = [asked] if asked.is_absolute() else [*([beside / asked] if beside else [asked]), library() / asked]
    for place in places:
        for candidate in (place, place.with_name(place.name + ".surgery")):
            if candidate.is_file():
                return candidate
    known = sorted(p.stem for p in library().glob("*.surgery"))
    raise fail(
        LanguageError,
        "S105",
        f"there is no recipe file {name}",
        expected=f"a path, or one of {', '.join(known)}",
        help=nearest(asked.stem, known),
    )


def load(path: str | Path, settings: Mapping[str, str] | None = None) -> s.Program:
    """Parse, resolve and check a file and all it uses.

    Args:
        path: of a ``.surgery`` file, or the name of one in the library.
        settings: values for the recipe's parameters, as text (``--set name=value``).

    Raises LanguageError (S1xx) with every mistake of the file at once.
    """
    file = find(path)
    return loads(_read(file), str(path if Path(path).is_file() else file.name), settings, file.parent, file)


def loads(
    text: str,
    name: str = "<text>",
    settings: Mapping[str, str] | None = None,
    folder: Path | None = None,
    file: Path | None = None,
) -> s.Program:
    """As :func:`load`, from text; `folder` is where its `use` looks first."""
    loaded = _Loaded()
    if file is not None:
        loaded.seen.append(file.resolve())
    given = {key: _setting(key, value) for key, value in (settings or {}).items()}
    _collect(Source(name, text), folder, given, loaded)
    unknown = set(given) - loaded.parameters
    for key in sorted(unknown):
        expected = ", ".join(sorted(loaded.parameters)) or "no settings"
        loaded.errors.append(
            Diagnostic("S106", f"no recipe has a parameter {key}", None, None, expected, nearest(key, loaded.parameters))
        )
    if loaded.errors:
        raise LanguageError(*loaded.errors)
    program = s.Program(tuple(loaded.recipes), tuple(loaded.rules), tuple(loaded.families))
    _check_ops(program, Source(name, text))
    return program


def _setting(key: str, text: str) -> object:
    builder = Builder(Source(f"--set {key}", text))
    value = builder.value(parse_value(text))
    if builder.errors:
        raise LanguageError(*builder.errors)
    return value


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise fail(LanguageError, "S107", f"{file.name} is not UTF-8 text") from error
    except OSError as error:
        raise fail(LanguageError, "S107", f"{file.name} cannot be read: {error.strerror}") from error


def _collect(source: Source, folder: Path | None, settings: Mapping[str, object], loaded: _Loaded) -> None:
    try:
        trees = parse(source)
    except LanguageError as error:
        loaded.errors += error.diagnostics
        return
    builder = Builder(source, settings)
    names: set[tuple[str, str]] = set()
    for tree, offset in trees:
        builder.offset = offset
        for declaration in tree.children:
            if declaration.data == "use":
                _use(declaration, source, offset, folder, settings, loaded)
                continue
            built = getattr(builder, declaration.data)(declaration)
            if isinstance(built, s.Recipe):
                loaded.recipes.append(built)
                loaded.parameters |= {k for k, _ in built.parameters}
            elif isinstance(built, s.OpRule):
                loaded.rules.append(built)
            else:
                loaded.families.append(built)
            for name in built.names if isinstance(built, s.OpRule) else (built.name,):
                if (declaration.data, name) in names:
                    builder.error("S116", f"{declaration.data} {name} is declared twice", declaration)
                names.add((declaration.data, name))
    loaded.errors += builder.errors


def _use(
    tree: object, source: Source, offset: int, folder: Path | None, settings: Mapping[str, object], loaded: _Loaded
) -> None:
    token = tree.children[0]  # type: ignore[attr-defined]
    span = span_of(token, source.name, offset)
    try:
        file = find(str(token)[1:-1], folder)
    except LanguageError as error:
        first = error.diagnostics[0]
        loaded.errors.append(source.diagnostic("S105", f"there is no file {token}", span, None, first.help))
        return
    if file.resolve() in loaded.seen:
        return  # used already: a file is read once, so circles do no harm
    loaded.seen.append(file.resolve())
    if len(loaded.seen) > MAX_USES:
        loaded.errors.append(source.diagnostic("S108", f"more than {MAX_USES} files are used", span))
        return
    _collect(Source(file.name, _read(file)), file.parent, settings, loaded)


@cache
def builtin_rules() -> tuple[s.OpRule, ...]:
    """The op rules that come with surgeon."""
    return tuple(
        rule for file in sorted((library() / "ops").glob("*.surgery")) for rule in _file(file).rules
    )


@cache
def builtin_families() -> tuple[s.Family, ...]:
    """The families that come with surgeon."""
    return tuple(
        family
        for file in sorted((library() / "families").glob("*.surgery"))
        for family in _file(file).families
    )


def _file(file: Path) -> s.Program:
    loaded = _Loaded(seen=[file.resolve()])
    _collect(Source(file.name, _read(file)), file.parent, {}, loaded)
    if loaded.errors:
        raise LanguageError(*loaded.errors)
    return s.Program(tuple(loaded.recipes), tuple(loaded.rules), tuple(loaded.families))


def _check_ops(program: s.Program, source: Source) -> None:
    """The ops that recipes address must have a rule or be a tag."""
    addressed = [
        (op, rule.span) for r in program.recipes for rule in (*r.spreads, *r.noises) for op in rule.ops
    ] + [(rule.op, rule.span) for r in program.recipes for rule in r.expands]
    if not addressed:
        return
    rules = (*builtin_rules(), *program.rules)
    known = {"*"} | {r.tag for r in rules if r.tag} | {name for r in rules for name in r.names}
    errors = [
        source.diagnostic("S129", f"no rule is named or tagged {op}", span, None, nearest(op, known))
        for op, span in addressed
        if op not in known
    ]
    if errors:
        raise LanguageError(*errors)


def choose(program: s.Program, name: str | None = None) -> s.Recipe:
    """The recipe to run: the one named, or the file's only one. Raises LanguageError S109."""
    names = [r.name for r in program.recipes]
    chosen = [r for r in program.recipes if name is None or r.name == name]
    if name is None and len(names) > 1:
        chosen = program.recipes[-1:]  # type: ignore[assignment]
    if not chosen:
        what = f"there is no recipe {name}" if name else "the file declares no recipe"
        raise fail(LanguageError, "S109", what, expected=", ".join(names) or "recipe NAME() { … }")
    return chosen[0]
