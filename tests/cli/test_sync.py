"""`nexhealth sync`: what is asked for reaches the run, and its end becomes words, JSON and a status."""

import json
import os
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest

from nexhealth_pipeline import errors
from nexhealth_pipeline.cli.progress import look_seconds, showing_progress
from nexhealth_pipeline.orchestration import launch
from nexhealth_pipeline.orchestration.launch import CollectionSummary, Progress, SyncRequest, SyncSummary
from nexhealth_pipeline.sandbox import SANDBOX_API_KEY
from nexhealth_pipeline.sync.filters import Filters
from nexhealth_pipeline.sync.options import Mode
from nexhealth_pipeline.sync.slices import Absence
from nexhealth_pipeline.warehouse.sync_log import Counts
from tests.cli.conftest import REAL_KEY, Run

KEY = {"NEXHEALTH_API_KEY": REAL_KEY, "DATABASE_URL": "postgresql://host/db"}


def summary(exit_status: int = 0, **changes: Any) -> SyncSummary:
    counts = Counts(pages=3, records_read=2500, inserted=2000, updated=100, unchanged=399, quarantined=1, requests=4)
    values: dict[str, Any] = {
        "run_ids": ["r1"],
        "collections": [
            CollectionSummary("patients", 2, 2, 0, 0, counts, 12.34),
            CollectionSummary("appointments", 5, 4, 1, 0, Counts(pages=10, requests=12), 3.0),
        ],
        "failures": [],
        "new_notes": 0,
        "seconds": 15.5,
        "floor_seconds": 14.0,
        "exit_status": exit_status,
    }
    return SyncSummary(**(values | changes))


class FakeRun:
    """Stands for Dagster's part, which has tests of its own."""

    def __init__(self) -> None:
        self.requests: list[SyncRequest] = []
        self.options: dict[str, Any] = {}
        self.end: SyncSummary | errors.PipelineError = summary()

    def __call__(self, settings: object, request: SyncRequest, **options: Any) -> SyncSummary:
        self.requests.append(request)
        self.options = options
        if options["on_progress"] is not None:
            options["on_progress"](Progress("patients acme.1", 2, 2000, 1, 7))
        if isinstance(self.end, errors.PipelineError):
            raise self.end
        return self.end


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> FakeRun:
    fake = FakeRun()
    monkeypatch.setattr(launch, "run_sync", fake)
    return fake


def test_every_filter_reaches_the_run(nexhealth: Run, ran: FakeRun) -> None:
    """A filter that is lost on the way reads, and bills, everything."""
    words = "sync --mode full --resource nexhealth_appointments --location acme.1 --location North"
    ended = nexhealth(*words.split(), "--start", "2026-01-01", "--end", "2026-01-31", "--dry-run", **KEY)
    assert ended.status == 0
    assert ran.requests == [
        SyncRequest(
            mode=Mode.FULL,
            resources=("appointments",),
            locations=("acme.1", "North"),
            start=date(2026, 1, 1),
            end=date(2026, 1, 31),
            dry_run=True,
        )
    ]
    assert ran.options["kind"] == "real"
    assert (ran.options["warehouse_database"], ran.options["dagster_database"]) == ("nexhealth", "dagster")
    assert "Nothing was written" in ended.out


@pytest.mark.parametrize("explain", [[], ["--explain"]])
def test_a_named_collection_that_has_no_days_is_refused_where_days_are_given(
    nexhealth: Run, ran: FakeRun, explain: list[str]
) -> None:
    """Left out unsaid, its rows would be believed to be new."""
    words = "sync --resource appointments --resource patients --resource providers --end 2026-01-31"
    ended = nexhealth(*words.split(), *explain, **KEY)
    assert (ended.status, ran.requests) == (2, [])
    assert "--start and --end are for appointments, not for patients, providers" in ended.err


