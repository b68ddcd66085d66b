"""Where the embedded server keeps its things, decided once per home and written down there.

    <home>/postgres/place.json      what was decided
    <home>/postgres/start.lock      held while a server is being made or started
    <folder>/                       <home>/postgres/server, or a folder below /var/lib/nexhealth-pipeline
        data/  socket/              the server account's own, mode 0700
        users.lock  supervisor.lock  linger  server.log  password

The folder elsewhere is for root, whose server account may not reach the home; a path too long for a socket
gets a private folder below /var/tmp for the socket alone. Locks lie beside the data: whoever shares the one shares the
other.
"""

import contextlib
import json
import logging
import os
import socket
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nexhealth_pipeline.errors import InvalidSetting
from nexhealth_pipeline.warehouse.account import Account
from nexhealth_pipeline.warehouse.supervisor import socket_file

__all__ = ["Place", "check_home", "find_place", "is_socket_of"]

_SOCKET_PORT = 5432
"""In the socket's name as long as the server has no TCP port of its own."""

_ELSEWHERE = Path("/var/lib/nexhealth-pipeline")
"""Where servers are kept whose account cannot enter the home. From /var/tmp many systems remove what was not used for a month."""

_SOCKET_BYTES = 103
"""Longest path of a socket on the strictest system we support (macOS 104 with the final NUL, Linux 108)."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Place:
    """The folders of one embedded server, and its TCP port if it was ever given one."""

    record: Path
    folder: Path
    socket: Path
    tcp_port: int | None = None

    @property
    def data(self) -> Path:
        """PostgreSQL's data folder."""
        return self.folder / "data"

    @property
    def port(self) -> int:
        """The number in the socket's name."""
        return self.tcp_port or _SOCKET_PORT

    @property
    def users_lock(self) -> Path:
        """Shared by every process that uses the server."""
        return self.folder / "users.lock"

    @property
    def supervisor_lock(self) -> Path:
        """Held by the supervisor."""
        return self.folder / "supervisor.lock"

    @property
    def log(self) -> Path:
        """What the server and its supervisor had to say."""
        return self.folder / "server.log"

    @property
    def password_file(self) -> Path:
        """The password for TCP."""
        return self.folder / "password"

    @property
    def socket_file(self) -> Path:
        """The socket itself."""
        return socket_file(self.socket, self.port)

    def with_tcp(self) -> "Place":
        """A copy of the place with a TCP port, from now on the same one at every start."""
        if self.tcp_port:
            return self
        place = replace(self, tcp_port=_free_port())
        _remember(place)
        return place

    def with_usable_port(self) -> "Place":
        """A copy of the place, with another TCP port where a stranger has taken its own. Call while no server runs."""
        if self.tcp_port is None or _is_free(self.tcp_port):
            return self
        place = replace(self, tcp_port=_free_port())
        _remember(place)
        _log.warning("embedded server's port is taken, a new one is used", extra={"nexhealth": {"port": place.port}})
        return place


def check_home(home: Path) -> None:
    """Make `home` and its `postgres` folder. Raises InvalidSetting where this account may not: somebody has to choose another."""
    base = home / "postgres"
    try:
        base.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidSetting(
            f"NEXHEALTH_HOME: {home} cannot be made ({error.strerror}): set NEXHEALTH_HOME to a folder of your own"
        ) from None
    if not os.access(base, os.W_OK | os.X_OK) or base.stat().st_uid != os.geteuid():
        raise InvalidSetting(
            f"NEXHEALTH_HOME: {home} belongs to another user: set NEXHEALTH_HOME to a folder of your own"
        )


def find_place(home: Path, account: Account | None) -> Place:
    """The place recorded in `home`, made and recorded if there is none yet.

    Call under `start.lock`, after :func:`check_home`.
    """
    record = home / "postgres" / "place.json"
    known = _recorded(record, account)
    if known is not None:
        return known
    folder = _server_folder(home / "postgres", account)
    place = Place(record, folder, _socket_folder(folder, account))
    _remember(place)
    return place


def is_socket_of(home: Path, address: str) -> bool:
    """Whether `address`, a connection's host, is the socket folder of the server whose state is in `home`."""
    try:
        content: Mapping[str, Any] = json.loads((home / "postgres" / "place.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return False
    return bool(Path(address) == home / "postgres" / content["folder"] / content["socket"])


def _recorded(record: Path, account: Account | None) -> Place | None:
    """What `record` says, or None where it says nothing or the folder is gone."""
    try:
        content: Mapping[str, Any] = json.loads(record.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    folder = record.parent / content["folder"]  # relative inside the home, which may have moved
    tcp_port = content["tcp_port"]
    if not folder.is_dir():
        _log.warning(
            "embedded server's folder is gone, a new one is made", extra={"nexhealth": {"folder": str(folder)}}
        )
        return None
    sockets = folder / content["socket"]
    place = Place(record, folder, sockets, tcp_port)
    if sockets.is_dir() and _fits(sockets):
        return place
    place = replace(place, socket=_socket_folder(folder, account))
    _remember(place)
    return place


def _remember(place: Place) -> None:
    inside = place.folder.parent == place.record.parent
    content = {
        "folder": place.folder.name if inside else str(place.folder),
        "socket": place.socket.name if place.socket.parent == place.folder else str(place.socket),
        "tcp_port": place.tcp_port,
    }
    new = place.record.with_suffix(".new")
    new.write_text(json.dumps(content) + "\n", encoding="utf-8")
    new.replace(place.record)


def _server_folder(base: Path, account: Account | None) -> Path:
    """`base`/server, or a folder elsewhere where the server's account cannot enter `base`."""
    if account is None:
        folder = base / "server"
        folder.mkdir(mode=0o700, exist_ok=True)
        return folder
    base.chmod(0o711)
    folder = base / "server" if account.can_enter(base) else _folder_elsewhere(account)
    folder.mkdir(exist_ok=True)
    folder.chmod(0o711)
    return folder


def _socket_folder(folder: Path, account: Account | None) -> Path:
    """A folder for the socket that only the server's account and root can enter."""
    sockets = folder / "socket"
    if _fits(sockets):
        sockets.mkdir(mode=0o700, exist_ok=True)
    else:
        sockets = _private_folder()
    if account is not None:
        account.own(sockets)
    return sockets


def _folder_elsewhere(account: Account) -> Path:
    """A new folder that nobody clears away; where there is no place for one, a private folder."""
    with contextlib.suppress(OSError):  # a system without /var/lib, or one that is read-only
        _ELSEWHERE.mkdir(exist_ok=True)
        if _ELSEWHERE.stat().st_uid == os.geteuid():
            _ELSEWHERE.chmod(0o711)  # also where it was there: who made it may have been killed before this
            if account.can_enter(_ELSEWHERE):
                return Path(tempfile.mkdtemp(prefix="server-", dir=_ELSEWHERE))
    return _private_folder()


def _private_folder() -> Path:
    """A new folder of mode 0700 on a short path that outlives a restart of the machine."""
    root = Path("/var/tmp")  # noqa: S108  the name below it cannot be guessed
    usable = root.is_dir() and os.access(root, os.W_OK)
    return Path(tempfile.mkdtemp(prefix="nexhealth-", dir=root if usable else None))


def _fits(sockets: Path) -> bool:
    return len(os.fsencode(socket_file(sockets, 65535))) <= _SOCKET_BYTES


def _free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as PostgreSQL does
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
