"""Promise 10: no PHI and no secret in any log, error, tag, run config, cursor, metadata, event or process title."""

import json
import os
import re
import signal
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg

from nexhealth_pipeline.catalog.collection import Collection, Column, Scope, SqlType
from nexhealth_pipeline.catalog.collections import DECLARED
from nexhealth_pipeline.sandbox import SandboxServer
from nexhealth_pipeline.settings import load_settings
from nexhealth_pipeline.warehouse.connect import dagster_url, warehouse_url
from nexhealth_pipeline.webhooks.target import WEBHOOK_PATH
from tests.commands import Commands, commands
from tests.waiting import until
from tests.webhooks.receiving import Running, signed

CANARY = "Zanzibarcanary"
KEY = "canary-key-4711"
SECRET = "canary-webhook-secret-4711"
ADDRESS = re.compile(r"^http://127\.0\.0\.1:(\d+)$", re.MULTILINE)
PAGES = ("/metrics", "/health/ready", "/health/live")
HARBOR = 11202
PLANTED = [one for one in DECLARED if one.scope is not Scope.PRACTICE]
"""An office's own name may be shown."""
WITHIN = ("patient_addresses", "coverage_subscribers", "treatment_plan_procedures")
"""Made by the sandbox from rows of others."""
NOT_TEXT = {SqlType.DATE, SqlType.NUMERIC, SqlType.DOUBLE}
TODAY = datetime.now(UTC).date()
DAY = TODAY + timedelta(days=2)
PLAIN = {
    SqlType.DATE: "1911-11-11",
    SqlType.NUMERIC: "98765.43",
    SqlType.TIMESTAMPTZ: f"{DAY}T03:33:33Z",
}
"""Values of which no rule has anything to say: they load, and are as private as a word."""
PLAINLY = re.compile(
    rf"1911-11-11|98,?765\.43|{DAY}[T ]03:33:33|{datetime.fromisoformat(PLAIN[SqlType.TIMESTAMPTZ]).timestamp():.0f}"
)
"""How each of them may be written."""
OWN_TIMES = {"created_at", "updated_at", "deleted_at", "last_sync_time"}
"""Times of NexHealth's records, not of what they are about: how far a sync has come may be told."""
HOLDS_PHI = {one.table for one in DECLARED} | {"nexhealth_quarantine", "nexhealth_webhook_events"}
"""Tables whose business PHI is; `nexhealth_history` and its parts are left out by name."""
NEAR = ["--start", str(TODAY - timedelta(days=3)), "--end", str(TODAY + timedelta(days=3))]


def test_no_name_note_or_key_leaves_the_warehouse(own_home: Path, tmp_path: Path) -> None:
    """Values that load, values that are refused, a page that fails, an unknown patient, events: all stay silent."""
    environment = {
        "NEXHEALTH_API_KEY": KEY,
        "NEXHEALTH_HOME": str(own_home),
        "NEXHEALTH_LOG_LEVEL": "DEBUG",
        "NEXHEALTH_WEBHOOK_SECRETS": SECRET,
        "NEXHEALTH_WEBHOOK_ATTEMPTS": "1",
        "PATH": "/usr/bin:/bin",
    }
    lists = [word for one in PLANTED if one.is_asset and not one.window for word in ("--resource", one.name)]
    with (
        SandboxServer(seed=1, patients=40, limits=False, api_keys={KEY: ("harbor-smiles",)}) as box,
        commands(tmp_path, environment) as nexhealth,
        process_titles() as titles,
    ):
        environment["NEXHEALTH_API_URL"] = box.url
        plant(box)
        planted = plant_plain(box)
        printed = [
            nexhealth.run("sync", "--mode", "full", *lists, status=1),
            nexhealth.run("sync", "--resource", "appointments", *NEAR),
            nexhealth.run("sync", "--patient", str(box.state.ids("patients")[-1])),
            nexhealth.run("sync", "--patient", "12345", status=2),
            nexhealth.run("quarantine", "list"),
            nexhealth.run("quarantine", "retry", status=1),
            *receive(nexhealth, harbors(box, "patients")),
            nexhealth.run("webhooks", "apply", status=1),
            nexhealth.run("webhooks", "replay", "--status", "parked", "--status", "applied", status=1),
            nexhealth.run("status"),
        ]
        faults = [
            box.faults.add("malformed", path="/patients", count=1),
            box.faults.add("status", path="/patients", status=400, skip=1),
        ]
        printed.append(nexhealth.run("sync", "--resource", "patients", "--dry-run", status=1))
        assert all(one.fired for one in faults), "what a broken page and a refusal say was never heard"
        box.faults.clear()
        box.state.delete("providers", harbors(box, "providers")[0])
        for status in box.state.ids("sync_status"):  # nothing is judged of an office that is offline
            box.state.update("sync_status", status, {"read_status": "green"})
        printed.append(nexhealth.run("sync", "--mode", "reconcile", "--resource", "providers"))
        tokens = box.auth.issued
    assert tokens
    settings = load_settings({"NEXHEALTH_HOME": str(own_home)}, environ={}, env_file=None)
    ours = tables(warehouse_url(settings))
    for one in PLANTED:
        assert holds_canary(ours[one.table]), f"the canary never got as far as {one.table}"
    assert plain_values_in(warehouse_url(settings)) >= planted
    assert ",absence," in ours["nexhealth_providers"], "no absence was judged"
    assert len(notes(warehouse_url(settings))) > 10
    payloads, beside = events(warehouse_url(settings))
    assert holds_canary(payloads)
    texts = {
        **{f"output {number}": text for number, text in enumerate(printed)},
        **beside_the_copy(ours, dagster_url(settings), own_home),
        "events beside their payload": beside,
        "process titles": "\n".join(titles),
    }
    assert_silent(texts, KEY, SECRET, *tokens)


