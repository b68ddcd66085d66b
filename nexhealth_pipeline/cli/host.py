"""The address that a command listens on, as `serve`, `dev` and `sandbox` take it."""

import click

__all__ = ["HOST"]


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
"""Type of the option --host."""
