"""Two collections that NexHealth does not have, put into the catalog before anything else reads it.

Run as `python made_up.py API_URL DATABASE_URL MODE`: upgrades the warehouse and syncs, in a process of its own, in
which the catalog is what it would be with these two declarations written into its file. Run without words: says how
Dagster, the command and README know them.
"""

import json
import sys
from pathlib import Path
from typing import Any

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


ROOT = Path(__file__).resolve().parents[2]


def declare() -> None:
    catalog.DECLARED = (*catalog.DECLARED, REFERRALS, CHAIRS)
    catalog.COLLECTIONS |= {one.name: one for one in (REFERRALS, CHAIRS)}
    sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]


def known() -> dict[str, dict[str, Any]]:
    """Of each of them: its asset, whether the command takes its name, its row in README's table."""
    import dagster as dg
    from write_docs import collections as table_of_collections

    from nexhealth_pipeline.cli.sync import sync
    from nexhealth_pipeline.definitions import defs
    from nexhealth_pipeline.orchestration.names import SCOPE_JOBS

    graph, lines = defs.resolve_asset_graph(), table_of_collections().splitlines()
    found = {}
    for one in (REFERRALS, CHAIRS):
        key = dg.AssetKey(one.table)
        asset = graph.get(key)
        found[one.name] = {
            "group": asset.group_name,
            "description": asset.description,
            "under": sorted(parent.path[-1] for parent in asset.parent_keys),
            "partitions": getattr(asset.partitions_def, "name", None),
            "in its job": key in defs.resolve_job_def(SCOPE_JOBS[one.scope]).asset_layer.selected_asset_keys,
            "columns": [column.name for column in asset.metadata["dagster/column_schema"].columns],
            "checks": sorted(check.name for check in graph.asset_check_keys if check.asset_key == key),
            "taken": sync.make_context("sync", ["--resource", one.name, "--resource", one.table]).params["resources"],
            "row": [line for line in lines if f"`{one.table}`" in line],
        }
    return found


def main(api_url: str, database_url: str, mode: str) -> None:
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
    declare()
    if sys.argv[1:]:
        main(*sys.argv[1:])
    else:
        sys.stdout.write(json.dumps(known()))
