"""Options that several commands take in the same words, and the type of the address that some listen on."""

import click

__all__ = ["HOST", "demo_option", "json_option"]

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else on stdout.")
"""The option --json; a command gets it as `as_json`."""
demo_option = click.option("--demo", is_flag=True, help="The demo's warehouse instead of the account's.")
"""The option --demo of commands that need a warehouse alone."""


class _Host(click.ParamType[str]):
    """An address or a name; whether it is one of this machine the socket says."""

    name = "text"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Refuse what a socket takes for every address of this machine, or cannot look up."""
        if not value.strip():
            self.fail("it is empty; to listen on every address of this machine say 0.0.0.0", param, ctx)
        try:
            value.encode("idna")  # as a socket does, which tells it as an error of the program
        except UnicodeError:
            self.fail(f"{value!r} is neither an address nor a name that a machine can have", param, ctx)
        return value


HOST = _Host()
"""Type of the option --host of `serve`, `dev` and `sandbox`."""
