"""The command reference of README and docs/, made from the commands themselves so that it cannot lag behind."""

from collections.abc import Iterator

import click

__all__ = ["command_table", "reference", "visible_commands"]


def command_table(page: str) -> str:
    """A row for every visible command, with a link to its section of `page`, which holds the reference."""
    lines = ["| command | does |", "|---|---|"]
    lines += [
        f"| [`{path}`]({page}#{_anchor(path)}) | {_cell(command.get_short_help_str(200))} |"
        for path, command in visible_commands()
    ]
    return "\n".join(lines) + "\n"


def reference() -> str:
    """Every visible command with its options, in Markdown."""
    return "\n\n".join("\n".join(_section(path, command)) for path, command in visible_commands()) + "\n"


def visible_commands() -> Iterator[tuple[str, click.Command]]:
    """Each command that does something itself, with the words that call it, in the order of `--help`."""
    from nexhealth_pipeline.cli.app import cli

    yield from _leaves("nexhealth", cli)


def _leaves(path: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
    if not isinstance(command, click.Group):
        yield path, command
        return
    for name, inner in command.commands.items():
        if not inner.hidden:
            yield from _leaves(f"{path} {name}", inner)


def _section(path: str, command: click.Command) -> list[str]:
    arguments = [one.make_metavar(_context(command)) for one in command.params if isinstance(one, click.Argument)]
    options = [one for one in command.params if isinstance(one, click.Option) and not one.hidden]
    lines = [f"## {path}", "", f"`{' '.join([path, *(['[OPTIONS]'] if options else []), *arguments])}`", ""]
    lines += [paragraph.replace("\n", " ") for paragraph in _paragraphs(command)]
    if options:
        lines += ["", "| option | meaning |", "|---|---|"]
        lines += [_option(command, option) for option in options]
    return lines


def _paragraphs(command: click.Command) -> list[str]:
    text = (command.help or "").strip().split("\n\n")
    return [part for paragraph in text for part in ("\n".join(paragraph.split()).replace("\n", " "), "")][:-1]


def _option(command: click.Command, option: click.Option) -> str:
    record = option.get_help_record(_context(command))
    assert record is not None
    return f"| `{_cell(record[0])}` | {_cell(record[1])} |"


def _context(command: click.Command) -> click.Context:
    return click.Context(command, info_name=command.name)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _anchor(path: str) -> str:
    return path.replace(" ", "-")