def test_row_filters_reach_the_run_and_it_is_said_what_is_read(nexhealth: Run, ran: FakeRun) -> None:
    """Filters leave collections out: a summary of less than everything must not be a surprise."""
    words = "sync --provider 5 --provider 6 --updated-since 2026-01-02T03:00:00+02:00"
    ended = nexhealth(*words.split(), **KEY)
    assert ended.status == 0
    since = datetime(2026, 1, 2, 1, tzinfo=UTC)
    assert ran.requests == [SyncRequest(Mode.INCREMENTAL, filters=Filters(providers=(5, 6), updated_since=since))]
    first = ended.out.splitlines()[0]
    assert first.startswith("Only rows by provider and updated since, of ")
    assert "appointments" in first
    assert "patients" not in first
    nexhealth("sync", "--resource", "patients", "--status", "inactive", "--updated-since", "2026-01-02", **KEY)
    midnight = datetime(2026, 1, 2, tzinfo=UTC)
    assert ran.requests[1] == SyncRequest(
        Mode.INCREMENTAL, resources=("patients",), filters=Filters("inactive", updated_since=midnight)
    )


def test_without_words_it_is_an_incremental_sync_of_everything(nexhealth: Run, ran: FakeRun) -> None:
    """The command of every day."""
    assert nexhealth("sync", **KEY, NEXHEALTH_DATA_KIND="sandbox").status == 0
    assert ran.requests == [SyncRequest(mode=Mode.INCREMENTAL)]
    assert ran.options["kind"] == "sandbox"


def test_a_reconcile_reaches_the_run_with_its_leave(nexhealth: Run, ran: FakeRun) -> None:
    """Lost on the way, the brake could never be released, or was never on."""
    assert nexhealth("sync", "--mode", "reconcile", **KEY).status == 0
    assert nexhealth("sync", "--mode", "reconcile", "--allow-mass-delete", **KEY).status == 0
    assert ran.requests == [
        SyncRequest(mode=Mode.RECONCILE),
        SyncRequest(mode=Mode.RECONCILE, allow_mass_delete=True),
    ]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--allow-mass-delete", "mode incremental: to allow mass deletes (--allow-mass-delete,"),
        ("--mode reconcile --patient 7", "complete reads: leave out --patient"),
        ("--mode reconcile --start 2026-01-01", "complete reads: leave out --start"),
        ("--mode reconcile --provider 3 --end 2026-01-01", "complete reads: leave out --end, --provider"),
    ],
)
def test_a_read_that_could_not_tell_what_is_gone_is_refused(
    nexhealth: Run, ran: FakeRun, words: str, told: str
) -> None:
    """It would look like a reconcile that found nothing gone."""
    ended = nexhealth("sync", *words.split(), **KEY)
    assert (ended.status, ran.requests) == (2, [])
    assert told in ended.err


def test_a_reconcile_tells_what_is_gone_and_where_it_could_not_tell(nexhealth: Run, ran: FakeRun) -> None:
    """A deletion nobody is told of, or one that was held back silently, is found out months later."""
    quiet = asdict(Absence(live=9, seen=9))
    gone = asdict(Absence(live=9, seen=7, missing=2, confirmed=2, tombstoned=2, revived=1))
    dark = "absences not judged: offline"
    ran.end = summary(
        absences=[
            {"collection": "patients", "label": "patients acme.1", "reason": None, **gone},
            {"collection": "patients", "label": "patients acme.3", "reason": None, **quiet},
            {"collection": "alerts", "label": "alerts acme.1", "reason": None, **quiet},
            {"collection": "claims", "label": "claims acme.2", "reason": dark, **asdict(Absence())},
        ]
    )
    lines = nexhealth("sync", "--mode", "reconcile", **KEY).out.splitlines()
    assert [line.split() for line in lines if line.startswith("patients")][-1] == [
        "patients",
        *["16", "2", "2", "2", "1"],
    ]
    assert not any(line.startswith("alerts") for line in lines)
    assert f"{dark}: claims acme.2" in lines


def test_a_dry_run_of_a_reconcile_says_that_it_judges_no_absences(nexhealth: Run, ran: FakeRun) -> None:
    """Whoever rehearses one would read that it deletes nothing."""
    told = "Absences are not judged by a dry run"
    assert told in nexhealth("sync", "--mode", "reconcile", "--dry-run", **KEY).out
    assert told not in nexhealth("sync", "--mode", "full", "--dry-run", **KEY).out
    assert told not in nexhealth("sync", "--mode", "reconcile", **KEY).out


