"""What an asset says of itself, and what each materialization says of its slice. Ids and counts only."""

from collections.abc import Mapping
from typing import Any

import dagster as dg

from nexhealth_pipeline.catalog.collection import Collection
from nexhealth_pipeline.sync.slices import SliceResult
from nexhealth_pipeline.warehouse.tables import table_columns

__all__ = ["collection_metadata", "result_metadata"]


def collection_metadata(collection: Collection) -> dict[str, Any]:
    """Static metadata of a collection's asset: table, columns, where the API has it."""
    columns = [
        dg.TableColumn(
            column.name,
            column.type.value,
            description=f"{column.doc} PHI class: {column.phi.value}.",
            tags={"phi": column.phi.value},
        )
        for column in table_columns(collection)
    ]
    return {
        "dagster/table_name": f"public.{collection.table}",
        "dagster/column_schema": dg.TableSchema(columns=columns),
        "api_path": collection.path,
        "read": "one request a patient" if collection.per_patient else f"{collection.paging.value} paging",
        "changes_by": collection.increment or "full read",
    }


def result_metadata(result: SliceResult, extra: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Counts and costs of one slice, named as in `nexhealth_sync_logs`."""
    metadata: dict[str, Any] = {**result.counts.as_dict(), "seconds": round(result.seconds, 3)}
    metadata["throttled_seconds"] = round(result.counts.throttled_seconds, 3)
    if result.as_of is not None:
        metadata["as_of"] = dg.MetadataValue.timestamp(result.as_of)
    if result.slice.location is not None:
        metadata["location"] = result.slice.location.name
    if result.reason:
        metadata["reason"] = result.reason
    return {**metadata, **(extra or {})}
