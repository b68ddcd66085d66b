"""`nexhealth serve`: one line when it receives, and an orderly end."""

import json
import os
import signal
import socket
import subprocess
import urllib.request
from pathlib import Path

import psycopg

from nexhealth_pipeline.cli.household import nexhealth_command
from tests.cli.conftest import Run

SECRET = "a-webhook-secret-that-must-never-be-shown"


def serves(url: str, folder: Path) -> str:
    """Start it as a supervisor does, end it with SIGTERM once it is ready; what it said on stderr."""
    environment = os.environ | {"DATABASE_URL": url, "NEXHEALTH_WEBHOOK_SECRETS": SECRET}
    command = nexhealth_command("serve", "--port", "0")
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=folder
    ) as process:
        try:
            assert process.stdout is not None
            address = process.stdout.readline().strip()
            with urllib.request.urlopen(f"{address}/health/ready") as ready:
                assert json.load(ready)["ready"] is True
            process.send_signal(signal.SIGTERM)
            out, err = process.communicate(timeout=20)
        finally:
            process.kill()  # else what fails above waits for it, and leaves it behind
    assert (process.returncode, out) == (0, "")
    assert address.startswith("http://127.0.0.1:")
    assert SECRET not in err
    return err


def test_it_prints_its_address_receives_and_ends_well(empty_database_url: str, tmp_path: Path) -> None:
    """On an empty warehouse; and on one that a newer release has migrated already, until that has replaced it."""
    assert "newer release" not in serves(empty_database_url, tmp_path)
    with psycopg.connect(empty_database_url) as connection:
        assert connection.execute("SELECT kind FROM nexhealth_warehouse").fetchone() == ("real",)
        connection.execute("UPDATE nexhealth_alembic_version SET version_num = '9999'")
    assert "install a newer nexhealth-pipeline" in serves(empty_database_url, tmp_path)


def test_without_a_key_for_the_secrets_it_says_how_to_make_one(nexhealth: Run, database_url: str) -> None:
    """It would answer every event with 503 and nobody would know why."""
    ended = nexhealth("serve", "--port", "0", DATABASE_URL=database_url)
    assert ended.status == 2
    assert "NEXHEALTH_WEBHOOK_KEY" in ended.err


def test_a_port_that_is_taken_is_named(nexhealth: Run, database_url: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        ended = nexhealth("serve", "--port", port, DATABASE_URL=database_url, NEXHEALTH_WEBHOOK_SECRETS=SECRET)
    assert ended.status == 2
    assert f"--port {port}: cannot be listened on" in ended.err


def test_a_database_that_is_away_ends_it_with_4(nexhealth: Run, closed_port: int) -> None:
    url = f"postgresql://nobody@127.0.0.1:{closed_port}/nexhealth"
    ended = nexhealth("serve", "--port", "0", DATABASE_URL=url, NEXHEALTH_WEBHOOK_SECRETS=SECRET)
    assert ended.status == 4
