"""Addresses of databases and connections to them: every refusal names the fix and no secret."""

import contextlib
import os
import socket
import ssl
import threading
import traceback
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from psycopg import conninfo

from nexhealth_pipeline.errors import InvalidSetting, MissingRights, ValueRefused, WarehouseError, WarehouseUnreachable
from nexhealth_pipeline.settings import Settings, load_settings
from nexhealth_pipeline.warehouse import connect as module
from nexhealth_pipeline.warehouse.connect import (
    connect,
    connect_to_dagster,
    dagster_url,
    driver_errors,
    home_folder,
    normalised_url,
    pool,
    warehouse_url,
)
from nexhealth_pipeline.warehouse.embedded import EmbeddedServer, ensure, release

SECRET = "hunter2-canary"


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedServer]:
    """A server that also listens on TCP, where a password is asked for."""
    home = Path(os.environ["NEXHEALTH_TEST_HOME"]) / f"tcp-{os.getpid()}"
    yield ensure(home, durable=False, tcp=True)
    release(home)


def settings(**values: object) -> Settings:
    return load_settings({name: str(value) for name, value in values.items()}, environ={}, env_file=None)


def text_of(error: BaseException) -> str:
    """All that a stored traceback would show."""
    return "".join(traceback.format_exception(error))


def changed(url: str, **parts: str) -> str:
    """The address of `url` with other parts, in libpq's other form."""
    return conninfo.make_conninfo(url, **parts)


@pytest.mark.parametrize(
    "scheme", ["postgresql", "postgres", "postgresql+psycopg2", "postgresql+psycopg"], ids=lambda scheme: scheme
)
def test_the_usual_spellings_of_an_address_are_taken(scheme: str) -> None:
    """Hosting services hand out `postgres://`, SQLAlchemy users write the driver into it."""
    given = settings(DATABASE_URL=f" {scheme}://me:p%40ss@db.example:6432/ware?sslmode=require ")
    assert warehouse_url(given) == "postgresql://me:p%40ss@db.example:6432/ware?sslmode=require"


@pytest.mark.parametrize(
    "address",
    [
        f"mysql://me:{SECRET}@host/db",
        f"host=here password={SECRET}",
        f"postgresql://me:{SECRET}%zz@host/db",
        f"postgresql://me:{SECRET}@host/db?nonsense=1",
        f"postgresql://me:odd@{SECRET}@host:5432/db",
        f"postgresql://me:odd/{SECRET}@host:5432/db",
        f"postgresql://me:odd@or/{SECRET}@host/db",
        f"postgresql://me?{SECRET}@host/db",
        f"postgresql://host?user=me&password=odd@{SECRET}",
        f"postgresql://host:5432?user=me&password=odd@{SECRET}",
        f"postgresql://me:{SECRET}/db",
        f"postgresql://me:odd@one:5432,me:{SECRET}@two:5432/db",
    ],
)
def test_what_is_no_address_is_refused_by_setting_and_never_shown(address: str) -> None:
    """The value holds a password; the message goes to logs and screens."""
    with pytest.raises(InvalidSetting, match="DATABASE_URL") as caught:
        normalised_url(address, "DATABASE_URL")
    assert SECRET not in text_of(caught.value)


def test_without_an_address_the_embedded_server_is_used(server: EmbeddedServer) -> None:
    """The demo keeps to databases of its own, so that nothing synthetic meets real rows."""
    here = settings(NEXHEALTH_HOME=server.place.record.parents[1])
    urls = [
        warehouse_url(here),
        dagster_url(here),
        warehouse_url(here, database_name="demo"),
        dagster_url(here, database_name="demo_dagster"),
    ]
    names = []
    for url in urls:
        with connect(url) as connection:
            names.append(connection.info.dbname)
    assert names == ["nexhealth", "dagster", "demo", "demo_dagster"]


