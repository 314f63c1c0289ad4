"""Files to programs: `use` followed, declarations resolved, every finding of a file at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from os.path import isdir, isfile
from pathlib import Path
from typing import TypeVar

from lark import Token, Tree

from surgeon.errors import Diagnostic, LanguageError, Span, fail
from surgeon.language.parsing import beside_package, parse
from surgeon.language.recipes import recipe as resolve_recipe
from surgeon.language.report import Report, listing, nearest, read
from surgeon.language.rules import family as resolve_family
from surgeon.language.rules import op_rule
from surgeon.language.syntax import Family, OpRule, Program, Recipe
from surgeon.language.trees import token, tokens, tree, unquoted

MAX_DEPTH = 16
"""How deep `use` may go."""

SUFFIX = ".surgery"
T = TypeVar("T")


@cache
def library() -> Path:
    """The folder of the recipes, op rules and families that come with surgeon."""
    return beside_package("recipes")


def load(path: str | Path, settings: Mapping[str, str] | None = None, recipe: str | None = None) -> Program:
    """Read, resolve and check a file and all it uses.

    ``path`` is a file, or the name of one in the library such as ``hyperclone``. ``settings`` are
    parameter values as text (``{"n": "3"}``). They go to the recipe called ``recipe``, which is
    needed only when the file declares several; the program then holds this one alone.

    Raises LanguageError with every finding of the file, or of the first broken file it uses.
    """
    file = find(path)
    return _Loader(settings or {}, recipe).file(read(file), str(file), file.resolve())


def loads(
    text: str, name: str = "<string>", settings: Mapping[str, str] | None = None, recipe: str | None = None
) -> Program:
    """Like :func:`load` for a text; its ``use`` looks in the library and the working folder."""
    return _Loader(settings or {}, recipe).file(text, name, None)


def check(path: str | Path) -> list[Diagnostic]:
    """What is wrong with a file, parameters without a default being no fault of it."""
    try:
        file = find(path)
        _Loader({}, None, open_parameters=True).file(read(file), str(file), file.resolve())
    except LanguageError as error:
        return list(error.diagnostics)
    return []


def find(path: str | Path) -> Path:
    """The file that a path or a library name stands for. Raises LanguageError S106."""
    file = Path(path)
    if isfile(file) or isdir(file):
        return file
    if file.parent == Path("."):
        in_library = library() / (file.name if file.suffix == SUFFIX else file.name + SUFFIX)
        if isfile(in_library):
            return in_library
    known = [p.stem for p in library().glob(f"*{SUFFIX}")]
    help = nearest(file.name.removesuffix(SUFFIX), known)
    raise fail(
        LanguageError,
        "S106",
        f"there is no file {path}, and no recipe of that name in the library",
        expected=f"a file, or {listing(sorted(known))}" if known else None,
        help=help,
    )


def not_one(shown: str, names: Sequence[str]) -> Diagnostic:
    """What is said of a file that declares none or several recipes, of these names, where one is wanted."""
    if not names:
        return Diagnostic("S137", f"{shown} declares no recipe", expected="recipe NAME() { … }")
    return Diagnostic(
        "S135",
        f"{shown} declares several recipes",
        expected=listing(names),
        help=f"name the one to use: {shown}:{names[0]}",
    )


class _Loader:
    """Reads one file and those it uses, each once."""

    def __init__(
        self, settings: Mapping[str, str], recipe: str | None, open_parameters: bool = False
    ) -> None:
        self.settings, self.recipe, self.open_parameters = settings, recipe, open_parameters
        self.done: dict[Path, Program] = {}

    def file(self, text: str, name: str, path: Path | None, used_by: tuple[Path, ...] = ()) -> Program:
        """The program of one text, which lies at ``path``; ``used_by`` are the files that led here."""
        report = Report(text, name)
        declarations = parse(report)
        broken = bool(report.diagnostics)
        used = [
            self._use(d, report, (*used_by, path or Path("<string>")))
            for d in declarations
            if d.data == "use"
        ]
        rules = [rule for program in used for rule in program.rules]
        families = [f for program in used for f in program.families]
        own_rules = [op_rule(d, report) for d in declarations if d.data == "op"]
        own_families = [resolve_family(d, report) for d in declarations if d.data == "family"]
        _distinct(declarations, report)
        recipes: list[Recipe] = []
        mine = [d for d in declarations if d.data == "recipe"]
        if not used_by:  # a used file lends its op rules and families only
            known = [*(builtin_rules() if mine else ()), *rules, *own_rules]
            complete = not (broken or report.inherited)
            recipes = [
                resolve_recipe(d, report, self.settings, known if complete else None, self.open_parameters)
                for d in self._chosen(mine, report)
            ]
        report.finish()
        return Program(
            tuple(recipes),
            _unique([*rules, *own_rules]),
            _unique([*families, *own_families]),
        )

    def _chosen(self, recipes: list[Tree], report: Report) -> list[Tree]:
        names = [token(d, "NAME") for d in recipes]
        start = Span(report.name, 1, 1, 1, 1)
        if self.recipe is not None:
            chosen = [d for d, name in zip(recipes, names, strict=True) if name == self.recipe]
            if not chosen and not report.diagnostics:
                report.error(
                    "S135",
                    f"there is no recipe `{self.recipe}` in {report.name}",
                    start,
                    expected=listing(map(str, names)),
                    near=(self.recipe, names),
                )
            return chosen
        if self.settings and len(recipes) != 1 and not report.diagnostics:
            report.diagnostics.append(not_one(report.name, [str(name) for name in names]))
            return []
        return recipes

    def _use(self, declaration: Tree, report: Report, chain: tuple[Path, ...]) -> Program:
        where = token(declaration, "STRING")
        name = unquoted(where)
        folder = chain[-1].parent
        file = next((f for f in (folder / name, library() / name) if isfile(f)), None)
        if not name.endswith(SUFFIX):  # no message shows a stranger's reader what other files hold
            report.error("S107", f"`use` takes {SUFFIX} files, and {name} is none", where)
            return Program((), (), ())
        if file is None:
            known = [str(f.relative_to(library())) for f in sorted(library().rglob(f"*{SUFFIX}"))]
            report.error(
                "S107",
                f"there is no file {name}",
                where,
                expected=f"a file beside {Path(report.name).name} or in the library {library()}",
                near=(name, known),
            )
            return Program((), (), ())
        file = file.resolve()
        if file in chain:
            report.error(
                "S108", f"{name} uses itself", where, help="files that use each other must become one file"
            )
        elif len(chain) > MAX_DEPTH:
            report.error("S109", f"`use` goes deeper than {MAX_DEPTH} files", where)
        elif file not in self.done:
            self.done[file] = Program((), (), ())  # a broken file is reported once
            try:
                self.done[file] = self.file(read(file), str(file), file, chain)
            except LanguageError as error:
                report.inherited += error.diagnostics
        return self.done.get(file, Program((), (), ()))


def _distinct(declarations: Iterable[Tree], report: Report) -> None:
    """A finding for what one file declares twice. Over files the later declaration wins."""
    seen: dict[tuple[str, str], Token] = {}
    for declaration in declarations:
        names = tree(declaration, "names")
        own = tokens(names, "DOTTED") if names is not None else tokens(declaration, "NAME")[:1]
        for name in own:
            first = seen.setdefault((declaration.data, str(name)), name)
            if not any(first is t for t in own):
                what = "op rule" if names is not None else declaration.data
                report.error(
                    "S110",
                    f"the {what} `{name}` is declared twice",
                    name,
                    help=f"the first is in line {first.line}",
                )


def _unique(items: Iterable[T]) -> tuple[T, ...]:
    """Without repetitions, as when two used files use a third; the order is kept."""
    return tuple(dict.fromkeys(items))


# ── the library ──────────────────────────────────────────────────────────────────────────


def _folder(name: str) -> list[Program]:
    return [load(file) for file in sorted((library() / name).glob(f"*{SUFFIX}"))]


@cache
def builtin_rules() -> tuple[OpRule, ...]:
    """The op rules of the library, all files under ``recipes/ops``."""
    return _unique(rule for program in _folder("ops") for rule in program.rules)


@cache
def builtin_families() -> tuple[Family, ...]:
    """The families of the library, all files under ``recipes/families``."""
    return _unique(family for program in _folder("families") for family in program.families)
