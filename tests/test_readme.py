"""README is true: its reference sections follow from the code, and every command in it runs."""

import itertools
import logging
import os
import re
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from dagster._cli import utils as cli_utils

from nexhealth_pipeline.catalog.collections import DECLARED
from nexhealth_pipeline.sandbox import SandboxServer
from nexhealth_pipeline.settings import load_settings, read_env_file
from nexhealth_pipeline.warehouse import changes
from nexhealth_pipeline.warehouse.connect import warehouse_url
from nexhealth_pipeline.warehouse.migrate import upgrade
from tests.commands import commands as forked_commands

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
RUN_ELSEWHERE = {
    "make demo": "run by .ci/run",
    "make test": "runs this test",
    "nexhealth dev --demo": "tests/cli/test_dev.py and tests/orchestration/test_dagster_dev.py",
}


def commands() -> list[str]:
    """Lines of README's shell blocks, without comments."""
    blocks = re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL)
    lines = [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line]


def test_the_reference_sections_are_up_to_date() -> None:
    """Run `make docs` where this fails."""
    done = subprocess.run([sys.executable, "scripts/write_docs.py", "--check"], cwd=ROOT, check=False)
    assert done.returncode == 0


def test_a_key_that_is_not_the_usual_one_is_told() -> None:
    """Risk: a join by id alone, of rows that several have."""
    described = dict(re.findall(r"^\| `(nexhealth_\w+)` \| (.*?) \|", TEXT, re.MULTILINE))
    for one in DECLARED:
        (told,) = re.findall(r"Key: (.*)\.$", described[one.table]) or ["`institution_id`, `id`"]
        assert tuple(re.findall(r"`(\w+)`", told)) == one.key, one.name


def test_what_is_run_elsewhere_is_in_readme() -> None:
    assert set(RUN_ELSEWHERE) <= set(commands())


def test_settings_are_written_so_that_a_shell_reads_them_as_dotenv_does(tmp_path: Path) -> None:
    """After `export URL=...&...` the shell goes on in the background, nothing is set, and nobody is told."""
    _, _, section = TEXT.partition("\n## Pointing it at a real account\n")
    (block,) = re.findall(r"```\n(.*?DATABASE_URL=.*?)```", section.partition("\n## ")[0], re.DOTALL)
    (tmp_path / ".env").write_text(block)
    read = read_env_file(tmp_path / ".env")
    assert set(read) == {"NEXHEALTH_API_KEY", "DATABASE_URL"}
    for line in (one for one in block.splitlines() if not one.startswith("#")):
        name = line.partition("=")[0]
        shown = subprocess.run(
            ["/bin/sh", "-c", f"export {line}; printenv {name}"], env={}, capture_output=True, text=True, check=False
        )
        assert shown.stdout == f"{read[name]}\n", line


