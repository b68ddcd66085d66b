"""What an asset says of itself, and what each materialization says of its slice. Ids and counts only."""

from dataclasses import asdict
from typing import Any

import dagster as dg

from nexhealth_pipeline.catalog.collection import Collection
from nexhealth_pipeline.sync.slices import SliceResult
from nexhealth_pipeline.warehouse.tables import table_columns

__all__ = ["as_of_metadata", "collection_metadata", "result_metadata"]


def collection_metadata(collection: Collection) -> dict[str, Any]:
    """Static metadata of a collection's asset: table, columns, where the API has it."""
    columns = [
        dg.TableColumn(
            column.name,
            column.type.value,
            description=column.doc,
            tags={"phi": column.phi.value},
        )
        for column in table_columns(collection)
    ]
    return {
        "dagster/table_name": f"public.{collection.table}",
        "dagster/column_schema": dg.TableSchema(columns=columns),
        "api_path": collection.path,
        "read": f"one request for each of the {collection.per}"
        if collection.per
        else f"{collection.paging.value} paging",
        "changes_by": collection.increment or "full read",
    }


def result_metadata(result: SliceResult) -> dict[str, Any]:
    """Counts and costs of one slice, named as in `nexhealth_sync_logs`."""
    metadata: dict[str, Any] = {**result.counts.as_dict(), "seconds": round(result.seconds, 3)}
    metadata["throttled_seconds"] = round(result.counts.throttled_seconds, 3)
    metadata["status"] = result.status.value
    metadata.update(as_of_metadata(result))
    if result.slice.location is not None:
        metadata["location"] = f"{result.slice.location.name} ({result.slice.location.key})"
    if result.rows is not None:
        metadata["dagster/partition_row_count" if result.slice.partition_key else "dagster/row_count"] = result.rows
    if result.absence is not None:
        metadata["absence"] = {**asdict(result.absence), "reason": result.reason}
    if result.reason:
        metadata["reason"] = result.reason
    return metadata


def as_of_metadata(result: SliceResult) -> dict[str, Any]:
    """Up to when every change is in the warehouse, where that is known."""
    return {} if result.as_of is None else {"as_of": dg.MetadataValue.timestamp(result.as_of)}
