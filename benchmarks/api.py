"""A NexHealth with any number of patients, fast enough to stay out of the way of what is measured.

One institution, one location, one EHR database. Records are made while they are sent, so a million of them
needs no memory; with `--ready` the pages of all of them are made before, so that making them (a fifth of what a
load costs) takes no core from those who are measured. `POST /bench/change?every=100` gives every hundredth patient
a newer version.

    python benchmarks/api.py --records 200000        prints its address
"""

import argparse
import asyncio
import base64
import json
import socket
import time
from collections.abc import Awaitable, Callable, MutableMapping
from datetime import UTC, datetime, timedelta
from email.utils import formatdate
from typing import Any
from urllib.parse import parse_qs

import uvicorn

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
INSTITUTION, LOCATION, SUBDOMAIN, FIRST_ID = 11, 501, "bench-dental", 1_000_000
_MOST = 1000
"""Records of the longest page."""
BEGAN = datetime(2025, 1, 1, tzinfo=UTC)
_RECORD = (
    '{"id":%(id)d,"email":"person%(id)d@example.com","first_name":"First%(n)d","middle_name":null,'
    '"last_name":"Last%(m)d","name":"First%(n)d Last%(m)d","created_at":"2024-06-13T03:50:09.449Z",'
    '"updated_at":"%(at)s","institution_id":%(institution)d,"foreign_id":"%(i)d","foreign_id_type":"msg-opendental-DataSource-35",'
    '"bio":{"city":"Ville-d\'Essai","state":"ME","zip_code":"04101","address_line_1":"%(n)d Rue de l\'Exemple",'
    '"street_address":"%(n)d Rue de l\'Exemple","gender":"Male","date_of_birth":"19%(y)02d-07-19","new_patient":false,'
    '"non_patient":false,"address_line_2":"","phone_number":"%(phone)010d","cell_phone_number":"%(phone)010d",'
    '"home_phone_number":"2065550101","work_phone_number":""},"inactive":false,"last_sync_time":"%(at)s",'
    '"guarantor_id":%(id)d,"billing_type":"Standard Billing - finance charges","chart_id":"%(i)06d",'
    '"preferred_language":"en","provider_id":%(p)d,"hipaa":{"authorization":true,"privacy":false,"consent":true,'
    '"authorization_date":"2024-06-13","consent_date":"2024-06-13"}}'
)


def stamp(moment: datetime) -> str:
    """A time as the API prints it."""
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"


def patient(own_id: int, index: int, version: int, at: str, institution: int = INSTITUTION) -> str:
    """The `index`-th patient in its `version` as JSON."""
    values = {
        "id": own_id,
        "institution": institution,
        "i": index,
        "n": index % 9973,
        "m": index % 7919,
        "y": 30 + index % 70,
        "p": 100 + index % 40,
        "phone": 2_125_550_000 + (index + version * 7) % 10_000,
        "at": at,
    }
    return _RECORD % values


class World:
    """Patients 0..n-1; each change gives some of them a newer version."""

    def __init__(self, records: int) -> None:
        self.records = records
        self.changes: list[tuple[int, str, datetime]] = []
        self._first = stamp(BEGAN)

    def change(self, every: int) -> int:
        """Change every `every`-th patient; how many."""
        moment = datetime.now(UTC)
        self.changes.append((every, stamp(moment), moment))
        return len(range(0, self.records, every))

    def record(self, index: int) -> str:
        """One patient as JSON."""
        version, at = 0, self._first
        for number, (every, text, _) in enumerate(self.changes, 1):
            if index % every == 0:
                version, at = number, text
        return patient(FIRST_ID + index, index, version, at)

    def indexes(self, since: datetime | None) -> range:
        """Patients changed since then (their common step suffices: all changes here are of every n-th)."""
        steps = [every for every, _, moment in self.changes if since is not None and moment >= since]
        if since is None or since <= BEGAN:
            return range(self.records)
        return range(0, self.records, min(steps)) if steps else range(0)


