"""A NexHealth of any number of locations, with the documented rate limits, that counts what arrives.

    python benchmarks/practice_api.py --locations 1000 --patients 100 --latency 0.15      prints its address

Fifty locations an institution, each with an EHR database of its own. It has patients and appointments, which change
by `POST /bench/change?every=100`; every other list is empty, and so are the lists under a patient: what is
measured is how requests are paced and what each costs, not what they carry. `--latency` seconds pass before each
answer. Requests beyond a limit get 429. `POST /bench/begin` forgets what arrived and switches the limits,
`GET /bench/arrivals` tells what arrived since: [seconds since 1970, path, status], in the order of arrival.
"""

import argparse
import asyncio
import base64
import json
import re
import time
from collections.abc import MutableMapping, Sequence
from datetime import UTC, datetime, timedelta
from email.utils import formatdate
from typing import Any
from urllib.parse import parse_qs

from api import BEGAN, Send, envelope, patient, serve, stamp, token

from nexhealth_pipeline.sandbox.limits import Limits

PER_INSTITUTION = 50
KEY = "bench"
FIRST_INSTITUTION, FIRST_LOCATION, SPAN = 101, 100_001, 1_000_000
"""Ids; a patient's or an appointment's is the location's number times SPAN plus its own."""
_UNDER_PATIENT = re.compile(r"/patients/(\d+)(/\w+)?")


