"""Commands that are named already and not there yet: they say so and end with 2."""

import click

from nexhealth_pipeline.errors import ConfigurationError

__all__ = ["LATER", "not_in_this_version"]

_ANYTHING = {"ignore_unknown_options": True, "allow_extra_args": True}


def not_in_this_version(what: str) -> ConfigurationError:
    """The error for `what` (`nexhealth serve`, an option) of a later version."""
    return ConfigurationError(f"{what}: not in this version")


def _later(name: str, doc: str) -> click.Command:
    def refuse() -> None:
        raise not_in_this_version(f"nexhealth {name}")

    return click.Command(
        name, callback=refuse, help=f"{doc} Not in this version.", context_settings=_ANYTHING, hidden=True
    )


LATER = (
    _later("serve", "The webhook receiver alone."),
    _later("webhooks", "Registers, shows and removes webhooks; applies and replays their events."),
)
"""Hidden from `nexhealth --help` until they work."""
