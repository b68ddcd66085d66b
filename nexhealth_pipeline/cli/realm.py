"""What a command works on: the account that the settings name, or the demo beside it.

The demo ignores every setting and `.env` but NEXHEALTH_HOME and has databases of its own on the embedded
server, so that nothing synthetic meets a real practice. Dagster's processes and storage read the settings
themselves, wherever they run; :func:`shut_in_demo` and the environments here make them see the same.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from nexhealth_pipeline.settings import Settings

__all__ = [
    "Realm",
    "account",
    "demo",
    "demo_environment",
    "demo_home",
    "explicit_choices",
    "is_sandbox_key",
    "real_environment",
    "shut_in_demo",
    "usable_demo_home",
]

DEMO_DATABASE, DEMO_DAGSTER_DATABASE = "demo", "demo_dagster"


@dataclass(frozen=True, slots=True)
class Realm:
    """Settings, the kind of data they lead to, and the embedded server's databases for it."""

    settings: "Settings"
    kind: Literal["real", "sandbox"]
    warehouse_database: str
    dagster_database: str

    def warehouse_url(self, *, linger_seconds: float = 0, tcp: bool = False) -> str:
        """Address of the warehouse; starts the embedded server. Raises InvalidSetting, WarehouseError."""
        from nexhealth_pipeline.warehouse.connect import warehouse_url

        return warehouse_url(
            self.settings, database_name=self.warehouse_database, linger_seconds=linger_seconds, tcp=tcp
        )

    def dagster_url(self) -> str:
        """Address of Dagster's own storage. Raises InvalidSetting, WarehouseError."""
        from nexhealth_pipeline.warehouse.connect import dagster_url

        return dagster_url(self.settings, database_name=self.dagster_database)


def account() -> Realm:
    """The realm of the settings. Raises InvalidSetting."""
    from nexhealth_pipeline.settings import load_settings
    from nexhealth_pipeline.warehouse.connect import DAGSTER_DATABASE, WAREHOUSE_DATABASE

    settings = load_settings()
    kind: Literal["real", "sandbox"] = "sandbox" if settings.data_kind == "sandbox" else "real"
    return Realm(settings, kind, WAREHOUSE_DATABASE, DAGSTER_DATABASE)


def demo(api_url: str | None = None) -> Realm:
    """The demo's realm; its sandbox answers at `api_url`. Raises InvalidSetting."""
    from nexhealth_pipeline.settings import load_settings

    settings = load_settings(_demo_choices(demo_home(), api_url), environ={}, env_file=None)
    return Realm(settings, "sandbox", DEMO_DATABASE, DEMO_DAGSTER_DATABASE)


def demo_home() -> Path:
    """NEXHEALTH_HOME, the one setting that the demo heeds, with its usual precedence and default."""
    from nexhealth_pipeline.settings import INTERNAL_PREFIX, load_settings, read_env_file
    from nexhealth_pipeline.warehouse.connect import home_folder

    name = "NEXHEALTH_HOME"
    found = os.environ.get(INTERNAL_PREFIX + name) or os.environ.get(name)
    if not found:
        found = read_env_file(Path(".env")).get(name)
    return home_folder(load_settings({name: found} if found else {}, environ={}, env_file=None))


def usable_demo_home() -> Path:
    """The demo's home, made if it was not there. Raises InvalidSetting where it cannot be, before anything is in it."""
    from nexhealth_pipeline.warehouse.place import check_home

    home = demo_home()
    check_home(home)
    return home


def _demo_choices(home: Path, api_url: str | None) -> dict[str, str]:
    """The demo's settings by environment name. The address of its database follows from its home."""
    from nexhealth_pipeline.sandbox.auth import SANDBOX_API_KEY

    choices = {"NEXHEALTH_HOME": str(home), "NEXHEALTH_API_KEY": SANDBOX_API_KEY, "NEXHEALTH_DATA_KIND": "sandbox"}
    choices["NEXHEALTH_RATE_SHARE"] = "1.0"  # nobody else uses the demo's key
    return choices | ({"NEXHEALTH_API_URL": api_url} if api_url else {})


def is_sandbox_key(settings: "Settings") -> bool:
    """Whether the only key is the one that every sandbox takes: nothing real can come of it."""
    if settings.api_key is None or settings.api_keys_file is not None:
        return False
    from nexhealth_pipeline.sandbox.auth import SANDBOX_API_KEY

    return settings.api_key.get_secret_value() == SANDBOX_API_KEY


def demo_environment(realm: Realm) -> dict[str, str]:
    """The environment of this process without any setting, plus the demo's as choices that win over everything.

    Starts the embedded server: its address is among them.
    """
    from nexhealth_pipeline.settings import internal_environment

    choices = explicit_choices(realm.settings) | {
        "DATABASE_URL": realm.warehouse_url(),
        "DAGSTER_DATABASE_URL": realm.dagster_url(),
    }
    return _without_settings(os.environ) | internal_environment(choices)


def real_environment(realm: Realm) -> dict[str, str]:
    """The environment of this process plus every setting made, in the form that `.env` does not win over."""
    from nexhealth_pipeline.settings import internal_environment

    return dict(os.environ) | internal_environment(explicit_choices(realm.settings))


def shut_in_demo(realm: Realm) -> None:
    """Make this process and its forked children see the demo's settings only: environment and working folder."""
    environment = demo_environment(realm)
    home = demo_home()
    for name in list(os.environ.keys() - environment.keys()):
        del os.environ[name]
    os.environ.update(environment)
    os.chdir(home)  # away from `.env`


def explicit_choices(settings: "Settings") -> dict[str, str]:
    """The settings that were made, by environment name, readable from any working folder."""
    fields = type(settings).model_fields
    return {str(fields[name].alias): _written(getattr(settings, name)) for name in settings.model_fields_set}


def _written(value: object) -> str:
    """A setting's value as its environment variable would hold it."""
    from pydantic import SecretStr

    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, Path):
        return str(value.absolute())
    return ",".join(value) if isinstance(value, tuple) else str(value)


def _without_settings(environ: Mapping[str, str]) -> dict[str, str]:
    from nexhealth_pipeline.settings import INTERNAL_PREFIX, Settings

    ours = {field.alias for field in Settings.model_fields.values()} | {"DAGSTER_HOME"}
    return {name: value for name, value in environ.items() if name not in ours and not name.startswith(INTERNAL_PREFIX)}