def test_dagsters_storage_is_made_beside_the_warehouse(server: EmbeddedServer) -> None:
    """One DATABASE_URL is enough to begin with."""
    server.create_database("ware")
    with_address = settings(DATABASE_URL=server.tcp_url("ware"))
    url = dagster_url(with_address, database_name="beside ware")
    assert dagster_url(with_address, database_name="beside ware") == url
    with connect(url) as connection:
        assert connection.info.dbname == "beside ware"


def test_dagsters_own_address_wins() -> None:
    """Production may keep Dagster's history elsewhere; nothing is created there."""
    given = settings(DATABASE_URL="postgresql://a/b", DAGSTER_DATABASE_URL="postgres://c/d")
    assert dagster_url(given) == "postgresql://c/d"


@pytest.mark.parametrize(
    ("warehouse", "expected"),
    [
        ("postgresql://u:p@h:1/ware?sslmode=require", "postgresql://u:p@h:1/dagster?sslmode=require"),
        ("postgresql:///ware?host=/run/pg", "postgresql:///dagster?host=/run/pg"),
        ("postgresql://h1:1,h2:2", "postgresql://h1:1,h2:2/dagster"),
        ("postgresql://h?dbname=ware&user=u", "postgresql://h/dagster?user=u"),
        ("postgresql://me:odd?x9@h:5432/ware?dbname=no", "postgresql://me:odd?x9@h:5432/dagster"),
    ],
)
def test_the_second_database_has_the_address_of_the_first(
    monkeypatch: pytest.MonkeyPatch, warehouse: str, expected: str
) -> None:
    """Sockets, several hosts and options must survive; another server would have to be a surprise."""
    monkeypatch.setattr(module, "_create_beside", lambda url, name: None)
    assert dagster_url(settings(DATABASE_URL=warehouse)) == expected


def test_a_role_that_may_not_create_databases_is_told_what_to_run(server: EmbeddedServer) -> None:
    """Many hosts give out roles without CREATEDB; the administrator needs the statement."""
    with connect(server.url("postgres"), autocommit=True) as connection:
        connection.execute('CREATE ROLE "limited role" LOGIN')
    url = server.url("postgres").replace("postgres@", "limited%20role@")
    with pytest.raises(MissingRights) as caught:
        dagster_url(settings(DATABASE_URL=url), database_name="beyond")
    assert 'CREATE DATABASE "beyond" OWNER "limited role";' in str(caught.value)
    assert "DAGSTER_DATABASE_URL" in str(caught.value)


def test_dagsters_storage_is_made_while_somebody_is_in_the_template(server: EmbeddedServer) -> None:
    """Monitors and tools stay connected to template1, and PostgreSQL copies no database that is in use."""
    with psycopg.connect(server.url("template1")):
        url = dagster_url(settings(DATABASE_URL=server.url("postgres")), database_name="beside template")
    with connect(url) as connection:
        assert connection.info.dbname == "beside template"


def test_dagsters_storage_holds_every_name_though_the_server_was_made_for_fewer(server: EmbeddedServer) -> None:
    """A container without a locale makes servers of SQL_ASCII: what was made beside the warehouse was refused the next night."""
    made_for = "UPDATE pg_database SET encoding = pg_char_to_encoding(%s), datlocprovider = %s, datlocale = %s WHERE datname = 'template0'"
    with psycopg.connect(server.url("postgres"), autocommit=True) as administrator:
        administrator.execute(made_for, ("SQL_ASCII", "c", None))
        try:
            url = dagster_url(settings(DATABASE_URL=server.url("postgres")), database_name="beside others")
        finally:
            administrator.execute(made_for, ("UTF8", "b", "C.UTF-8"))
    with connect(url) as connection:
        assert connection.info.parameter_status("server_encoding") == "UTF8"


def test_a_server_that_makes_no_database_is_told_in_our_words(server: EmbeddedServer) -> None:
    """A standby, a full disk: Dagster's three processes would show a traceback with the driver's words."""
    with connect(server.url("postgres"), autocommit=True) as connection:
        connection.execute("CREATE ROLE reader LOGIN CREATEDB")
        connection.execute("ALTER ROLE reader SET default_transaction_read_only = on")
    url = server.url("postgres").replace("postgres@", "reader@")
    with pytest.raises(WarehouseError, match=r"database for Dagster's history: .*25006") as caught:
        dagster_url(settings(DATABASE_URL=url), database_name="beyond")
    assert "cannot execute" not in text_of(caught.value)


