"""Writes the reference sections of README and docs/ from the code they describe: `make docs`.

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

ROOT = Path(__file__).resolve().parents[1]


def collections() -> str:
    """A row for every declared collection."""
    from nexhealth_pipeline.catalog.collections import DECLARED

    lines = ["| table | a row is | read | partition |", "|---|---|---|---|"]
    for one in DECLARED:
        how = f"`GET {one.path}`" + (f", {one.increment}" if one.increment else "")
        how += f", one request for each of the {one.per}" if one.per else ""
        how = f"with {one.inside}: `{one.records_at[0]}`" if one.inside else how
        partition = one.scope.value.replace("_", " x ") if one.is_asset else "-"
        key = "" if one.key == ("institution_id", "id") else f" Key: {', '.join(f'`{name}`' for name in one.key)}."
        lines.append(f"| `{one.table}` | {one.doc}{key} | {how} | {partition} |")
    return "\n".join(lines)


def not_copied() -> str:
    """A row for everything of the API that no table holds."""
    from nexhealth_pipeline.catalog.collections import DECLARED
    from nexhealth_pipeline.catalog.openapi import NOT_ASKED, NOT_COPIED, NOT_HEARD

    lines = ["| not copied | why |", "|---|---|"]
    lines += [f"| `GET {path.replace('{}', '{id}')}` | {why} |" for path, why in NOT_COPIED.items()]
    lines += [f"| `GET {path.replace('{}', '{id}')}`: `{name}` | {why} |" for (path, name), why in NOT_ASKED.items()]
    lines += [f"| event `{name}` | {why} |" for name, why in NOT_HEARD.items()]
    sensitive = [(one.table, ".".join(field)) for one in DECLARED for field in one.sensitive]
    lines += [
        f"| `{table}`: `{field}` | too sensitive to keep: it is taken out of `raw`, and of events, as well |"
        for table, field in sensitive
    ]
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
    """A row for every command."""
    from nexhealth_pipeline.cli.reference import command_table

    return command_table("docs/commands.md").strip()


def command_reference() -> str:
    """Every command with its options."""
    from nexhealth_pipeline.cli import reference

    return reference().strip()


def checks() -> str:
    """A row for every check: of the copy, and of continuous sync."""
    from nexhealth_pipeline.warehouse.check_rules import RULES
    from nexhealth_pipeline.warehouse.webhook_health import HEALTH_RULES

    lines = ["| check | of | severity | passes when this is so |", "|---|---|---|---|"]
    for what, rules in (("collections", RULES), ("continuous sync", HEALTH_RULES)):
        lines += [f"| `{one.name}` | {what} | {one.severity.value} | {one.doc} |" for one in rules]
    return "\n".join(lines)


SECTIONS: dict[str, dict[str, Callable[[], str]]] = {
    "README.md": {
        "collections": collections,
        "not copied": not_copied,
        "settings": settings,
        "commands": commands,
    },
    "docs/commands.md": {"commands": command_reference},
    "docs/operations.md": {"checks": checks},
}
"""What makes each section, by file."""


def written(name: str, text: str) -> str:
    """The text of a file with every section made anew."""
    for section, make in SECTIONS[name].items():
        pattern = re.compile(rf"(<!-- {section} -->\n).*?(<!-- /{section} -->)", re.DOTALL)
        if not pattern.search(text):
            raise SystemExit(f"{name} has no section <!-- {section} -->")
        text = pattern.sub(lambda found, make=make: f"{found[1]}{make()}\n{found[2]}", text)
    return text


def main() -> int:
    """Write the sections, or with `--check` compare them; 1 where they lag behind."""
    lagging = False
    for name in SECTIONS:
        old = (ROOT / name).read_text(encoding="utf-8")
        new = written(name, old)
        lagging |= old != new
        if "--check" not in sys.argv:
            (ROOT / name).write_text(new, encoding="utf-8")
    return int(lagging and "--check" in sys.argv)


if __name__ == "__main__":
    sys.exit(main())
