"""One rate budget per API key for all processes and hosts that share a database.

NexHealth limits requests per key in sliding windows (API.md C.3). PostgreSQL is what all our
processes share, so each grant is one call of a function there: it locks the rows of all classes
of the request, looks whether every one has room, and either counts the request in all of them or
in none. Rows are locked in one order (no deadlock) and the clock is read after the locks.

How a window is counted. The window is cut into `_BUCKETS` buckets; the row holds one count per
bucket, and a grant needs fewer than N grants in the current bucket and the `_BUCKETS` before it.
Any stretch as long as the window touches at most _BUCKETS + 1 buckets, so no sliding window ever
holds more than N grants; the price is that a slot comes free up to one bucket (2 %) late. A list of
the last N grant times would be exact to the microsecond, but it is 13 kB a row for 1,600 grants a
minute, rewritten at each grant (here 0.3 ms and 0.3 kB of WAL a grant, measured with PostgreSQL
18), and a changed share would have to resize it. Here the share only changes N.

What the API counts is the arrival, and a request arrives some milliseconds after its grant, on a
busy machine tenths of a second. Therefore the window is made `_MARGIN` + `_JITTER_SECONDS` longer than
documented, and in windows of a second grants are also paced: eight at once that arrive late would
meet the next eight in one window, eight spread over the second do not (tolerates 0.2 s at the
default share of GET /appointments). Minutes are paced from the half of their share on: a small job has
its requests at once, a large one goes on evenly instead of standing still for the rest of each minute,
and those whose own limit is a second's (GET /appointments) are not crowded out by those without one.

If the database cannot be asked, nothing is sent (BudgetUnavailable).
"""

import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import ceil
from typing import LiteralString

import psycopg

from nexhealth_pipeline.catalog.limits import LIMITS, Limit, RateClass
from nexhealth_pipeline.errors import BudgetUnavailable, Cancelled, WarehouseError
from nexhealth_pipeline.warehouse.connect import connect

__all__ = [
    "BUDGET_DDL",
    "PACE_SLACK",
    "BudgetConnection",
    "PostgresBudget",
]

_BUCKETS = 50
"""Parts of a window. More waste less of the limit and make the row larger."""
_MARGIN = 0.01
"""Part of a window added to it, for clocks that run differently."""
_JITTER_SECONDS = 0.02
"""Seconds added to each window for the unequal time between grant and arrival."""
_PACED_WINDOW = 1.0
"""Windows up to these seconds are paced throughout, longer ones from half of their share on."""
_SHORT_SHARE = 0.9
"""Most of a paced window that is used, whatever the share: of ten a second, eleven arrived within 0.88 s at load 10."""
PACE_SLACK = 0.05
"""Part of a paced window that grants may come early, so that a late wake-up costs nothing."""
_LONGEST_SLEEP = 5.0
"""Seconds between questions, however long the wait: a block may be lifted, or the share raised."""
_STOP_POLL = 0.2
"""Seconds between looks at `stop` while standing in line."""
# What a crash of the server forgets is under a second of grants: no need to wait for its disk.
# Read committed, because a waiter for a row's lock must see what the one before it wrote.
# Whoever waits for a row keeps all other keys waiting: not for long, and then once more after them.
_SESSION = """
SELECT set_config('synchronous_commit', 'off', false),
       set_config('default_transaction_isolation', 'read committed', false),
       set_config('lock_timeout', '2s', false),
       set_config('statement_timeout', '30s', false)
"""

_OVERDUE = ("57014", "55P03")
"""A statement or a wait for a lock that took too long and so did nothing: all of one that a standstill met midway."""

_PATIENCE_SECONDS = 40.0
"""So long a question that was overdue is asked again, and once in any case."""

_AWAY_SECONDS = 10.0
"""So long a connection is sought: others that hold the last one for a moment must not end a run of hours."""
_TRY_AGAIN_SECONDS = 0.5
_UNASKED = "the shared rate budget cannot be asked, so nothing is sent to NexHealth"