class App:
    """The answers."""

    def __init__(self, world: World, *, ready: bool = False) -> None:
        self.world = world
        self.requests = 0
        self._pages: dict[int, bytes] = {}
        """Answers with all patients, full pages, by where they begin; empty = each is made when it is asked for."""
        if ready:
            self._prepare()

    async def __call__(self, scope: MutableMapping[str, Any], receive: object, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            return
        query = {
            name: values[0] for name, values in parse_qs(scope["query_string"].decode(), keep_blank_values=True).items()
        }
        path = scope["path"]
        self.requests += 1
        status, body = (
            (201, envelope(json.dumps({"token": token()})))
            if path == "/authenticates"
            else (200, self._body(path, query))
        )
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"date", formatdate(time.time(), usegmt=True).encode()),
        ]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _body(self, path: str, query: dict[str, str]) -> bytes:
        if path == "/patients":
            return self._patients(query)
        if path == "/bench/change":
            changed = self.world.change(int(query["every"]))
            if self._pages:
                self._prepare()
            return envelope(str(changed))
        return envelope(json.dumps(_PRACTICE.get(path, [])), ',"count":1')

    def _patients(self, query: dict[str, str]) -> bytes:
        since = query.get("updated_since")
        wanted = self.world.indexes(datetime.fromisoformat(since) if since else None)
        cursor = query.get("end_cursor") or query.get("cursor")
        start = int(base64.urlsafe_b64decode(cursor)) if cursor else 0
        size = min(int(query.get("per_page", 5)), _MOST)
        if since is None and size == _MOST and start in self._pages:
            return self._pages[start]
        return self._page(wanted, start, size)

    def _prepare(self) -> None:
        everything = self.world.indexes(None)
        self._pages = {start: self._page(everything, start, _MOST) for start in range(0, len(everything), _MOST)}

    def _page(self, wanted: range, start: int, size: int) -> bytes:
        chosen = wanted[start : start + size]
        more = start + size < len(wanted)
        begin, end = (base64.urlsafe_b64encode(str(at).encode()).decode() for at in (start, start + size))
        info = {"has_previous_page": start > 0, "has_next_page": more, "start_cursor": begin, "end_cursor": end}
        return envelope("[" + ",".join(map(self.world.record, chosen)) + "]", f',"page_info":{json.dumps(info)}')


def envelope(data: str, more: str = "") -> bytes:
    """An answer around its data."""
    return f'{{"code":true,"description":"","error":[],"data":{data}{more}}}'.encode()


def token() -> str:
    """A token for a day."""
    claims = {"sub": "bench", "exp": int(time.time()) + 86_400, "iat": int(time.time())}
    parts = [json.dumps({"alg": "HS256"}), json.dumps(claims), "signature"]
    return ".".join(base64.urlsafe_b64encode(part.encode()).rstrip(b"=").decode() for part in parts)


def _practice() -> dict[str, Any]:
    moment = stamp(datetime.now(UTC) - timedelta(minutes=3))
    location = {"id": LOCATION, "name": "Bench Main", "institution_id": INSTITUTION, "tz": "UTC", "inactive": False,
                "updated_at": stamp(BEGAN), "created_at": stamp(BEGAN)}  # fmt: skip
    institution = {"id": INSTITUTION, "name": "Bench Dental", "subdomain": SUBDOMAIN, "updated_at": stamp(BEGAN),
                   "locations": [location], "appointment_types_location_scoped": False}  # fmt: skip
    status = {"institution_id": INSTITUTION, "sync_source_type": "DataSource", "sync_source_name": "DataSource 35",
              "read_status": "green", "read_status_at": moment, "write_status": "green", "write_status_at": moment,
              "locations": [location]}  # fmt: skip
    return {"/institutions": [institution], "/locations": [institution], "/sync_status": [status]}


_PRACTICE = _practice()


def serve(app: Any, port: int = 0) -> None:
    """Serve on the loopback address, which is printed, until SIGTERM."""
    listener = socket.create_server(("127.0.0.1", port), backlog=256)
    print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    config = uvicorn.Config(app, log_level="error", access_log=False, lifespan="off", interface="asgi3")
    asyncio.run(uvicorn.Server(config).serve(sockets=[listener]))


def main() -> None:
    """Serve so many patients."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=200_000)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--ready", action="store_true", help="make all pages first: a kilobyte of memory a record")
    args = parser.parse_args()
    serve(App(World(args.records), ready=args.ready), args.port)


if __name__ == "__main__":
    main()
