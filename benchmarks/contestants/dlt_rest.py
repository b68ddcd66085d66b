"""dlt as its documentation shows it: the rest_api source, a cursor paginator, merge by upsert.

Objects within a record become columns, which is dlt's default and what all others here have, unless asked otherwise.
"""

import sys

import dlt
from dlt.sources.rest_api import rest_api_source


def main(api_url: str, database_url: str, mode: str, *, objects_as_json: bool = False) -> None:
    """Read patients; incremental by `updated_since`."""
    params: dict[str, object] = {"subdomain": "bench-dental", "location_id": "501", "per_page": 1000}
    if mode == "incremental":
        params["updated_since"] = {
            "type": "incremental",
            "cursor_path": "updated_at",
            "initial_value": "2025-06-01T00:00:00.000Z",
        }
    source = rest_api_source(
        {
            "client": {
                "base_url": api_url,
                "paginator": {
                    "type": "cursor",
                    "cursor_path": "page_info.end_cursor",
                    "cursor_param": "end_cursor",
                    "has_more_path": "page_info.has_next_page",
                },
            },
            "resources": [
                {
                    "name": "patients",
                    "primary_key": ["institution_id", "id"],
                    "write_disposition": {"disposition": "merge", "strategy": "upsert"},
                    **({"max_table_nesting": 0} if objects_as_json else {}),
                    "endpoint": {"path": "patients", "params": params, "data_selector": "data"},
                }
            ],
        }
    )
    pipeline = dlt.pipeline("bench_rest", destination=dlt.destinations.postgres(database_url), dataset_name="dlt_rest")
    pipeline.run(source)
    print(pipeline.last_trace.last_normalize_info.row_counts.get("patients", 0))


if __name__ == "__main__":
    main(*sys.argv[1:])