_ACQUIRE = "SELECT nexhealth_rate_acquire(%s, %s, %s, %s, %s, %s, %s, %s)"

BUDGET_DDL = """
CREATE TABLE IF NOT EXISTS nexhealth_rate_budget (
    key_hash text NOT NULL,
    rate_class text NOT NULL,
    bucket_seconds double precision NOT NULL,
    last_bucket bigint NOT NULL,
    counts integer[] NOT NULL,
    blocked_until double precision NOT NULL DEFAULT 0,
    next_at double precision NOT NULL DEFAULT 0,
    PRIMARY KEY (key_hash, rate_class)
) WITH (fillfactor = 20);

COMMENT ON TABLE nexhealth_rate_budget IS 'Requests granted lately per API key and rate class';
COMMENT ON COLUMN nexhealth_rate_budget.key_hash IS 'Hash of the API key; PHI class none';
COMMENT ON COLUMN nexhealth_rate_budget.rate_class IS 'Which documented limit; PHI class none';
COMMENT ON COLUMN nexhealth_rate_budget.bucket_seconds IS 'Length of one bucket; PHI class none';
COMMENT ON COLUMN nexhealth_rate_budget.last_bucket IS
    'Number of the newest bucket, counted from 1970; PHI class none';
COMMENT ON COLUMN nexhealth_rate_budget.counts IS
    'Grants per bucket; bucket b is element b modulo the length; PHI class none';
COMMENT ON COLUMN nexhealth_rate_budget.blocked_until IS
    'Seconds since 1970 until which nobody may send (after a 429); PHI class none';
COMMENT ON COLUMN nexhealth_rate_budget.next_at IS
    'Seconds since 1970 at which an evenly paced sender would send next; PHI class none';

-- Locks the rows of all classes (made where missing), in the order given; then the clock.
CREATE OR REPLACE FUNCTION nexhealth_rate_lock(p_key_hash text, p_classes text[], p_seconds double precision[], p_buckets integer)
RETURNS double precision LANGUAGE plpgsql AS $$
DECLARE
    i integer;
BEGIN
    FOR i IN 1 .. cardinality(p_classes) LOOP
        PERFORM 1 FROM nexhealth_rate_budget
            WHERE key_hash = p_key_hash AND rate_class = p_classes[i] FOR UPDATE;
        IF NOT FOUND THEN
            INSERT INTO nexhealth_rate_budget (key_hash, rate_class, bucket_seconds, last_bucket, counts)
                VALUES (p_key_hash, p_classes[i], p_seconds[i], 0, array_fill(0, ARRAY[p_buckets + 1]))
                ON CONFLICT DO NOTHING;
            PERFORM 1 FROM nexhealth_rate_budget
                WHERE key_hash = p_key_hash AND rate_class = p_classes[i] FOR UPDATE;
        END IF;
    END LOOP;
    RETURN extract(epoch FROM clock_timestamp());
END $$;

-- 0 = granted and counted in every class; else seconds to wait, and nothing was counted.
CREATE OR REPLACE FUNCTION nexhealth_rate_acquire(
    p_key_hash text, p_classes text[], p_allowed integer[], p_seconds double precision[], p_buckets integer,
    p_paces double precision[], p_slacks double precision[], p_unpaced integer[])
RETURNS double precision LANGUAGE plpgsql AS $$
DECLARE
    size integer := p_buckets + 1;
    moment double precision;
    latest bigint[] := '{}';
    tallies integer[] := '{}';       -- all classes' counts, one after the other
    wait double precision := 0;
    nexts double precision[] := '{}';
    r nexhealth_rate_budget;
    c integer[];
    b bigint;
    total integer;
    paced boolean;
    i integer;
BEGIN
    moment := nexhealth_rate_lock(p_key_hash, p_classes, p_seconds, p_buckets);
    FOR i IN 1 .. cardinality(p_classes) LOOP
        SELECT * INTO STRICT r FROM nexhealth_rate_budget
            WHERE key_hash = p_key_hash AND rate_class = p_classes[i];
        b := floor(moment / p_seconds[i]);
        c := r.counts;
        IF r.bucket_seconds <> p_seconds[i] OR cardinality(c) <> size OR r.last_bucket > b + 1 THEN
            -- Another release's buckets, or a clock that was put back: everything counts as now.
            total := (SELECT sum(x) FROM unnest(c) AS x);
            c := array_fill(0, ARRAY[size]);
            c[mod(b, size) + 1] := least(total, p_allowed[i]);
            UPDATE nexhealth_rate_budget
                SET counts = c, last_bucket = b, bucket_seconds = p_seconds[i]
                WHERE key_hash = p_key_hash AND rate_class = p_classes[i];
        ELSIF r.last_bucket > b THEN
            b := r.last_bucket;      -- a clock a moment behind
        ELSIF b - r.last_bucket >= size THEN
            c := array_fill(0, ARRAY[size]);
        ELSE
            WHILE r.last_bucket < b LOOP
                r.last_bucket := r.last_bucket + 1;
                c[mod(r.last_bucket, size) + 1] := 0;
            END LOOP;
        END IF;
        total := (SELECT sum(x) FROM unnest(c) AS x);
        paced := total >= p_unpaced[i];
        IF total >= p_allowed[i] THEN
            -- Room comes when the oldest buckets that hold the surplus have left the window.
            FOR back IN REVERSE p_buckets .. 0 LOOP
                total := total - c[mod(b - back, size) + 1];
                IF total < p_allowed[i] THEN
                    wait := greatest(wait, (b - back + size) * p_seconds[i] - moment);
                    EXIT;
                END IF;
            END LOOP;
        END IF;
        -- A block is minutes at most (the client bounds it); hours mean a clock that was put back.
        IF r.blocked_until > moment AND r.blocked_until < moment + 900 THEN
            wait := greatest(wait, r.blocked_until - moment);
        END IF;
        IF r.next_at > moment + 60 THEN
            r.next_at := 0;          -- a clock that was put back
        END IF;
        IF paced THEN
            wait := greatest(wait, r.next_at - p_slacks[i] - moment);
            nexts := nexts || greatest(r.next_at, moment) + p_paces[i];
        ELSE
            nexts := nexts || moment;
        END IF;
        latest := latest || b;
        tallies := tallies || c;
    END LOOP;
    IF wait > 0 THEN
        RETURN wait;
    END IF;
    FOR i IN 1 .. cardinality(p_classes) LOOP
        c := tallies[(i - 1) * size + 1 : i * size];
        c[mod(latest[i], size) + 1] := c[mod(latest[i], size) + 1] + 1;
        UPDATE nexhealth_rate_budget
            SET counts = c, last_bucket = latest[i], bucket_seconds = p_seconds[i], next_at = nexts[i]
            WHERE key_hash = p_key_hash AND rate_class = p_classes[i];
    END LOOP;
    RETURN 0;
END $$;

CREATE OR REPLACE FUNCTION nexhealth_rate_throttle(
    p_key_hash text, p_classes text[], p_seconds double precision[], p_buckets integer, p_block double precision)
RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    moment double precision;
BEGIN
    moment := nexhealth_rate_lock(p_key_hash, p_classes, p_seconds, p_buckets);
    -- A longer block stands, unless nobody heeds it since the clock was put back.
    UPDATE nexhealth_rate_budget SET blocked_until = CASE
            WHEN blocked_until < moment + 900 THEN greatest(blocked_until, moment + p_block)
            ELSE moment + p_block END
        WHERE key_hash = p_key_hash AND rate_class = ANY (p_classes);
END $$;
"""
"""Table and functions, for a migration; may run again on top of itself."""


