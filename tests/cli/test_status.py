"""`nexhealth status`: freshness, what is being read, what went wrong; and never a dead run as a live one."""

import io
import json
import re
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from nexhealth_pipeline.cli import report
from nexhealth_pipeline.cli.report import read_report
from nexhealth_pipeline.cli.status import status_lines, watch
from nexhealth_pipeline.warehouse.runs import RunLock
from tests.cli.conftest import Run

ROWS = """
INSERT INTO nexhealth_institutions (institution_id, id, name, subdomain, synced_at, source_read_at, row_hash)
VALUES (7, 7, 'Acme Dental', 'acme', now(), now(), '');
INSERT INTO nexhealth_locations (institution_id, id, name, synced_at, source_read_at, row_hash)
VALUES (7, 12, 'Acme Île d''Or', now(), now(), '');
INSERT INTO nexhealth_freshness VALUES
    (0, 0, 'institutions', now() - interval '5 minutes', now(), NULL, NULL, NULL),
    (7, 0, 'providers', now() - interval '3 days', now(), now(), 'green', now() - interval '10 minutes'),
    (7, 12, 'patients', now() - interval '5 hours', now(), now(), 'red', now() - interval '2 days'),
    (7, 12, 'appointments', NULL, NULL, NULL, NULL, NULL);
INSERT INTO nexhealth_sync_logs (run_id, asset, collection, institution_id, location_id, partition_key, mode, status,
    pages, records_read, started_at, error)
VALUES ('old', 'a', 'patients', 7, 12, 'acme.12', 'full', 'failed', 1, 10, now() - interval '2 hours', 'was down'),
       ('old', 'a', 'patients', 7, 12, 'acme.12', 'full', 'succeeded', 9, 90, now() - interval '1 hour', NULL),
       ('old', 'a', 'documents', 7, 12, 'acme.12', 'full', 'failed', 1, 10, now() - interval '1 hour', 'the API keeps failing'),
       ('run-1', 'a', 'appointments', 7, 12, 'acme.12|2026-01', 'full', 'running', 4, 4000, now() - interval '3 minutes', NULL),
       ('gone', 'a', 'operatories', 7, 12, 'acme.12', 'full', 'running', 2, 20, now() - interval '1 hour', NULL);
INSERT INTO nexhealth_runs (run_id, host, pid, started_at) VALUES ('gone', 'h', 1, now() - interval '1 hour');
"""


