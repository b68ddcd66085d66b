"""Writes README's reference sections from the code they describe: `make docs`.

A section stands between `<!-- name -->` and `<!-- /name -->`; `--check` only says whether it is up to date.
"""

import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

README = Path(__file__).resolve().parents[1] / "README.md"


def collections() -> str:
    """A row for every declared collection."""
    from nexhealth_pipeline.catalog.collections import DECLARED

    lines = ["| table | a row is | read | partition |", "|---|---|---|---|"]
    for one in DECLARED:
        how = f"`GET {one.path}`" + (f", {one.increment}" if one.increment else "")
        how += f", one request for each of the {one.per}" if one.per else ""
        how = f"with {one.inside}: `{one.records_at[0]}`" if one.inside else how
        partition = one.scope.value.replace("_", " x ") if one.is_asset else "-"
        lines.append(f"| `{one.table}` | {one.doc} | {how} | {partition} |")
    return "\n".join(lines)


def settings() -> str:
    """A row for every setting."""
    from nexhealth_pipeline.settings import Settings

    meanings = meanings_of(Settings)
    lines = ["| variable | meaning | default |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        default = "" if field.default in (None, ()) else f"`{field.default}`"
        lines.append(f"| `{field.alias}` | {meanings[name]} | {default} |")
    return "\n".join(lines)


def meanings_of(model: type) -> dict[str, str]:
    """The docstring below each field. pydantic would take them as well, but at each start of the software."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(model))).body
    assert isinstance(tree, ast.ClassDef)
    return {
        field.target.id: doc.value.value
        for field, doc in pairwise(tree.body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(doc, ast.Expr) and isinstance(doc.value, ast.Constant) and isinstance(doc.value.value, str)
    }


def commands() -> str:
    """Every command with its options."""
    from nexhealth_pipeline.cli import reference

    return reference().strip()


SECTIONS: dict[str, Callable[[], str]] = {"collections": collections, "settings": settings, "commands": commands}


def written(text: str) -> str:
    """README's text with every section made anew."""
    for name, make in SECTIONS.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        if not pattern.search(text):
            raise SystemExit(f"README.md has no section <!-- {name} -->")
        text = pattern.sub(lambda found, make=make: f"{found[1]}{make()}\n{found[2]}", text)
    return text


def main() -> int:
    """Write the sections, or with `--check` compare them; 1 where they lag behind."""
    old = README.read_text(encoding="utf-8")
    new = written(old)
    if "--check" in sys.argv:
        return int(old != new)
    README.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
