"""The embedded server of root, which PostgreSQL does not run as: another account, and a folder that it can enter."""

import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from nexhealth_pipeline.errors import InvalidSetting
from nexhealth_pipeline.warehouse import binaries, place
from nexhealth_pipeline.warehouse.account import Account, server_account
from nexhealth_pipeline.warehouse.embedded import ensure, release
from tests.waiting import until

from .embedded_kit import USER, copied_programs, postmaster, processes_of, value

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


def test_root_runs_the_server_as_an_account_without_rights(home: Path) -> None:
    """PostgreSQL refuses root; the modes of folders above the home stay as they are."""
    ensure(home, durable=False)
    account = _account()
    assert Path(f"/proc/{postmaster(home)}").stat().st_uid == account.uid
    assert (home / "postgres/server/data").stat().st_uid == account.uid
    assert stat.S_IMODE(home.parent.stat().st_mode) == 0o711


def test_below_a_folder_closed_to_others_root_uses_a_private_folder_and_records_it(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root's own home is 0700: data, socket and the programs of a virtual environment there are out of reach."""
    closed = home / "closed"
    closed.mkdir(parents=True)
    closed.chmod(0o700)
    programs = copied_programs(closed / "site-packages")
    monkeypatch.setattr(binaries, "bin_folder", lambda: programs)
    monkeypatch.setattr(place, "_ELSEWHERE", home.parent / "elsewhere")
    server = ensure(closed / ".nexhealth", durable=False)
    try:
        assert server.place.folder.parent == home.parent / "elsewhere"
        assert stat.S_IMODE(server.place.folder.parent.stat().st_mode) == 0o711
        assert str(server.place.folder) in (closed / ".nexhealth/postgres/place.json").read_text()
        assert value(server.url("postgres"), "SELECT 1") == 1
        assert stat.S_IMODE(closed.stat().st_mode) == 0o700
        running = str(Path(f"/proc/{(server.place.data / 'postmaster.pid').read_text().split()[0]}/exe").readlink())
        assert running.startswith(str(server.place.folder))
    finally:
        release(closed / ".nexhealth")
        until(lambda: not processes_of(server.place.folder), "the server has stopped")


def _closed(home: Path) -> Path:
    """A home that no other account can enter."""
    (home / "postgres").mkdir(parents=True)
    home.chmod(0o700)
    return home


def _account() -> Account:
    account = server_account()
    assert account is not None
    return account


def test_what_is_kept_for_long_is_not_kept_in_a_folder_for_temporary_files() -> None:
    """Many systems remove from there what nobody used for a month: a demo left alone would be damaged."""
    assert place._ELSEWHERE.parts[:3] == ("/", "var", "lib")


@pytest.mark.parametrize("why", ["nowhere", "closed", "another's"])
def test_where_no_folder_can_be_made_for_good_it_is_one_for_temporary_files(
    home: Path, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    """A read-only system, one without /var/lib, or with a closed one. Who owns the folder could exchange ours."""
    elsewhere = home.parent / "above" / "elsewhere"
    monkeypatch.setattr(place, "_ELSEWHERE", elsewhere)
    if why != "nowhere":
        elsewhere.parent.mkdir(mode=0o700 if why == "closed" else 0o755)
    if why == "another's":
        elsewhere.mkdir()
        _account().own(elsewhere)
    folder = place.find_place(_closed(home), _account()).folder
    assert folder.parent == Path("/var/tmp")
    assert _account().can_enter(folder)


def test_a_folder_whose_maker_was_killed_before_it_was_open_is_opened(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a umask of 077 it is closed at first: every later server would be among the temporary files, untold."""
    elsewhere = home.parent / "elsewhere"
    monkeypatch.setattr(place, "_ELSEWHERE", elsewhere)
    elsewhere.mkdir(mode=0o700)
    assert place.find_place(_closed(home), _account()).folder.parent == elsewhere
    assert stat.S_IMODE(elsewhere.stat().st_mode) == 0o711


def test_a_server_stays_where_it_was_made(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An earlier release kept it below /var/tmp: its rows must not be gone after an upgrade."""
    monkeypatch.setattr(place, "_ELSEWHERE", home / "not/there")
    first = place.find_place(_closed(home), _account())
    monkeypatch.setattr(place, "_ELSEWHERE", home.parent / "elsewhere")
    assert place.find_place(home, _account()) == first


def test_a_home_of_another_user_is_refused_with_the_setting_to_change(home: Path) -> None:
    """Two accounts cannot share one data folder; a permission error from PostgreSQL would not say so."""
    (home / "postgres").mkdir(parents=True)
    os.chown(home / "postgres", 65534, 65534)
    with pytest.raises(InvalidSetting, match=r"NEXHEALTH_HOME: .* belongs to another user"):
        ensure(home, durable=False)


def test_an_ordinary_user_runs_the_server_directly(home: Path) -> None:
    """No account to switch to, no folder to hand over, and a server of its own."""
    account = _account()
    python = _python_for(account.options())
    home.mkdir()
    account.own(home)
    command = [python, "-c", USER, str(home), "0", ""]
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(
        command,
        input="\n\n",
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
        env=environment,
        **account.options(),
    )
    assert done.stderr == ""
    assert done.stdout.count("postgresql://") == 2
    assert (home / "postgres/server/data").stat().st_uid == account.uid
    until(lambda: not processes_of(home), "the server has stopped")


def _python_for(options: Mapping[str, Any]) -> str:
    """An interpreter of this very release that another account can start and import this project with."""
    release_name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    for candidate in (sys.executable, shutil.which(release_name), f"/usr/bin/{release_name}"):
        command = [str(candidate), "-c", "import nexhealth_pipeline.warehouse.embedded"]
        try:
            done = subprocess.run(command, check=False, capture_output=True, cwd="/", env=environment, **options)
        except OSError:
            continue
        if done.returncode == 0:
            return str(candidate)
    pytest.skip(f"no {release_name} that another account can start")
