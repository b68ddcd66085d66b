"""dlt at its fastest: flattened Arrow tables, so that its normalizer has nothing to do; upsert. No raw JSON is kept.

Unless asked for: then each record also goes, as JSON, into a column of its own.
"""

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import dlt
import orjson
import pyarrow as pa
import requests

PAGES_A_TABLE = 20


def pages(api_url: str, since: str, *, keep_raw: bool) -> Iterator[pa.Table]:
    """Pages of flattened records; the next one is fetched and parsed while this one is made a table."""
    session, rows = requests.Session(), []

    def fetch(cursor: str) -> dict[str, Any]:
        params = {"subdomain": "bench-dental", "location_id": "501", "per_page": "1000", "end_cursor": cursor}
        body = session.get(
            f"{api_url}/patients", params=params | ({"updated_since": since} if since else {}), timeout=60
        )
        answer: dict[str, Any] = orjson.loads(body.content)
        return answer

    with ThreadPoolExecutor(1) as beside:
        coming = beside.submit(fetch, "")
        for number in range(1, 1_000_000):
            answer = coming.result()
            more = answer["page_info"]["has_next_page"]
            if more:
                coming = beside.submit(fetch, answer["page_info"]["end_cursor"])
            rows += answer["data"]
            if rows and (number % PAGES_A_TABLE == 0 or not more):
                table = pa.Table.from_pylist(rows, schema=_schema(rows[0])).flatten().flatten()
                if keep_raw:
                    raw = [orjson.dumps(row).decode() for row in rows]
                    table = table.append_column("raw", pa.array(raw, pa.string()))
                yield table
                rows = []
            if not more:
                return


def _schema(record: dict[str, object]) -> pa.Schema:
    """Types by the first record; what it has as null is text."""

    def kind(value: object) -> pa.DataType:
        if isinstance(value, dict):
            return pa.struct([(name, kind(one)) for name, one in value.items()])
        return pa.bool_() if isinstance(value, bool) else pa.int64() if isinstance(value, int) else pa.string()

    return pa.schema([(name, kind(value)) for name, value in record.items()])


def _timed(table: pa.Table) -> pa.Table:
    """Times and days as such: in JSON they are text."""
    kinds = {
        "_at": pa.timestamp("us", "UTC"),
        "_time": pa.timestamp("us", "UTC"),
        "_date": pa.date32(),
        "_birth": pa.date32(),
    }
    fields = [
        field.with_type(next((kind for end, kind in kinds.items() if field.name.endswith(end)), field.type))
        for field in table.schema
    ]
    return table.cast(pa.schema(fields))


def main(
    api_url: str, database_url: str, mode: str, *, keep_raw: bool = False, files: Literal["csv", "parquet"] = "csv"
) -> None:
    """Read patients; incremental asks for those changed since the run before. Of parquet files ADBC makes a binary COPY."""
    pipeline = dlt.pipeline(
        "bench_arrow", destination=dlt.destinations.postgres(database_url), dataset_name="dlt_arrow"
    )

    @dlt.resource(
        name="patients",
        primary_key=["institution_id", "id"],
        write_disposition={"disposition": "merge", "strategy": "upsert"},
        columns={"raw": {"data_type": "json"}} if keep_raw else {},
    )
    def patients() -> Iterator[pa.Table]:
        for table in pages(api_url, "2025-06-01T00:00:00.000Z" if mode == "incremental" else "", keep_raw=keep_raw):
            yield _timed(table).rename_columns([name.replace(".", "_") for name in table.column_names])

    pipeline.run(patients(), loader_file_format=files)
    print(pipeline.last_trace.last_normalize_info.row_counts.get("patients", 0))


if __name__ == "__main__":
    main(*sys.argv[1:])
