"""Which requests count against which documented limit (API.md C.3)."""

import pytest

from nexhealth_pipeline.catalog.limits import LIMITS, RateClass, rate_classes

GENERAL, PATIENTS, OTHER, LIST = RateClass.GENERAL, RateClass.PATIENTS, RateClass.OTHER, RateClass.APPOINTMENT_LIST


@pytest.mark.parametrize(
    ("path", "classes"),
    [
        ("/patients", (GENERAL, PATIENTS)),
        ("/patients/7", (GENERAL, PATIENTS)),
        ("/patients/7/documents", (GENERAL, PATIENTS)),
        ("/appointments", (GENERAL, PATIENTS, LIST)),
        ("/appointments/", (GENERAL, PATIENTS, LIST)),
        ("/appointments/7", (GENERAL, PATIENTS)),
        ("/patient_recalls", (GENERAL, OTHER)),
        ("/appointment_types", (GENERAL, OTHER)),
        ("/authenticates", (GENERAL, OTHER)),
        ("/locations", (GENERAL, OTHER)),
    ],
)
def test_a_path_counts_in_its_classes(path: str, classes: tuple[RateClass, ...]) -> None:
    """Risk: a path taken for another's class overdraws the practice's limit."""
    assert rate_classes(path) == classes


def test_every_class_has_the_documented_limit() -> None:
    assert {name: (limit.requests, limit.window_seconds) for name, limit in LIMITS.items()} == {
        GENERAL: (100, 1.0),
        PATIENTS: (1000, 60.0),
        OTHER: (2000, 60.0),
        LIST: (10, 1.0),
    }
