"""Every NexHealth collection this release reads, one declaration each (facts: API.md E.1-E.3).

To add one, write its declaration into its domain's module and list it in that module's `DECLARED`. The
table, its comments, the asset, freshness, `--resource` and README's row follow from it.
"""

from nexhealth_pipeline.catalog.collection import Collection
from nexhealth_pipeline.catalog.collections import clinical, insurance, ledger, patients, practice, pricing, scheduling

__all__ = ["COLLECTIONS", "DECLARED", "nested_in"]

DECLARED: tuple[Collection, ...] = tuple(
    one for domain in (practice, patients, scheduling, insurance, ledger, pricing, clinical) for one in domain.DECLARED
)
"""All declarations, in the order they are shown."""

COLLECTIONS: dict[str, Collection] = {collection.name: collection for collection in DECLARED}
"""Declarations by name."""


def nested_in(collection: Collection) -> tuple[Collection, ...]:
    """The collections whose rows are lists inside the records of `collection`."""
    return tuple(one for one in DECLARED if one.inside == collection.name)
