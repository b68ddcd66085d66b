"""A key for each institution: what one of them may no longer do is its own affair, and is told by its name."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from nexhealth_pipeline.client.retry import RetryPolicy
from nexhealth_pipeline.sandbox import SandboxServer
from nexhealth_pipeline.settings import Settings, load_settings
from nexhealth_pipeline.sync.options import Mode, SyncOptions
from nexhealth_pipeline.sync.slices import SliceResult, Status
from tests.client.stub import Reply, Seen, Stub, envelope, running

from .kit import Rows, sync_all
from .test_new_collection import cursor_page

WILLOW, HARBOR = "willow-dental", "harbor-smiles"
KEYS = {"key-of-willow": (WILLOW,), "key-of-harbor": (HARBOR,)}
ONLY = {"providers", "operatories", "insurance_plans"}
FULL, RECONCILE = SyncOptions(mode=Mode.FULL), SyncOptions(mode=Mode.RECONCILE)
QUICK = RetryPolicy(attempts=2, sleep=lambda seconds: None)


@pytest.fixture
def box() -> Iterator[SandboxServer]:
    with SandboxServer(patients=10, appointments_per_patient=1, limits=False, api_keys=KEYS) as server:
        yield server


@pytest.fixture
def settings(box: SandboxServer, database_url: str, tmp_path: Path) -> Settings:
    return with_keys(box, database_url, tmp_path, harbor="key-of-harbor")


def with_keys(box: SandboxServer | Stub, database_url: str, folder: Path, *, harbor: str) -> Settings:
    file = folder / "keys.toml"
    file.write_text(f'{WILLOW} = "key-of-willow"\n{HARBOR} = "{harbor}"\n')
    given = {"NEXHEALTH_API_URL": box.url, "NEXHEALTH_API_KEYS_FILE": str(file), "DATABASE_URL": database_url}
    return load_settings(given, environ={}, env_file=None)


def by_tenant(results: list[SliceResult]) -> dict[str, set[Status]]:
    found: dict[str, set[Status]] = {}
    for result in results:
        found.setdefault(result.slice.subdomain or "", set()).add(result.status)
    return found


def test_each_institution_is_read_with_its_own_key(settings: Settings, box: SandboxServer, rows: Rows) -> None:
    results = sync_all(settings, FULL, only=ONLY)
    assert {result.status for result in results} == {Status.SUCCEEDED}
    assert {row[0] for row in rows("SELECT subdomain FROM nexhealth_institutions")} == {WILLOW, HARBOR}


def test_a_key_refused_from_the_start_leaves_the_others_whole(
    box: SandboxServer, database_url: str, tmp_path: Path, rows: Rows
) -> None:
    """A typing error in one line of the file must not cost forty-nine practices their night."""
    results = sync_all(with_keys(box, database_url, tmp_path, harbor="wrong"), FULL, only=ONLY, retry=QUICK)
    assert by_tenant(results) == {"": {Status.FAILED}, WILLOW: {Status.SUCCEEDED}}
    reasons = {result.reason for result in results if result.status is Status.FAILED}
    assert all(reason and reason.startswith(f"the key of {HARBOR}: ") for reason in reasons)
    assert not any("wrong" in str(reason) for reason in reasons)
    assert rows("SELECT subdomain FROM nexhealth_institutions") == [(WILLOW,)]
    assert rows("SELECT count(*) FROM nexhealth_freshness WHERE institution_id = 0") == [(0,)], "not known to be whole"


def test_a_key_revoked_later_fails_its_own_slices_alone(
    settings: Settings, box: SandboxServer, database_url: str, tmp_path: Path, rows: Rows
) -> None:
    """401: its rows stay, its slices are named, and the next night with a good key goes on."""
    sync_all(settings, FULL, only=ONLY)
    before = rows("SELECT count(*) FROM nexhealth_operatories")
    revoked = with_keys(box, database_url, tmp_path, harbor="revoked")
    results = sync_all(revoked, only=ONLY, retry=QUICK)
    assert by_tenant(results) == {"": {Status.FAILED}, WILLOW: {Status.SUCCEEDED}, HARBOR: {Status.FAILED}}
    assert {result.exit_status for result in results if result.status is Status.FAILED} == {2}
    assert rows("SELECT count(*) FROM nexhealth_operatories") == before
    assert rows("SELECT count(*) FROM nexhealth_operatories WHERE deleted_at IS NOT NULL") == [(0,)]
    again = with_keys(box, database_url, tmp_path, harbor="key-of-harbor")
    assert {result.status for result in sync_all(again, only=ONLY)} == {Status.SUCCEEDED}


def test_access_withdrawn_from_one_institution_is_its_own_affair(
    settings: Settings, box: SandboxServer, rows: Rows
) -> None:
    """403: what may be disabled is recorded so, the rest fails by name; the neighbour is complete."""
    sync_all(settings, FULL, only=ONLY)
    box.faults.add("status", subdomain=HARBOR, status=403, message="You don't have access to perform this action")
    found = by_tenant(sync_all(settings, only=ONLY, retry=QUICK))
    assert found == {
        "": {Status.SUCCEEDED},
        WILLOW: {Status.SUCCEEDED},
        HARBOR: {Status.FAILED, Status.SKIPPED},
    }
    assert rows(
        "SELECT DISTINCT i.subdomain FROM nexhealth_capabilities c JOIN nexhealth_institutions i"
        " ON i.id = c.institution_id WHERE c.status = 'not_enabled'"
    ) == [(HARBOR,)]


def one_gone_at_each(box: SandboxServer, rows: Rows) -> dict[str, int]:
    """A room of each institution, which the API has no more."""
    homes = "nexhealth_operatories o JOIN nexhealth_institutions i ON i.id = o.institution_id"
    found = {
        str(name): int(str(room)) for name, room in rows(f"SELECT subdomain, min(o.id) FROM {homes} GROUP BY subdomain")
    }
    assert set(found) == {WILLOW, HARBOR}
    for room in found.values():
        box.state.delete("operatories", room, hard=True)
    return found


MARKED = "SELECT id FROM nexhealth_operatories WHERE deleted_by = 'absence' ORDER BY id"


def test_a_key_that_is_refused_lets_the_others_absences_be_judged(
    settings: Settings, box: SandboxServer, database_url: str, tmp_path: Path, rows: Rows
) -> None:
    """Before anything is marked all keys are asked whether the offices are online: one that fails stopped every judgement."""
    sync_all(settings, FULL, only={"operatories"})
    rooms = one_gone_at_each(box, rows)
    revoked = with_keys(box, database_url, tmp_path, harbor="revoked")
    sync_all(revoked, RECONCILE, only={"operatories"}, retry=QUICK)
    assert rows(MARKED) == [(rooms[WILLOW],)]


def test_whose_own_key_is_refused_once_its_lists_are_read_is_not_judged(
    settings: Settings, box: SandboxServer, rows: Rows
) -> None:
    """Nobody knows whether its offices are online; its neighbour's key was answered."""
    sync_all(settings, FULL, only={"operatories"})
    rooms = one_gone_at_each(box, rows)
    # Each sync asks with each key, by name, at its beginning.
    refused = box.faults.add("status", path="/sync_status", status=403, nth=3)
    results = sync_all(settings, RECONCILE, only={"operatories"}, retry=QUICK)
    assert refused.fired == 1
    assert rows(MARKED) == [(rooms[WILLOW],)]
    reasons = {one.reason for one in results if one.absence is not None and one.status is Status.SKIPPED}
    assert any("could not be asked: the key of harbor-smiles: " in str(reason) for reason in reasons)