class Practices:
    """Locations 0..n-1, each with patients and as many appointments; a change gives some of them a newer version."""

    def __init__(self, locations: int, patients: int) -> None:
        self.locations, self.patients = locations, patients
        self.changes: list[tuple[int, datetime]] = []

    def institutions(self) -> list[dict[str, Any]]:
        """All institutions with their locations."""
        places: dict[int, list[dict[str, Any]]] = {}
        for number in range(self.locations):
            places.setdefault(FIRST_INSTITUTION + number // PER_INSTITUTION, []).append(self.location(number))
        return [
            {"id": one, "name": f"Bench Group {one}", "subdomain": f"bench-{one}", "updated_at": stamp(BEGAN),
             "created_at": stamp(BEGAN), "locations": mine, "appointment_types_location_scoped": False}
            for one, mine in places.items()
        ]  # fmt: skip

    def location(self, number: int) -> dict[str, Any]:
        """One location."""
        return {"id": FIRST_LOCATION + number, "name": f"Bench Office {number}", "tz": "UTC", "inactive": False,
                "institution_id": FIRST_INSTITUTION + number // PER_INSTITUTION, "updated_at": stamp(BEGAN),
                "created_at": stamp(BEGAN)}  # fmt: skip

    def statuses(self) -> list[dict[str, Any]]:
        """How each location's EHR database is read."""
        moment = stamp(datetime.now(UTC) - timedelta(minutes=3))
        return [
            {"institution_id": place["institution_id"], "sync_source_type": "DataSource",
             "sync_source_name": f"DataSource {place['id']}", "read_status": "green", "read_status_at": moment,
             "write_status": "green", "write_status_at": moment, "locations": [place]}
            for place in map(self.location, range(self.locations))
        ]  # fmt: skip

    def change(self, every: int) -> int:
        """Change every `every`-th patient and appointment of each location; how many."""
        self.changes.append((every, datetime.now(UTC)))
        return 2 * self.locations * len(range(0, self.patients, every))

    def version(self, index: int) -> tuple[int, datetime]:
        """Version and time of the newest change of patient or appointment `index` of any location."""
        found = [(number, at) for number, (every, at) in enumerate(self.changes, 1) if index % every == 0]
        return found[-1] if found else (0, BEGAN)

    def listed(self, since: datetime | None) -> Sequence[int]:
        """Indexes of what changed since then, or of all."""
        everything = range(self.patients)
        return everything if since is None else [index for index in everything if self.version(index)[1] >= since]

    def person(self, number: int, index: int) -> str:
        """A patient as JSON."""
        version, at = self.version(index)
        institution = FIRST_INSTITUTION + number // PER_INSTITUTION
        return patient((FIRST_LOCATION + number) * SPAN + index, index, version, stamp(at), institution)

    def visit(self, number: int, index: int) -> str:
        """An appointment as JSON; every tenth is cancelled."""
        _, at = self.version(index)
        begin = BEGAN + timedelta(days=index * 11 % 900, hours=index % 9)
        own = (FIRST_LOCATION + number) * SPAN + index
        record = {
            "id": own, "patient_id": own, "provider_id": 7, "provider_name": "Ada Example", "start_time": stamp(begin),
            "end_time": stamp(begin + timedelta(minutes=45)), "confirmed": index % 2 == 0, "patient_missed": False,
            "created_at": stamp(BEGAN), "updated_at": stamp(at), "note": "", "unavailable": False,
            "cancelled": self.cancelled(index), "timezone": "UTC", "appointment_type_id": 3,
            "location_id": FIRST_LOCATION + number, "operatory_id": 5, "foreign_id": str(own),
        }  # fmt: skip
        return json.dumps(record)

    @staticmethod
    def cancelled(index: int) -> bool:
        """Whether an appointment is cancelled."""
        return index % 10 == 9


class App:
    """The answers."""

    def __init__(self, practices: Practices, latency: float) -> None:
        self.practices, self.latency = practices, latency
        self.limits = Limits(enabled=False)
        self.arrivals: list[tuple[float, str, int]] = []

    async def __call__(self, scope: MutableMapping[str, Any], receive: object, send: Send) -> None:
        """ASGI."""
        arrived = time.time()
        path = scope["path"]
        query = {k: v[0] for k, v in parse_qs(scope["query_string"].decode(), keep_blank_values=True).items()}
        if path.startswith("/bench/"):
            status, body, wait = 200, envelope(json.dumps(self._bench(path, query))), 0.0
        else:
            wait = self.limits.admit(KEY, path, arrived)
            status, body = (429, b'{"code":false,"error":["rate limit"]}') if wait else self._answer(path, query)
            self.arrivals.append((arrived, path, status))
            await asyncio.sleep(self.latency)
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"date", formatdate(time.time(), usegmt=True).encode()),
        ]
        headers += [(b"retry-after", str(int(wait) + 1).encode())] if wait else []
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _bench(self, path: str, query: dict[str, str]) -> object:
        if path == "/bench/change":
            return self.practices.change(int(query["every"]))
        if path == "/bench/begin":
            self.arrivals.clear()
            self.limits = Limits(enabled=query["limits"] == "1")
            return []
        return self.arrivals

    def _answer(self, path: str, query: dict[str, str]) -> tuple[int, bytes]:
        if path == "/authenticates":
            return 201, envelope(json.dumps({"token": token()}))
        lists = {"/institutions": self.practices.institutions, "/locations": self.practices.institutions,
                 "/sync_status": self.practices.statuses}  # fmt: skip
        if path in lists:
            found = lists[path]()
            return 200, envelope(json.dumps(found), f',"count":{len(found)}')
        if path in ("/patients", "/appointments"):
            return 200, self._listed(path, query)
        if under := _UNDER_PATIENT.fullmatch(path):
            return 200, envelope("[]" if under[2] else self._single(int(under[1])))
        return 200, envelope("[]", ',"count":0,"page_info":{"has_next_page":false,"end_cursor":""}')

    def _single(self, own: int) -> str:
        place, index = divmod(own, SPAN)
        return self.practices.person(place - FIRST_LOCATION, index)

    def _listed(self, path: str, query: dict[str, str]) -> bytes:
        practices, number = self.practices, int(query["location_id"]) - FIRST_LOCATION
        since = query.get("updated_since")
        wanted = practices.listed(datetime.fromisoformat(since) if since else None)
        if path == "/appointments":
            start, end = (datetime.fromisoformat(query[name]) for name in ("start", "end"))
            wanted = [
                index
                for index in wanted
                if query.get("cancelled") in (None, str(practices.cancelled(index)).lower())
                and start <= BEGAN + timedelta(days=index * 11 % 900, hours=index % 9) < end
            ]
        cursor = query.get("end_cursor")
        first, size = int(base64.urlsafe_b64decode(cursor)) if cursor else 0, int(query.get("per_page", 5))
        record = practices.person if path == "/patients" else practices.visit
        chosen = [record(number, index) for index in wanted[first : first + size]]
        more = first + size < len(wanted)
        info = {"has_next_page": more, "end_cursor": base64.urlsafe_b64encode(str(first + size).encode()).decode()}
        return envelope(f"[{','.join(chosen)}]", f',"page_info":{json.dumps(info)}')


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--locations", type=int, default=10)
    parser.add_argument("--patients", type=int, default=100, help="of each location, and as many appointments")
    parser.add_argument("--latency", type=float, default=0.15, help="seconds before each answer")
    args = parser.parse_args()
    serve(App(Practices(args.locations, args.patients), args.latency))


if __name__ == "__main__":
    main()
