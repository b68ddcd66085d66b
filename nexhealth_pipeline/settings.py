"""Every setting in one place: environment name, type, default, meaning.

Precedence: flag > process environment > `.env` in the working folder > default. Dagster's commands
load `.env` over the environment, so `nexhealth` hands its explicit choices down to them as
`NEXHEALTH_INTERNAL_<NAME>`, which win over everything else here.
"""

import os
import re
import tomllib
from collections.abc import Mapping
from datetime import timedelta
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any
from zoneinfo import available_timezones

from dotenv import dotenv_values
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator

from nexhealth_pipeline.errors import ConfigurationError, InvalidSetting, MissingSetting

__all__ = ["INTERNAL_PREFIX", "Settings", "internal_environment", "load_settings", "read_env_file"]

INTERNAL_PREFIX = "NEXHEALTH_INTERNAL_"
"""Before a setting's environment name: the choice of a `nexhealth` command for its children."""


_CRON = re.compile(r"([\d*,/A-Za-z#L-]+ +){4}[\d*,/A-Za-z#L-]+")
"""Five fields; whether the numbers make sense is Dagster's to say (orchestration/crons.py)."""


class Settings(BaseModel):
    """All settings, validated. Secrets print as stars; build with :func:`load_settings`."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=False)

    api_key: Annotated[SecretStr | None, Field(alias="NEXHEALTH_API_KEY")] = None
    """The organisation's NexHealth API key."""
    api_keys_file: Annotated[Path | None, Field(alias="NEXHEALTH_API_KEYS_FILE")] = None
    """TOML file of `subdomain = "key"`, where institutions have keys of their own."""
    api_url: Annotated[str, Field(alias="NEXHEALTH_API_URL", pattern=r"^https?://[^\s/]+(/.*)?$")] = (
        "https://nexhealth.info"
    )
    """Root of the API."""
    subdomains: Annotated[tuple[str, ...], Field(alias="NEXHEALTH_SUBDOMAINS")] = ()
    """Institutions to sync (comma list); empty = all that the key reaches."""
    rate_share: Annotated[float, Field(alias="NEXHEALTH_RATE_SHARE", gt=0, le=1)] = 0.8
    """Part of the documented rate limits to use."""
    database_url: Annotated[SecretStr | None, Field(alias="DATABASE_URL")] = None
    """The warehouse, `postgresql://...`; unset = the embedded server."""
    dagster_database_url: Annotated[SecretStr | None, Field(alias="DAGSTER_DATABASE_URL")] = None
    """Dagster's own storage, one for each warehouse (two would mix their runs); unset = database `dagster` on its server."""
    home: Annotated[Path | None, Field(alias="NEXHEALTH_HOME")] = None
    """State of the embedded default; unset = `.nexhealth/` in a checkout, else the user's data folder."""
    concurrency: Annotated[int, Field(alias="NEXHEALTH_CONCURRENCY", ge=1, le=64)] = 6
    """How many slices a run reads at once under each of the API's two limits a minute; as many lists of single rows beside them."""
    batch_pages: Annotated[int, Field(alias="NEXHEALTH_BATCH_PAGES", ge=1, le=100)] = 6
    """Most pages that one transaction commits; several slices at once share them, and each has one at least."""
    overlap_minutes: Annotated[int, Field(alias="NEXHEALTH_OVERLAP_MINUTES", ge=0, le=10080)] = 60
    """Minutes subtracted from a watermark when it is used."""
    timeout_seconds: Annotated[float, Field(alias="NEXHEALTH_TIMEOUT_SECONDS", gt=0, le=600)] = 60.0
    """Longest silence of the API within one request before it counts as lost."""
    nightly: Annotated[str, Field(alias="NEXHEALTH_NIGHTLY")] = "0 2 * * *"
    """Cron of the nightly run."""
    catchup: Annotated[str, Field(alias="NEXHEALTH_CATCHUP")] = "30 9 * * *"
    """Cron of the morning catch-up for locations that were offline at night."""
    timezone: Annotated[str, Field(alias="NEXHEALTH_TIMEZONE")] = "UTC"
    """IANA time zone of both crons."""
    webhook_key: Annotated[SecretStr | None, Field(alias="NEXHEALTH_WEBHOOK_KEY")] = None
    """Seals webhook secrets: 32+ random characters; of several (comma list) the first seals, all open."""
    webhook_secrets: Annotated[SecretStr | None, Field(alias="NEXHEALTH_WEBHOOK_SECRETS")] = None
    """Secrets (comma list) of endpoints that were not registered by `nexhealth webhooks setup`."""
    webhook_past_hours: Annotated[float, Field(alias="NEXHEALTH_WEBHOOK_PAST_HOURS", gt=0, le=720)] = 49.0
    """Oldest timestamp of a webhook that is taken: the vendor repeats for 48 hours."""
    webhook_future_minutes: Annotated[float, Field(alias="NEXHEALTH_WEBHOOK_FUTURE_MINUTES", ge=0, le=1440)] = 5.0
    """How far a webhook's timestamp may be ahead of this machine's clock."""
    webhook_networks: Annotated[tuple[str, ...], Field(alias="NEXHEALTH_WEBHOOK_NETWORKS")] = ()
    """Networks (CIDR, comma list) that webhooks may come from; empty = any, since the vendor publishes none."""
    webhook_proxies: Annotated[tuple[str, ...], Field(alias="NEXHEALTH_WEBHOOK_PROXIES")] = ()
    """Networks (CIDR, comma list) of proxies whose X-Forwarded-For is believed."""
    webhook_rate: Annotated[int, Field(alias="NEXHEALTH_WEBHOOK_RATE", ge=1, le=100_000)] = 1000
    """Requests a second that one address may send to the receiver; twice as many in a burst."""
    webhook_attempts: Annotated[int, Field(alias="NEXHEALTH_WEBHOOK_ATTEMPTS", ge=1, le=100)] = 5
    """Failed tries after which an event is parked."""
    webhook_payload_days: Annotated[int, Field(alias="NEXHEALTH_WEBHOOK_PAYLOAD_DAYS", ge=3, le=3650)] = 30
    """Days that payloads of applied events are kept for replay; their audit rows stay."""
    webhook_silence_hours: Annotated[float, Field(alias="NEXHEALTH_WEBHOOK_SILENCE_HOURS", gt=0, le=720)] = 24.0
    """Hours without an event of an institution after which the watchdog warns."""
    changes_days: Annotated[int, Field(alias="NEXHEALTH_CHANGES_DAYS", ge=1, le=365)] = 7
    """Days that the change feed (nexhealth_changes) goes back."""
    webhook_event_days: Annotated[int | None, Field(alias="NEXHEALTH_WEBHOOK_EVENT_DAYS", ge=31, le=36500)] = None
    """Days that the audit rows of webhook events stay once their payload is gone (refused requests: 31); unset = for ever."""
    sync_log_months: Annotated[int, Field(alias="NEXHEALTH_SYNC_LOG_MONTHS", ge=1, le=120)] = 3
    """Whole months that the sync log keeps each slice; older ones become sums a day, which stay for two years."""
    quarantine_days: Annotated[int, Field(alias="NEXHEALTH_QUARANTINE_DAYS", ge=1, le=3650)] = 90
    """Days that resolved rows of the quarantine are kept; open ones stay."""
    history_months: Annotated[int | None, Field(alias="NEXHEALTH_HISTORY_MONTHS", ge=1, le=1200)] = None
    """Months that superseded versions of rows are kept (of each record the last one always); unset = for ever."""
    dagster_days: Annotated[int, Field(alias="NEXHEALTH_DAGSTER_DAYS", ge=3, le=3650)] = 30
    """Days that Dagster's database keeps runs and events; the last event of each partition and check stays."""
    log_level: Annotated[str, Field(alias="NEXHEALTH_LOG_LEVEL", pattern="^(DEBUG|INFO|WARNING|ERROR)$")] = "INFO"
    """Least severe level that is logged. Of runs nothing below INFO, unless `dagster.yaml` says `python_log_level: DEBUG`."""
    data_kind: Annotated[str, Field(alias="NEXHEALTH_DATA_KIND", pattern="^(real|sandbox)$")] = "real"
    """What the API serves, so that synthetic and real data never meet; `demo` and `dev --demo` say sandbox."""

    @field_validator("subdomains", "webhook_networks", "webhook_proxies", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("api_keys_file", "home")
    @classmethod
    def _without_tilde(cls, value: Path | None) -> Path | None:
        """A shell writes out `~` in `NAME=~/file`, but nobody does in `.env`, in quotes, or in a service's file."""
        try:
            return None if value is None else value.expanduser()
        except RuntimeError:
            raise ValueError("there is no such home folder: write the whole path") from None

    @field_validator("webhook_networks", "webhook_proxies")
    @classmethod
    def _networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for one in value:
            try:
                ip_network(one)
            except ValueError:
                raise ValueError(f"{one} is not a network such as 203.0.113.0/24") from None
        return value

    @field_validator("webhook_key")
    @classmethod
    def _long_enough(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and any(len(one.strip()) < 32 for one in value.get_secret_value().split(",")):
            raise ValueError("needs 32 random characters or more, for example of `openssl rand -hex 32`")
        return value

    @field_validator("nightly", "catchup")
    @classmethod
    def _cron(cls, value: str) -> str:
        if not _CRON.fullmatch(value.strip()):
            raise ValueError("not a cron line of five fields, for example 0 2 * * *")
        return value.strip()

    @field_validator("timezone")
    @classmethod
    def _known_zone(cls, value: str) -> str:
        if value not in available_timezones():
            raise ValueError("not an IANA time zone name, for example America/New_York")
        return value

    @property
    def overlap(self) -> timedelta:
        """`overlap_minutes` as a duration."""
        return timedelta(minutes=self.overlap_minutes)

    def api_keys(self) -> dict[str, str]:
        """Keys by subdomain; the key `""` is for every institution without one of its own.

        Raises MissingSetting when there is none, InvalidSetting when the keys file cannot be read or holds none.
        """
        keys = _read_keys_file(self.api_keys_file) if self.api_keys_file else {}
        if self.api_key is not None:
            keys[""] = self.api_key.get_secret_value()
        if not keys and self.api_keys_file:
            raise InvalidSetting(
                f"NEXHEALTH_API_KEYS_FILE: {self.api_keys_file} holds no key;"
                ' write one line `subdomain = "key"` an institution, or set NEXHEALTH_API_KEY'
            )
        if not keys:
            raise MissingSetting(
                "NEXHEALTH_API_KEY is not set: set it to your NexHealth API key, or run `nexhealth dev` "
                "or `nexhealth demo`, which need none"
            )
        return keys


def _read_keys_file(path: Path) -> dict[str, str]:
    """The `subdomain = "key"` pairs of a TOML file."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidSetting(f"NEXHEALTH_API_KEYS_FILE: {path} cannot be read ({error.strerror})") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError):
        raise InvalidSetting(
            f'NEXHEALTH_API_KEYS_FILE: {path} is not valid TOML; write one line `subdomain = "key"` an institution'
        ) from None
    bad = [name for name, key in content.items() if not isinstance(key, str) or not key]
    if bad:
        raise InvalidSetting(f'NEXHEALTH_API_KEYS_FILE: {path}: {bad[0]} must be a text: {bad[0]} = "key"')
    return dict(content)


def load_settings(
    overrides: Mapping[str, str] | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    env_file: Path | None = Path(".env"),
) -> Settings:
    """Settings from `overrides` (flags, by environment name), environment and `.env`.

    An empty value counts as unset. Raises InvalidSetting naming the setting and, where it is no
    secret, its value, or the file that cannot be read.
    """
    environ = os.environ if environ is None else environ
    names = {field.alias for field in Settings.model_fields.values() if field.alias}
    sources: list[Mapping[str, str | None]] = [
        {} if env_file is None else read_env_file(env_file),
        environ,
        {
            name.removeprefix(INTERNAL_PREFIX): value
            for name, value in environ.items()
            if name.startswith(INTERNAL_PREFIX)
        },
        overrides or {},
    ]
    values: dict[str, Any] = {}
    for source in sources:
        values.update({name: value for name, value in source.items() if name in names and value})
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        raise _invalid(error, values) from None


def read_env_file(path: Path) -> dict[str, str | None]:
    """What a `.env` file sets; nothing where there is none. Raises InvalidSetting where it cannot be read."""
    if not path.is_file():
        return {}
    try:
        return dotenv_values(path)
    except OSError as error:
        raise InvalidSetting(f"{path.absolute()} cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise InvalidSetting(f"{path.absolute()} is not a text in UTF-8: save it in that encoding") from None


def internal_environment(choices: Mapping[str, str]) -> dict[str, str]:
    """`choices` (by environment name) as variables that win over `.env` in a child process."""
    return {f"{INTERNAL_PREFIX}{name}": value for name, value in choices.items()}


def _invalid(error: ValidationError, values: Mapping[str, str]) -> ConfigurationError:
    first = error.errors(include_url=False, include_input=False)[0]
    name = str(first["loc"][0])
    field = next(field for field in Settings.model_fields.values() if field.alias == name)
    secret = "SecretStr" in str(field.annotation)
    shown = "" if secret else f" (value: {values.get(name)!r})"
    return InvalidSetting(f"{name}{shown}: {first['msg'].removeprefix('Value error, ')}")
