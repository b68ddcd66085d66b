"""Institutions with API keys of their own: what is asked of all keys is answered for those whose key is accepted."""

from pathlib import Path

import psycopg
import pytest

from nexhealth_pipeline.sandbox import SandboxServer
from nexhealth_pipeline.settings import Settings, load_settings
from tests.sync.kit import sync_all

from .kit import apply_all, body, store

WILLOW, HARBOR = "willow-dental", "harbor-smiles"


def with_keys(box: SandboxServer, database_url: str, file: Path, *, harbor: str) -> Settings:
    file.write_text(f'{WILLOW} = "key-of-willow"\n{HARBOR} = "{harbor}"\n')
    given = {"NEXHEALTH_API_URL": box.url, "NEXHEALTH_API_KEYS_FILE": str(file), "DATABASE_URL": database_url}
    return load_settings(given, environ={}, env_file=None)


@pytest.mark.parametrize("status", [401, 403])
def test_an_event_waits_for_no_key_of_another_institution(database_url: str, tmp_path: Path, status: int) -> None:
    """The list of all offices was read with its own key; by the other one's refusal it waited, or was parked at last."""
    keys = {"key-of-willow": (WILLOW,), "key-of-harbor": (HARBOR,)}
    file = tmp_path / "keys.toml"
    with SandboxServer(patients=2, appointments_per_patient=0, limits=False, api_keys=keys) as box:
        sync_all(with_keys(box, database_url, file, harbor="key-of-harbor"), only=set())
        settings = with_keys(box, database_url, file, harbor="revoked" if status == 401 else "key-of-harbor")
        if status == 403:
            box.faults.add("status", path="/sync_status", status=403, nth=1)  # Asked by name: harbor comes first.
        source = next(one for one in box.state.ids("sync_status") if _home(box, one) == WILLOW)
        box.state.update("sync_status", source, {"read_status": "red"})
        with psycopg.connect(database_url, autocommit=True) as db:
            for subdomain in (WILLOW, HARBOR):
                told = {"syncstatus": {"read_status": "red"}}
                store(db, body("sync_status_read_change.red", told, subdomain=subdomain))
            apply_all(settings)
            ended = db.execute("SELECT subdomain, status, error FROM nexhealth_webhook_events ORDER BY id").fetchall()
            read = db.execute(
                "SELECT count(*) FROM nexhealth_sync_status s JOIN nexhealth_institutions i ON i.id = s.institution_id"
                " WHERE subdomain = %s AND read_status = 'red'",
                (WILLOW,),
            ).fetchall()
    assert ended[0] == (WILLOW, "applied", None)
    assert ended[1][:2] == (HARBOR, "pending")
    assert ended[1][2].startswith(f"the key of {HARBOR}: ")
    assert read == [(1,)]


def _home(box: SandboxServer, source: int) -> str:
    institution = box.state.row("sync_status", source).institution_id
    return str(box.state.row("institutions", institution).facts["subdomain"])
