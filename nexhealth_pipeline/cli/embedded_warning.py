"""A real practice's data on the embedded server: said loudly, once a machine, with the fix."""

import contextlib

import click

from nexhealth_pipeline.cli.realm import Realm, is_sandbox_key

__all__ = ["EMBEDDED_WARNING", "holds_real_data_embedded", "warn_once"]

EMBEDDED_WARNING = (
    "A real practice's data is about to be kept in the embedded PostgreSQL, which is for trials: no encryption, no "
    "backups, readable by this machine's administrators. Set DATABASE_URL to a PostgreSQL server of yours, with "
    "encrypted disks and sslmode=verify-full, before anyone relies on it."
)


def holds_real_data_embedded(realm: Realm) -> bool:
    """Whether a real key and the embedded server come together."""
    settings = realm.settings
    has_key = settings.api_key is not None or settings.api_keys_file is not None
    return has_key and realm.kind == "real" and settings.database_url is None and not is_sandbox_key(settings)


def warn_once(realm: Realm) -> None:
    """Say it on stderr if it is so and was not said before; a mark in NEXHEALTH_HOME remembers."""
    if not holds_real_data_embedded(realm):
        return
    from nexhealth_pipeline.warehouse.connect import home_folder

    mark = home_folder(realm.settings) / "embedded-warning-given"
    with contextlib.suppress(OSError):  # a home that cannot be used: whoever is to make it will say so
        if mark.exists():
            return
    click.secho(f"\nWARNING: {EMBEDDED_WARNING}\n", err=True, fg="red", bold=True)
    with contextlib.suppress(OSError):  # then it is said again
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()
