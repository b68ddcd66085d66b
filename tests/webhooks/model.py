"""What a table must hold after events and pages in any order, told by a few lines instead of by SQL."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field

import psycopg

from .kit import INSTITUTION, MINUTE, T0, load_page, patient, store, updated

Held = tuple[float, float | None]
"""Version of a row (minutes after T0), and when it was found absent."""


@dataclass
class Model:
    """The newest version of each record wins. What was found absent comes back by an event of what happened since then,
    by a later read, or by one of a newer version."""

    rows: dict[int, Held] = field(default_factory=dict)

    def event(self, number: int, version: float) -> None:
        held = self.rows.get(number)
        if held is None or held[1] is None or version > held[1]:
            self._newer(number, version)

    def _newer(self, number: int, version: float) -> None:
        held = self.rows.get(number)
        if held is None or version > held[0]:
            self.rows[number] = version, None

    def page(self, number: int, version: float, read_at: float) -> None:
        self._newer(number, version)
        version, absent = self.rows[number]
        if absent is not None and read_at > absent:
            self.rows[number] = version, None

    def absence(self, number: int, at: float) -> None:
        self.rows[number] = self.rows[number][0], at


@dataclass
class Story:
    """Patients with many versions, of which events and pages tell out of order."""

    seed: int
    patients: int
    events: int

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        # Versions of a patient are far enough apart for reads in between.
        self._versions = {
            number: sorted(self._random.sample(range(1, 100_000), 12)) for number in range(1, self.patients + 1)
        }
        self.model = Model()

    def chunks(self, size: int) -> Iterator[list[tuple[int, int]]]:
        """(patient, version) of each event: shuffled, a fifth repeated, a twentieth long outdated."""
        told = []
        for _ in range(self.events):
            number = self._random.randint(1, self.patients)
            versions = self._versions[number][:3] if self._random.random() < 0.05 else self._versions[number]
            told.append((number, self._random.choice(versions)))
        told += self._random.sample(told, self.events // 5)
        self._random.shuffle(told)
        for at in range(0, len(told), size):
            yield told[at : at + size]

    def store(self, connection: psycopg.Connection, told: list[tuple[int, int]]) -> None:
        """Store these events: some repeat a body, others tell the same under another time."""
        bodies = [
            updated(patient(number, version), at=version + self._random.choice((0, 0, 1))) for number, version in told
        ]
        with connection.transaction():
            store(connection, *bodies)
        for number, version in told:
            self.model.event(number, version)

    def read_page(self, connection: psycopg.Connection) -> None:
        """Load an answer of the API as it was at some moment, perhaps long ago."""
        read_at = self._random.randint(1, 120_000)
        chosen = self._random.sample(sorted(self._versions), max(2, self.patients // 10))
        found = {number: max((one for one in self._versions[number] if one <= read_at), default=0) for number in chosen}
        found = {number: version for number, version in found.items() if version}
        load_page(
            connection, "patients", [patient(number, version) for number, version in found.items()], read_at=read_at
        )
        for number, version in found.items():
            self.model.page(number, version, read_at)

    def lose(self, connection: psycopg.Connection) -> None:
        """A complete read lacks some patients."""
        for number in self._random.sample(sorted(self.model.rows), min(3, len(self.model.rows))):
            version, absent = self.model.rows[number]
            if absent is None:
                at = version + self._random.randint(1, 5_000)
                connection.execute(
                    "UPDATE nexhealth_patients SET deleted_at = %s, deleted_by = 'absence', synced_at = clock_timestamp()"
                    " WHERE institution_id = %s AND id = %s",
                    (T0 + at * MINUTE, INSTITUTION, number),
                )
                self.model.absence(number, at)

    def check(self, connection: psycopg.Connection) -> None:
        """The table equals the model, and no event is left over."""
        rows = connection.execute(
            "SELECT id, updated_at, last_name, deleted_at, raw ->> 'last_name' FROM nexhealth_patients"
        ).fetchall()
        expected = {
            (number, T0 + version * MINUTE, f"v{version}", absent and T0 + absent * MINUTE, f"v{version}")
            for number, (version, absent) in self.model.rows.items()
        }
        assert set(rows) == expected
        assert set(connection.execute("SELECT DISTINCT status FROM nexhealth_webhook_events").fetchall()) <= {
            ("applied",),
            ("superseded",),
        }


def history_is_sound(connection: psycopg.Connection) -> None:
    """Versions follow each other, none twice, and each change by an event names it."""
    assert not connection.execute(
        "SELECT key, updated_at FROM (SELECT key, cause, raw ->> 'updated_at' AS updated_at, lag(raw ->> 'updated_at')"
        " OVER (PARTITION BY collection, institution_id, key ORDER BY version) AS before FROM nexhealth_history) h"
        " WHERE before::timestamptz > updated_at::timestamptz"
        " OR before = updated_at AND cause NOT IN ('absence', 'revival', 'webhook', 'page')"
    ).fetchall()
    assert not connection.execute(
        "SELECT key FROM nexhealth_history WHERE cause IN ('page', 'webhook', 'replay')"
        " GROUP BY collection, institution_id, key, raw ->> 'updated_at', deleted HAVING count(*) > 1".replace(
            "deleted", "fields ->> 'deleted_at'"
        )
    ).fetchall()
    assert not connection.execute(
        "SELECT key, version FROM nexhealth_history WHERE cause IN ('webhook', 'replay') AND event_id IS NULL"
    ).fetchall()