def test_where_nothing_listens_the_address_is_named() -> None:
    """The first mistake everybody makes."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        with pytest.raises(WarehouseUnreachable) as caught:
            connect(f"postgresql://me:{SECRET}@127.0.0.1:{port}/db")
    assert f"no PostgreSQL answers at 127.0.0.1:{port}" in str(caught.value)
    assert SECRET not in text_of(caught.value)


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"password": SECRET}, "refuses role postgres or its password"),
        ({"user": "nobody-known"}, "refuses role nobody-known or its password"),
        ({"dbname": "not_there"}, "has no database not_there"),
        ({"sslmode": "require"}, "sslmode"),
        ({"port": "many"}, "correct the port"),
        ({"connect_timeout": "soon"}, "correct the option"),
    ],
)
def test_a_refused_connection_says_what_to_correct(server: EmbeddedServer, parts: dict[str, str], words: str) -> None:
    """Each mistake has its own fix; the driver's own text is not passed on."""
    with pytest.raises(WarehouseUnreachable, match=words) as caught:
        connect(changed(server.tcp_url("postgres"), **parts))
    shown = text_of(caught.value)
    assert SECRET not in shown
    assert "FATAL" not in shown


@pytest.fixture(scope="module")
def encrypting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, Path]]:
    """Port of a server that encrypts and goes, and its certificate: of another host, signed by itself."""
    file = tmp_path_factory.mktemp("encrypting") / "server.pem"
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "elsewhere.example")])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, now - timedelta(days=1), now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    bare = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    file.write_bytes(certificate.public_bytes(pem) + bare)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)

    def answer(listener: socket.socket) -> None:
        while True:
            client, _ = listener.accept()
            with client, contextlib.suppress(OSError):
                client.recv(8)  # may it be encrypted?
                client.sendall(b"S")
                context.wrap_socket(client, server_side=True).close()

    def serve(listener: socket.socket) -> None:
        with contextlib.suppress(OSError):  # closed
            answer(listener)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        yield listener.getsockname()[1], file
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


@pytest.mark.parametrize(
    ("root", "words"),
    [
        ("/nowhere/root.pem", "no file to do it with: correct sslrootcert"),
        ("system", "sslrootcert does not vouch for"),
        (None, "of another name: correct the host"),
    ],
)
def test_a_certificate_that_cannot_be_verified_says_what_to_correct(
    encrypting: tuple[int, Path], root: str | None, words: str
) -> None:
    """It was told as a server that does not answer. "system" leads nowhere in the wheels of the driver."""
    port, certificate = encrypting
    options = f"gssencmode=disable&sslmode=verify-full&sslrootcert={root or certificate}"
    with pytest.raises(WarehouseUnreachable, match=words):
        connect(f"postgresql://me:{SECRET}@127.0.0.1:{port}/db?{options}")


def test_a_missing_password_and_a_missing_role_are_told_apart(server: EmbeddedServer) -> None:
    """One needs an addition to the address, the other an administrator."""
    with pytest.raises(WarehouseUnreachable, match="asks for a password for role postgres"):
        connect(f"postgresql://postgres@127.0.0.1:{server.place.tcp_port}/postgres")
    with pytest.raises(WarehouseUnreachable, match="has no role stranger"):
        connect(server.url("postgres").replace("postgres@", "stranger@"))


def test_a_database_that_does_not_let_the_role_in_is_told_apart_from_a_missing_one(server: EmbeddedServer) -> None:
    """Both errors of PostgreSQL begin alike; "create it" would be the wrong advice."""
    with connect(server.url("postgres"), autocommit=True) as connection:
        connection.execute("CREATE ROLE outsider LOGIN")
        connection.execute("CREATE DATABASE closed")
        connection.execute("REVOKE CONNECT ON DATABASE closed FROM PUBLIC")
    with pytest.raises(WarehouseUnreachable, match="GRANT CONNECT"):
        connect(server.url("closed").replace("postgres@", "outsider@"))