def test_the_table_has_a_row_a_collection_a_total_and_the_floor(nexhealth: Run, ran: FakeRun) -> None:
    """What was done, what it cost, and how near to the API's own limit it was."""
    ran.end = summary(1, failures=[("appointments acme.1|2026-01", "the API keeps failing")], new_notes=3)
    ended = nexhealth("sync", **KEY)
    assert ended.status == 1
    rows = {line.split()[0]: line.split()[1:] for line in ended.out.splitlines() if line.strip()}
    assert rows["patients"] == ["2", "2,500", "2,000", "100", "399", "1", "3", "4", "12.3"]
    assert rows["appointments"] == ["5", "1", "10", "12", "3.0"]
    assert rows["all"] == ["7", "1", "2,500", "2,000", "100", "399", "1", "13", "16", "15.5"]
    assert "15.5 s in all; at an even rate the API's limits allow these requests in 14.0 s" in ended.out
    assert "failed: appointments acme.1|2026-01: the API keeps failing" in ended.out
    assert "3 new notes in nexhealth_quarantine" in ended.out


def test_hours_are_told_beside_their_seconds(nexhealth: Run, ran: FakeRun) -> None:
    ran.end = summary(seconds=4_520.4, floor_seconds=4_500.0)
    out = nexhealth("sync", **KEY).out
    assert "4,520.4 s (1 h 15 min) in all; at" in out
    assert "requests in 4,500.0 s (1 h 15 min); a collection's seconds" in out


def test_json_is_one_object_and_nothing_else_on_stdout(nexhealth: Run, ran: FakeRun) -> None:
    """A script parses stdout as a whole."""
    ended = nexhealth("sync", "--json", **KEY)
    assert json.loads(ended.out) == json.loads(json.dumps(ran.end.as_json()))  # type: ignore[union-attr]
    assert ended.out.count("\n") == 1


def test_an_error_with_json_is_an_object_and_a_line(nexhealth: Run, ran: FakeRun) -> None:
    """The script still gets JSON, the person still gets a line."""
    ran.end = errors.Unreachable("no answer")
    ended = nexhealth("sync", "--json", **KEY)
    assert ended.status == 3
    assert json.loads(ended.out) == {"error": "no answer", "exit_status": 3}
    assert ended.err == "nexhealth: no answer\n"


@pytest.mark.parametrize("status", [0, 1, 3, 4, 130])
def test_the_runs_status_is_the_commands(nexhealth: Run, ran: FakeRun, status: int) -> None:
    """Cron and scripts decide by it."""
    ran.end = summary(status)
    ended = nexhealth("sync", **KEY)
    assert ended.status == status
    assert ("stopped on a committed page" in ended.out) == (status == 130)


def test_a_sync_that_lost_the_database_says_that_it_can_be_gone_on_with(nexhealth: Run, ran: FakeRun) -> None:
    """After hours of a first load, who reads "the connection to PostgreSQL was lost" wonders whether all is to be read again."""
    word = "run it again once the database can be used, and it goes on from there"
    ran.end = summary(4, failures=[("run", "loading nexhealth_patients: the connection to PostgreSQL was lost")])
    assert word in nexhealth("sync", **KEY).out
    assert word not in nexhealth("sync", "--dry-run", **KEY).out, "nothing was committed"
    ran.end = summary(3)
    assert word not in nexhealth("sync", **KEY).out


def test_where_the_database_refused_a_value_nobody_is_told_to_wait_for_the_database(
    nexhealth: Run, ran: FakeRun
) -> None:
    """It can be used: only the slices that hold the value fail, by the same exit status, and fail again."""
    ran.end = summary(
        4, failures=[("patients acme.1", "loading nexhealth_patients: PostgreSQL refused a value (22003)")]
    )
    assert "run it again" not in nexhealth("sync", **KEY).out


