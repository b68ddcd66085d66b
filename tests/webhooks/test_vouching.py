"""Institutions with API keys of their own: who has one can read its endpoint's secret, and sign what he likes with it."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest

from nexhealth_pipeline.sandbox import SandboxServer
from nexhealth_pipeline.settings import Settings
from nexhealth_pipeline.webhooks import endpoints
from nexhealth_pipeline.webhooks.applying.replaying import Selection, rehearse
from tests.conftest import _fresh
from tests.sync.kit import open_session, sync_all

from .asking import asked, last
from .kit import apply_all, body, store
from .test_own_keys import HARBOR, WILLOW, with_keys

URL = "https://hooks.example.com/api/nexhealth-webhook"
OF_WILLOW, OF_HARBOR = 1, 2
"""The endpoints of their keys."""


@dataclass
class Two:
    """A warehouse that has read the patients of both."""

    box: SandboxServer
    url: str
    settings: Settings
    db: psycopg.Connection

    def patient(self, at: int) -> tuple[int, str]:
        """Harbor's one in this place, and the last name that NexHealth has."""
        row = self.db.execute(
            "SELECT id, last_name FROM nexhealth_patients WHERE institution_id = %s ORDER BY id OFFSET %s LIMIT 1",
            (self.box.state.institution(HARBOR).id, at),
        ).fetchone()
        assert row is not None
        return row

    def name(self, number: int) -> str:
        """As the row has it."""
        row = self.db.execute("SELECT last_name FROM nexhealth_patients WHERE id = %s", (number,)).fetchone()
        assert row is not None
        return str(row[0])

    def told(self, number: int, name: str, endpoint: int | None) -> None:
        """Store harbor's event that the patient is called so, signed by this endpoint."""
        record = json.loads(json.dumps({**self.box.state.row("patients", number).record()}))
        told = record | {"last_name": name, "updated_at": "2100-01-01T00:00:00Z"}
        (event,) = store(self.db, body("patient_updated", {"patients": [told]}, subdomain=HARBOR))
        self.db.execute("UPDATE nexhealth_webhook_events SET endpoint_id = %s WHERE id = %s", (endpoint, event))

    def applied(self) -> tuple[str, str | None]:
        """What became of the last event."""
        apply_all(self.settings)
        row = self.db.execute("SELECT status, error FROM nexhealth_webhook_events ORDER BY id DESC LIMIT 1").fetchone()
        assert row is not None
        return row

    def key_of(self, institution: str) -> str:
        """As endpoints are kept by."""
        with open_session(self.settings) as session:
            return session.client.key_hash(institution)

    def subscribe(self, endpoint: int, *subdomains: str) -> None:
        """Note that it is told of patients of these."""
        (known,) = (one for one in endpoints.known_endpoints(self.db) if one.endpoint_id == endpoint)
        found = [
            endpoints.Subscription(number, name, "Patient", "patient_updated", active=True)
            for number, name in enumerate(subdomains)
        ]
        endpoints.record_subscriptions(self.db, known, found)


@pytest.fixture(scope="module")
def shared(server_url: str, template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Two]:
    keys = {"key-of-willow": (WILLOW,), "key-of-harbor": (HARBOR,)}
    with SandboxServer(patients=20, appointments_per_patient=0, limits=False, api_keys=keys) as box:
        file = tmp_path_factory.mktemp("keys") / "keys.toml"
        for url in _fresh(server_url, template):
            settings = with_keys(box, url, file, harbor="key-of-harbor")
            with psycopg.connect(url, autocommit=True) as db:
                sync_all(settings, only={"patients"})
                yield Two(box, url, settings, db)


@pytest.fixture
def two(shared: Two) -> Two:
    """Without events, one endpoint for each key."""
    shared.db.execute("DELETE FROM nexhealth_webhook_events; DELETE FROM nexhealth_webhooks")
    for number, name in ((OF_WILLOW, WILLOW), (OF_HARBOR, HARBOR)):
        endpoints.store(shared.db, shared.key_of(name), number, target_url=URL, active=True, secret=b"sealed")
    return shared


def test_what_the_endpoint_of_another_key_signs_is_asked_for_and_not_believed(two: Two) -> None:
    """Its record was written, with a version that no read was ever newer than."""
    number, name = two.patient(0)
    since = last(two.box)
    two.told(number, "Forged", OF_WILLOW)
    assert two.applied() == ("applied", None)
    assert two.name(number) == name
    read = asked(two.box, "/patients", since)
    assert {one.param("subdomain") for one in read} == {HARBOR}
    with open_session(two.settings) as session:
        rehearsed = rehearse(session, Selection(resources=("patients",)))
    assert (rehearsed.hints, rehearsed.applied) == (1, 0), "a replay asks as well"


@pytest.mark.parametrize(
    ("place", "endpoint"), [(1, OF_HARBOR), (2, None), (3, 99)], ids=["its own", "of the settings", "nobody's"]
)
def test_what_its_own_endpoint_signs_is_believed_and_nobody_is_asked(
    two: Two, place: int, endpoint: int | None
) -> None:
    """However little is noted of it: a set-up that was killed has subscribed it already."""
    assert_believed(two, place, endpoint)


def test_whom_the_endpoints_of_a_key_are_subscribed_for_they_tell_of(two: Two) -> None:
    """An institution got a key of its own, and no set-up was run since: its events still come as before."""
    two.subscribe(OF_WILLOW, WILLOW, HARBOR)
    assert_believed(two, 4, OF_WILLOW)


def test_what_a_removed_endpoint_was_subscribed_for_says_nothing_of_those_that_are_left(two: Two) -> None:
    """The row of one that was removed keeps it, and the institution may have left the key since."""
    number, name = two.patient(6)
    endpoints.store(two.db, two.key_of(WILLOW), 3, target_url=URL, active=True, secret=b"sealed")
    two.subscribe(3, WILLOW, HARBOR)
    two.db.execute("UPDATE nexhealth_webhooks SET removed_at = now() WHERE endpoint_id = 3")
    two.told(number, "Forged", OF_WILLOW)
    assert two.applied() == ("applied", None)
    assert two.name(number) == name


def test_of_an_institution_whose_key_was_taken_away_nobody_elses_endpoint_tells(two: Two, tmp_path: Path) -> None:
    """Its rows are still there, and the API cannot be asked for it."""
    number, name = two.patient(7)
    two.told(number, "Forged", OF_WILLOW)
    file = tmp_path / "keys.toml"
    settings = with_keys(two.box, two.url, file, harbor="key-of-harbor")
    file.write_text(f'{WILLOW} = "key-of-willow"\n')
    apply_all(settings)
    assert two.db.execute("SELECT status FROM nexhealth_webhook_events").fetchall() == [("pending",)]
    assert two.name(number) == name


def test_repeats_of_a_retired_endpoint_of_a_key_that_was_replaced_are_believed(two: Two) -> None:
    """Nothing is subscribed there any more, and its key is not among the settings until a set-up is run."""
    two.subscribe(OF_HARBOR, HARBOR)
    two.db.execute("UPDATE nexhealth_webhooks SET key_hash = 'of the key before' WHERE endpoint_id = %s", (OF_HARBOR,))
    endpoints.store(two.db, "of the key before", 3, target_url=URL, active=True, secret=b"sealed")
    assert_believed(two, 5, 3)


def assert_believed(two: Two, place: int, endpoint: int | None) -> None:
    number, _ = two.patient(place)
    since = last(two.box)
    two.told(number, "As told", endpoint)
    assert two.applied() == ("applied", None)
    assert two.name(number) == "As told"
    assert not asked(two.box, "/patients", since)
