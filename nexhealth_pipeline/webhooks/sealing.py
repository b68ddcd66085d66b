"""Webhook secrets sealed for the warehouse: whoever reads the database alone cannot sign events.

The key comes from NEXHEALTH_WEBHOOK_KEY. Several, with commas between, are a change of keys: the first
seals, all open, and `nexhealth webhooks setup` seals anew what an older one has sealed. With the embedded
server and no key, one is made once and kept beside the server's data.
"""

import base64
import os
import secrets
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from psycopg.conninfo import conninfo_to_dict

from nexhealth_pipeline.errors import ConfigurationError, InvalidSetting, MissingSetting
from nexhealth_pipeline.settings import Settings
from nexhealth_pipeline.warehouse.connect import home_folder, normalised_url
from nexhealth_pipeline.warehouse.place import is_socket_of

__all__ = ["KEY_FILE", "Sealer"]

KEY_FILE = "webhook.key"
"""Name of the key's file in NEXHEALTH_HOME."""
_PURPOSE = b"nexhealth webhook secrets"
_MISSING = (
    "NEXHEALTH_WEBHOOK_KEY is not set, which webhook secrets are sealed with in the database of DATABASE_URL: make one "
    "with `openssl rand -hex 32`, set it wherever this runs, and keep it"
)


class Sealer:
    """Seals texts and opens them again. Raises InvalidSetting without a key."""

    def __init__(self, keys: Sequence[str]) -> None:
        """`keys` are random texts of 32 characters or more: the first seals, all open."""
        if not keys:
            raise InvalidSetting("NEXHEALTH_WEBHOOK_KEY holds no key")
        derived = [Fernet(_derived(key)) for key in keys]
        self._first, self._all = derived[0], MultiFernet(derived)
        self.unopened: set[bytes] = set()
        """Sealed texts that no key opened and somebody was told of."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    @classmethod
    def of(cls, settings: Settings, home: Path | None = None) -> Self:
        """The sealer of `settings`; `home` is the folder of the key's file, NEXHEALTH_HOME unless given.

        The file is used where the warehouse is on the embedded server or holds synthetic data only; once made it
        still opens what it has sealed when NEXHEALTH_WEBHOOK_KEY comes later. Raises MissingSetting where a key is
        needed, ConfigurationError where the file cannot be used.
        """
        home = home or home_folder(settings)
        path = home / KEY_FILE
        if settings.webhook_key is not None:
            given = [key.strip() for key in settings.webhook_key.get_secret_value().split(",")]
            return cls([*given, *_stored_keys(path)])
        if not _is_local(settings, home):
            raise MissingSetting(_MISSING)
        return cls([_stored_or_made(path)])

    @classmethod
    def of_receiver(cls, settings: Settings) -> Self | None:
        """What opens the stored secrets; None where there is no key and the settings name secrets themselves.

        Raises as :meth:`of` where neither is there.
        """
        try:
            return cls.of(settings)
        except ConfigurationError:
            if settings.webhook_secrets is None or settings.webhook_key is not None:
                raise
            return None

    def seal(self, text: str) -> bytes:
        """`text` for the database, different each time."""
        return self._first.encrypt(text.encode())

    def open(self, sealed: bytes, whose: str = "a webhook secret") -> str:
        """What was sealed. Raises InvalidSetting, naming `whose` secret it is, where no key opens it."""
        try:
            return self._all.decrypt(sealed).decode()
        except (InvalidToken, UnicodeDecodeError):
            raise InvalidSetting(
                f"NEXHEALTH_WEBHOOK_KEY does not open {whose}: add the key that sealed it after a comma, or run "
                "`nexhealth webhooks setup URL`, which asks NexHealth for the secret"
            ) from None

    def is_current(self, sealed: bytes) -> bool:
        """Whether the first key sealed it."""
        try:
            self._first.decrypt(sealed)
        except InvalidToken:
            return False
        return True


def _is_local(settings: Settings, home: Path) -> bool:
    """Whether the warehouse is on the server in `home` (whose processes hand its address on), or holds nothing real."""
    if settings.database_url is None or settings.data_kind == "sandbox":
        return True
    url = normalised_url(settings.database_url.get_secret_value(), "DATABASE_URL")
    return is_socket_of(home, str(conninfo_to_dict(url).get("host") or ""))


def _derived(key: str) -> bytes:
    """Fernet's form of a key: 32 bytes, whatever the key's alphabet."""
    kdf = HKDF(algorithm=SHA256(), length=32, salt=None, info=_PURPOSE)
    return base64.urlsafe_b64encode(kdf.derive(key.encode()))


def _stored_keys(path: Path) -> list[str]:
    """The key in the file; none where nobody has made it."""
    try:
        key = path.read_text(encoding="ascii").strip()
    except (FileNotFoundError, NotADirectoryError):
        return []
    except (OSError, UnicodeDecodeError):
        raise ConfigurationError(
            f"{path}: cannot be read; it is the key that webhook secrets are sealed with"
        ) from None
    if len(key) < 32:
        raise ConfigurationError(
            f"{path}: holds no key; restore it, or remove it and run `nexhealth webhooks setup URL`"
        )
    return [key]


def _stored_or_made(path: Path) -> str:
    """The key in the file, made by whichever process comes first."""
    found = _stored_keys(path)
    if not found:
        _make(path)
        found = _stored_keys(path)
    return found[0]


def _make(path: Path) -> None:
    """Write a new key aside and give it its name in one step: nobody reads half of it, and the first one stays."""
    aside = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(secrets.token_hex(32) + "\n")
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):
            os.link(aside, path)
    except OSError as error:
        raise ConfigurationError(
            f"{path}: cannot be written ({error.strerror}); set NEXHEALTH_HOME to a folder that can, or "
            "NEXHEALTH_WEBHOOK_KEY"
        ) from None
    finally:
        with suppress(OSError):
            aside.unlink()