def _allowed(limit: Limit, share: float) -> int:
    """Requests that a window may hold."""
    allowed = int(limit.requests * share)
    if limit.window_seconds <= _PACED_WINDOW:
        allowed = min(allowed, ceil(limit.requests * _SHORT_SHARE))
    return max(1, allowed)


class BudgetConnection:
    """The one connection by which a run asks for the budgets of all its keys: made when first needed, thread-safe.

    A question is one statement of a fraction of a millisecond, and institutions may have hundreds of keys.
    Setting `stop` ends a wait with Cancelled.
    """

    def __init__(self, conninfo: str, *, stop: threading.Event | None = None) -> None:
        self.stop = stop
        self._conninfo = conninfo
        self._connection: psycopg.Connection | None = None
        self._closed = False
        self._away_since: float | None = None
        self._asking = _Line()

    def ask(self, query: LiteralString, parameters: tuple[object, ...]) -> float:
        """The answer of one function call, asked again where the server went away or stood still meanwhile.

        Raises BudgetUnavailable, Cancelled.
        """
        began, asked, was_lost = time.monotonic(), 0, False
        while True:
            with self._asking.turn(self.stop):
                try:
                    row = self._connected().execute(query, parameters).fetchone()
                    return float(row[0] or 0) if row else 0.0
                except psycopg.Error as error:
                    lost = self._connection is None or self._connection.broken or self._connection.closed
                    code = error.sqlstate
                if lost:
                    self._connection = None
            asked += 1
            patient = asked < 2 or time.monotonic() - began < _PATIENCE_SECONDS
            again = not was_lost if lost else code in _OVERDUE and patient
            if not again:
                raise BudgetUnavailable(_why(code))
            was_lost |= lost
            if not lost:
                self.pause(_TRY_AGAIN_SECONDS)

    def pause(self, seconds: float) -> None:
        """Wait. Raises Cancelled."""
        if self.stop is None:
            time.sleep(seconds)
        elif self.stop.wait(seconds):
            raise Cancelled("stopped while waiting for the rate budget")

    def close(self) -> None:
        """Close the connection. Whoever asks from now on, as a fetch that was given up does, gets Cancelled.

        What NexHealth tells such a one of its limits is lost: the next to ask is told again.
        """
        self._closed = True
        with self._asking.turn(None):
            if self._connection is not None:
                self._connection.close()
            self._connection = None

    def _connected(self) -> psycopg.Connection:
        if self._connection is None:
            connection = self._connect()
            try:
                connection.execute(_SESSION)
            except psycopg.Error:
                connection.close()
                raise
            self._connection = connection
        return self._connection

    def _connect(self) -> psycopg.Connection:
        """A new connection, sought for a while: by the first who finds none, for all others too. Raises BudgetUnavailable."""
        while True:
            if self._closed or (self.stop is not None and self.stop.is_set()):
                raise Cancelled("stopped while the rate budget was sought")
            try:
                connection = connect(self._conninfo, autocommit=True, application_name="nexhealth rate budget")
            except WarehouseError as error:
                reason = str(error)
            else:
                self._away_since = None
                return connection
            now = time.monotonic()
            self._away_since = self._away_since or now
            if now - self._away_since >= _AWAY_SECONDS:
                raise BudgetUnavailable(f"{_UNASKED}: {reason}")
            self.pause(_TRY_AGAIN_SECONDS)


