"""The directions in which the rooms of the package may import each other, and what each must do without.

The rooms are described in README; the order is: catalog <- client, warehouse <- sync <- webhooks <-
orchestration <- cli, with errors and settings below all and the sandbox apart, as an independent witness.
"""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

PACKAGE = "nexhealth_pipeline"
ROOT = Path(__file__).parents[1] / PACKAGE
BASE = {"", "errors", "log", "settings"}
MAY_IMPORT: dict[str, set[str]] = {
    "": set(),
    "errors": set(),
    "log": {"errors", "settings"},
    "settings": {"errors"},
    "catalog": {"errors"},
    "client": BASE | {"catalog"},
    "warehouse": BASE | {"catalog"},
    "sync": BASE | {"catalog", "client", "warehouse"},
    "webhooks": BASE | {"catalog", "client", "warehouse", "sync"},
    "orchestration": BASE | {"catalog", "client", "warehouse", "sync", "webhooks"},
    "definitions": BASE | {"orchestration"},
    "sandbox": set(),
    "cli": BASE | {"catalog", "client", "warehouse", "sync", "webhooks", "orchestration", "definitions", "sandbox"},
    "__main__": {"cli"},
}
WITH_DAGSTER = {"orchestration", "definitions", "cli"}
MODULES = sorted(ROOT.rglob("*.py"))


def room_of(path: Path) -> str:
    """The room a file belongs to: its folder or, directly in the package, its name."""
    first = path.relative_to(ROOT).parts[0].removesuffix(".py")
    return "" if first == "__init__" else first


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


@cache
def imports_of(path: Path) -> tuple[frozenset[str], frozenset[str]]:
    """Full names of what a module imports anywhere, and of what it imports as soon as it is imported itself.

    These are kept, not the trees: a quarter of a million objects that the collector would look through until the process ends.
    """
    tree = tree_of(path)
    everywhere = (name for node in ast.walk(tree) for name in imported(node, path))
    at_top = (name for node in at_import_time(tree) for name in imported(node, path))
    return frozenset(everywhere), frozenset(at_top)


