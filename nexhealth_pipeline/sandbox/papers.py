"""Synthetic patient documents: a file name, a MIME type, a relative link; no time of change (API.md E.3)."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from random import Random

from .kinds import KINDS
from .practices import PracticePlan
from .rows import Record, Row, make_row
from .times import stamp

__all__ = ["document_rows", "document_url"]

_FILES = (
    ("intake form.pdf", "application/pdf"),
    ("consent_é.pdf", "application/pdf"),
    ("x-ray #1.png", "image/png"),
    ("card (front).jpg", "image/jpeg"),
    ('lab "final".tif', "image/tiff"),
)


def document_url(number: int) -> str:
    """The link of a document, relative as in the vendor's example."""
    return f"/documents/{number}/download"


def document_rows(
    plan: PracticePlan, patients: Sequence[Row], types: Mapping[int, Sequence[int]], base: datetime, rng: Random
) -> Iterator[Row]:
    """None to three documents per patient; `types` are the document type ids of each location."""
    number = 5_400_000 + (plan.id - 11200) * 2_000_000
    for patient in patients:
        for _ in range(rng.choice((0, 0, 0, 1, 1, 2, 3))):
            number += rng.randrange(1, 4)
            name, mime = rng.choice(_FILES)
            record: Record = {
                "id": number,
                "filename": name,
                "type": mime,
                "url": document_url(number),
                "created_at": stamp(base - timedelta(minutes=rng.randrange(60, 1_000_000))),
                "document_type_id": rng.choice(types[patient.facts["location_ids"][0]]),
            }
            yield make_row(KINDS["documents"], record, plan.id, patient_id=patient.id)
