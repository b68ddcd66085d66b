"""Times as senders write them."""

from datetime import UTC, datetime

import pytest

from nexhealth_pipeline.webhooks.moment import moment_of

TEN = datetime(2026, 11, 23, 10, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    "text",
    [
        "2026-11-23T10:00:00Z",
        "2026-11-23T10:00:00.000Z",
        "2026-11-23T10:00:00.000000000Z",
        "2026-11-23T10:00:00",
        "2026-11-23 10:00:00",
        "2026-11-23 10:00:00 UTC",
        "2026-11-23 10:00:00 +0000",
        "2026-11-23T12:00:00+02:00",
        "2026-11-23T03:00:00,000-0700",
        "20261123T100000Z",
        " 2026-11-23T10:00Z ",
        "1795428000",
        "1795428000.0",
        "1795428000000",
    ],
)
def test_every_form_in_use_is_read(text: str) -> None:
    """The vendor does not document the form; a form we cannot read would refuse every event."""
    assert moment_of(text) == TEN


@pytest.mark.parametrize(
    "text",
    ["", " ", "now", "2026-11-23", "2026-02-30T10:00:00Z", "12345678901234567890", "-5", "1e9", "nan", "infinity",
     "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", "1700-01-01T00:00:00Z", "\u0661\u0662:00", "1" * 5000,
     "99999999999999"],
)  # fmt: skip
def test_what_is_no_moment_is_none(text: str) -> None:
    """Never an exception: the text comes from anybody."""
    assert moment_of(text) is None


def test_a_fraction_is_kept_to_the_microsecond() -> None:
    found = moment_of("2026-11-23T10:00:00.1234567Z")
    assert found is not None
    assert found.microsecond == 123456
