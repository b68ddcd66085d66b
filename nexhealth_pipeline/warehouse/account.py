"""As whom the embedded server runs: PostgreSQL refuses root, so root lends it an account without rights."""

import os
import pwd
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nexhealth_pipeline.errors import WarehouseError

__all__ = ["Account", "server_account"]

_CANDIDATES = ("nobody", "postgres", "daemon")
"""Existing accounts, in order of preference; none is ever created."""


@dataclass(frozen=True, slots=True)
class Account:
    """An unprivileged account that root starts the server's processes as."""

    name: str
    uid: int
    gid: int

    def options(self) -> Mapping[str, Any]:
        """Arguments for `subprocess` that start a process as this account and nothing more."""
        return {"user": self.uid, "group": self.gid, "extra_groups": ()}

    def own(self, path: Path) -> None:
        """Give `path` to this account."""
        os.chown(path, self.uid, self.gid)

    def can_enter(self, folder: Path) -> bool:
        """Whether the account reaches `folder`; asked of the kernel, which also knows ACLs and mounts."""
        return self._succeeds("/bin/sh", "-c", 'cd -- "$1"', "sh", str(folder))

    def can_run(self, program: Path) -> bool:
        """Whether the account can start `program` with all its libraries."""
        return self._succeeds(str(program), "--version")

    def _succeeds(self, *command: str) -> bool:
        try:
            done = subprocess.run(command, check=False, cwd="/", capture_output=True, timeout=30, **self.options())
        except PermissionError:
            return False
        return done.returncode == 0


def server_account() -> Account | None:
    """The account to run the server as; None where this process is not root and runs it directly.

    Raises WarehouseError where root finds no unprivileged account.
    """
    if os.geteuid() != 0:
        return None
    for name in _CANDIDATES:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        if entry.pw_uid != 0:
            return Account(name, entry.pw_uid, entry.pw_gid)
    raise WarehouseError(
        f"PostgreSQL does not run as root, and none of the accounts {', '.join(_CANDIDATES)} exists: "
        "run as another user, or set DATABASE_URL"
    )
