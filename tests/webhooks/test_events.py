"""What a body says, in every shape that handlers in the field have met."""

import json
import time
from datetime import UTC, datetime

import pytest

from nexhealth_pipeline.catalog.collections import DECLARED
from nexhealth_pipeline.webhooks.applying.feeds import FEEDS
from nexhealth_pipeline.webhooks.events import EventMalformed, dedup_hash, parse, why_parked

RECORD = {"id": 42, "updated_at": "2026-11-23T10:00:00.000Z"}


def body(**changes: object) -> bytes:
    """A documented event; a test changes one thing. A change to None leaves the key out."""
    event = {
        "resource_type": "Patient",
        "event_name": "patient_updated",
        "event_time": "2026-11-23T10:00:01.000Z",
        "subdomain": "smile-dental",
        "data": {"patients": [RECORD]},
        "delivery_errors": [],
    }
    return json.dumps({key: value for key, value in (event | changes).items() if value is not None}).encode()


def test_the_documented_event_is_read() -> None:
    event = parse(body())
    assert (event.event_name, event.base_name, event.resource_type) == ("patient_updated", "patient_updated", "Patient")
    assert (event.subdomain, event.resource_ids) == ("smile-dental", (42,))
    assert event.event_time == datetime(2026, 11, 23, 10, 0, 1, tzinfo=UTC)
    assert [json.loads(record) for record in event.records] == [RECORD]
    assert why_parked(event) is None


@pytest.mark.parametrize("data", [{"patients": [RECORD]}, {"patient": RECORD}, {"user": RECORD}, RECORD, [RECORD]])
def test_the_record_is_found_wherever_it_is(data: object) -> None:
    """The shape of `data` differs by event and is not documented for each (API.md F.4)."""
    assert [json.loads(record) for record in parse(body(data=data)).records] == [RECORD]


COVERAGE = RECORD | {"patient_id": 3, "plan_id": 4}
OTHER = {"id": 3, "updated_at": "2026-11-23T10:00:00.000Z"}


@pytest.mark.parametrize(
    "data",
    [
        {"insurance_coverages": [COVERAGE]},
        {"coverages": [COVERAGE]},
        {"previous": COVERAGE | {"plan_id": 3}, "current": COVERAGE},
        {"coverage": COVERAGE, "patient": OTHER, "insurance_plan": OTHER, "plan": OTHER, "location": OTHER},
        {
            "resource": COVERAGE,
            "changes": {"plan_id": 4},
            "reasons": ["moved"],
            "count": 1,
            "previous": [],
            "old": None,
        },
    ],
)
def test_the_record_is_found_under_a_key_that_nobody_expected(data: object) -> None:
    """`data` was taken for the record, which has no id then: the event was given up."""
    event = parse(body(event_name="patient_insurance_updated", data=data))
    assert [json.loads(one) for one in event.records] == [COVERAGE]
    assert event.resource_ids == (42,)