class PostgresBudget:
    """The shared budget of one API key, asked for by `connection`. Implements `client.budget.Budget`; thread-safe.

    `share` is the part of each documented limit to use (at least one request a window).
    """

    def __init__(
        self, connection: BudgetConnection, key_hash: str, share: float, *, limits: Mapping[RateClass, Limit] = LIMITS
    ) -> None:
        self._connection, self._key_hash = connection, key_hash
        self._allowed = {name: _allowed(limit, share) for name, limit in limits.items()}
        self._bucket_seconds = {
            name: (limit.window_seconds * (1 + _MARGIN) + _JITTER_SECONDS) / _BUCKETS for name, limit in limits.items()
        }
        self._paces = {name: limit.window_seconds / self._allowed[name] for name, limit in limits.items()}
        self._slacks = {name: limit.window_seconds * PACE_SLACK for name, limit in limits.items()}
        self._unpaced = {
            name: 0 if limit.window_seconds <= _PACED_WINDOW else self._allowed[name] // 2
            for name, limit in limits.items()
        }
        self._lines: dict[tuple[RateClass, ...], _Line] = {}
        self._lining_up = threading.Lock()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._key_hash[:8]})"

    def acquire(self, classes: tuple[RateClass, ...]) -> float:
        """Block until one request that counts in all of `classes` may be sent; seconds waited.

        Raises BudgetUnavailable, Cancelled.
        """
        names = sorted(classes)
        question = (
            self._key_hash,
            [str(name) for name in names],
            [self._allowed[name] for name in names],
            [self._bucket_seconds[name] for name in names],
            _BUCKETS,
            [self._paces[name] for name in names],
            [self._slacks[name] for name in names],
            [self._unpaced[name] for name in names],
        )
        began = time.monotonic()
        waited = False
        # One thread of this process asks for a set of classes at a time; the others stand in line.
        with self._line(tuple(names)).turn(self._connection.stop):
            while wait := self._connection.ask(_ACQUIRE, question):
                waited = True
                self._connection.pause(min(wait, _LONGEST_SLEEP))
        return time.monotonic() - began if waited else 0.0

    def throttle(self, classes: tuple[RateClass, ...], seconds: float) -> None:
        """Let no process send in `classes` for `seconds` from now. Raises BudgetUnavailable, Cancelled."""
        names = sorted(classes)
        self._connection.ask(
            "SELECT nexhealth_rate_throttle(%s, %s, %s, %s, %s)",
            (self._key_hash, [str(n) for n in names], [self._bucket_seconds[n] for n in names], _BUCKETS, seconds),
        )

    def _line(self, names: tuple[RateClass, ...]) -> "_Line":
        with self._lining_up:
            return self._lines.setdefault(names, _Line())