@pytest.mark.parametrize(
    "words",
    [
        "--start 2026-01-01",
        "--end 2026-01-31",
        "--status active",
        "--provider 5",
        "--updated-since 2026-01-02",
        "--patient 7",
    ],
)
def test_a_read_of_a_part_says_that_it_is_read_anew(nexhealth: Run, ran: FakeRun, words: str) -> None:
    """It keeps no place to go on from: who was promised one would take the second hour for a fault."""
    ran.end = summary(130)
    out = nexhealth("sync", *words.split(), **KEY).out
    assert "stopped on a committed page: what was committed stays; run it again, and it is read anew" in out
    ran.end = summary(4, failures=[("run", "loading nexhealth_patients: the connection to PostgreSQL was lost")])
    ended_by_database = nexhealth("sync", *words.split(), **KEY).out
    assert "run it again once the database can be used, and it is read anew" in ended_by_database
    assert "goes on" not in out + ended_by_database


def test_a_dry_run_that_was_stopped_promises_nothing(nexhealth: Run, ran: FakeRun) -> None:
    """The next one begins anew, after hours perhaps: nothing was written from which it could go on."""
    ran.end = summary(130)
    ended = nexhealth("sync", "--dry-run", **KEY)
    assert ended.status == 130
    assert "stopped before its end: a dry run keeps nothing, the next one begins anew" in ended.out
    assert "goes on" not in ended.out
    assert "committed" not in ended.out


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("--mode quick", ("'quick'", "incremental", "full")),
        ("--resource patient", ("'patient'", "patients", "insurance_coverages")),
        ("--resource claim_payouts", ("'claim_payouts'", "patients")),
        ("--start 31.01.2026", ("'31.01.2026'", "YYYY-MM-DD")),
        ("--end 2024-02-30", ("'2024-02-30'", "YYYY-MM-DD")),
        ("--start 2026-02-01 --end 2026-01-01", ("2026-02-01", "2026-01-01")),
        ("--start 2026-02-01 --resource providers", ("providers", "appointments")),
        ("--patient 0", ("0",)),
        ("--patient seven", ("'seven'",)),
        ("--patient 7 --resource patients", ("--patient",)),
        ("--patient 7 --dry-run", ("--patient", "--dry-run")),
        ("--patient 7 --mode full --explain", ("--explain", "--patient")),
        ("--colour red", ("--colour",)),
        ("--status archived", ("'archived'", "active", "inactive")),
        ("--provider Smith", ("'Smith'",)),
        ("--updated-since yesterday", ("'yesterday'", "YYYY-MM-DD", "2026-01-31T08:00:00Z")),
        ("--updated-since 2026-01-02T03:00:00", ("2026-01-02T03:00:00", "zone")),
        ("--status active --resource documents", ("documents", "status", "patients, ")),
        ("--provider 5 --resource appointments --resource patients", ("patients", "provider", "appointments")),
        ("--updated-since 2026-01-02 --resource locations", ("locations", "updated since", "patients")),
        ("--status active --provider 5 --start 2026-01-01", ("status and provider",)),
        ("--patient 7 --status active", ("--patient",)),
    ],
)
def test_wrong_use_is_2_and_names_value_and_choices(
    nexhealth: Run, ran: FakeRun, words: str, named: tuple[str, ...]
) -> None:
    """Nothing is started, and the message is enough to correct it."""
    ended = nexhealth("sync", *words.split(), **KEY)
    assert (ended.status, ended.out, ran.requests) == (2, "", [])
    assert [word for word in named if word not in ended.err] == []


def test_without_a_key_the_setting_is_named(nexhealth: Run, ran: FakeRun) -> None:
    """Before an embedded server is made for nothing."""
    ended = nexhealth("sync")
    assert (ended.status, ran.requests) == (2, [])
    assert "NEXHEALTH_API_KEY is not set" in ended.err