CHARGE = {"id": 3, "updated_at": "2026-11-23T10:00:00.000Z", "patient_id": 5}


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("charge_updated", {"charge_id": 4, "actor": OTHER}),
        ("charge_updated", {"charge_id": 4, "office": OTHER | {"institution_id": 1}}),
        ("charge_updated", {"charge_id": 4, "row": {"id": 3, "patient_id": 5}}),
        ("charge_updated", {"charge_id": 4, "rows": [CHARGE, OTHER]}),
        ("charge_updated", {"charge_id": 4, "row": CHARGE, "actor": OTHER}),
        *(("charge_updated", {"charge_id": 4, name: CHARGE}) for name in ("previous", "before", "old")),
        *(("charge_updated", {"charge_id": 4, name: CHARGE}) for name in ("subscriber", "address", "upcoming_appts")),
        ("patient_insurance_updated", {"patient_insurance_id": 4, "subscriber": COVERAGE}),
        *(("treatment_plan_deleted", {"treatment_plan_id": 9, name: CHARGE}) for name in ("deleted_by", "resource")),
        ("charge_deleted.complete", {"charge_id": 9, "deleted_by": {"id": 3}}),
        ("charge_updated", {"patient": OTHER}),
        ("charge_updated", {"guarantor": OTHER, "provider": OTHER}),
        ("patient_updated", {"guarantor": OTHER}),
        ("patient_updated", {"children": [OTHER, OTHER]}),
        ("charge_updated", {"first": CHARGE, "second": CHARGE}),
        ("charge_updated", {"rows": [CHARGE, {"name": "no id"}]}),
        ("charge_updated", {"rows": [CHARGE, 5]}),
        ("charge_updated", {"wrapped": {"rows": [CHARGE]}}),
        ("charge_updated", {"id": None, "row": CHARGE}),
        ("document_insertion", {"result": CHARGE}),
        ("sync_status_read_change", {"emr": OTHER}),
        ("somebody_updated", {"somebody": OTHER}),
    ],
)
def test_what_may_be_something_else_is_not_taken_for_the_record(name: str, data: object) -> None:
    """A patient loaded as a charge is worse than an event given up, and so is what has the id of whoever deleted another."""
    assert [json.loads(one) for one in parse(body(event_name=name, data=data)).records] == [data]


def test_a_body_of_very_many_members_is_looked_through_once() -> None:
    """Whoever is let in must not keep the receiver busy: 1 MB at most, each byte of it read a few times."""
    members = ",".join(f'"k{number}":[{{"id":{number}}}]' for number in range(40_000))
    wide = b'{"event_name":"charge_updated","data":{%s}}' % members.encode()
    began = time.process_time()
    assert len(parse(wide).records) == 1
    assert time.process_time() - began < 2
    deep = b'{"event_name":"charge_updated","data":{"row":' + b"[" * 900 + b"]" * 900 + b"}}"
    assert parse(deep).resource_ids == ()


def test_an_event_is_taken_by_its_name_whatever_its_resource_type_is_called() -> None:
    """Which type goes with which event is not documented: all of them would have been parked."""
    event = parse(body(resource_type="Person"))
    assert (why_parked(event), event.resource_type, event.other_type) == (None, "Patient", "Person")
    event = parse(body(event_name="patient_insurance_updated", resource_type="Patient", data={"coverage": COVERAGE}))
    assert (why_parked(event), event.resource_type) == (None, "PatientInsuranceCoverage")
    assert parse(body(resource_type="Ada Lovelace\n")).other_type == "(no name)"
    assert {parse(body(resource_type=one)).other_type for one in ("Patient", "patient", None)} == {""}


def test_a_field_named_like_a_key_does_not_hide_the_record() -> None:
    record = RECORD | {"user": "text", "patient": None, "patients": 3}
    assert [json.loads(one) for one in parse(body(data=record)).records] == [record]


@pytest.mark.parametrize("collection", [one for one in DECLARED if one.events], ids=lambda one: one.name)
def test_every_declared_event_feeds_its_collection(collection: object) -> None:
    events = collection.events  # type: ignore[attr-defined]
    for name in events.names:
        for key in events.keys:
            event = parse(body(event_name=name, resource_type=events.resource_type, data={key: [RECORD, RECORD]}))
            assert why_parked(event) is None
            assert FEEDS[event.base_name].collection is collection
            assert event.resource_ids == (42, 42)


