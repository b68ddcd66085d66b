"""Fixtures for every test: one embedded PostgreSQL for the whole session, a fresh database for each test.

All workers of pytest-xdist share one server through the same leases that `nexhealth` processes share it
with; the last worker that ends takes it down. Each test's database is a copy of a template, so that
migrations run once.
"""

import fcntl
import gc
import importlib.util
import os
import shutil
import signal
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from tests.servers import Server

# The same examples in each run: a rare one that fails must not stop whoever comes upon it. Of records, which are most of
# them, `make soak` draws new ones.
settings.register_profile("ours", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("ours")  # in a fresh clone the first examples wait until it has read all modules that are loaded

TEMPLATE = "nexhealth_template"
HOME_VARIABLE = "NEXHEALTH_TEST_HOME"
_FIRST = ("test_dagster_dev.py", "test_readme.py", "test_phi_canary.py", "test_launch.py", "test_dev.py")
"""Files whose few tests take longest: begun last, one worker would be left alone with them."""
_ROOM = 2 * 1024**3
"""Bytes that a session's databases may take: several times what they do."""


def pytest_configure(config: pytest.Config) -> None:
    """The controlling process names the session's home and hands it to its workers; settings stay out."""
    config.pluginmanager.import_plugin("tests.crashes")
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # A shell starts `make test &` so; Dagster then gives SIGTERM the same treatment, and nothing could be ended.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup does so
    for name in [name for name in os.environ if name.startswith(("NEXHEALTH_", "DAGSTER_", "DATABASE_URL"))]:
        if name != HOME_VARIABLE or not hasattr(config, "workerinput"):
            del os.environ[name]
    # Images of containers set it. Without its bytecode each of some fifty processes would compile this package anew.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    if not hasattr(config, "workerinput"):
        name = f"nexhealth-tests-{uuid.uuid4().hex[:12]}"  # made by the first test that needs it
        os.environ[HOME_VARIABLE] = str(Path(room_for_databases()) / name)


def room_for_databases() -> str:
    """A folder in memory where there is plenty of it, else the one for temporary files.

    A database is 700 files. ext4 passes over the place of a file that was deleted within the last minutes, looking at
    one after the other: with hundreds of databases made and dropped, that took 40 % of all processor time.
    """
    memory = "/dev/shm"
    try:
        found = os.statvfs(memory)
    except OSError:
        return tempfile.gettempdir()
    fits = found.f_bavail * found.f_frsize >= _ROOM and not found.f_flag & os.ST_NOEXEC and os.access(memory, os.W_OK)
    return memory if fits and _free_memory() >= 2 * _ROOM else tempfile.gettempdir()


def _free_memory() -> int:
    """Bytes that can be had without swapping."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A worker takes whole files in this order."""
    rank = {name: place for place, name in enumerate(_FIRST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(rank)))


def pytest_collection_finish() -> None:
    """What was imported until now stays: the collector need not look through Dagster's million objects again and again."""
    gc.freeze()


def pytest_unconfigure(config: pytest.Config) -> None:
    """After the last worker: wait until the server has gone, then remove its folder."""
    if hasattr(config, "workerinput"):
        return
    from nexhealth_pipeline.warehouse import embedded

    home = Path(os.environ.pop(HOME_VARIABLE))
    for lock in [*home.glob("postgres/server/supervisor.lock"), *home.glob("*/postgres/server/supervisor.lock")]:
        embedded.release(lock.parents[2])
        _await_end(lock)
    shutil.rmtree(home, ignore_errors=True)


def _await_end(lock: Path) -> bool:
    """Whether the server whose supervisor holds `lock` has ended, which is waited for."""
    deadline = time.monotonic() + 60
    while lock.exists() and time.monotonic() < deadline:
        with lock.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(0.05)
            else:
                return True
    return not lock.exists()


@contextmanager
def _only_one(lock: Path) -> Iterator[None]:
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="session")
def server_url() -> str:
    """Database `postgres` of the session's server, as its superuser."""
    from nexhealth_pipeline.warehouse import embedded

    return embedded.ensure(Path(os.environ[HOME_VARIABLE]), durable=False).url("postgres")


@pytest.fixture(scope="session")
def template(server_url: str) -> str:
    """Name of a database at the newest migration, made by whichever worker comes first."""
    return _make_template(server_url)


@pytest.fixture
def database_url(server_url: str, template: str) -> Iterator[str]:
    """A warehouse at the newest migration, empty, for one test alone."""
    yield from _fresh(server_url, template)