@pytest.fixture
def connection(database_url: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield connection


@pytest.fixture
def busy(connection: psycopg.Connection, database_url: str) -> Iterator[str]:
    """A warehouse in the middle of a sync, whose process holds its lock."""
    connection.execute(ROWS)
    with RunLock(database_url, "run-1"):
        yield database_url


def test_it_shows_each_collection_at_each_location_by_name(nexhealth: Run, busy: str) -> None:
    """Ids alone tell an office manager nothing."""
    ended = nexhealth("status", DATABASE_URL=busy)
    assert (ended.status, ended.err) == (0, "")
    rows = ended.out.splitlines()
    (patients,) = [line for line in rows if line.startswith("acme.12") and " patients " in line]
    assert "Acme Île d'Or" in patients
    assert " 5 h " in patients
    assert "OFFLINE, read 2 d ago" in patients
    (appointments,) = [line for line in rows if line.startswith("acme.12") and " appointments " in line]
    assert "not yet complete" in appointments
    assert any(line.startswith("everything") and "institutions" in line for line in rows)


def test_it_shows_what_is_being_read_and_what_was_cut_off(nexhealth: Run, busy: str) -> None:
    """A killed process leaves rows that say running; calling it progress would let somebody wait for ever."""
    out = nexhealth("status", DATABASE_URL=busy).out
    assert "reading appointments acme.12|2026-01: 4 pages, 4,000 records, since 3 min" in out
    assert "interrupted: operatories acme.12 after 2 pages" in out
    states = {line.split()[0]: line.split()[1] for line in out.splitlines() if line.startswith(("run-1", "gone"))}
    assert states == {"run-1": "running", "gone": "interrupted"}


def test_a_failure_is_shown_until_the_slice_was_read_again(nexhealth: Run, busy: str) -> None:
    """What is mended needs nobody's eye."""
    out = nexhealth("status", DATABASE_URL=busy).out
    assert "failed: documents acme.12" in out
    assert "the API keeps failing" in out
    assert "was down" not in out


def test_a_last_run_whose_process_is_gone_is_interrupted(connection: psycopg.Connection) -> None:
    """Its row says running until the next sync closes it."""
    connection.execute("INSERT INTO nexhealth_runs (run_id, host, pid) VALUES ('gone', 'h', 1)")
    assert [run.status for run in read_report(connection).runs] == ["interrupted"]


def test_what_went_wrong_is_looked_for_in_the_last_week_alone(connection: psycopg.Connection) -> None:
    """Shown every two seconds, of a log that grows by a million rows a month."""
    old = _old_month(connection)
    connection.execute("SET enable_seqscan = off")
    for query, given in ((report._FAILED_AT, ()), (report._PROBLEMS, ([12],))):
        plan = "\n".join(line for (line,) in connection.execute("EXPLAIN " + query, given))
        assert "Index Cond: (started_at > " in plan
        assert old not in plan


def logged(connection: psycopg.Connection, status: str, hours: float, location: int | None = 12) -> None:
    """One more row of the log, begun so many hours ago; its error is its number."""
    connection.execute(
        "INSERT INTO nexhealth_sync_logs (run_id, asset, collection, institution_id, location_id, partition_key, mode,"
        " status, started_at, error) SELECT 'r', 'a', 'patients', 7, %(location)s::bigint, 'acme.' || %(location)s::bigint,"
        " 'full', %(status)s, date_trunc('hour', now()) - %(hours)s * interval '1 hour',"
        " (SELECT count(*)::text FROM nexhealth_sync_logs)",
        {"status": status, "hours": hours, "location": location},
    )


@pytest.mark.parametrize(
    ("reads", "shown"),
    [
        pytest.param([("failed", 2), ("succeeded", 1)], [], id="mended"),
        pytest.param([("succeeded", 2), ("failed", 1)], ["1"], id="failed since"),
        pytest.param([("failed", 2), ("failed", 1)], ["1"], id="twice"),
        pytest.param([("failed", 2), ("running", 1)], [], id="being read again"),
        pytest.param([("interrupted", 1)], ["0"], id="interrupted"),
        pytest.param([("failed", 1), ("succeeded", 1)], [], id="mended at once"),
        pytest.param([("succeeded", 1), ("failed", 1)], ["1"], id="failed at once"),
        pytest.param([("failed", 1), ("succeeded", 2)], [], id="a clock that was put back"),
        pytest.param([("failed", 1), ("succeeded", 1, 13)], ["0"], id="another location"),
        pytest.param([("failed", 3), ("succeeded", 2, 13), ("failed", 1, 13)], ["2", "0"], id="two locations"),
        pytest.param([("failed", 2, None), ("succeeded", 1)], ["0"], id="of no location"),
        pytest.param([("failed", 2, None), ("succeeded", 1, None)], [], id="of no location, mended"),
        pytest.param([("failed", 200)], [], id="eight days ago"),
    ],
)
def test_the_last_word_on_a_slice_is_what_is_shown(
    connection: psycopg.Connection, reads: list[tuple[Any, ...]], shown: list[str]
) -> None:
    for read in reads:
        logged(connection, *read)
    assert [one.error for one in read_report(connection).problems] == shown


def test_of_a_week_only_what_was_read_where_anything_failed_is_put_in_order(connection: psycopg.Connection) -> None:
    """Of a thousand locations 200,000 rows, every two seconds."""
    for location in (None, *range(13, 40)):
        logged(connection, "succeeded", 1, location)
    logged(connection, "failed", 1)
    assert connection.execute(report._FAILED_AT).fetchall() == [(12,)]
    row = connection.execute("EXPLAIN (ANALYZE, FORMAT JSON) " + report._PROBLEMS, ([12],)).fetchone()
    assert row is not None
    nodes = [row[0][0]["Plan"]]
    for node in nodes:
        nodes += node.get("Plans", [])
    assert {int(node["Actual Rows"]) for node in nodes if node["Node Type"] == "Sort"} == {1}


def test_the_last_runs_are_found_without_a_look_at_all_runs_or_months(connection: psycopg.Connection) -> None:
    """Continuous sync makes a thousand runs a day that are not shown; each was looked for in every month of the log."""
    old = _old_month(connection)
    connection.execute(
        "INSERT INTO nexhealth_runs (run_id, host, pid, status, finished_at)"
        " SELECT 'run-' || n, 'h', 1, 'succeeded', now() FROM generate_series(1, 9) n;"
        " INSERT INTO nexhealth_sync_logs (run_id, asset, collection, mode, status)"
        " SELECT run_id, 'a', 'patients', CASE run_id WHEN 'run-5' THEN 'full' ELSE 'webhook' END, 'succeeded'"
        " FROM nexhealth_runs"
    )
    connection.execute("SET enable_seqscan = off")
    plan = [line for (line,) in connection.execute("EXPLAIN (ANALYZE) " + report._RUNS)]
    assert any("Index Scan Backward using nexhealth_runs_started" in line for line in plan)
    searched = [line for line in plan if f" on {old} " in line]
    assert searched
    assert all("(never executed)" in line for line in searched)
    assert [(run.run_id, run.slices) for run in read_report(connection).runs] == [("run-5", 1)]


def test_a_run_that_goes_on_is_shown_however_many_have_begun_since(
    connection: psycopg.Connection, database_url: str
) -> None:
    """Who upgrades waits until none is shown as running: one that had left the list was still at work."""
    with RunLock(database_url, "night"):
        connection.execute(
            "INSERT INTO nexhealth_runs (run_id, host, pid, status, started_at, finished_at)"
            " SELECT 'later-' || n, 'h', 1, 'failed', now() + n * interval '1 hour', now() + interval '9 hours'"
            " FROM generate_series(1, 6) n"
        )
        found = [(run.run_id, run.status) for run in read_report(connection).runs]
    assert found == [*((f"later-{n}", "failed") for n in range(6, 1, -1)), ("night", "running")]


def _old_month(connection: psycopg.Connection) -> str:
    """A partition of the log that is of three months ago."""
    row = connection.execute(
        "SELECT 'nexhealth_sync_logs_' || to_char(begins, 'YYYY_MM'), nexhealth_sync_logs_month(begins)"
        " FROM (SELECT date_trunc('month', now() AT TIME ZONE 'UTC') - interval '3 months' AS begins) old"
    ).fetchone()
    assert row is not None
    assert row[1]
    return str(row[0])


def test_json_has_everything(nexhealth: Run, busy: str) -> None:
    """For a monitor."""
    found = json.loads(nexhealth("status", "--json", DATABASE_URL=busy).out)
    assert "T" in found["now"]
    assert {one["collection"] for one in found["fresh"]} == {"institutions", "providers", "patients", "appointments"}
    assert [(one["slice"], one["alive"]) for one in found["reading"]] == [
        ("appointments acme.12|2026-01", True),
        ("operatories acme.12", False),
    ]
    assert [run["run_id"] for run in found["runs"]] == ["run-1", "gone"]


def test_an_empty_warehouse_says_what_to_do(nexhealth: Run, database_url: str) -> None:
    """The first thing after `db upgrade`."""
    ended = nexhealth("status", DATABASE_URL=database_url)
    assert ended.status == 0
    assert "Nothing was synced yet" in ended.out


def test_a_warehouse_without_tables_is_an_error_that_names_the_fix(nexhealth: Run, empty_database_url: str) -> None:
    """Not a driver's "relation does not exist"."""
    ended = nexhealth("status", DATABASE_URL=empty_database_url)
    assert ended.status == 4
    assert "nexhealth db upgrade" in ended.err


def test_watching_shows_it_again_until_ctrl_c_which_is_no_failure(
    connection: psycopg.Connection, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C is the way to end it."""
    naps: list[float] = []

    def nap(seconds: float) -> None:
        naps.append(seconds)
        if len(naps) == 3:
            raise KeyboardInterrupt

    assert watch(connection, as_json=True, sleep=nap) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert all(json.loads(line)["fresh"] == [] for line in lines)


def test_watching_on_a_terminal_draws_and_ends_alike(
    connection: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The screen is given back."""
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)

    def nap(_seconds: float) -> None:
        raise KeyboardInterrupt

    assert watch(connection, as_json=False, sleep=nap) == 0


class Terminal(io.StringIO):
    """A stream that says that it is one."""

    def isatty(self) -> bool:
        return True


def screen(connection: psycopg.Connection, monkeypatch: pytest.MonkeyPatch, width: int, height: int) -> list[str]:
    """The lines that `--watch` draws on a terminal of that size."""
    for name, value in {"COLUMNS": str(width), "LINES": str(height), "TERM": "xterm"}.items():
        monkeypatch.setenv(name, value)
    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    drawn: list[str] = []

    def nap(_seconds: float) -> None:
        drawn.append(terminal.getvalue())
        raise KeyboardInterrupt

    assert watch(connection, as_json=False, sleep=nap) == 0
    return [line.rstrip() for line in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", drawn[0]).rstrip().split("\n")]


def test_freshness_is_seen_on_a_terminal_of_80_columns_and_24_lines(
    connection: psycopg.Connection, monkeypatch: pytest.MonkeyPatch, busy: str
) -> None:
    """Wide lines were folded and all below the last line was cut off unsaid: it was never seen."""
    connection.execute(
        "UPDATE nexhealth_institutions SET subdomain = 'willow-dental';"
        " INSERT INTO nexhealth_freshness (institution_id, location_id, collection, complete_through)"
        " SELECT 7, 12, 'a_collection_' || n, now() - n * interval '30 minutes' FROM generate_series(1, 60) n"
    )
    for number in range(20):
        _failed_check(connection, number, f"check_{number}")
    lines = screen(connection, monkeypatch, 80, 24)
    assert len(lines) == 23, "the last line is left free"
    assert max(map(len, lines)) <= 80
    assert lines[0].startswith("latest runs")
    head = next(place for place, line in enumerate(lines) if line.startswith("location "))
    assert head == 12, "half of the screen for what happens, half for freshness"
    oldest = [line.split() for line in lines[head + 2 : -1]]
    assert (len(oldest), oldest[0]) == (8, ["willow-dental.12", "appointments", "not", "yet", "complete"])
    assert (oldest[1][:2], oldest[1][4:6]) == (["willow-dental", "providers"], ["3", "d"])
    assert (oldest[2][:2], oldest[2][4:6]) == (["willow-dental.12", "a_collection_60"], ["30", "h"])
    whole = len(status_lines(read_report(connection)))
    assert lines[-1] == f"... {whole - 22} lines more: `nexhealth status` without --watch shows them"


def test_what_is_read_no_more_does_not_hold_the_top_of_the_screen(
    connection: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of a closed office, and of a list that is not offered any more, stay for ever as old as they are."""
    connection.execute(
        ROWS + "INSERT INTO nexhealth_institutions (institution_id, id, subdomain, synced_at, source_read_at, row_hash)"
        " VALUES (8, 8, 'shut', now(), now(), '');"
        " INSERT INTO nexhealth_locations (institution_id, id, inactive, deleted_at, synced_at, source_read_at, row_hash)"
        " VALUES (7, 13, true, NULL, now(), now(), ''), (7, 14, false, now(), now(), now(), ''),"
        " (8, 15, true, NULL, now(), now(), '');"
        " INSERT INTO nexhealth_capabilities (institution_id, location_id, collection, status, evidence)"
        " VALUES (7, 12, 'payments', 'not_enabled', '403'), (7, 12, 'patients', 'supported', '200');"
        " INSERT INTO nexhealth_freshness (institution_id, location_id, collection, complete_through)"
        " SELECT *, now() - interval '90 days' FROM (VALUES (7, 13, 'patients'), (7, 14, 'patients'), (8, 0, 'providers'),"
        " (7, 12, 'payments')) closed"
    )
    assert {(one.place, one.collection) for one in read_report(connection).fresh if one.closed} == {
        *(("acme.13", "patients"), ("acme.14", "patients"), ("acme.12", "payments"))
    }, "what an institution lists is read although its locations are closed"
    lines = screen(connection, monkeypatch, 80, 40)
    head = next(place for place, line in enumerate(lines) if line.startswith("location "))
    ages = [line[line.index(":") + 3 :].strip() if ":" in line else "" for line in lines[head + 2 :]]
    assert [age.split("  ")[0] for age in ages] == ["", "90 d", "3 d", "5 h", "5 min", *["90 d"] * 3]


def test_what_is_wrong_is_seen_on_a_small_screen_while_much_is_read(
    connection: psycopg.Connection, monkeypatch: pytest.MonkeyPatch, busy: str
) -> None:
    """Five runs and a dozen slices that are read filled the half of the screen; what went wrong was below it."""
    connection.execute(
        "INSERT INTO nexhealth_runs (run_id, host, pid) SELECT 'many-' || n, 'h', 1 FROM generate_series(1, 5) n;"
        " INSERT INTO nexhealth_sync_logs (run_id, asset, collection, institution_id, location_id, partition_key, mode,"
        " status) SELECT 'run-1', 'a', 'patients', 7, n, 'acme.' || n, 'full', 'running' FROM generate_series(20, 31) n;"
        " INSERT INTO nexhealth_sync_logs (run_id, asset, collection, institution_id, location_id, partition_key, mode,"
        " status, error) SELECT 'old', 'a', 'claims', 7, n, 'acme.' || n, 'full', 'failed', 'no' FROM generate_series(40, 50) n;"
        " INSERT INTO nexhealth_freshness (institution_id, location_id, collection) SELECT 7, 12, 'c' || n"
        " FROM generate_series(1, 60) n;"
        " INSERT INTO nexhealth_webhooks (key_hash, endpoint_id, target_url, active, secret, registered_at)"
        " VALUES ('k', 12, 'https://a.example/hook', false, 's', now());"
        " INSERT INTO nexhealth_quarantine (collection, institution_id, location_id, record_id, field, rule, loaded,"
        " raw, fingerprint, run_id) VALUES ('patients', 7, 12, '5', 'bio', 'date', true, '', '', 'run-1')"
    )
    _failed_check(connection, 2)
    lines = screen(connection, monkeypatch, 80, 24)
    firsts = [line.split()[0] for line in lines[6 : lines.index("", 6)]]
    assert firsts == ["webhook", "failed:", "check", "in", "failed:"]
    whole = len(status_lines(read_report(connection)))
    assert lines[-1].startswith(f"... {whole - 22} lines more: ")


def test_a_screen_that_has_room_shows_all(
    connection: psycopg.Connection, monkeypatch: pytest.MonkeyPatch, busy: str
) -> None:
    lines = screen(connection, monkeypatch, 200, 40)
    assert sorted(lines) == sorted(status_lines(read_report(connection)))


@pytest.mark.parametrize("option", ["--check", "--acknowledge"])
def test_watching_does_nothing_else(nexhealth: Run, database_url: str, option: str) -> None:
    """Left out unsaid, what was to be acknowledged would wake somebody again."""
    ended = nexhealth("status", "--watch", option, DATABASE_URL=database_url)
    assert (ended.status, ended.out) == (2, "")
    assert option in ended.err


def _failed_check(connection: psycopg.Connection, faults: int, name: str = "no_orphans") -> None:
    connection.execute(
        "INSERT INTO nexhealth_check_results (collection, check_name, institution_id, severity, faults, sample_ids,"
        " failing_since) VALUES ('patients', %s, 7, 'warning', %s, '{7/5}', now())"
        " ON CONFLICT (collection, check_name, institution_id) DO UPDATE SET faults = excluded.faults",
        (name, faults),
    )


def test_a_failed_check_is_something_new_to_look_at_until_it_is_acknowledged(
    nexhealth: Run, connection: psycopg.Connection, database_url: str
) -> None:
    """Exit status 1 wakes somebody; what was seen must not wake them every morning, more of it must."""
    _failed_check(connection, 2)
    ended = nexhealth("status", "--acknowledge", DATABASE_URL=database_url)
    assert ended.status == 1
    line = "check failed (warning): nexhealth_patients no_orphans, institution 7: 2 faults, for example 7/5"
    assert line in ended.out.splitlines()
    again = nexhealth("status", DATABASE_URL=database_url)
    assert again.status == 0
    assert line.replace("failed", "acknowledged", 1) in again.out.splitlines()
    _failed_check(connection, 3)
    answer = nexhealth("status", "--json", DATABASE_URL=database_url)
    assert answer.status == 1
    assert [(one["faults"], one["acknowledged"]) for one in json.loads(answer.out)["checks"]] == [(3, 2)]


def test_the_checks_can_be_run_from_a_shell(nexhealth: Run, busy: str, connection: psycopg.Connection) -> None:
    """Whoever syncs by cron has no Dagit."""
    _failed_check(connection, 2)
    ended = nexhealth("status", "--check", DATABASE_URL=busy)
    assert ended.status == 1
    assert "nexhealth_patients no_orphans" not in ended.out
    assert "check failed (warning): nexhealth_providers fresh, institution 7: 1 fault, for example 7/0" in ended.out


def test_continuous_sync_is_shown_where_it_is_in_use(
    nexhealth: Run, connection: psycopg.Connection, database_url: str
) -> None:
    """An endpoint that is off and events that wait are seen by nobody else before somebody misses a row."""
    assert "webhook" not in nexhealth("status", DATABASE_URL=database_url).out
    connection.execute(
        "INSERT INTO nexhealth_webhooks (key_hash, endpoint_id, target_url, active, secret, subscriptions, registered_at,"
        """ hole_since) VALUES ('k', 12, 'https://a.example/hook', false, 's', '[{"subdomain": "acme"}]', '2026-02-01',"""
        " '2026-03-01T12:00Z');"
        " INSERT INTO nexhealth_webhook_events (received_at, endpoint_id, verdict, status, repeats, payload) VALUES"
        " (now() - interval '5 minutes', 12, 'valid', 'pending', 1, '{}'), (now(), 12, 'valid', 'parked', 1, '{}'),"
        " (now() - interval '1 year', 12, 'valid', 'parked', 1, NULL),"  # expunged: no replay can help it any more
        " (now(), NULL, 'signature', 'rejected', 7, NULL), (now() - interval '2 days', NULL, 'signature', 'rejected', 9, NULL)"
    )
    ended = nexhealth("status", "--check", DATABASE_URL=database_url)
    lines = ended.out.splitlines()
    assert ended.status == 1
    (endpoint,) = [line for line in lines if line.startswith("webhook endpoint 12 (https://a.example/hook): INACTIVE")]
    assert " 1 subscriptions, last event " in endpoint
    assert endpoint.endswith("events since 2026-03-01 12:00 may be missing")
    (events,) = [line for line in lines if line.startswith("webhook events: ")]
    assert events.endswith("1 pending (the oldest for 5 min), 1 parked, 7 requests refused in the last day")
    assert (
        "check failed (error): nexhealth_webhook_events endpoint_active, everything: 1 fault, for example 12" in lines
    )
    assert any("nexhealth_webhook_events nothing_parked, everything: 1 fault" in line for line in lines)
    found = json.loads(nexhealth("status", "--json", DATABASE_URL=database_url).out)["webhooks"]
    assert (found["pending"], found["parked"], found["rejected_last_day"]) == (1, 1, 7)
    assert [(one["endpoint_id"], one["active"]) for one in found["endpoints"]] == [(12, False)]


def test_an_endpoint_is_not_said_to_be_silent_for_longer_than_it_exists(
    nexhealth: Run, connection: psycopg.Connection, database_url: str
) -> None:
    """Seven days without an event, said of one that was set up minutes ago, sends people looking for a fault."""
    connection.execute(
        "INSERT INTO nexhealth_webhooks (key_hash, endpoint_id, target_url, active, secret, registered_at)"
        " SELECT 'k', id, 'https://a.example/hook', true, 's', now() - since"
        " FROM (VALUES (1, interval '10 minutes'), (2, interval '3 days'), (3, interval '90 days')) given(id, since)"
    )
    lines = nexhealth("status", DATABASE_URL=database_url).out.splitlines()
    told = [line.rpartition(", ")[2] for line in lines if line.startswith("webhook endpoint ")]
    assert told == ["no event in 10 min", "no event in 3 d", "no event in 7 d"]
