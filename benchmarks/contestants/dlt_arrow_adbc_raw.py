"""dlt with Arrow tables, parquet files and ADBC, and the raw JSON as well (ADBC knows json, not jsonb)."""

import sys

import dlt_arrow

if __name__ == "__main__":
    dlt_arrow.main(*sys.argv[1:], files="parquet", keep_raw=True)