def test_a_server_too_old_is_refused_by_its_release(server_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Statements would fail one by one, in the middle of a load."""
    monkeypatch.setattr(module, "OLDEST_SERVER", 99)
    with pytest.raises(WarehouseError, match="is release 18: 99 or newer is needed"):
        connect(server_url)


def test_the_oldest_supported_server_takes_the_newest_warehouse(oldest_database_url: str) -> None:
    """Development happens on the newest release; what it has and the oldest lacks would slip in."""
    with connect(oldest_database_url) as connection:
        assert connection.info.server_version // 10_000 >= module.OLDEST_SERVER
        assert connection.execute("SELECT to_regclass('public.nexhealth_sync_logs') IS NOT NULL").fetchone() == (True,)


def test_a_connection_carries_its_name_and_the_addresss_own_options_win(server_url: str) -> None:
    """`pg_stat_activity` tells an administrator who holds a lock."""
    show = "SHOW application_name"
    with connect(server_url, application_name="nexhealth-sync") as connection:
        assert connection.execute(show).fetchone() == ("nexhealth-sync",)
    with connect(server_url + "&application_name=mine") as connection:
        assert connection.execute(show).fetchone() == ("mine",)


SETTINGS = "SELECT current_setting('default_transaction_isolation'), current_setting('lock_timeout')"
LIMITS = ("statement_timeout", "idle_session_timeout", "idle_in_transaction_session_timeout", "transaction_timeout")
MEANING = {"TimeZone": "UTC", "DateStyle": "ISO, DMY", "IntervalStyle": "postgres", "client_encoding": "UTF8"}


@pytest.mark.parametrize("words", [module.WATCH, "SET no_such_setting = 1"], ids=["on Linux", "elsewhere"])
def test_settings_that_a_role_has_for_other_work_are_not_those_of_transactions(
    words: str, server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Risk: who reads what another run has just written, or waits while it makes an index, is ended, and the run with it."""
    monkeypatch.setattr(module, "WATCH", words)
    url = server.tcp_url("postgres")
    with connect(url, autocommit=True) as connection:
        role = connection.info.user
        connection.execute(f"ALTER ROLE {role} SET default_transaction_isolation = 'repeatable read'")
        connection.execute(f"ALTER ROLE {role} SET lock_timeout = '5s'")
        try:
            for address in (url, server.url("postgres")):
                with connect(address) as one, pool(address, 1) as several, several.connection() as other:
                    for found in (one, other):
                        assert found.execute(SETTINGS).fetchone() == ("read committed", "0")
            for option in (
                "-c lock_timeout",
                "-clock_timeout",
                "--lock-timeout",
                "-c LOCK_TIMEOUT",
                "-c a.b=c --lock_timeout",
            ):
                with connect(changed(url, options=f"{option}=7s")) as one:
                    assert one.execute(SETTINGS).fetchone() == ("read committed", "7s")
            with connect(changed(url, options="-c deadlock_timeout=7s")) as one:
                assert one.execute(SETTINGS).fetchone() == ("read committed", "0")
        finally:
            connection.execute(f"ALTER ROLE {role} RESET ALL")


def test_what_a_role_reads_and_writes_otherwise_is_not_what_statements_mean(server: EmbeddedServer) -> None:
    """Not even where the address says so: psycopg gives times in the connection's zone, and cannot read other styles."""
    url = server.url("postgres")
    others = {
        "timezone": "Asia/Kolkata",
        "datestyle": "German",
        "intervalstyle": "iso_8601",
        "client_encoding": "latin1",
    }
    with psycopg.connect(url, autocommit=True) as connection:
        role = connection.info.user
        more = {"search_path": "elsewhere", "log_parameter_max_length_on_error": "-1"}
        for name, value in (others | more | dict.fromkeys(LIMITS, "7s")).items():
            connection.execute(f"ALTER ROLE {role} SET {name} = '{value}'".encode())
    try:
        for address in (url, changed(url, options="-c timezone=Asia/Tokyo -c statement_timeout=9s")):
            with connect(address) as one, pool(address, 1) as several, several.connection() as other:
                for found in (one, other):
                    assert {name: found.info.parameter_status(name) for name in MEANING} == MEANING
                    now = found.execute("SELECT clock_timestamp()").fetchone()
                    assert now is not None
                    assert now[0].utcoffset() == timedelta(0)
                    assert found.execute("SHOW search_path").fetchone() == ("public",)
                    assert found.execute("SHOW log_parameter_max_length_on_error").fetchone() == ("0",)
                    limits = [found.execute(f"SHOW {name}".encode()).fetchone() for name in LIMITS]
                    assert limits == [("0",) if address == url else ("9s",), ("0",), ("0",), ("0",)]
        with connect_to_dagster(url) as found:
            assert found.execute("SHOW search_path").fetchone() == ("elsewhere",)
    finally:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(f"ALTER ROLE {role} RESET ALL".encode())


def test_a_database_that_cannot_hold_every_name_is_refused(server: EmbeddedServer) -> None:
    """Risk: the first patient with a letter that it lacks ended the run, every night, as a bug."""
    with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
        connection.execute("CREATE DATABASE narrow ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
    try:
        with pytest.raises(WarehouseError, match=r"database narrow at .* has encoding LATIN1.* ENCODING 'UTF8'"):
            connect(server.url("narrow"))
        with connect_to_dagster(server.url("narrow")) as connection:  # whose words go into any
            assert connection.execute("SELECT 'x'").fetchone() == ("x",)
    finally:
        with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
            connection.execute("DROP DATABASE narrow WITH (FORCE)")


@pytest.mark.parametrize(
    ("statement", "kind"),
    [
        ("SELECT pg_terminate_backend(pg_backend_pid())", WarehouseUnreachable),
        ("SELECT 'Canary'::date", ValueRefused),
        ("SELECT 'Canary' FROM nowhere", WarehouseError),
        ("SET ROLE pg_monitor; CREATE TABLE public.t (i int)", MissingRights),
    ],
)
def test_driver_errors_become_ours_without_a_value(
    empty_database_url: str, statement: str, kind: type[Exception]
) -> None:
    """Dagster stores every traceback, and the driver's text quotes the row."""
    with (
        pytest.raises(kind, match="writing nexhealth_patients") as caught,
        driver_errors("writing nexhealth_patients"),
        psycopg.connect(empty_database_url) as connection,
    ):
        connection.execute(statement)
    assert type(caught.value) is kind
    assert "invalid input syntax" not in text_of(caught.value)


def test_the_home_is_the_setting_else_the_checkout_else_the_users_data_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clone keeps its state beside it; an installed wheel has no folder of its own to write to."""
    checkout = tmp_path / "clone"
    inside = checkout / "nexhealth_pipeline" / "warehouse" / "connect.py"
    inside.parent.mkdir(parents=True)
    monkeypatch.setattr(module, "__file__", str(inside))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    assert home_folder(settings(NEXHEALTH_HOME="mine")) == tmp_path / "mine"
    assert home_folder(settings()).name == "nexhealth-pipeline"
    (checkout / "pyproject.toml").touch()
    assert home_folder(settings()) == checkout / ".nexhealth"


def test_a_host_that_vanishes_gives_its_locks_back(own_home: Path) -> None:
    """By the systems' own defaults the server would keep them for two hours. Asking for it begins no transaction."""
    url = ensure(own_home, durable=False, tcp=True).tcp_url("postgres")
    with connect(url) as connection, pool(url, 1) as few, few.connection() as pooled:
        for one in (connection, pooled):
            assert one.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
            row = one.execute("SELECT current_setting('tcp_keepalives_idle'), current_setting('tcp_user_timeout')")
            assert row.fetchone() == ("30", "60000")
