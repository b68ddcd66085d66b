"""Secrets in the database: opened by the right key only, whoever made it and in whatever order keys change."""

import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from nexhealth_pipeline.errors import ConfigurationError, InvalidSetting, MissingSetting
from nexhealth_pipeline.settings import Settings, load_settings
from nexhealth_pipeline.webhooks.sealing import KEY_FILE, Sealer

OLD, NEW = "old-key-" + "o" * 32, "new-key-" + "n" * 32
SECRET = "whsec-Ünïcode-7"


def settings(**given: str) -> Settings:
    return load_settings(given, environ={}, env_file=None)


def test_what_is_sealed_is_opened_again_and_is_no_text_of_the_secret() -> None:
    sealer = Sealer([OLD])
    first, second = sealer.seal(SECRET), sealer.seal(SECRET)
    assert sealer.open(first) == sealer.open(second) == SECRET
    assert first != second
    assert SECRET.encode() not in first
    assert OLD not in repr(sealer)


def test_another_key_opens_nothing_and_the_error_says_whose_it_is() -> None:
    sealed = Sealer([OLD]).seal(SECRET)
    for broken in (sealed, sealed[:-1], b"", b"\xff" * 100):
        with pytest.raises(InvalidSetting, match="NEXHEALTH_WEBHOOK_KEY does not open the secret of endpoint 7"):
            Sealer([NEW]).open(broken, "the secret of endpoint 7")


def test_while_keys_change_the_first_seals_and_all_open() -> None:
    """The new key first, the old one after it, until `setup` has sealed everything anew."""
    both = Sealer.of(settings(NEXHEALTH_WEBHOOK_KEY=f"{NEW}, {OLD}"), Path("/nowhere"))
    before = Sealer([OLD]).seal(SECRET)
    assert both.open(before) == SECRET
    assert not both.is_current(before)
    anew = both.seal(SECRET)
    assert both.is_current(anew)
    assert Sealer([NEW]).open(anew) == SECRET
    with pytest.raises(InvalidSetting):
        Sealer([OLD]).open(anew)


def test_a_database_of_ones_own_needs_a_key_and_the_error_makes_one(tmp_path: Path) -> None:
    """A file on this machine would be missing on the next one."""
    with pytest.raises(MissingSetting, match="openssl rand -hex 32"):
        Sealer.of(settings(DATABASE_URL="postgresql://db.example.com/nexhealth"), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("sandbox", [False, True])
def test_the_embedded_server_and_synthetic_data_have_a_key_in_a_file(tmp_path: Path, *, sandbox: bool) -> None:
    home = tmp_path / "a" / "home"
    given = {"DATABASE_URL": "postgresql://x/y", "NEXHEALTH_DATA_KIND": "sandbox"} if sandbox else {}
    sealed = Sealer.of(settings(**given), home).seal(SECRET)
    assert Sealer.of(settings(NEXHEALTH_HOME=str(home))).open(sealed) == SECRET
    assert [one.name for one in home.iterdir()] == [KEY_FILE]
    assert stat.S_IMODE((home / KEY_FILE).stat().st_mode) == 0o600


def test_a_process_that_was_handed_the_embedded_servers_address_finds_the_file(tmp_path: Path) -> None:
    """`nexhealth` gives its children DATABASE_URL."""
    sockets = tmp_path / "postgres" / "server" / "socket"
    sockets.mkdir(parents=True)
    record = '{"folder": "server", "socket": "socket", "tcp_port": null}'
    (tmp_path / "postgres" / "place.json").write_text(record)
    sealed = Sealer.of(settings(), tmp_path).seal(SECRET)
    handed = settings(DATABASE_URL=f"postgresql://postgres@/nexhealth?host={sockets}")
    assert Sealer.of(handed, tmp_path).open(sealed) == SECRET
    with pytest.raises(MissingSetting):
        Sealer.of(settings(DATABASE_URL="postgresql://postgres@/nexhealth?host=/elsewhere"), tmp_path)


def test_a_key_that_is_set_later_still_opens_what_the_file_sealed(tmp_path: Path) -> None:
    sealed = Sealer.of(settings(), tmp_path).seal(SECRET)
    later = Sealer.of(settings(NEXHEALTH_WEBHOOK_KEY=NEW), tmp_path)
    assert later.open(sealed) == SECRET
    assert Sealer([NEW]).open(later.seal(SECRET)) == SECRET


def test_processes_that_begin_at_once_agree_on_one_key(tmp_path: Path) -> None:
    """`nexhealth dev` starts the receiver and the daemon together."""
    with ThreadPoolExecutor(8) as threads:
        sealers = list(threads.map(lambda _: Sealer.of(settings(), tmp_path), range(24)))
    sealed = sealers[0].seal(SECRET)
    assert {sealer.open(sealed) for sealer in sealers} == {SECRET}
    assert [one.name for one in tmp_path.iterdir()] == [KEY_FILE]


@pytest.mark.parametrize("content", ["", "short", "ü" * 40])
def test_a_spoilt_file_is_an_error_and_never_replaced(tmp_path: Path, content: str) -> None:
    """A new key would make every stored secret unreadable."""
    path = tmp_path / KEY_FILE
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ConfigurationError, match=KEY_FILE):
        Sealer.of(settings(), tmp_path)
    assert path.read_text(encoding="utf-8") == content


def test_a_home_that_cannot_be_written_is_an_error_with_the_fix(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="NEXHEALTH_HOME"):
        Sealer.of(settings(), tmp_path / "file" / "home")
    assert os.listdir(tmp_path) == ["file"]  # noqa: PTH208 - names are enough