def test_dagster_s_own_commands_let_dotenv_win(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it says of them: a Dagster that stops doing so makes the sentence, and the doctor's warning, untrue."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NEXHEALTH_LOG_LEVEL", "INFO")
    Path(".env").write_text("NEXHEALTH_LOG_LEVEL=ERROR\n")
    with cli_utils._inject_local_env_file(logging.getLogger("dagster")):
        found = os.environ["NEXHEALTH_LOG_LEVEL"]
    assert found == "ERROR"
    _, _, section = TEXT.partition("\n## Settings\n")
    assert "(`dagster-daemon`, `dagster-webserver`, `dagster`)" in section.partition("<!--")[0]


def test_its_queries_run(database_url: str) -> None:
    """The first thing an analyst tries."""
    queries = re.findall(r"```sql\n(.*?)```", TEXT, re.DOTALL)
    assert len(queries) == 5
    with psycopg.connect(database_url) as connection:
        for query in queries:
            connection.execute(query)


def test_payouts_of_charges_and_claims_that_were_deleted_then_are_not_added_up(database_url: str) -> None:
    """Risk: the copy as it stood a month ago shows more paid than the views of that day did."""
    (query,) = (one for one in re.findall(r"```sql\n(.*?)```", TEXT, re.DOTALL) if "'claim_payouts'" in one)
    system = "institution_id, synced_at, source_read_at, row_hash"
    stored = "7, now() - interval '60 days', now() - interval '60 days', ''"
    with psycopg.connect(database_url, autocommit=True) as connection:
        for number, (charge_deleted, claim_deleted) in enumerate(((None, None), (60, None), (None, 60), (1, 1)), 1):
            for table, days in (("charges", charge_deleted), ("claims", claim_deleted)):
                connection.execute(
                    f"INSERT INTO nexhealth_{table} ({system}, id, deleted_at)"
                    f" VALUES ({stored}, %s, CASE WHEN %s THEN now() - interval '60 days' END)",
                    (number, days == 60),
                )
                if days == 1:
                    connection.execute(f"UPDATE nexhealth_{table} SET deleted_at = now() WHERE id = {number}".encode())
            connection.execute(
                f"INSERT INTO nexhealth_claim_payouts ({system}, charge_id, claim_id, insurance_payment)"
                f" VALUES ({stored}, %(id)s, %(id)s, %(id)s * 10)",
                {"id": number},
            )
        found = connection.execute(query.encode()).fetchall()
    assert sorted(found) == [("1", 10), ("4", 40)]


def test_tomorrow_s_visits_are_each_office_s_whatever_zones_the_rows_name(database_url: str) -> None:
    """Risk: one visit with a zone that nobody knows, and the day's list of all offices is an error, or a day off."""
    (query,) = (one for one in re.findall(r"```sql\n(.*?)```", TEXT, re.DOTALL) if "local_start_time" in one)
    offices = {1: ("Harbour", "America/New_York"), 2: ("Isle", "Pacific/Kiritimati"), 3: ("Lost", "Nowhere/At_All")}
    visits = {1: "Nowhere/At_All", 2: "Pacific/Pago_Pago", 3: "Nowhere/At_All"}  # 25 hours behind Kiritimati
    with psycopg.connect(database_url, autocommit=True) as connection:
        system = "institution_id, synced_at, source_read_at, row_hash"
        for number, (name, zone) in offices.items():
            connection.execute(
                f"INSERT INTO nexhealth_locations ({system}, id, name, tz) VALUES (7, now(), now(), '', %s, %s, %s)",
                (number, name, zone),
            )
            clock = zone if number < 3 else "UTC"
            connection.execute(
                f"INSERT INTO nexhealth_appointments ({system}, id, location_id, patient_id, cancelled, timezone,"
                " start_time) VALUES (7, now(), now(), '', %(id)s, %(id)s, 1, false, %(zone)s,"
                " (date_trunc('day', now() AT TIME ZONE %(clock)s) + interval '36 hours') AT TIME ZONE %(clock)s)",
                {"id": number, "zone": visits[number], "clock": clock},
            )
        found = connection.execute(query).fetchall()
    assert [(row[0], row[1].hour) for row in found] == [("Harbour", 12), ("Isle", 12)]


def test_the_change_feed_s_example_hands_out_what_changed_since(database_url: str) -> None:
    """The statements as they stand, and a change between them."""
    begin, go_on = (one.encode() for one in re.findall(r"```sql\n(.*?)```", TEXT, re.DOTALL) if "my_cursor" in one)
    deadline = time.monotonic() + 150
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(begin)
        assert connection.execute(go_on).fetchall() == []
        connection.execute(
            "INSERT INTO nexhealth_patients (institution_id, id, synced_at, source_read_at, row_hash)"
            " VALUES (7, 8, now(), now(), '')"
        )
        # Handed out once every older transaction of the server has ended: other tests have some.
        while not (found := connection.execute(go_on).fetchall()) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert [row[1:4] for row in found] == [("patients", 7, 8)]
        connection.execute("UPDATE my_cursor SET cursor = %s", (found[-1][0],))
        assert connection.execute(go_on).fetchall() == []


def follower() -> str:
    """README's lines of Python."""
    (example,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    return str(example)


def test_the_change_feed_is_followed_from_python_as_it_is_said(database_url: str) -> None:
    """The lines as they stand: they hand out what is committed while they go on, and nothing twice."""
    example = follower()
    told: list[tuple[object, ...]] = []
    enough = threading.Event()

    class Enough(Exception):
        """The example itself goes on for ever."""

    def tell(*words: object) -> None:
        told.append(words)
        if len(told) == 3:
            raise Enough

    def change() -> None:
        """A new patient again and again: when the example has taken its cursor, only it knows."""
        with psycopg.connect(database_url, autocommit=True) as writer:
            for number in itertools.count(1):
                if enough.wait(0.05):
                    return
                writer.execute(
                    "INSERT INTO nexhealth_patients (institution_id, id, synced_at, source_read_at, row_hash)"
                    " VALUES (7, %s, now(), now(), '')",
                    (number,),
                )

    writing = threading.Thread(target=change)
    with (
        psycopg.connect(database_url, autocommit=True) as connection,
        psycopg.connect(database_url, autocommit=True) as other,
    ):
        writing.start()
        try:
            with pytest.raises(Enough):
                exec(example, {"connection": connection, "other_connection": other, "print": tell})
        finally:
            enough.set()
            writing.join()
    numbers = [number for _, number, _ in told]
    assert told == [("patients", number, "inserted") for number in numbers]
    assert len(set(numbers)) == 3


def test_whoever_follows_so_keeps_up_with_a_first_load(database_url: str) -> None:
    """A transaction is announced once: a thousand changes at each announcement would leave a million behind for hours."""
    told: list[object] = []
    wakes: list[int] = []

    class Enough(Exception):
        """The example itself goes on for ever."""

    def tell(*words: object) -> None:
        told.append(words)
        if len(told) == 2500:
            raise Enough

    def loaded(other: psycopg.Connection) -> Iterator[frozenset[str]]:
        with psycopg.connect(database_url) as writer:
            writer.execute(
                "INSERT INTO nexhealth_patients (institution_id, id, synced_at, source_read_at, row_hash)"
                " SELECT 7, id, now(), now(), '' FROM generate_series(1, 2500) AS id"
            )
        # Handed out once every older transaction of the server has ended: other tests have some.
        for names in changes.listen(other, idle_seconds=0.1):
            wakes.append(len(told))
            yield names

    lines = follower().replace("listen(other_connection)", "loaded(other_connection)")
    with (
        psycopg.connect(database_url, autocommit=True) as connection,
        psycopg.connect(database_url, autocommit=True) as other,
        pytest.raises(Enough),
    ):
        exec(lines, {"connection": connection, "other_connection": other, "loaded": loaded, "print": tell})
    assert set(wakes) == {0}


@pytest.fixture
def account(own_home: Path) -> Iterator[dict[str, str]]:
    """A sandbox whose key reaches one institution, and the embedded server with a demo's database."""
    settings = load_settings({"NEXHEALTH_HOME": str(own_home)}, environ={}, env_file=None)
    upgrade(warehouse_url(settings, database_name="demo"))
    keys = {"readme-key": ("harbor-smiles",)}
    with SandboxServer(seed=1, patients=30, appointments_per_patient=2, api_keys=keys) as box:
        yield {
            "NEXHEALTH_API_URL": box.url,
            "NEXHEALTH_API_KEY": box.api_key,
            "NEXHEALTH_HOME": str(own_home),
            "NEXHEALTH_RATE_SHARE": "1",
            "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
        }


def test_every_command_runs(account: dict[str, str], tmp_path: Path) -> None:
    """In README's order, as its reader does: the first one by its script, the others without their seconds of imports."""
    run = [line for line in commands() if line not in RUN_ELSEWHERE]
    begin = ("db upgrade", "doctor", "--resource locations", "--explain")
    run.sort(key=lambda line: next((place for place, word in enumerate(begin) if word in line), len(begin)))
    assert len(run) > 8
    first, *others = run
    done = subprocess.run(
        shlex.split(first), cwd=tmp_path, env=account, check=False, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, f"{first}: {done.stdout[-800:]}{done.stderr[-800:]}"
    with forked_commands(tmp_path, account) as nexhealth:
        for line in others:
            program, *words = shlex.split(line)
            assert program == "nexhealth"
            pid, output = nexhealth.start(*words)
            status = nexhealth.forks.wait(pid)
            # doctor has a word to say about real data on the embedded server: that is its 1.
            assert status in ((0, 1) if "doctor" in line else (0,)), f"{line}: {output.read_text()[-1600:]}"
