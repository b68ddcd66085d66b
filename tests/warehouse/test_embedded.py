"""The embedded server under everything that may happen to it, with real processes and real signals."""

import contextlib
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest

from nexhealth_pipeline.errors import WarehouseError, WarehouseUnreachable
from nexhealth_pipeline.warehouse import binaries, embedded
from nexhealth_pipeline.warehouse import supervisor as supervisor_module
from nexhealth_pipeline.warehouse.connect import connect
from nexhealth_pipeline.warehouse.embedded import ensure, release
from nexhealth_pipeline.warehouse.place import Place
from tests.waiting import until

from .embedded_kit import User, copied_programs, postmaster, processes_of, value


def supervisor(home: Path) -> int:
    return int((home / "postgres/server/supervisor.lock").read_text())


def has_ended(pid: int) -> bool:
    """Whether it holds no lock any more; its command line is gone a moment before."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def started_at(url: str) -> object:
    return value(url, "SELECT pg_postmaster_start_time()")


def test_first_use_makes_and_starts_a_server_and_later_uses_find_it(home: Path) -> None:
    """The whole promise of the embedded default, in a path with a space."""
    server = ensure(home, durable=False)
    assert value(server.url("postgres"), "SHOW server_encoding") == "UTF8"
    assert ensure(home) == server
    server.create_database("a b/c?d")
    server.create_database("a b/c?d")
    assert value(server.url("a b/c?d"), "SELECT current_database()") == "a b/c?d"


def test_writes_are_durable_unless_a_test_says_otherwise(home: Path) -> None:
    """A convenience for tests that leaked into the default would lose a user's rows in a power cut."""
    url = ensure(home).url("postgres")
    assert [value(url, f"SHOW {name}") for name in ("fsync", "synchronous_commit", "full_page_writes")] == ["on"] * 3


def test_two_processes_share_one_server_and_the_last_one_out_stops_it(home: Path) -> None:
    """A server stopped under a second user would fail its run; one never stopped would be left behind."""
    first, second = User(home), User(home)
    url = first.ensure()
    assert second.ensure() == url
    began = started_at(url)
    first.close()
    time.sleep(0.2)
    assert started_at(url) == began
    second.close()
    until(lambda: not processes_of(home), "the server has stopped")


def test_many_processes_that_start_at_once_get_one_server(home: Path) -> None:
    """Starts race when `dagster dev` brings up its processes together."""
    users = [User(home) for _ in range(6)]
    for user in users:
        user.ask()
    urls = {user.url() for user in users}
    assert len(urls) == 1
    assert len([command for command in processes_of(home).values() if "supervisor.py" in command]) == 1
    for user in users:
        user.close()


def test_a_killed_user_leaves_nothing_behind(home: Path) -> None:
    """kill -9 runs no clean-up code; the kernel has to drop the lease."""
    user = User(home)
    user.ensure()
    assert processes_of(home)
    user.kill()
    until(lambda: not processes_of(home), "the server has stopped")


def test_a_killed_server_comes_back_with_what_was_committed(home: Path) -> None:
    """The out-of-memory killer picks the biggest process: the database."""
    url = ensure(home).url("postgres")
    with psycopg.connect(url) as connection:
        connection.execute("CREATE TABLE kept AS SELECT generate_series(1, 1000) AS number")
    os.kill(postmaster(home), signal.SIGKILL)
    assert ensure(home).url("postgres") == url
    assert value(url, "SELECT count(*) FROM kept") == 1000


def test_a_start_right_after_the_server_was_killed_waits_for_its_remains(home: Path) -> None:
    """PostgreSQL refuses to start while a backend of the killed server lives: that passes in a moment."""
    url = ensure(home, durable=False).url("postgres")
    with psycopg.connect(url), psycopg.connect(url):
        os.kill(postmaster(home), signal.SIGKILL)
        assert value(ensure(home, durable=False).url("postgres"), "SELECT 1") == 1


def test_a_killed_supervisor_is_replaced_by_the_next_ensure(home: Path) -> None:
    """The server goes on without it, but nobody would ever stop it."""
    user = User(home)
    url = user.ensure()
    began, killed = started_at(url), supervisor(home)
    os.kill(killed, signal.SIGKILL)
    until(lambda: has_ended(killed), "the supervisor is dead")
    assert user.ensure() == url
    assert started_at(url) == began
    assert supervisor(home) != killed
    user.close()
    until(lambda: not processes_of(home), "the server has stopped")


