"""The two synthetic dental groups: institutions, locations, EHR databases, providers, rooms, types.

`willow-dental` has three active locations, two of which (North, South) share one EHR database, and a closed one;
its appointment types belong to locations, and its practice system keeps no alerts of patients (GET alerts answers
403 [guess]). `harbor-smiles` has two locations with a database each, one of them offline (its sync reads red) and
without access to finance (403, API.md K); its appointment types belong to the institution.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from random import Random

from .kinds import KINDS
from .names import CITIES, STREETS, email, family_name, given_name, phone
from .rows import Record, Row, make_row
from .times import stamp

__all__ = ["LEDGER_FEATURE", "PRACTICES", "LocationPlan", "PracticePlan", "practice_rows"]


@dataclass(frozen=True, slots=True)
class LocationPlan:
    """A location to build; `weight` is its share of all patients, `database` its EHR database."""

    id: int
    name: str
    tz: str
    database: int
    weight: float
    inactive: bool = False
    offline: bool = False
    finance: bool = True


@dataclass(frozen=True, slots=True)
class PracticePlan:
    """An institution to build."""

    id: int
    subdomain: str
    name: str
    emr: tuple[int, str, str, str]
    types_by_location: bool
    alerts: bool
    locations: tuple[LocationPlan, ...]

    @property
    def active(self) -> tuple[LocationPlan, ...]:
        """The locations a key can ask for."""
        return tuple(place for place in self.locations if not place.inactive)


PRACTICES = (
    PracticePlan(
        11201,
        "willow-dental",
        "Willow Dental Group",
        (11, "opendental", "Open Dental", "onprem"),
        True,
        False,
        (
            LocationPlan(348511, "Willow North", "America/Los_Angeles", 35, 0.24),
            LocationPlan(348512, "Willow South", "America/Los_Angeles", 35, 0.18),
            LocationPlan(348513, "Willow Desert", "America/Phoenix", 36, 0.18),
            LocationPlan(348514, "Willow Old Town", "America/Los_Angeles", 36, 0.0, inactive=True),
        ),
    ),
    PracticePlan(
        11202,
        "harbor-smiles",
        "Harbor Smiles & Co.",
        (12, "dentrix", "Dentrix", "onprem"),
        False,
        True,
        (
            LocationPlan(348621, "Harbor Pier", "America/New_York", 41, 0.22),
            LocationPlan(348622, "Harbor Île d'Or", "America/Halifax", 42, 0.18, offline=True, finance=False),
        ),
    ),
)
"""The default world's institutions."""

_TYPES = (
    ("New patient exam", 60),
    ("Cleaning", 45),
    ("Filling", 30),
    ("Crown", 90),
    ("Emergency ‼️", 20),
    ("Kids' check", 30),
)
_DOCUMENT_TYPES = ("Health History and Patient Forms", "Consent", "X-ray", "Insurance card", "Lab slip", "Old scans")


def _source_name(place: LocationPlan) -> str:
    """Name of the data source that reads this location's EHR database."""
    return f"DataSource {place.database}"


def _institution(plan: PracticePlan, base: datetime) -> Row:
    record: Record = {
        "id": plan.id,
        "name": plan.name,
        "created_at": stamp(base - timedelta(days=1500)),
        "updated_at": stamp(base - timedelta(days=40)),
        "subdomain": plan.subdomain,
        "phone_number": "2065550100",
        "emrs": [plan.emr[1]],
        "country_code": "US",
        "appointment_types_location_scoped": plan.types_by_location,
        "is_sync_notifications": True,
        "notify_insert_fails": False,
    }
    return make_row(KINDS["institutions"], record, plan.id)