def test_flags_win_over_the_environment_and_that_over_dotenv(nexhealth: Run, ran: FakeRun) -> None:
    """`.env` holds the account; the environment of a shell changes one thing for one run."""
    Path(".env").write_text(
        f"NEXHEALTH_API_KEY={REAL_KEY}\nDATABASE_URL=postgresql://host/db\nNEXHEALTH_LOG_LEVEL=ERROR\n"
    )
    assert nexhealth("sync").status == 0
    assert nexhealth("sync", NEXHEALTH_LOG_LEVEL="LOUD").status == 2


class TestEmbeddedWarning:
    """A real practice's data on a server without encryption."""

    def test_it_is_said_once_and_loudly(self, nexhealth: Run, ran: FakeRun, tmp_path: os.PathLike[str]) -> None:
        """Once a machine: what is said every night is read by nobody."""
        environment = {"NEXHEALTH_API_KEY": REAL_KEY, "NEXHEALTH_HOME": str(tmp_path)}
        first, second = nexhealth("sync", **environment), nexhealth("sync", **environment)
        assert "WARNING" in first.err
        assert "Set DATABASE_URL" in first.err
        assert "no encryption" not in second.err

    @pytest.mark.parametrize(
        "environment",
        [
            KEY,
            {"NEXHEALTH_API_KEY": SANDBOX_API_KEY},
            {"NEXHEALTH_API_KEY": REAL_KEY, "NEXHEALTH_DATA_KIND": "sandbox"},
        ],
    )
    def test_it_is_not_said_where_it_is_not_so(
        self, nexhealth: Run, ran: FakeRun, tmp_path: os.PathLike[str], environment: dict[str, str]
    ) -> None:
        """Synthetic data may lie anywhere."""
        assert nexhealth("sync", NEXHEALTH_HOME=str(tmp_path), **environment).err == ""


class TestProgress:
    """Lines where there is no terminal."""

    def lines(self, capsys: pytest.CaptureFixture[str], times: list[float]) -> list[str]:
        from nexhealth_pipeline.cli.progress import BarlessLines

        clock: Callable[[], float] = iter(times).__next__
        show = BarlessLines(5.0, clock=clock)
        for number in range(1, len(times)):
            show(Progress("patients acme.1", number, 1000 * number, number, 7))
        return capsys.readouterr().out.splitlines()

    def test_a_line_comes_only_now_and_then(self, capsys: pytest.CaptureFixture[str]) -> None:
        """A log of an hour with a line a page would hide what matters."""
        assert self.lines(capsys, [0.0, 1.0, 4.9, 5.0, 9.9, 30.0]) == [
            "3 of 7 slices, 3,000 records on 3 pages; patients acme.1",
            "5 of 7 slices, 5,000 records on 5 pages; patients acme.1",
        ]

    def test_a_standstill_says_that_it_waits(self, capsys: pytest.CaptureFixture[str]) -> None:
        """Near the rate limit nothing moves for most of a minute: somebody would think it hangs."""
        from nexhealth_pipeline.cli.progress import BarlessLines

        show = BarlessLines(0.0)
        for _ in range(2):
            show(Progress("patients acme.1", 1, 1000, 1, 7))
        first, second = capsys.readouterr().out.splitlines()
        assert second == f"{first} (waiting for the rate limits, or for an answer)"

    def test_a_terminal_gets_a_bar_without_a_thread(
        self, nexhealth: Run, ran: FakeRun, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The run forks: a thread that draws would hold locks in the child."""
        import threading

        monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
        before = set(threading.enumerate())
        seen: list[set[threading.Thread]] = []
        shown = showing_progress(json=False)
        with shown as show:
            assert show is not None
            show(Progress("patients acme.1", 2, 2000, 1, 7))
            seen.append(set(threading.enumerate()) - before)
        assert seen == [set()]

    def test_it_is_looked_for_as_often_as_it_is_shown(
        self, nexhealth: Run, ran: FakeRun, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Each look sums up all slices: ten for one line are nine for nobody."""
        assert nexhealth("sync", **KEY).status == 0
        assert ran.options["look_seconds"] == 5.0
        monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
        assert look_seconds() == 0.5

    def test_json_gets_none(self) -> None:
        """Nothing but the object."""
        with showing_progress(json=True) as show:
            assert show is None