class _Line:
    """Threads take turns in the order they came."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._busy = False
        self._waiting: deque[threading.Event] = deque()

    @contextmanager
    def turn(self, stop: threading.Event | None) -> Iterator[None]:
        self._take(stop)
        try:
            yield
        finally:
            self._pass_on()

    def _take(self, stop: threading.Event | None) -> None:
        with self._mutex:
            if not self._busy:
                self._busy = True
                return
            called = threading.Event()
            self._waiting.append(called)
        while not called.wait(None if stop is None else _STOP_POLL):
            if stop is not None and stop.is_set():
                self._leave(called)
                raise Cancelled("stopped while waiting for the rate budget")

    def _leave(self, called: threading.Event) -> None:
        with self._mutex:
            if called in self._waiting:
                self._waiting.remove(called)
                return
        self._pass_on()  # it was called at this very moment

    def _pass_on(self) -> None:
        with self._mutex:
            if self._waiting:
                self._waiting.popleft().set()
            else:
                self._busy = False


def _why(sqlstate: str | None) -> str:
    fixes = {
        "42P01": "its table is missing: run `nexhealth db upgrade`",
        "42883": "its function is missing: run `nexhealth db upgrade`",
        "42501": "the database role may not use table nexhealth_rate_budget: grant SELECT, INSERT, UPDATE on it",
        "25006": "the database is read-only: connect to the primary server (DATABASE_URL)",
        "53100": "PostgreSQL has no room left: make room on its disk, then run again",
    }
    reason = fixes.get(sqlstate or "", "the database does not answer: check DATABASE_URL")
    return f"{_UNASKED}: {reason}"
