"""What `--json` puts on stdout: one object, of what was done or of the error that ended the command.

A monitor that reads it need not parse stderr, where the error stands for people in any case. A command line that
click cannot take apart has no object: whether JSON was asked for is not known then.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from typing import Any

import click

from nexhealth_pipeline.errors import PipelineError

__all__ = ["json_line", "told_as_json"]


def json_line(content: Any) -> str:
    """`content` as JSON on one line; times as ISO 8601 has them, with a T."""
    return json.dumps(content, default=_text)


@contextmanager
def told_as_json(as_json: bool) -> Iterator[None]:
    """Around what a command does before it prints its own object: an error that ends it is one as well."""
    try:
        yield
    except PipelineError as error:
        if as_json:
            click.echo(json_line({"error": str(error), "exit_status": error.exit_status}))
        raise


def _text(value: object) -> str:
    return value.isoformat() if isinstance(value, date) else str(value)