def beside_the_copy(ours: Mapping[str, str], dagster: str, home: Path) -> dict[str, str]:
    """What is kept where no PHI belongs: of `ours`, the warehouse's tables, those without; all of Dagster's; files."""
    return {
        **{f"dagster {table}": text for table, text in tables(dagster).items()},
        **{name: text for name, text in ours.items() if name not in HOLDS_PHI and "history" not in name},
        **files(home),
    }


def assert_silent(texts: Mapping[str, str], *secrets: str) -> None:
    """No text has the word, however it is written, nor one of the values that load, nor a secret."""
    for place, text in texts.items():
        assert CANARY.lower() not in text.lower(), place
        assert CANARY.encode().hex() not in text, place
        assert PLAINLY.search(text) is None, place
        assert not any(secret in text for secret in secrets), place


def receive(nexhealth: Commands, patients: list[int]) -> list[str]:
    """Post good events, refused ones and poison to a receiver; what it and its pages say."""
    pid, output = nexhealth.start("serve", "--port", "0")
    try:
        until(lambda: output.exists() and ADDRESS.search(output.read_text()), seconds=60)
        receiver = Running(int(ADDRESS.findall(output.read_text())[0]))
        told = {"last_name": CANARY, "email": f"{CANARY}@example.com", "bio": {"date_of_birth": PLAIN[SqlType.DATE]}}
        good, other = (patient_event(one, **told) for one in patients[:2])
        taken = [good, good, other, patient_event(CANARY), f'{{"{CANARY}'.encode()]
        answers = [receiver.ask(body, signed(body, SECRET)) for body in taken]
        assert [one.status for one in answers] == [200] * len(taken)
        badly_signed = [
            {"content-type": "application/json", "timestamp": CANARY, "signature": CANARY, "user-agent": CANARY},
            signed(good, SECRET) | {"x-name": CANARY},
            signed(other, SECRET) | {"content-type": CANARY},
        ]
        refused = [receiver.ask(other, headers) for headers in badly_signed]
        assert min(one.status for one in refused) >= 400
        answers += refused
        answers.append(receiver.ask(other, signed(other, SECRET), path=f"{WEBHOOK_PATH}?name={CANARY}"))
        answers += [receiver.ask(method="GET", path=path, headers={}) for path in (f"/{CANARY}", *PAGES)]
    finally:
        os.kill(pid, signal.SIGTERM)
        ended = nexhealth.forks.wait(pid)
    assert ended == 0, output.read_text()
    return [output.read_text(), *(f"{one.headers} {one.word}" for one in answers)]


def patient_event(number: int | str, **fields: Any) -> bytes:
    """A patient's event of this moment."""
    record = {"id": number, "updated_at": datetime.now(UTC).isoformat(), **fields}
    wire = {"resource_type": "Patient", "event_name": "patient_updated", "subdomain": "harbor-smiles"}
    return json.dumps(wire | {"event_time": record["updated_at"], "data": {"patients": [record]}}).encode()


def events(url: str) -> tuple[str, str]:
    """Payloads of events, and all the rest of their rows; what was refused has no payload."""
    with psycopg.connect(url) as connection:
        rows = connection.execute(
            "SELECT payload, (to_jsonb(e) - 'payload')::text, status FROM nexhealth_webhook_events e"
        ).fetchall()
    assert {status for _, _, status in rows} == {"applied", "duplicate", "parked", "rejected"}
    assert {payload for payload, _, status in rows if status == "rejected"} == {None}
    return "\n".join(payload for payload, _, _ in rows if payload), "\n".join(rest for _, rest, _ in rows)


