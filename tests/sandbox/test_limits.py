"""Rate limits: exact sliding windows, per key, counted at arrival."""

from email.utils import parsedate_to_datetime

import pytest

from nexhealth_pipeline.sandbox import SandboxServer
from nexhealth_pipeline.sandbox.limits import Limits, limit_names, peak

from .calls import ALL_TIME, BASE, NORTH, WILLOW, Caller, HandClock


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("/patients", ("general", "patients")),
        ("/patients/7/documents", ("general", "patients")),
        ("/appointments", ("general", "patients", "appointment_list")),
        ("/appointments/7", ("general", "patients")),
        ("/authenticates", ("general", "other")),
        ("/insurance_plans", ("general", "other")),
    ],
)
def test_every_path_counts_in_the_documented_limits(path: str, names: tuple[str, ...]) -> None:
    """Risk: the strictest reading of API.md C.3."""
    assert limit_names(path) == names


def test_the_window_slides_and_refused_requests_do_not_count() -> None:
    """Risk: fixed windows would let twice the limit through at their border."""
    limits = Limits()
    for step in range(10):
        assert limits.admit("key", "/appointments", 1000 + step * 0.05) == 0
    assert limits.admit("key", "/appointments", 1000.9) == pytest.approx(0.1)
    assert limits.admit("key", "/appointments", 1000.99) == pytest.approx(0.01)
    assert limits.admit("other key", "/appointments", 1000.99) == 0
    assert limits.admit("key", "/appointments", 1001.0) == 0
    assert limits.admit("key", "/appointments", 1001.0) > 0


def test_patients_and_appointments_share_a_thousand_a_minute() -> None:
    """Risk: two budgets of 1,000 where there is one."""
    limits = Limits()
    moments = [index * 0.05 for index in range(1000)]
    assert not any(limits.admit("k", "/patients" if i % 2 else "/appointments/1", t) for i, t in enumerate(moments))
    assert limits.admit("k", "/patients/1/documents", 50.0) == pytest.approx(10.0)
    assert limits.admit("k", "/insurance_plans", 50.0) == 0
    assert limits.admit("k", "/patients", 60.0) == 0


def test_the_server_answers_429_with_the_seconds_to_wait_until_there_is_room(clock: HandClock) -> None:
    """Risk: a client that obeys Retry-After must get in afterwards."""
    with SandboxServer(patients=20, appointments_per_patient=1, base=BASE, clock=clock) as server:
        caller = Caller(server)
        where = {"subdomain": WILLOW, "location_id": NORTH, **ALL_TIME}
        assert [caller.get("/appointments", **where).status_code for _ in range(10)] == [200] * 10
        refused = caller.get("/appointments", **where)
        assert (refused.status_code, refused.headers["Retry-After"]) == (429, "1")
        assert refused.json()["code"] is False
        server.limits.retry_after = "date"
        dated = caller.get("/appointments", **where).headers["Retry-After"]
        assert parsedate_to_datetime(dated).timestamp() == clock.seconds + 1
        server.limits.retry_after = "none"
        assert "Retry-After" not in caller.get("/appointments", **where).headers
        clock.forward(1.0)
        assert caller.get("/appointments", **where).status_code == 200
        assert server.requests.peaks()[server.api_key]["appointment_list"] == 13, "refused ones were asked, too"
        caller.close()


def test_authenticating_counts_in_the_hundred_a_second_of_its_key(clock: HandClock) -> None:
    """Risk: a refresh storm is part of the budget."""
    with SandboxServer(patients=20, appointments_per_patient=1, base=BASE, clock=clock) as server:
        caller = Caller(server)
        assert [caller.authenticate().status_code for _ in range(101)] == [201] * 100 + [429]
        server.limits.enabled = False
        assert caller.authenticate().status_code == 201
        caller.close()


def test_the_peak_is_the_most_in_any_window() -> None:
    """Risk: the witness for "never above the limit" must itself be exact."""
    assert peak([0.0, 0.5, 0.9, 1.0, 1.4], 1.0) == 4
    assert peak([0.0, 1.0, 2.0], 1.0) == 1
    assert peak([], 1.0) == 0