def _location(plan: PracticePlan, place: LocationPlan, base: datetime, rng: Random) -> Row:
    city, state, zip_code = rng.choice(CITIES)
    bare = place.inactive
    record: Record = {
        "id": place.id,
        "name": place.name,
        "institution_id": plan.id,
        "street_address": f"{rng.randrange(1, 900)} {rng.choice(STREETS)}",
        "street_address_2": None if rng.random() < 0.5 and not place.offline else "Suite 2",
        "city": None if bare else city,
        "state": None if bare else state,
        "zip_code": None if bare else zip_code,
        "country_code": "US",
        "created_at": stamp(base - timedelta(days=1490)),
        "updated_at": stamp(base - timedelta(days=rng.randrange(3, 300))),
        "latitude": None if bare else 47.6 + rng.random() / 10,
        "longitude": None if bare else -122.3 - rng.random() / 10,
        "phone_number": None if bare else phone(rng),
        "foreign_id": str(place.id - 348510),
        "foreign_id_type": f"msg-{plan.emr[1]}-DataSource-{place.database}",
        "email": None if bare else f"location{place.id}@example.com",
        "tz": place.tz,
        "last_sync_time": None if bare else stamp(_last_sync(place, base)),
        "insert_appt_client": True,
        "map_by_operatory": place.database == 35,
        "set_availability_by_operatory": False,
        "inactive": place.inactive,
        "specialty": {"id": 1, "name": "Dental"},
    }
    features = [] if place.inactive else [*_FEATURES, *([LEDGER_FEATURE] if place.finance else [])]
    lacks = [*([] if place.finance else ["finance"]), *([] if plan.alerts else ["alerts"])]
    return make_row(KINDS["locations"], record, plan.id, database=place.database, features=features, lacks=lacks)


_FEATURES = (
    *("messaging", "campaigns", "reviews", "recalls", "reminders", "online_booking", "waitlist", "forms", "payments"),
    *("enterprise", "insurance_verification"),
)
LEDGER_FEATURE = "ledger_sync"
"""What a location has whose finance the vendor has enabled (API.md A.1)."""


def _last_sync(place: LocationPlan, base: datetime) -> datetime:
    return base - (timedelta(days=2, minutes=7) if place.offline else timedelta(minutes=3))


def _sync(plan: PracticePlan, database: int, base: datetime) -> Row:
    places = [place for place in plan.locations if place.database == database]
    offline = any(place.offline for place in places)
    number, name, display, kind = plan.emr
    record: Record = {
        "institution_id": plan.id,
        "sync_source_type": "DataSource",
        "sync_source_name": _source_name(places[0]),
        "emr": {"id": number, "name": name, "display_name": display, "type": kind},
        "read_status": "red" if offline else "green",
        "read_status_at": stamp(_last_sync(places[0], base)),
        "write_status": "red" if offline else "green",
        "write_status_at": stamp(_last_sync(places[0], base) - timedelta(minutes=1)),
    }
    return make_row(KINDS["sync_status"], record, plan.id, database, location_ids=[place.id for place in places])


def _provider(plan: PracticePlan, number: int, index: int, base: datetime, rng: Random) -> Row:
    first, last = given_name(rng), family_name(rng)
    at = plan.active[index % len(plan.active)]
    both = [place.id for place in plan.active if place.database == at.database]
    created = base - timedelta(days=rng.randrange(800, 1400), seconds=rng.randrange(86400))
    bare = index % 5 == 3
    record: Record = {
        "id": number,
        "email": None if bare else email(rng, number),
        "first_name": first,
        "middle_name": "Q" if index % 4 == 0 else None,
        "last_name": last,
        "name": f"{first} {last}",
        "created_at": stamp(created),
        "updated_at": stamp(created + timedelta(days=rng.randrange(0, 780))),
        "institution_id": plan.id,
        "foreign_id": None if bare else f"P{index + 1}",
        "foreign_id_type": f"msg-{plan.emr[1]}-DataSource-{at.database}",
        "bio": {} if bare else {"gender": "Female", "phone_number": phone(rng), "new_patient": False, "city": ""},
        "inactive": index % 6 == 5,
        "last_sync_time": None if bare else stamp(_last_sync(at, base)),
        "display_name": None if bare else f"Dr. {last}",
        "npi": None if bare else f"19{number % 10**8:08d}",
        "tin": None if bare else f"00000{index:04d}",
        "state_license": None if bare else f"R{index:06d}",
        "specialty_code": None if bare else "1223G0001X",
    }
    ids = both if index % 3 == 0 else [at.id]
    return make_row(KINDS["providers"], record, plan.id, location_ids=ids, requestable=[] if bare else ids)