def test_the_suffix_and_the_other_name_of_the_name_are_understood() -> None:
    hint = parse(body(event_name="appointment_insertion.failed", resource_type="Appointment", data={"appointment": {}}))
    assert (hint.event_name, hint.base_name) == ("appointment_insertion.failed", "appointment_insertion")
    assert why_parked(hint) is None
    assert parse(body(event_name=None, event="patient_created")).event_name == "patient_created"
    assert parse(body(resource_type=None)).resource_type == "Patient"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"event_name": "appointment_requested", "resource_type": "Appointment"},
         "no collection is fed by event appointment_requested of resource type Appointment"),
        ({"resource_type": "Message", "event_name": "message_created"},
         "no collection is fed by event message_created of resource type Message"),
        ({"subdomain": None}, "subdomain: missing, or not a name"),
        ({"subdomain": "Ada Lovelace\n"}, "subdomain: missing, or not a name"),
    ],
)  # fmt: skip
def test_what_feeds_nothing_is_parked_with_a_reason(changes: dict[str, object], reason: str) -> None:
    assert why_parked(parse(body(**changes))) == reason


@pytest.mark.parametrize(
    "malformed",
    [b"", b"null", b"[]", b"{}", b"nonsense", b"\xff\xfe", b'{"event_name": "x"', body(event_name="Ada Lovelace"),
     body(event_name=7.5), body(event_name=["x"]), body(data="text"), body(data=5), body()[:-20],
     b'{"event_name":"patient_updated","data":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
     b'{"event_name":"patient_updated\0"}', b"\0" * 10],
)  # fmt: skip
def test_what_is_no_event_is_refused_without_its_words(malformed: bytes) -> None:
    """The reason is stored and logged: it must not carry a person's data, and nothing may end the receiver."""
    with pytest.raises(EventMalformed) as refused:
        parse(malformed)
    assert "Ada" not in str(refused.value)
    assert len(str(refused.value)) < 60


@pytest.mark.parametrize(
    ("given", "ids"),
    [(7, (7,)), ("7", (7,)), (2**63 - 1, (2**63 - 1,)), (2**63, ()), ("9" * 19, ()), (1.5, ()), (True, ()), (-1, ()),
     (None, ()), ("x", ()), ("\u0667", ()), ([1], ())],
)  # fmt: skip
def test_only_usable_ids_are_ids(given: object, ids: tuple[int, ...]) -> None:
    """A float or an id over bigint would make the insert fail, and with it everybody else's event."""
    assert parse(body(data={"patient": {"id": given}})).resource_ids == ids


def test_records_that_are_none_are_kept_for_the_loader_to_refuse() -> None:
    event = parse(body(data={"patients": [RECORD, 5, "x", None]}))
    assert (len(event.records), event.resource_ids) == (4, (42,))


def test_a_missing_time_is_no_reason_to_lose_an_event() -> None:
    assert parse(body(event_time=None)).event_time is None
    assert parse(body(event_time="soon")).event_time is None
    assert parse(body(event_time=1795428000)).event_time == datetime(2026, 11, 23, 10, 0, tzinfo=UTC)


def hashed(one: bytes) -> bytes:
    return dedup_hash(parse(one), one)


def test_a_repeated_delivery_is_the_same_event() -> None:
    """A repeat may tell of the failed deliveries before it."""
    assert hashed(body()) == hashed(body(delivery_errors=["500", "502"])) == hashed(body(extra=1))


@pytest.mark.parametrize(
    "changes",
    [{"event_name": "patient_created"}, {"subdomain": "other"}, {"event_time": "2026-11-23T10:00:02.000Z"},
     {"data": {"patients": [RECORD | {"inactive": True}]}}, {"data": {"patient": RECORD}}],
)  # fmt: skip
def test_another_event_is_another(changes: dict[str, object]) -> None:
    """An event taken for a repeat is lost."""
    assert hashed(body(**changes)) != hashed(body())


def test_what_is_no_event_is_known_by_its_bytes() -> None:
    assert dedup_hash(None, b"x") != dedup_hash(None, b"y")
    assert dedup_hash(None, b"x") == dedup_hash(None, b"x")


def test_an_events_repr_tells_nothing_of_a_person() -> None:
    assert "Lovelace" not in repr(parse(body(data={"patient": RECORD | {"last_name": "Lovelace"}})))