def libraries(names: frozenset[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


def shown(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imported(node: ast.AST, path: Path) -> Iterator[str]:
    """Full names of what one statement imports, relative forms resolved."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            package = [PACKAGE, *path.relative_to(ROOT).parts[:-1]]
            base = ".".join([*package[: len(package) - node.level + 1], *([base] if base else [])])
        yield from (f"{base}.{alias.name}" for alias in node.names)


def at_import_time(node: ast.AST) -> Iterator[ast.AST]:
    """Every statement that runs when the module is imported: all but bodies of functions and type-only blocks."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            continue
        yield child
        yield from at_import_time(child)


def test_every_room_is_known() -> None:
    """A new room has to be given its place here before anything imports it."""
    assert {room_of(path) for path in MODULES} <= set(MAY_IMPORT)


def test_imports_go_one_way() -> None:
    """A cycle between rooms cannot be taken apart later; a client that knows tables cannot be used alone."""
    wrong = []
    for path in MODULES:
        room = room_of(path)
        for name in sorted(imports_of(path)[0]):
            parts = name.split(".")
            if parts[0] != PACKAGE:
                continue
            target = parts[1] if len(parts) > 1 and parts[1] in MAY_IMPORT else ""
            if target not in MAY_IMPORT[room] | {room}:
                wrong.append(f"{shown(path)} must not import {name}")
    assert not wrong, "\n".join(wrong)


def test_the_packages_of_webhooks_meet_in_tables_alone() -> None:
    """A receiver that knew how events are applied would need the API to answer."""
    packages = {"receiving", "registering", "applying"}
    folder = ROOT / "webhooks"
    assert {path.name for path in folder.iterdir() if (path / "__init__.py").exists()} == packages
    wrong = []
    for path in folder.rglob("*.py"):
        own = path.relative_to(folder).parts[0]
        for name in sorted(imports_of(path)[0]):
            room, *target = name.removeprefix(f"{PACKAGE}.").split(".")
            if room == "webhooks" and target and target[0] in packages - {own}:
                wrong.append(f"{shown(path)} must not import {name}")
    assert not wrong, "\n".join(wrong)


def test_dagster_stays_above_and_heavy_libraries_inside_functions() -> None:
    """`sync` must work from a plain script; pandas costs every run process 70 MB and seconds."""
    wrong = []
    for path in MODULES:
        everywhere, at_top = map(libraries, imports_of(path))
        if "pandas" in at_top:
            wrong.append(f"{shown(path)} imports pandas outside of a function")
        found = [name for name in everywhere if name.startswith("dagster")]
        if found and room_of(path) not in WITH_DAGSTER:
            wrong.append(f"{shown(path)} must not import {found}")
    assert not wrong, "\n".join(wrong)


def test_what_is_imported_is_declared() -> None:
    """What another library happens to bring is gone once that one no longer needs it."""
    project = tomllib.loads((ROOT.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [*project["dependencies"], *project["optional-dependencies"]["deploy"]]
    declared = {_canonical(re.split(r"[^\w.-]", line)[0]) for line in lines}
    names = {name for path in MODULES for name in libraries(imports_of(path)[0])}
    brought_by = packages_distributions()
    others = names - {PACKAGE, *sys.stdlib_module_names}
    assert {one for one in others if not declared & set(map(_canonical, brought_by[one]))} == set()
    assert len(others) > 10


def _canonical(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


def test_annotations_are_real_where_dagster_reads_them() -> None:
    """Dagster inspects annotations of assets and resources; as texts they break the definitions."""
    read = [path for path in MODULES if room_of(path) in {"orchestration", "definitions"}]
    assert {room_of(path) for path in read} == {"orchestration", "definitions"}
    assert [shown(path) for path in read if "__future__.annotations" in imports_of(path)[0]] == []


def order(name: str) -> tuple[int, str]:
    """Constants, then classes, then the rest; the order that ruff keeps as well."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2), name


def test_every_module_says_what_it_offers() -> None:
    """`__all__` is the list a reader and a colleague go by: sorted, complete, and true."""
    wrong = [f"{shown(path)}: {complaint}" for path in MODULES for complaint in wrong_with(path)]
    assert not wrong, "\n".join(wrong)


def wrong_with(path: Path) -> Iterator[str]:
    """What a module says wrongly of itself."""
    tree = tree_of(path)
    if not ast.get_docstring(tree):
        yield "no docstring: a module says what it is for"
    if path.name in {"__init__.py", "__main__.py"} or "migrations" in path.parts:
        return
    offered = exported(tree)
    if offered is None:
        yield "no __all__"
        return
    if offered != (in_order := sorted(offered, key=order)):
        yield f"__all__ is not sorted: it should be {in_order}"
    public = {node.name for node in definitions(tree) if not node.name.startswith("_") and not registered(node, path)}
    if missing := public - set(offered):
        yield f"__all__ lacks {sorted(missing)}: list them or begin their names with _"
    if unknown := set(offered) - {node.name for node in definitions(tree)} - assigned(tree):
        yield f"__all__ lists {sorted(unknown)}, which this module does not define"


def definitions(tree: ast.Module) -> list[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]:
    return [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)]


def registered(node: ast.AST, path: Path) -> bool:
    """Whether a decorator hands a function to click or Dagster, so that nobody needs its name."""
    return room_of(path) in WITH_DAGSTER and isinstance(node, ast.FunctionDef) and bool(node.decorator_list)


def exported(tree: ast.Module) -> list[str] | None:
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return list(ast.literal_eval(node.value))
    return None


def assigned(tree: ast.Module) -> set[str]:
    """Names bound at the top by assignment or import."""
    names: set[str] = set()
    for node in at_import_time(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
        elif isinstance(node, ast.TypeAlias if hasattr(ast, "TypeAlias") else ()):
            names.add(node.name.id)
    return names