def plant(box: SandboxServer) -> None:
    """The word in every text field of a row of each collection, and where none belongs in another row."""
    for one in PLANTED:
        if not one.inside and one.name not in WITHIN:
            first, *others = harbors(box, one.name)
            box.state.update(one.name, first, fields(one, {SqlType.TEXT}) or fields(one, NOT_TEXT))
            if others:
                box.state.update(one.name, others[-1], fields(one, NOT_TEXT))
    for payout in harbors(box, "claim_payouts"):
        box.state.update("claim_payouts", payout, {"allowed_amount": {"amount": CANARY}})
    for procedure in harbors(box, "procedures"):
        box.state.update("procedures", procedure, {"name": CANARY})
    for patient in harbors(box, "patients"):
        box.state.update("patients", patient, {"last_name": CANARY, "name": CANARY, "bio": {"city": CANARY}})
    box.state.update("patients", harbors(box, "patients")[-1], {"updated_at": CANARY, "guarantor_id": CANARY})


def plant_plain(box: SandboxServer) -> set[tuple[str, str]]:
    """Values that load, in all rows of each collection but those where a word would be refused; table and column."""
    planted = set()
    for one in PLANTED:
        columns = plain_columns(one)
        found: dict[str, Any] = {}
        for column in columns:
            put(found, column.path, PLAIN[column.type])
        for number in harbors(box, one.name, near=False)[1:-1] if columns and one.name not in WITHIN else ():
            box.state.update(one.name, number, found)
            planted |= {(one.table, column.name) for column in columns}
    return planted


def plain_columns(collection: Collection) -> list[Column]:
    """Columns of what the records are about that such values fit."""
    return [
        one
        for one in collection.columns
        if one.type in PLAIN
        and one.path[-1] not in OWN_TIMES
        and one.name not in collection.key
        and not is_read_by(one)
    ]


def plain_values_in(url: str) -> set[tuple[str, str]]:
    """Table and column of each such value that was loaded."""
    with psycopg.connect(url) as connection:
        return {
            (one.table, column.name)
            for one in PLANTED
            for column in plain_columns(one)
            if connection.execute(
                f'SELECT FROM {one.table} WHERE "{column.name}" = %s',
                (PLAIN[column.type],),
            ).rowcount
        }


def harbors(box: SandboxServer, collection: str, *, near: bool = True) -> list[int]:
    """Ids of the institution's rows; of appointments those of these days, or the others."""
    rows = [box.state.row(collection, number) for number in box.state.ids(collection)]
    mine = [row for row in rows if row.institution_id == HARBOR]
    if collection == "appointments":
        days = {str(TODAY + timedelta(days=day)) for day in range(-3, 4)}
        mine = [row for row in mine if (row.record()["start_time"][:10] in days) == near]
    return [row.id for row in mine]


def fields(collection: Collection, types: set[SqlType]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for one in collection.columns:
        if one.type in types and one.name not in collection.key and not is_read_by(one):
            put(found, one.path, CANARY)
    return found


def is_read_by(column: Column) -> bool:
    """Whether the sandbox itself filters or sorts by the field."""
    return column.path[0] in {
        "status",
        "start_date",
        "end_date",
        "source",
        "parent_type",
        "date_due",
        "date_of_service",
    }


def put(found: dict[str, Any], path: tuple[str, ...], value: str) -> None:
    *above, last = path
    for key in above:
        found = found.setdefault(key, {})
    found[last] = value


@contextmanager
def process_titles() -> Iterator[set[str]]:
    """Command lines of all processes while in context, looked at ten times a second.

    Only PostgreSQL's processes change theirs after they have begun: the others are left alone after some looks, since
    this process answers for NexHealth as well.
    """
    found: set[str] = set()
    looks: Counter[str] = Counter()
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(0.1):
            for process in Path("/proc").iterdir():
                if process.name.isdigit() and looks[process.name] < 3:
                    title = title_of(process)
                    looks[process.name] += not title.startswith("postgres: ")
                    found.add(title)

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield found
    finally:
        ended.set()
        watcher.join()


def title_of(process: Path) -> str:
    try:
        return (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def tables(url: str) -> dict[str, str]:
    """The text of every row of every table, but for those that are a living run's own."""
    with psycopg.connect(url) as connection:
        names = connection.execute("SELECT relname FROM pg_stat_user_tables WHERE schemaname = 'public'").fetchall()
        return {
            name: "\n".join(str(row[0]) for row in connection.execute(f'SELECT t::text FROM "{name}" t'))
            for (name,) in names
        }


def notes(url: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url) as connection:
        return connection.execute("SELECT DISTINCT collection, field FROM nexhealth_quarantine").fetchall()


def holds_canary(text: str) -> bool:
    return CANARY in text or CANARY.encode().hex() in text


def files(home: Path) -> dict[str, str]:
    """Every file below NEXHEALTH_HOME but the database's own."""
    return {
        str(path.relative_to(home)): path.read_text(encoding="utf-8", errors="replace")
        for path in home.rglob("*")
        if path.is_file() and "data" not in path.relative_to(home).parts and "programs" not in path.parts
    }