@pytest.fixture
def other_database_url(server_url: str, template: str) -> Iterator[str]:
    """Another warehouse on the same server."""
    yield from _fresh(server_url, template)


@pytest.fixture(scope="module")
def shared_url(server_url: str, template: str) -> Iterator[str]:
    """One warehouse for all tests of a module that use it: a fresh one each would cost more than all else."""
    yield from _fresh(server_url, template)


@pytest.fixture
def empty_database_url(server_url: str) -> Iterator[str]:
    """A database without any table, for tests of migrations."""
    yield from _fresh(server_url, "template0")


@pytest.fixture(scope="session")
def oldest_server_url() -> str:
    """Like `server_url`, of the oldest supported PostgreSQL that is installed on this machine."""
    from nexhealth_pipeline.warehouse import binaries, embedded

    programs = _installed_programs()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(binaries, "bin_folder", lambda: programs)
        home = Path(os.environ[HOME_VARIABLE]) / "oldest"
        return embedded.ensure(home, durable=False).url("postgres")


@pytest.fixture
def oldest_database_url(oldest_server_url: str) -> Iterator[str]:
    """Like `database_url`, on the oldest supported PostgreSQL that is installed on this machine."""
    yield from _fresh(oldest_server_url, _make_template(oldest_server_url))


@pytest.fixture(scope="module")
def server() -> Iterator["Server"]:
    """A server for a module's tests alone, which they may hurt: others use the session's."""
    from tests.servers import server_of_its_own

    with server_of_its_own() as server:
        yield server


@pytest.fixture
def own_home() -> Iterator[Path]:
    """A NEXHEALTH_HOME, not made yet, for a test that needs an embedded server of its own.

    Not below `tmp_path`: that is closed to the account of root's server, which would then keep its data
    below /var/lib, where nobody removes it.
    """
    from nexhealth_pipeline.warehouse import embedded

    root = Path(tempfile.mkdtemp(prefix="nexhealth tests ", dir=room_for_databases()))
    root.chmod(0o711)
    yield root / "a home"
    # `nexhealth db url` asked it to stay for ten minutes more.
    (root / "a home" / "postgres" / "server" / "linger").unlink(missing_ok=True)
    embedded.release(root / "a home")
    ended = _await_end(root / "a home" / "postgres" / "server" / "supervisor.lock")
    shutil.rmtree(root, ignore_errors=True)
    assert ended, "the server does not end"


def _installed_programs() -> Path:
    """Folder of the oldest PostgreSQL >= 15 the system has; skips the test where there is none."""
    from nexhealth_pipeline.warehouse.connect import OLDEST_SERVER

    folders = [*Path("/usr/lib/postgresql").glob("[0-9]*/bin"), *Path("/usr").glob("pgsql-[0-9]*/bin")]
    releases = {int(folder.parent.name.removeprefix("pgsql-")): folder for folder in folders}
    usable = {release: folder for release, folder in releases.items() if release >= OLDEST_SERVER}
    if not usable:
        pytest.skip(f"no PostgreSQL {OLDEST_SERVER} or newer is installed beside the embedded one")
    return usable[min(usable)]


def _make_template(server_url: str) -> str:
    """Make the template once per server: built under another name, so that nobody sees half of it."""
    building = f"{TEMPLATE}_building"
    lock = Path(os.environ[HOME_VARIABLE]) / "template.lock"
    with _only_one(lock), psycopg.connect(server_url, autocommit=True) as db:
        if not db.execute("SELECT 1 FROM pg_database WHERE datname = %s", (TEMPLATE,)).fetchone():
            db.execute(f"DROP DATABASE IF EXISTS {building}")
            db.execute(f"CREATE DATABASE {building} TEMPLATE template0")
            if importlib.util.find_spec("nexhealth_pipeline.warehouse.migrate") is not None:
                from nexhealth_pipeline.warehouse import migrate

                migrate.upgrade(_database(server_url, building))
            db.execute(f"ALTER DATABASE {building} RENAME TO {TEMPLATE}")
    return TEMPLATE


def _fresh(server_url: str, source: str) -> Iterator[str]:
    name = f"test_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(server_url, autocommit=True) as db:
        db.execute(f"CREATE DATABASE {name} TEMPLATE {source} STRATEGY FILE_COPY")
    yield _database(server_url, name)
    with psycopg.connect(server_url, autocommit=True) as db:
        db.execute(f"DROP DATABASE {name} WITH (FORCE)")


def _database(server_url: str, name: str) -> str:
    return server_url.replace("@/postgres?", f"@/{name}?")
