"""What a script can do at best: one thread asks and encodes, the other copies into a stage and merges every 20 pages.

No retries, resume, log, quarantine, history or version order: the same columns, raw JSON and a content hash.
"""

import hashlib
import queue
import sys
import threading
from collections.abc import Iterator

import msgspec
import psycopg
import requests

PAGES_A_MERGE = 20
COLUMNS = {
    "id": "bigint", "institution_id": "bigint", "email": "text", "first_name": "text", "middle_name": "text",
    "last_name": "text", "name": "text", "created_at": "timestamptz", "updated_at": "timestamptz", "foreign_id": "text",
    "foreign_id_type": "text", "inactive": "boolean", "last_sync_time": "timestamptz", "guarantor_id": "bigint",
    "billing_type": "text", "chart_id": "text", "preferred_language": "text", "provider_id": "bigint",
    "bio_city": "text", "bio_state": "text", "bio_zip_code": "text", "bio_address_line_1": "text",
    "bio_street_address": "text", "bio_gender": "text", "bio_date_of_birth": "date", "bio_new_patient": "boolean",
    "bio_non_patient": "boolean", "bio_address_line_2": "text", "bio_phone_number": "text",
    "bio_cell_phone_number": "text", "bio_home_phone_number": "text", "bio_work_phone_number": "text",
    "hipaa_authorization": "boolean", "hipaa_privacy": "boolean", "hipaa_consent": "boolean",
    "hipaa_authorization_date": "date", "hipaa_consent_date": "date",
}  # fmt: skip
ALL = [*COLUMNS, "raw", "hash"]
NESTED = ("bio", "hipaa")
LINE = "\t".join(["%s"] * len(ALL))
NULL = "None"
"""As Python prints it, so that no value needs to be looked at; it takes True and False as well."""
ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})


def _struct(name: str, prefix: str, *more: tuple[str, type, object]) -> type[msgspec.Struct]:
    """What a decoder fills without looking anything up by name."""
    names = [one for one in COLUMNS if one.startswith(prefix) and not (not prefix and one.startswith(NESTED))]
    fields = [(one.removeprefix(prefix), object, None) for one in names]
    return msgspec.defstruct(name, [*fields, *more])


class Answer(msgspec.Struct):
    """What of an answer matters."""

    data: list[msgspec.Raw]
    page_info: dict[str, object]


def fetched(api_url: str, since: str) -> Iterator[list[str]]:
    """Pages as lines of COPY, one after the other."""
    session, cursor, more = requests.Session(), "", True
    while more:
        params = {"subdomain": "bench-dental", "location_id": "501", "per_page": "1000", "end_cursor": cursor}
        body = session.get(
            f"{api_url}/patients", params=params | ({"updated_since": since} if since else {}), timeout=60
        )
        answer = msgspec.json.decode(body.content, type=Answer)
        yield [line(bytes(one)) for one in answer.data]
        more, cursor = bool(answer.page_info["has_next_page"]), str(answer.page_info["end_cursor"])


def pages(api_url: str, since: str) -> Iterator[list[str]]:
    """The same; those of the next merge are fetched and encoded while this one is at work. Raises what fetching raises."""
    ready: queue.Queue[list[str] | Exception | None] = queue.Queue(maxsize=PAGES_A_MERGE)

    def fetch() -> None:
        try:
            for lines in fetched(api_url, since):
                ready.put(lines)
        except Exception as error:  # it would end this thread alone, and the other one would wait for ever
            ready.put(error)
        else:
            ready.put(None)

    threading.Thread(target=fetch, daemon=True).start()
    while (lines := ready.get()) is not None:
        if isinstance(lines, Exception):
            raise lines
        yield lines


_BIO, _HIPAA = _struct("Bio", "bio_"), _struct("Hipaa", "hipaa_")
_decode = msgspec.json.Decoder(_struct("Patient", "", ("bio", _BIO, None), ("hipaa", _HIPAA, None))).decode
_values = msgspec.structs.astuple


def line(raw: bytes) -> str:
    """A record as a line of COPY."""
    *own, bio, hipaa = _values(_decode(raw))
    values = (*own, *_values(bio), *_values(hipaa))
    text = raw.decode()
    if b"\\" in raw:
        values = tuple(value.translate(ESCAPES) if isinstance(value, str) else value for value in values)
        text = text.translate(ESCAPES)
    return LINE % (*values, text, "\\\\x" + hashlib.blake2b(raw, digest_size=16).hexdigest())


def main(api_url: str, database_url: str, mode: str) -> None:
    """Read patients; incremental asks for those changed since the last read."""
    types = ", ".join(f"{name} {kind}" for name, kind in {**COLUMNS, "raw": "jsonb", "hash": "bytea"}.items())
    names = ", ".join(ALL)
    sets = ", ".join(f"{name} = excluded.{name}" for name in ALL if name not in ("id", "institution_id"))
    sys.setswitchinterval(0.001)  # as ours: else each answer of the database waits 5 ms for the encoding thread
    with psycopg.connect(database_url) as db:
        db.execute(f"CREATE TABLE IF NOT EXISTS limit_patients ({types}, PRIMARY KEY (institution_id, id))")
        db.execute("CREATE TABLE IF NOT EXISTS limit_state (since timestamptz)")
        db.execute(f"CREATE TEMP TABLE stage ({types})")
        since = db.execute("SELECT max(since)::text FROM limit_state").fetchone()
        began = db.execute("SELECT clock_timestamp()").fetchone()
        db.commit()
        batch: list[str] = []
        read = 0

        def merge() -> None:
            with db.cursor() as cursor, cursor.copy(f"COPY stage ({names}) FROM STDIN (NULL '{NULL}')") as copy:
                copy.write("\n".join(batch) + "\n")
            db.execute(
                f"INSERT INTO limit_patients AS t ({names}) SELECT {', '.join('s.' + name for name in ALL)} FROM stage s"
                " LEFT JOIN limit_patients t USING (institution_id, id) WHERE t.hash IS DISTINCT FROM s.hash"
                f" ON CONFLICT (institution_id, id) DO UPDATE SET {sets}"
            )
            db.execute("TRUNCATE stage")
            db.commit()
            batch.clear()

        last = since[0].replace(" ", "T") if mode == "incremental" and since and since[0] else ""
        for number, page in enumerate(pages(api_url, last), 1):
            batch += page
            read += len(page)
            if number % PAGES_A_MERGE == 0:
                merge()
        if batch:
            merge()
        db.execute("INSERT INTO limit_state VALUES (%s)", began)
        print(read)


if __name__ == "__main__":
    main(*sys.argv[1:])