def test_a_killed_supervisor_is_replaced_when_the_last_user_leaves(home: Path) -> None:
    """A process that asks for the server once and works for hours never calls ensure again."""
    user = User(home)
    user.ensure()
    killed = supervisor(home)
    os.kill(killed, signal.SIGKILL)
    until(lambda: has_ended(killed), "the supervisor is dead")
    user.close()
    until(lambda: not processes_of(home), "the server has stopped")


def test_when_all_are_killed_the_next_user_takes_over_what_it_finds(home: Path) -> None:
    """A server nobody watches is adopted: a second one on the same data would be refused."""
    user = User(home)
    url = user.ensure()
    began = started_at(url)
    os.kill(supervisor(home), signal.SIGKILL)
    user.kill()
    assert started_at(url) == began
    heir = User(home)
    assert heir.ensure() == url
    assert started_at(url) == began
    heir.close()
    until(lambda: not processes_of(home), "the server has stopped")


def test_a_supervisor_that_is_asked_to_end_stops_its_server(home: Path) -> None:
    """SIGTERM is what a machine that shuts down sends to everybody."""
    ensure(home, durable=False)
    os.kill(supervisor(home), signal.SIGTERM)
    until(lambda: not processes_of(home), "the server has stopped")


def test_a_forked_child_keeps_the_lease_of_its_parent(home: Path) -> None:
    """One shell command runs several jobs as forked children; the server must outlive the parent."""
    code = f"""
import os, sys, time
from pathlib import Path
from nexhealth_pipeline.warehouse.embedded import ensure
home = Path({str(home)!r})
url = ensure(home, durable=False).url("postgres")
if os.fork():
    os._exit(0)
sys.stdin.read()
assert ensure(home).url("postgres") == url
print(url, flush=True)
"""
    parent = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    parent.wait(timeout=30)
    began = (home / "postgres/server/data/postmaster.pid").read_text()
    time.sleep(0.2)  # two looks of the supervisor
    assert parent.stdin is not None
    assert parent.stdout is not None
    parent.stdin.close()
    assert parent.stdout.read().startswith("postgresql://")
    parent.stdout.close()
    assert not (home / "postgres/server/data/postmaster.pid").exists() or began.split()[0] == str(postmaster(home))
    until(lambda: not processes_of(home), "the server has stopped")


def test_a_server_asked_to_linger_stays_for_a_while_and_then_for_its_clients(home: Path) -> None:
    """`nexhealth db url` ends before the tool that reads its output has connected."""
    began, user = time.monotonic(), User(home, linger=60.0)
    url = user.ensure()
    user.close()
    time.sleep(0.2)
    mark = home / "postgres/server/linger"
    with psycopg.connect(url) as connection:
        assert began + 60 <= float(mark.read_text()) <= time.monotonic() + 60
        sooner = mark.with_name("sooner")
        sooner.write_text(str(time.monotonic()))
        sooner.replace(mark)
        until(lambda: float(mark.read_text()) < time.monotonic() - 0.3, "time is up")
        assert connection.execute("SELECT 1").fetchone() == (1,)
    until(lambda: not processes_of(home), "the server has stopped")


def test_two_that_ask_at_once_for_a_server_to_linger_both_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`nexhealth db url` in two panes: one took the other's file away, which ended as a bug."""
    place, both, write = Place(tmp_path / "place.json", tmp_path, tmp_path), threading.Barrier(2), Path.write_text

    def together(path: Path, text: str) -> None:
        write(path, text)
        with contextlib.suppress(threading.BrokenBarrierError):
            both.wait(0.2)

    monkeypatch.setattr(Path, "write_text", together)
    with ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(embedded._ask_to_linger, place, seconds) for seconds in (600.0, 1.0)]
        assert [one.result() for one in asked] == [None, None]
    assert float((tmp_path / "linger").read_text()) > time.monotonic() + 500


