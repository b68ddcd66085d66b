"""`nexhealth doctor`: prints the findings of :mod:`.findings`."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from nexhealth_pipeline.cli.json_output import json_line, told_as_json
from nexhealth_pipeline.cli.options import json_option
from nexhealth_pipeline.errors import InvalidSetting
from nexhealth_pipeline.log import printable

if TYPE_CHECKING:
    from nexhealth_pipeline.cli.findings import Finding

__all__ = ["doctor"]

_MARKS = {"ok": ("ok     ", "green"), "warning": ("WARNING", "yellow"), "failed": ("FAILED ", "red")}


@click.command()
@click.option("--location", "locations", metavar="KEY", multiple=True, help="Check this location, too; repeatable.")
@json_option
@click.option(
    "--openapi", metavar="FILE", help="Only compare a newer OpenAPI file of the vendor's (JSON) with what is synced."
)
def doctor(locations: tuple[str, ...], openapi: str | None, *, as_json: bool) -> int:
    """Check key, reach, clock and database.

    Says of everything that is wrong how to put it right.

    Exit status 0: all good; 1: warnings only, or a difference to the OpenAPI file; else by what failed first:
    2 settings, 3 the API, 4 the database.
    """
    with told_as_json(as_json):
        if openapi is None:
            return _examine(locations, as_json=as_json)
        if locations:
            raise InvalidSetting("--openapi only compares a file with what is synced: leave out --location")
        return _compare(openapi, as_json=as_json)


def _examine(locations: tuple[str, ...], *, as_json: bool) -> int:
    from nexhealth_pipeline.cli.findings import examine, exit_status
    from nexhealth_pipeline.cli.realm import account
    from nexhealth_pipeline.log import set_up_for

    realm = account()
    set_up_for(realm.settings, quiet=True)
    found = list(_shown(examine(realm, locations), as_json=as_json))
    status = exit_status(found)
    if as_json:
        click.echo(json_line({"findings": [asdict(one) for one in found], "exit_status": status}))
    return status


def _compare(openapi: str, *, as_json: bool) -> int:
    from nexhealth_pipeline.cli.doctor_openapi import difference_lines, differences

    found = differences(openapi)
    status = 1 if found else 0
    if as_json:
        click.echo(json_line({"differences": [asdict(one) for one in found], "exit_status": status}))
    else:
        click.echo("\n".join(difference_lines(found)))
    return status


def _shown(findings: "Iterable[Finding]", *, as_json: bool) -> "Iterator[Finding]":
    """Pass findings on, printing each as it comes: a check may take seconds."""
    for finding in findings:
        if not as_json:
            mark, colour = _MARKS[finding.level]
            click.echo(f"{click.style(mark, fg=colour)} {printable(finding.message, lines=True)}")
            if finding.fix:
                click.echo(f"        {printable(finding.fix, lines=True)}")
        yield finding