def _operatory(plan: PracticePlan, place: LocationPlan, number: int, index: int, base: datetime) -> Row:
    record: Record = {
        "id": number,
        "name": f"OP{index + 1}",
        "foreign_id": str(index + 1),
        "foreign_id_type": f"msg-{plan.emr[1]}-DataSource-{place.database}",
        "location_id": place.id,
        "last_sync_time": stamp(_last_sync(place, base)) if index else None,
        "created_at": stamp(base - timedelta(days=1400)),
        "updated_at": stamp(base - timedelta(days=20 + number % 300)),
        "display_name": f"Room {index + 1}" if index % 2 else None,
        "active": index != 4,
        "bookable_online": index < 2,
    }
    return make_row(KINDS["operatories"], record, plan.id)


def _types(plan: PracticePlan) -> list[Row]:
    parents = (
        [("Location", place.id) for place in plan.active] if plan.types_by_location else [("Institution", plan.id)]
    )
    rows = []
    for which, (parent_type, parent_id) in enumerate(parents):
        for index, (name, minutes) in enumerate(_TYPES):
            number = 1_197_000 + (plan.id - 11200) * 100 + which * 10 + index
            record = {"id": number, "name": name, "parent_type": parent_type, "parent_id": parent_id}
            record |= {"minutes": minutes, "bookable_online": index < 3}
            rows.append(make_row(KINDS["appointment_types"], record, plan.id))
    return rows


def _descriptor(
    plan: PracticePlan, place: LocationPlan, number: int, kind: int | None, what: tuple[str, str, str], base: datetime
) -> Row:
    descriptor_type, name, code = what
    record: Record = {
        "id": number,
        "descriptor_type": descriptor_type,
        "name": name,
        "code": code,
        "location_id": place.id,
        "foreign_id": str(number % 1000),
        "foreign_id_type": f"msg-{plan.emr[1]}-DataSource-{place.database}",
        "data": {} if kind else {"color": "#a0c4ff", "units": 2},
        "active": kind is not None or number % 2 == 0,
        "last_sync_time": stamp(_last_sync(place, base)),
        "created_at": stamp(base - timedelta(days=1000)),
        "updated_at": stamp(base - timedelta(days=500 if kind else 90)),
    }
    return make_row(KINDS["appointment_descriptors"], record, plan.id, appointment_type_id=kind)


def _descriptors(plan: PracticePlan, types: list[Row], base: datetime) -> list[Row]:
    """One for every type at every location it serves, and two per location that belong to no type, one inactive."""
    rows = []
    for kind in types:
        for place in plan.active:
            if kind.facts["parent_type"] == "Institution" or place.id == kind.facts["parent_id"]:
                what = ("Procedure Code(s)", "Periodic exam", "D0120")
                rows.append(_descriptor(plan, place, kind.id * 10 + place.id % 10, kind.id, what, base))
    for place in plan.active:
        for index in range(2):
            what = ("Appointment Category", f"Category – {index + 1}", f"CAT{index + 1}")
            rows.append(_descriptor(plan, place, 9_000_000 + place.id % 1000 * 10 + index, None, what, base))
    return rows


def _document_types(plan: PracticePlan) -> list[Row]:
    rows = []
    for place in plan.active:
        for index, name in enumerate(_DOCUMENT_TYPES):
            number = 31_000 + (place.id - 348500) * 10 + index
            record = {"id": number, "name": name, "active": index != len(_DOCUMENT_TYPES) - 1}
            rows.append(make_row(KINDS["document_types"], record, plan.id, location_id=place.id))
    return rows


def practice_rows(plan: PracticePlan, base: datetime, rng: Random) -> dict[str, list[Row]]:
    """Everything of an institution that is not about patients."""
    offset = (plan.id - 11200) * 1000
    databases = sorted({place.database for place in plan.locations})
    types = _types(plan)
    return {
        "institutions": [_institution(plan, base)],
        "locations": [_location(plan, place, base, rng) for place in plan.locations],
        "sync_status": [_sync(plan, database, base) for database in databases],
        "providers": [
            _provider(plan, 485_073_000 + offset + index * 3, index, base, rng) for index in range(len(plan.active) * 4)
        ],
        "operatories": [
            _operatory(plan, place, 268_000 + offset + which * 10 + index, index, base)
            for which, place in enumerate(plan.active)
            for index in range(5)
        ],
        "appointment_types": types,
        "appointment_descriptors": _descriptors(plan, types, base),
        "document_types": _document_types(plan),
    }
