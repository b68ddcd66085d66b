"""Raw COPY: the same records, downloaded before the clock starts, into a table without keys. A ceiling, not a copy."""

import json
import os
import sys
import tempfile
from pathlib import Path

import psycopg
import requests


def main(api_url: str, database_url: str, mode: str) -> None:
    """`prepare` downloads the records into a file, anything else loads that file."""
    file = Path(tempfile.gettempdir()) / f"nexhealth-bench-{os.environ['BENCH_ID']}.copy"
    if mode == "prepare":
        cursor, more = "", True
        with file.open("w") as out:
            while more:
                params = {"per_page": "1000", "end_cursor": cursor}
                answer = requests.get(f"{api_url}/patients", params=params, timeout=60).json()
                out.writelines(json.dumps(one).replace("\\", "\\\\") + "\n" for one in answer["data"])
                more, cursor = answer["page_info"]["has_next_page"], answer["page_info"]["end_cursor"]
        return
    with psycopg.connect(database_url) as db:
        db.execute("CREATE TABLE IF NOT EXISTS raw_copy (record jsonb)")
        db.execute("TRUNCATE raw_copy")
        with db.cursor() as cursor_, cursor_.copy("COPY raw_copy FROM STDIN") as copy, file.open("rb") as lines:
            while block := lines.read(1 << 20):
                copy.write(block)
        print(db.execute("SELECT count(*) FROM raw_copy").fetchone()[0])


if __name__ == "__main__":
    main(*sys.argv[1:])
