"""Bringing a database to this release, from wherever it is, by whoever may."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from alembic.migration import MigrationContext
from alembic.operations import Operations
from psycopg import conninfo
from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool

from nexhealth_pipeline.catalog.collections import DECLARED
from nexhealth_pipeline.errors import MissingRights, WarehouseError, WarehouseNewer, WarehouseOutdated, WarehouseRefused
from nexhealth_pipeline.warehouse import migrate
from nexhealth_pipeline.warehouse.connect import connect
from nexhealth_pipeline.warehouse.migrations.waiting import in_short_waits

from .conftest import Rows

ROLE = "nexhealth_test_guest"
BEFORE = f"{int(migrate.HEAD) - 1:04}"
"""The migration of the release before."""
HERE = "AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
"""Of locks: databases that were copied from one template have tables with the same numbers."""


@pytest.fixture
def guest_url(empty_database_url: str) -> Iterator[str]:
    """The empty database, as a role that may connect and nothing else."""
    with psycopg.connect(empty_database_url, autocommit=True) as db:
        db.execute(f"DROP ROLE IF EXISTS {ROLE}")
        db.execute(f"CREATE ROLE {ROLE} LOGIN")
        db.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
    yield conninfo.make_conninfo(empty_database_url, user=ROLE)
    with psycopg.connect(empty_database_url, autocommit=True) as db:
        db.execute(f"DROP OWNED BY {ROLE}")
        db.execute(f"DROP ROLE {ROLE}")


def tables(url: str) -> set[str]:
    with psycopg.connect(url) as db:
        found = db.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
    return {row[0] for row in found}


def test_an_empty_database_gets_every_table(empty_database_url: str) -> None:
    with pytest.raises(WarehouseOutdated, match="nexhealth db upgrade"):
        migrate.check(empty_database_url)
    changes = migrate.upgrade(empty_database_url)
    assert changes[0] == f"migrated to {migrate.HEAD}"
    assert {collection.table for collection in DECLARED} <= tables(empty_database_url)
    assert {"nexhealth_sync_logs", "nexhealth_alembic_version"} <= tables(empty_database_url)
    migrate.check(empty_database_url)


def test_a_warehouse_that_is_up_to_date_is_left_alone(shared_url: str, rows: Rows) -> None:
    migrate.upgrade(shared_url)  # the tests' template may be of yesterday, and lack a day's partition
    before = rows("SELECT relname, oid FROM pg_class WHERE relname LIKE 'nexhealth%' ORDER BY 1")
    assert migrate.upgrade(shared_url) == []
    migrate.check(shared_url)
    assert rows("SELECT relname, oid FROM pg_class WHERE relname LIKE 'nexhealth%' ORDER BY 1") == before


def test_a_newer_warehouse_is_refused_and_not_touched(database_url: str) -> None:
    """Risk: an old release that meets a newer schema writes rows the newer one misreads."""
    with psycopg.connect(database_url) as db:
        db.execute("UPDATE nexhealth_alembic_version SET version_num = '9999'")
        db.execute("DROP TABLE nexhealth_operatories CASCADE")
    for act in (migrate.upgrade, migrate.check):
        with pytest.raises(WarehouseNewer, match=r"9999.*install a newer"):
            act(database_url)
    assert "nexhealth_operatories" not in tables(database_url)


def test_a_warehouse_without_a_declared_table_is_outdated(database_url: str) -> None:
    with psycopg.connect(database_url) as db:
        db.execute("ALTER TABLE nexhealth_operatories DROP COLUMN name CASCADE")
    with pytest.raises(WarehouseOutdated, match=r"nexhealth_operatories\.name"):
        migrate.check(database_url)
    assert migrate.upgrade(database_url) == ["added column nexhealth_operatories.name"]


def test_processes_that_upgrade_at_once_both_succeed(empty_database_url: str) -> None:
    """Risk: the schedule's runs and a shell start on a fresh database in the same second."""
    done: list[list[str]] = []
    ready = threading.Barrier(2)

    def start() -> None:
        ready.wait(10)
        done.append(migrate.upgrade(empty_database_url))

    threads = [threading.Thread(target=start) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(done) == 2
    assert sum("created table nexhealth_patients" in changes for changes in done) == 1
    migrate.check(empty_database_url)


def test_an_upgrade_that_waits_for_a_run_does_not_keep_the_receiver_waiting(database_url: str) -> None:
    """Whoever waits for a table's lock stands before all that come later, and a run may hold it for minutes."""
    index = "SELECT count(*) FROM pg_indexes WHERE indexname = 'nexhealth_webhook_events_refusals'"
    waiting = f"SELECT 1 FROM pg_locks WHERE relation = 'nexhealth_webhook_events'::regclass AND NOT granted {HERE}"
    write = "INSERT INTO nexhealth_webhook_events (verdict, status) VALUES ('method', 'rejected')"
    with psycopg.connect(database_url, autocommit=True) as receiver:
        receiver.execute("DROP INDEX nexhealth_webhook_events_refusals")
        receiver.execute("UPDATE nexhealth_alembic_version SET version_num = '0009'")
        upgrade = threading.Thread(target=migrate.upgrade, args=(database_url,))
        with psycopg.connect(database_url) as run:
            run.execute(write)
            upgrade.start()
            while not receiver.execute(waiting).fetchone():
                assert upgrade.is_alive()
            receiver.execute("SET statement_timeout = '8s'")  # the upgrade waits for two at a time
            receiver.execute(write)
            assert receiver.execute(index).fetchone() == (0,)
        upgrade.join(30)
        assert receiver.execute(index).fetchone() == (1,)
        assert receiver.execute("SELECT count(*) FROM nexhealth_webhook_events").fetchone() == (2,)


def across_a_reader(url: str, first: str, second: str, change: Callable[[], object]) -> None:
    """Carry out what takes one table for itself and then the other, which a reader has who then asks for the one."""
    waiting = f"SELECT 1 FROM pg_locks WHERE relation = %s::regclass AND NOT granted {HERE}"
    with (
        psycopg.connect(url) as reader,
        psycopg.connect(url, autocommit=True) as watcher,
        ThreadPoolExecutor(1) as pool,
    ):
        # It waits for longer before it looks, and so is not the one that is ended.
        reader.execute("SET deadlock_timeout = '60s'")
        reader.execute(f"SELECT FROM {second}")
        changing = pool.submit(change)
        while not watcher.execute(waiting, (second,)).fetchone():
            assert not changing.done()
        reader.execute(f"SELECT FROM {first}")
        reader.rollback()
        changing.result(30)


def test_an_upgrade_that_meets_a_reader_of_two_tables_is_tried_again(database_url: str) -> None:
    """Risk: a report that joins what an upgrade widens, the other way round, ends every command that upgrades by itself."""
    first, second = [one.table for one in DECLARED if one.name in ("providers", "operatories")]
    lost = f"ALTER TABLE {first} DROP COLUMN name CASCADE; ALTER TABLE {second} DROP COLUMN name CASCADE"
    with psycopg.connect(database_url) as db:
        db.execute(lost)
    across_a_reader(database_url, first, second, lambda: migrate.upgrade(database_url))
    migrate.check(database_url)


def test_a_migration_that_meets_a_reader_of_two_tables_is_tried_again(database_url: str) -> None:
    widen = "ALTER TABLE nexhealth_runs ADD COLUMN more text; ALTER TABLE nexhealth_sweeps ADD COLUMN more text"

    def migration() -> None:
        engine = create_engine("postgresql+psycopg://", creator=lambda: connect(database_url), poolclass=NullPool)
        with engine.begin() as connection, Operations.context(MigrationContext.configure(connection)):
            in_short_waits(widen)

    across_a_reader(database_url, "nexhealth_runs", "nexhealth_sweeps", migration)
    with psycopg.connect(database_url) as db:
        db.execute("SELECT more FROM nexhealth_runs UNION ALL SELECT more FROM nexhealth_sweeps")


def test_an_upgrade_of_several_migrations_that_meets_such_a_reader_is_tried_again(database_url: str) -> None:
    """Each is short; what one has locked is so until the last has ended, since they are one transaction."""
    with psycopg.connect(database_url) as db:
        db.execute("UPDATE nexhealth_alembic_version SET version_num = '0012'")
    first, second = "nexhealth_seen_passes", "nexhealth_current.patient_locations"  # of 0013 and 0017
    across_a_reader(database_url, first, second, lambda: migrate.upgrade(database_url))
    migrate.check(database_url)


def test_a_migration_that_waited_in_short_waits_leaves_the_rest_to_wait_as_before(database_url: str) -> None:
    """Risk: the role's own limit, for other work than this, ends an upgrade that a run is in the way of."""
    with psycopg.connect(database_url, autocommit=True) as db:
        db.execute(f"ALTER DATABASE \"{db.info.dbname}\" SET lock_timeout = '5s'")
    engine = create_engine("postgresql+psycopg://", creator=lambda: connect(database_url), poolclass=NullPool)
    with engine.begin() as connection, Operations.context(MigrationContext.configure(connection)):
        in_short_waits("ALTER TABLE nexhealth_runs ADD COLUMN more text")
        assert connection.exec_driver_sql("SHOW lock_timeout").scalar_one() == "0"


def test_a_budget_of_before_gets_the_functions_of_now_and_keeps_what_it_counted(database_url: str) -> None:
    """They are no tables, which are looked at on every start: without a migration they would stay as they were made."""
    throttle = "SELECT pg_get_functiondef('nexhealth_rate_throttle'::regproc)"
    with psycopg.connect(database_url, autocommit=True) as db:
        now = db.execute(throttle).fetchone()
        db.execute("INSERT INTO nexhealth_rate_budget VALUES ('k', 'patients', 1, 7, '{1,2}', 3, 4)")
        kept = db.execute("SELECT * FROM nexhealth_rate_budget").fetchall()
        db.execute(
            "CREATE OR REPLACE FUNCTION nexhealth_rate_throttle(p_key_hash text, p_classes text[],"
            " p_seconds double precision[], p_buckets integer, p_block double precision) RETURNS void LANGUAGE sql AS ''"
        )
        db.execute("UPDATE nexhealth_alembic_version SET version_num = '0011'")
        assert migrate.upgrade(database_url)[0] == f"migrated to {migrate.HEAD}"
        assert db.execute(throttle).fetchone() == now
        assert db.execute("SELECT * FROM nexhealth_rate_budget").fetchall() == kept


def test_who_may_ask_for_a_table_as_it_was_may_still_and_views_on_it_go_on(empty_database_url: str) -> None:
    """The function takes more now, so it is another one: rights and views were those of the one before."""
    migrate._migrate(empty_database_url, "0013")
    may = "SELECT has_function_privilege(%s, 'nexhealth_asof(text, timestamptz, text, bigint[])', 'EXECUTE')"
    view = "SELECT id, version FROM nexhealth_asof('operatories', now())"
    with psycopg.connect(empty_database_url, autocommit=True) as db:
        db.execute(
            f"CREATE ROLE {ROLE}; CREATE ROLE {ROLE}_too;"
            " REVOKE ALL ON FUNCTION nexhealth_asof FROM PUBLIC;"
            f" GRANT EXECUTE ON FUNCTION nexhealth_asof TO {ROLE}; CREATE VIEW theirs AS {view}"
        )
        try:
            migrate.upgrade(empty_database_url)
            assert db.execute(may, (ROLE,)).fetchone() == (True,)
            assert db.execute(may, (f"{ROLE}_too",)).fetchone() == (False,)
            db.execute(
                "INSERT INTO nexhealth_operatories (institution_id, id, synced_at, source_read_at, row_hash)"
                " VALUES (1, 5, now(), now(), '')"
            )
            assert db.execute("SELECT * FROM theirs").fetchall() == db.execute(view).fetchall() == [(5, 1)]
        finally:
            db.execute(f"DROP OWNED BY {ROLE}; DROP ROLE {ROLE}; DROP ROLE {ROLE}_too")


@pytest.mark.parametrize(
    ("before", "who"),
    [
        # Nobody was asked about: everybody may, whatever new functions are given by now.
        pytest.param("", {"PUBLIC", "owner"}, id="untouched"),
        pytest.param("REVOKE ALL ON FUNCTION nexhealth_asof FROM PUBLIC", {"owner"}, id="closed"),
        pytest.param(
            f"REVOKE ALL ON FUNCTION nexhealth_asof FROM PUBLIC; GRANT EXECUTE ON FUNCTION nexhealth_asof TO {ROLE}",
            {ROLE, "owner"},
            id="let in",
        ),
        # Whoever upgrades may be another role than the one that made it.
        pytest.param(
            f"GRANT CREATE ON SCHEMA public TO {ROLE}; ALTER FUNCTION nexhealth_asof OWNER TO {ROLE};"
            " REVOKE ALL ON FUNCTION nexhealth_asof FROM PUBLIC",
            {ROLE, "owner"},
            id="its owner",
        ),
    ],
)
@pytest.mark.parametrize(
    "given", ["REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC", f"GRANT EXECUTE ON FUNCTIONS TO {ROLE}_too"]
)
def test_rights_on_the_function_before_are_those_on_the_new_one(
    empty_database_url: str, before: str, given: str, who: set[str]
) -> None:
    """What functions are given by default may have changed since: somebody is shut out, or somebody else is let in."""
    migrate._migrate(empty_database_url, "0013")
    with psycopg.connect(empty_database_url, autocommit=True) as db:
        db.execute(f"CREATE ROLE {ROLE}; CREATE ROLE {ROLE}_too; ALTER DEFAULT PRIVILEGES {given}; {before}")
        try:
            migrate.upgrade(empty_database_url)
            found = db.execute(
                "SELECT CASE grantee WHEN 0 THEN 'PUBLIC' WHEN proowner THEN 'owner' ELSE grantee::regrole::text END"
                " FROM pg_proc, aclexplode(coalesce(proacl, acldefault('f', proowner))) WHERE proname = 'nexhealth_asof'"
            ).fetchall()
            assert {one for (one,) in found} == who
        finally:
            db.execute(f"DROP OWNED BY {ROLE}, {ROLE}_too; DROP ROLE {ROLE}; DROP ROLE {ROLE}_too")


def test_of_a_pass_that_was_judged_the_table_says_which_ids_stay(database_url: str) -> None:
    """Risk: whoever reads that all are forgotten takes those that stay for what was never judged, and deletes them."""
    with psycopg.connect(database_url) as db:
        found = db.execute("SELECT obj_description('nexhealth_seen_passes'::regclass)").fetchone()
    assert found is not None
    assert "those stay that other locations may list as well" in found[0]


def test_what_is_built_on_a_view_of_a_name_that_is_now_ours_is_named(empty_database_url: str) -> None:
    """Somebody's own patient_locations gives way to that of this release, unless they built on it."""
    migrate._migrate(empty_database_url, "0016")
    with psycopg.connect(empty_database_url, autocommit=True) as db:
        db.execute(
            "CREATE SCHEMA theirs;"
            " CREATE VIEW nexhealth_current.patient_locations AS SELECT patient_id FROM nexhealth_patient_locations;"
            " CREATE VIEW theirs.lists AS SELECT * FROM nexhealth_current.patient_locations;"
            " CREATE VIEW theirs.listed AS SELECT patient_id FROM nexhealth_patient_locations"
        )
        with pytest.raises(
            WarehouseError, match=r"or view must be replaced on which view theirs\.lists is built: drop"
        ):
            migrate.upgrade(empty_database_url)
        db.execute("DROP VIEW theirs.lists")
        migrate.upgrade(empty_database_url)
        shown = db.execute("SELECT * FROM nexhealth_current.patient_locations").description
    assert [one.name for one in shown or ()] == ["institution_id", "patient_id", "location_id", "first_seen"]


def test_of_the_function_before_nothing_is_left_where_no_view_needs_it(empty_database_url: str) -> None:
    migrate._migrate(empty_database_url, "0013")
    migrate.upgrade(empty_database_url)
    with psycopg.connect(empty_database_url) as db:
        found = db.execute(
            "SELECT proname::text, pronargs FROM pg_proc WHERE proname LIKE 'nexhealth_asof%'"
        ).fetchall()
    assert found == [("nexhealth_asof", 4)]


def test_a_pass_that_is_not_made_any_more_leaves_no_state(empty_database_url: str) -> None:
    """Risk: nobody moves it on, so that a field that has gone is never missed and a note of a record that has never ends."""
    made = {(one.name, each.name) for one in DECLARED for each in one.passes}
    before = {*made, ("appointments", "unfiltered"), ("nex_staff", "all")}
    migrate._migrate(empty_database_url, "0018")
    with psycopg.connect(empty_database_url, autocommit=True) as db:
        db.cursor().executemany(
            "INSERT INTO nexhealth_sync_state (collection, institution_id, location_id, window_key, pass, mode,"
            " filter_hash, cursor, page, records, run_id) VALUES (%s, 7, 3, '', %s, 'full', '', '', 0, 0, '')",
            list(before),
        )
        db.cursor().executemany(
            "INSERT INTO nexhealth_seen_passes (collection, institution_id, location_id, window_key, pass, begun_at, offline)"
            " VALUES (%s, 7, 3, '', %s, now(), '{}')",
            [*before, ("appointments", "unfiltered aside")],
        )
        db.execute("INSERT INTO nexhealth_seen (pass_id, key) SELECT id, 'x' FROM nexhealth_seen_passes")
        migrate.upgrade(empty_database_url)
        assert {*db.execute("SELECT collection, pass FROM nexhealth_sync_state")} == made
        assert {*db.execute("SELECT collection, pass FROM nexhealth_seen_passes")} == made
        assert db.execute("SELECT count(*) FROM nexhealth_seen").fetchone() == (len(made),)


def test_a_role_that_may_not_create_is_told_which_right_it_lacks(guest_url: str) -> None:
    """Risk: alembic runs through SQLAlchemy, which wraps the driver's error in one of its own."""
    with pytest.raises(MissingRights, match=rf"{ROLE}.*GRANT CREATE") as caught:
        migrate.upgrade(guest_url)
    assert caught.value.__suppress_context__
    assert tables(guest_url) == set()


def test_a_role_that_may_not_read_is_told_so(empty_database_url: str, guest_url: str) -> None:
    migrate.upgrade(empty_database_url)
    for act in (migrate.upgrade, migrate.check, lambda url: migrate.declare_kind(url, "real")):
        with pytest.raises(MissingRights):
            act(guest_url)


def test_a_warehouse_holds_sandbox_or_real_data_never_both(database_url: str) -> None:
    migrate.declare_kind(database_url, "sandbox")
    migrate.declare_kind(database_url, "sandbox")
    with pytest.raises(WarehouseRefused, match="set DATABASE_URL"):
        migrate.declare_kind(database_url, "real")


def test_a_dry_run_refuses_the_other_kind_and_decides_nothing(database_url: str) -> None:
    """Whoever tries a sandbox's key first must not have spoilt the warehouse for the real one."""
    migrate.declare_kind(database_url, "sandbox", dry_run=True)
    migrate.declare_kind(database_url, "real")
    with pytest.raises(WarehouseRefused, match="holds real data"):
        migrate.declare_kind(database_url, "sandbox", dry_run=True)


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (f"UPDATE nexhealth_alembic_version SET version_num = '{BEFORE}'", f"at migration {BEFORE}, this one needs"),
        ("ALTER TABLE nexhealth_operatories DROP COLUMN name CASCADE", r"lacks nexhealth_operatories\.name"),
    ],
)
def test_a_dry_run_leaves_a_warehouse_of_an_earlier_release_as_it_is(database_url: str, spoil: str, told: str) -> None:
    """Whoever tries the next release out on a warehouse in use would lock the one at work out of it."""
    version = "SELECT version_num FROM nexhealth_alembic_version"
    with psycopg.connect(database_url, autocommit=True) as db:
        db.execute(spoil.encode())
        before = db.execute(version).fetchall()
        with pytest.raises(WarehouseOutdated, match=f"{told}.*: run `nexhealth db upgrade`"):
            migrate.prepare(database_url, "real", dry_run=True)
        assert db.execute(version).fetchall() == before
        migrate.prepare(database_url, "real")
    migrate.prepare(database_url, "real", dry_run=True)


