"""Promise 10: no PHI and no secret in any log, error, tag, run config, cursor, metadata or event."""

import subprocess
import sys
from pathlib import Path

import psycopg

from nexhealth_pipeline.sandbox import SandboxServer
from nexhealth_pipeline.settings import load_settings
from nexhealth_pipeline.warehouse.connect import dagster_url, warehouse_url

CANARY = "Zanzibarcanary"
KEY = "canary-key-4711"


def test_no_name_note_or_key_leaves_the_warehouse(own_home: Path, tmp_path: Path) -> None:
    """Values that load, values that are refused, a page that fails and an unknown patient: all stay silent."""
    environment = {
        "NEXHEALTH_API_KEY": KEY,
        "NEXHEALTH_HOME": str(own_home),
        "NEXHEALTH_LOG_LEVEL": "DEBUG",
        "PATH": "/usr/bin:/bin",
    }
    with SandboxServer(seed=1, patients=40, limits=False, api_keys={KEY: ("harbor-smiles",)}) as box:
        environment["NEXHEALTH_API_URL"] = box.url
        plant(box)
        printed = [
            sync(environment, tmp_path, "--resource", "patients", "--resource", "documents", "--mode", "full"),
            sync(environment, tmp_path, "--patient", str(box.state.ids("patients")[-1])),
            sync(environment, tmp_path, "--patient", "12345"),
        ]
        box.faults.add("malformed", path="/patients", count=1)
        box.faults.add("status", path="/patients", status=400, skip=1)
        printed.append(sync(environment, tmp_path, "--resource", "patients", "--dry-run"))
    settings = load_settings({"NEXHEALTH_HOME": str(own_home)}, environ={}, env_file=None)
    assert stored(warehouse_url(settings), "nexhealth_patients"), "the canary never got as far as the warehouse"
    assert stored(warehouse_url(settings), "nexhealth_quarantine")
    for place, text in {
        **{f"output {number}": text for number, text in enumerate(printed)},
        **{f"dagster {table}": text for table, text in tables(dagster_url(settings)).items()},
        "sync logs": tables(warehouse_url(settings))["nexhealth_sync_logs"],
        **files(own_home),
    }.items():
        assert CANARY.lower() not in text.lower(), place
        assert KEY not in text, place


def plant(box: SandboxServer) -> None:
    first, second, third = box.state.ids("patients")[-3:]
    box.state.update("patients", first, {"first_name": CANARY, "email": f"{CANARY}@example.com"})
    box.state.update("patients", second, {"bio": {"date_of_birth": CANARY}})
    box.state.update("patients", third, {"updated_at": CANARY, "guarantor_id": CANARY})
    for document in box.state.ids("documents"):
        box.state.update("documents", document, {"filename": f"{CANARY}.pdf"})


def sync(environment: dict[str, str], folder: Path, *options: str) -> str:
    command = [sys.executable, "-m", "nexhealth_pipeline.cli", "sync", *options]
    done = subprocess.run(
        command, env=environment, cwd=folder, check=False, capture_output=True, text=True, timeout=200
    )
    return done.stdout + done.stderr


def tables(url: str) -> dict[str, str]:
    """The text of every row of every table."""
    with psycopg.connect(url) as connection:
        names = connection.execute("SELECT relname FROM pg_stat_user_tables").fetchall()
        return {
            name: "\n".join(str(row[0]) for row in connection.execute(f'SELECT t::text FROM "{name}" t'))
            for (name,) in names
        }


def stored(url: str, table: str) -> bool:
    return CANARY in tables(url)[table] or CANARY.encode().hex() in tables(url)[table]


def files(home: Path) -> dict[str, str]:
    """Every file below NEXHEALTH_HOME but the database's own."""
    return {
        str(path.relative_to(home)): path.read_text(encoding="utf-8", errors="replace")
        for path in home.rglob("*")
        if path.is_file() and "data" not in path.relative_to(home).parts and "programs" not in path.parts
    }
