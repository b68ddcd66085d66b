"""The checks of `nexhealth doctor`: each state that keeps a sync from working, told apart, with its fix.

Each check asks the real thing (the API, the database) as little as possible and changes nothing there.
A finding's group decides the exit status: settings 2, API 3, database 4; warnings alone give 1.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from nexhealth_pipeline.cli.embedded_warning import EMBEDDED_WARNING, holds_real_data_embedded
from nexhealth_pipeline.cli.realm import Realm
from nexhealth_pipeline.settings import read_env_file

__all__ = ["Finding", "Group", "Level", "examine", "exit_status"]


class Level(StrEnum):
    """How bad a finding is."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


class Group(StrEnum):
    """What a finding is about; a failure's exit status."""

    SETTINGS = "settings"
    API = "api"
    DATABASE = "database"

    @property
    def exit_status(self) -> int:
        """Exit status of a failure of this group."""
        return {Group.SETTINGS: 2, Group.API: 3, Group.DATABASE: 4}[self]


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check."""

    check: str
    """Short name that scripts may rely on: `key`, `reach`, `clock`, ..."""
    level: Level
    group: Group
    message: str
    fix: str = ""


def examine(realm: Realm, locations: tuple[str, ...] = ()) -> Iterator[Finding]:
    """All findings, in the order of their checks, each as soon as it is known. Raises InvalidSetting."""
    from nexhealth_pipeline.cli.doctor_api import api_findings
    from nexhealth_pipeline.cli.doctor_database import database_findings
    from nexhealth_pipeline.cli.doctor_webhooks import webhook_findings
    from nexhealth_pipeline.orchestration.crons import check_crons

    check_crons(realm.settings)
    yield from _env_file()
    yield from api_findings(realm.settings, locations)
    yield from database_findings(realm)
    yield from webhook_findings(realm)
    if holds_real_data_embedded(realm):
        yield Finding(
            "encryption",
            Level.WARNING,
            Group.DATABASE,
            EMBEDDED_WARNING.split(". Set")[0],
            "Set DATABASE_URL to a PostgreSQL server of yours with encrypted disks and sslmode=verify-full.",
        )


def _env_file() -> Iterator[Finding]:
    """What `.env` sets otherwise than the environment: which of the two counts depends on whose command it is."""
    differing = [
        name
        for name, value in read_env_file(Path(".env")).items()
        if name == "DATABASE_URL" or name.startswith(("NEXHEALTH_", "DAGSTER_"))
        if value is not None and os.environ.get(name, "") not in ("", value)
    ]
    if differing:
        yield Finding(
            "env_file",
            Level.WARNING,
            Group.SETTINGS,
            f"`.env` and the environment differ in {', '.join(sorted(differing))}: `nexhealth` goes by the environment, "
            "dagster-daemon, dagster-webserver and `dagster` by `.env`",
            "Keep each setting in one of the two.",
        )


def exit_status(findings: list[Finding]) -> int:
    """0 all good, 1 warnings only, else that of the first failing group: settings, API, database."""
    failed = [finding.group.exit_status for finding in findings if finding.level is Level.FAILED]
    if failed:
        return min(failed)
    return 1 if any(finding.level is Level.WARNING for finding in findings) else 0