def test_a_server_whose_programs_were_removed_meanwhile_is_stopped_all_the_same(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clients are counted with psql, and who makes his virtual environment anew removes it. Nobody else would stop it."""
    programs = copied_programs(home.parent / "site-packages")
    monkeypatch.setattr(binaries, "bin_folder", lambda: programs)
    ensure(home, linger_seconds=0.3, durable=False)
    (programs / "psql").unlink()
    release(home)
    until(lambda: not processes_of(home), "the server has stopped", 15)


def test_an_initdb_that_was_cut_short_is_done_again(home: Path) -> None:
    """Ctrl-C in the first seconds of the first command must not break every later one."""
    half = home / "postgres/server/data.new"
    half.mkdir(parents=True)
    (half / "PG_VERSION").write_text("18")
    assert value(ensure(home, durable=False).url("postgres"), "SELECT 1") == 1


def test_a_process_number_used_again_by_a_stranger_does_not_stop_the_start(home: Path) -> None:
    """After a container's restart the dead server's number belongs to anything, often to ourselves."""
    user = User(home)
    user.ensure()
    pid_file = home / "postgres/server/data/postmaster.pid"
    content = pid_file.read_text()
    user.close()
    until(lambda: not processes_of(home), "the server has stopped")
    pid_file.write_text(content.replace(content.split("\n")[0], str(os.getpid()), 1))
    shutil.chown(pid_file, *(2 * [pid_file.parent.stat().st_uid]))
    assert value(ensure(home, durable=False).url("postgres"), "SELECT 1") == 1


def test_a_home_too_deep_for_a_socket_gets_a_short_folder_for_it(home: Path) -> None:
    """A socket's path may have about 100 bytes; a checkout's may have more."""
    deep = home / ("deep" * 20) / "er"
    server = ensure(deep, durable=False)
    try:
        assert value(server.url("postgres"), "SELECT 1") == 1
        assert len(str(server.place.socket)) < 60
        assert stat.S_IMODE(server.place.socket.stat().st_mode) == 0o700
        assert server.place.data.is_relative_to(deep)
    finally:
        release(deep)
        until(lambda: not processes_of(home), "the server has stopped")


def test_tcp_asks_for_a_password_and_keeps_its_port(home: Path) -> None:
    """Every local account can connect to a TCP port; only the socket's folder is private."""
    server = ensure(home, durable=False)
    with pytest.raises(WarehouseError, match="db url --tcp"):
        server.tcp_url("postgres")
    server = ensure(home, durable=False, tcp=True)
    assert value(server.tcp_url("postgres"), "SELECT host(inet_server_addr())") == "127.0.0.1"
    assert value(server.url("postgres"), "SELECT inet_server_addr() IS NULL") is True
    with pytest.raises(psycopg.OperationalError, match="no password"):
        psycopg.connect(re.sub(":[^:@]+@", "@", server.tcp_url("postgres")))
    release(home)
    until(lambda: not processes_of(home), "the server has stopped")
    assert ensure(home, durable=False).tcp_url("postgres") == server.tcp_url("postgres")


def test_tcp_is_refused_while_others_use_a_server_without_it(home: Path) -> None:
    """Listening needs a restart, which would break the others' work."""
    other = User(home)
    url = other.ensure()
    began = started_at(url)
    with psycopg.connect(url), pytest.raises(WarehouseError, match="end the other nexhealth processes"):
        ensure(home, durable=False, tcp=True)
    assert started_at(url) == began
    other.close()


def test_no_value_of_a_row_reaches_the_servers_log(home: Path) -> None:
    """Errors quote the row; the log is a plain file that nobody guards like a database."""
    url = ensure(home, durable=False).url("postgres")
    failures = (
        "INSERT INTO held VALUES (1, 'Canary')",
        "SELECT 'Canary'::date",
        "INSERT INTO held VALUES ('Canary', '')",
        "DO $$ BEGIN RAISE EXCEPTION 'Canary' USING DETAIL = 'Canary'; END $$",
        "DO $$ BEGIN RAISE WARNING 'Canary'; END $$",
    )
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE TABLE held (id int PRIMARY KEY, name text)")
        connection.execute("INSERT INTO held VALUES (1, 'Canary')")
        for statement in failures[:-1]:
            with pytest.raises(psycopg.Error):
                connection.execute(statement)
        connection.execute(failures[-1])
    log = (home / "postgres/server/server.log").read_text()
    assert "ready to accept connections" in log
    assert "Canary" not in log


def test_the_servers_processes_do_not_see_the_users_secrets(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment is readable for as long as its process lives, and the server may outlive its user."""
    monkeypatch.setenv("NEXHEALTH_API_KEY", "canary-key")
    monkeypatch.setenv("PGOPTIONS", "-c nonsense=1")
    monkeypatch.setenv("LC_ALL", "xx_XX.nonsense")
    ensure(home, durable=False)
    if not Path("/proc/self/environ").exists():
        pytest.skip("this system has no /proc")
    for pid in (postmaster(home), supervisor(home)):
        assert b"canary-key" not in Path(f"/proc/{pid}/environ").read_bytes()


def test_other_servers_of_the_environment_are_not_meant(
    home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Risk: patients' data went to the server that PGHOSTADDR names, or the start waited three minutes for another port."""
    (tmp_path / "services").write_text("[prod]\nport=6432\nhostaddr=127.0.0.9\n")
    for name, elsewhere in {
        "PGPORT": "5433",
        "PGHOSTADDR": "127.0.0.1",
        "PGSERVICE": "prod",
        "PGSERVICEFILE": str(tmp_path / "services"),
        "PGGSSENCMODE": "require",
        "PGOPTIONS": "-c nonsense=1",
        "PGTARGETSESSIONATTRS": "standby",
    }.items():
        monkeypatch.setenv(name, elsewhere)
    server = ensure(home, durable=False)
    with connect(server.url("postgres")) as connection:
        assert connection.execute("SELECT inet_server_addr()").fetchone() == (None,)
    monkeypatch.setenv("PGHOSTADDR", "127.0.0.1")
    assert ensure(home, durable=False) is server


def test_of_a_container_its_own_memory_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's may be fifty times as much: the server's share of that ended it."""
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(supervisor_module, "_CONTAINERS_MEMORY", limit)
    of_the_machine = supervisor_module._buffers()
    limit.write_text("max\n")
    assert supervisor_module._buffers() == of_the_machine
    limit.write_text(f"{512 << 20}\n")
    assert supervisor_module._buffers() == 128


def test_what_is_kept_is_closed_to_other_accounts(home: Path) -> None:
    """Data, socket, log and password: whoever reads them reads patients."""
    server = ensure(home, durable=False)
    modes = {
        path.name: stat.S_IMODE(path.stat().st_mode)
        for path in (server.place.data, server.place.socket, server.place.log, server.place.password_file)
    }
    assert modes == {"data": 0o700, "socket": 0o700, "server.log": 0o600, "password": 0o600}


def test_a_password_is_closed_to_others_from_its_first_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root's folder lets others through: what is closed after it was written can be opened before, and read for good."""
    place, modes = Place(tmp_path / "place.json", tmp_path, tmp_path / "socket"), list[int]()
    place.socket.mkdir()
    place.password_file.write_text("half")  # of a run that was cut short

    def note(_programs: Path, _data: Path, password: Path, *_rest: object, **_options: object) -> None:
        modes.append(stat.S_IMODE(password.stat().st_mode))

    monkeypatch.setattr(embedded, "_run_initdb", note)
    monkeypatch.setattr(Path, "chmod", lambda path, mode: None)
    before = os.umask(0o022)
    try:
        embedded._make_data(place, None, durable=False)
    finally:
        os.umask(before)
    modes.append(stat.S_IMODE(place.password_file.stat().st_mode))
    assert modes == [0o600, 0o600]
    assert len(place.password_file.read_text()) > 32


def test_data_of_another_release_is_refused_by_name(home: Path) -> None:
    """A newer wheel would otherwise fail with a hint in a log file only."""
    ensure(home, durable=False)
    release(home)
    until(lambda: not processes_of(home), "the server has stopped")
    (home / "postgres/server/data/PG_VERSION").write_text("15\n")
    with pytest.raises(WarehouseError, match="made by PostgreSQL 15, this is PostgreSQL 18"):
        ensure(home, durable=False)


def test_a_server_that_cannot_start_is_an_error_that_names_its_log(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason is in the log; without its name nobody finds it."""
    monkeypatch.setattr(embedded, "_STARTS", 1)
    ensure(home, durable=False)
    release(home)
    until(lambda: not processes_of(home), "the server has stopped")
    (home / "postgres/server/data/global/pg_control").unlink()
    with pytest.raises(WarehouseError, match=r"server\.log"):
        ensure(home, durable=False)


def test_a_server_that_refuses_is_told_apart_from_one_that_ended(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is told to try again makes no room on a full disk; and the driver's words may quote a row."""
    server = ensure(home, durable=False)
    refusals = (
        (psycopg.errors.DiskFull("Canary"), "make room on the disk of .*server"),
        (psycopg.errors.ObjectInUse("Canary"), "55006 ObjectInUse"),
        (psycopg.OperationalError("FATAL:  sorry, too many clients already"), "no connection left"),
    )
    ends = (psycopg.errors.AdminShutdown("Canary"), psycopg.OperationalError("Canary"))
    for kind, cases in (
        (WarehouseError, refusals),
        (WarehouseUnreachable, [(end, "ended while it was used") for end in ends]),
    ):
        for error, words in cases:

            def refuse(*_args: object, error: psycopg.Error = error) -> None:
                raise error

            monkeypatch.setattr(psycopg.Connection, "execute", refuse)
            with pytest.raises(WarehouseError, match=words) as caught:
                server.create_database("another")
            assert type(caught.value) is kind
            assert "Canary" not in str(caught.value)