def test_a_dry_run_makes_the_tables_of_an_empty_warehouse_and_declares_nothing(empty_database_url: str) -> None:
    """Nothing can be tried out without them, and nobody has used them yet."""
    migrate.prepare(empty_database_url, "sandbox", dry_run=True)
    migrate.check(empty_database_url)
    migrate.prepare(empty_database_url, "real")


def test_the_revision_is_that_of_the_newest_migration(shared_url: str, empty_database_url: str) -> None:
    with connect(shared_url) as db:
        assert migrate.current_revision(db) == migrate.HEAD
    with connect(empty_database_url) as db:
        assert migrate.current_revision(db) is None


def test_an_upgrade_by_hand_makes_the_indexes_of_tables_with_rows(database_url: str) -> None:
    """What doctor tells an owner to do whose runs are another role's."""
    with psycopg.connect(database_url, autocommit=True) as db:
        db.execute(
            "INSERT INTO nexhealth_operatories (institution_id, id, synced_at, source_read_at, row_hash)"
            " VALUES (1, 1, now(), now(), '')"
        )
        assert migrate.upgrade(database_url) == []
        added = migrate.upgrade(database_url, indexes=True)
        assert added
        assert all(one.startswith("added index nexhealth_operatories_") for one in added)
        assert migrate.upgrade(database_url, indexes=True) == []


def test_a_database_that_is_read_only_is_told_as_that_and_where_to_go(empty_database_url: str) -> None:
    """A standby's address is the one that is handed out for reports: "PostgreSQL refused" told nobody what to correct."""
    with psycopg.connect(empty_database_url, autocommit=True) as db:
        db.execute(f'ALTER DATABASE "{db.info.dbname}" SET default_transaction_read_only = on')
    with pytest.raises(
        WarehouseError, match=r"upgrading the warehouse: .* read-only \(25006\): name the primary server"
    ):
        migrate.upgrade(empty_database_url)
