"""The set-up that somebody starts in Dagit: what its log and its observation say of each key."""

from pathlib import Path

import pytest

from nexhealth_pipeline.orchestration.names import SETUP_JOB, SETUP_OP
from nexhealth_pipeline.sandbox.server import build_app

from .kit import HARBOR, WILLOW, House
from .webhook_kit import Post, metadata, run_job

URL = "http://127.0.0.1:9/api/nexhealth-webhook"


def test_a_key_whose_endpoint_was_deleted_is_said_to_have_ended(
    known: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It read like a set-up of endpoint 0 that had changed one thing, and nothing told whose key it was."""
    keys = {known.box.api_key: None, "key-of-harbor": (HARBOR,)}
    known.box.replace(build_app(patients=1, appointments_per_patient=0, limits=False, api_keys=keys))
    file = tmp_path / "keys.toml"
    file.write_text(f'{HARBOR} = "key-of-harbor"\n')
    monkeypatch.setenv("NEXHEALTH_API_KEYS_FILE", str(file))
    post = Post(known.instance, known.warehouse)
    first = run_job(known.instance, SETUP_JOB, SETUP_OP, url=URL)
    assert first.success
    ours, theirs = [one.id for one in known.box.webhooks.endpoints]
    told = [metadata(one) for one in post.told(first.run_id)]
    assert [(one["key_name"], one["endpoint_id"], one["endpoints_removed"]) for one in told] == [
        ("NEXHEALTH_API_KEY", ours, []),
        (HARBOR, theirs, []),
    ]
    monkeypatch.setenv("NEXHEALTH_SUBDOMAINS", WILLOW)
    second = run_job(known.instance, SETUP_JOB, SETUP_OP, url=URL, prune=True)
    assert second.success
    ended = metadata(post.told(second.run_id)[1])
    assert (ended["key_name"], ended["institutions"], ended["endpoints_removed"]) == (HARBOR, 0, [theirs])
    kept, deleted = [line for line in post.log(second.run_id) if "key_name" in line]
    assert kept.startswith(f"set up: key_name NEXHEALTH_API_KEY, endpoint_id {ours}, changes ")
    assert deleted.startswith(f"ended: key_name {HARBOR}, ")
    assert deleted.endswith(f"endpoints_removed [{theirs}]")
