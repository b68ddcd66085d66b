"""How our own commands find and open the Dagster instance.

Dagster takes its instance from the folder `DAGSTER_HOME`. `nexhealth` needs nobody to set it: a folder
that the user chose counts, else the nearest one upward from here whose `dagster.yaml` names our storage
class (a checkout), else a copy of the packaged files below `NEXHEALTH_HOME` (an installed wheel).
"""

import os
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from dagster import DagsterInstance

from nexhealth_pipeline.errors import InvalidSetting
from nexhealth_pipeline.settings import Settings
from nexhealth_pipeline.warehouse.connect import home_folder

__all__ = ["dagster_home", "open_instance", "workspace_file"]

_STORAGE = ("nexhealth_pipeline.orchestration.storage", "NexHealthDagsterStorage")


def dagster_home(settings: Settings, *, start: Path | None = None, chosen: str | None = None) -> Path:
    """The folder to use as `DAGSTER_HOME`; the packaged files are written there if it is our own.

    `chosen` is what the user set, `start` where the search upward begins (the working folder).
    Raises InvalidSetting where `chosen` holds no `dagster.yaml`.
    """
    if chosen:
        folder = _chosen_home(chosen)
        if folder is None:
            raise InvalidSetting(f"DAGSTER_HOME (value: {chosen!r}): this folder holds no dagster.yaml")
        return folder
    here = (start or Path.cwd()).absolute()
    for folder in (here, *here.parents):
        if _names_our_storage(folder / "dagster.yaml"):
            return folder
    return _packaged_home(home_folder(settings) / "dagster")


def workspace_file(home: Path) -> Path:
    """The `workspace.yaml` beside `dagster.yaml`, else the packaged one."""
    beside = home / "workspace.yaml"
    return beside if beside.is_file() else Path(str(files(__package__) / "workspace.yaml"))


def open_instance(settings: Settings) -> DagsterInstance:
    """The Dagster instance, for use as a context manager; sets `DAGSTER_HOME` for this process and its children.

    It is that of the `DAGSTER_HOME` that is set, if one is.
    Open it after forking: it holds connections. Raises ConfigurationError, WarehouseError.
    """
    home = dagster_home(settings, chosen=os.environ.get("DAGSTER_HOME"))
    os.environ["DAGSTER_HOME"] = str(home)
    return DagsterInstance.from_config(str(home))


def _chosen_home(chosen: str) -> Path | None:
    """The folder that the user chose, where it holds a `dagster.yaml` that can be looked at."""
    try:
        folder = Path(chosen).expanduser().absolute()
        return folder if (folder / "dagster.yaml").is_file() else None
    except (OSError, RuntimeError):  # it may not be entered, its name is too long, or `~` is nobody's
        return None


def _names_our_storage(file: Path) -> bool:
    """Whether `file` is a `dagster.yaml` of ours; one that cannot be read is none."""
    try:
        content: Any = yaml.safe_load(file.read_text(encoding="utf-8"))
        custom = content["storage"]["custom"]
        return (custom["module"], custom["class"]) == _STORAGE
    except (OSError, UnicodeDecodeError, yaml.YAMLError, TypeError, KeyError):
        return False


def _packaged_home(folder: Path) -> Path:
    """`folder` with the packaged `dagster.yaml` and `workspace.yaml` in their newest form."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("dagster.yaml", "workspace.yaml"):
            content = (files(__package__) / name).read_bytes()
            target = folder / name
            if not target.is_file() or target.read_bytes() != content:
                _replace(target, content)
    except OSError as error:
        raise InvalidSetting(
            f"NEXHEALTH_HOME: {folder} cannot be written ({error.strerror}): set it to a folder of your own"
        ) from None
    return folder


def _replace(target: Path, content: bytes) -> None:
    """Write a file in one step: another process may be reading it."""
    new = target.with_name(f"{target.name}.{os.getpid()}")
    new.write_bytes(content)
    new.replace(target)
