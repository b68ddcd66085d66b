"""Two collections that NexHealth does not have, put into the catalog before anything else reads it.

Run as `python made_up.py API_URL DATABASE_URL MODE`: upgrades the warehouse and syncs, in a process of its own, in
which the catalog is what it would be with these two declarations written into its file.
"""

import json
import sys

from nexhealth_pipeline.catalog import collections as catalog
from nexhealth_pipeline.catalog.collection import (
    Collection,
    Column,
    Pass,
    Phi,
    Scope,
    SqlType,
    column,
    flatten,
    money,
    nested,
)
from nexhealth_pipeline.catalog.paging import Paging

REFERRALS = Collection(
    name="referrals",
    group="clinical",
    doc="A made-up letter about a patient.",
    path="/patients/{id}/referrals",
    scope=Scope.LOCATION,
    paging=Paging.NONE,
    passes=(Pass("all", (("include_deleted", "true"),)),),
    per="patients",
    version="updated_at",
    soft_delete="deleted_at",
    after=("patients",),
    sensitive=(("ssn",),),
    from_request=(Column("patient_id", SqlType.BIGINT, Phi.ID, "Whom it is about.", ()),),
    columns=flatten(
        column("id", SqlType.BIGINT, Phi.ID, "Id of the letter."),
        column("text", SqlType.TEXT, Phi.CLINICAL, "What it says."),
        money("fee", "What it costs."),
        column("stamps", SqlType.JSONB, Phi.NONE, "Who has seen it."),
        nested("sender", column("name", SqlType.TEXT, Phi.CONTACT, "Who wrote it.")),
        column("updated_at", SqlType.TIMESTAMPTZ, Phi.NONE, "Version."),
        column("deleted_at", SqlType.TIMESTAMPTZ, Phi.NONE, "Deleted, by the API."),
    ),
    indexes=(("institution_id", "patient_id"),),
)

CHAIRS = Collection(
    name="chairs",
    group="practice",
    doc="A made-up piece of furniture.",
    path="/chairs",
    scope=Scope.LOCATION,
    increment="updated_since",
    version="updated_at",
    columns=flatten(
        column("id", SqlType.BIGINT, Phi.NONE, "Id of the chair."),
        column("colour", SqlType.TEXT, Phi.NONE, "Colour."),
        column("updated_at", SqlType.TIMESTAMPTZ, Phi.NONE, "Version."),
    ),
)


def main(api_url: str, database_url: str, mode: str) -> None:
    catalog.DECLARED = (*catalog.DECLARED, REFERRALS, CHAIRS)
    catalog.COLLECTIONS |= {one.name: one for one in (REFERRALS, CHAIRS)}
    sys.path.insert(0, __file__.rsplit("/", 3)[0])
    from nexhealth_pipeline.settings import load_settings
    from nexhealth_pipeline.sync.options import Mode, SyncOptions
    from nexhealth_pipeline.warehouse.migrate import upgrade
    from tests.sync.kit import sync_all

    changes = upgrade(database_url)
    given = {"NEXHEALTH_API_URL": api_url, "NEXHEALTH_API_KEY": "k", "DATABASE_URL": database_url}
    settings = load_settings(given, environ={}, env_file=None)
    results = sync_all(settings, SyncOptions(mode=Mode(mode)), only={"patients", "referrals", "chairs"})
    slices = {result.slice.label: [result.status.value, result.reason] for result in results}
    sys.stdout.write(json.dumps({"changes": changes, "slices": slices}))


if __name__ == "__main__":
    main(*sys.argv[1:])