class Two(Stub):
    """Two institutions; what is said of the second is without a key for its locations, since it has none yet."""

    def __init__(self) -> None:
        super().__init__()
        self.authenticate, self.answer = self.issue_by_key, self.serve
        self.keys: dict[str, str] = {}

    def issue_by_key(self, seen: Seen) -> Reply:
        reply = self.issue(seen)
        self.keys[f"Bearer {self.tokens[-1]}"] = seen.headers["Authorization"]
        return reply

    def serve(self, seen: Seen) -> Reply:
        number = list(KEYS).index(self.keys[seen.headers["Authorization"]]) + 1
        institution = {"id": number, "name": "N", "subdomain": (WILLOW, HARBOR)[number - 1]}
        match seen.path:
            case "/institutions":
                return envelope([institution])
            case "/locations":
                place = {"id": 11, "name": "N", "institution_id": 1}
                return envelope([institution | ({"locations": [place]} if number == 1 else {})])
            case "/operatories":
                return cursor_page([{"id": 5, "location_id": 11, "name": "N"}], "c")
        return envelope([])


def test_an_institution_without_the_key_of_its_locations_spoils_nobodys_discovery(
    database_url: str, tmp_path: Path, rows: Rows
) -> None:
    """Risk: one tenant that is just being set up, and no practice of any key is read that night."""
    with running(Two()) as both:
        settings = with_keys(both, database_url, tmp_path, harbor="key-of-harbor")
        results = sync_all(settings, FULL, only={"operatories"}, retry=QUICK)
    assert {result.status for result in results} == {Status.SUCCEEDED}
    assert rows("SELECT institution_id, id FROM nexhealth_operatories") == [(1, 5)]
    assert rows("SELECT id FROM nexhealth_institutions ORDER BY id") == [(1,), (2,)]
