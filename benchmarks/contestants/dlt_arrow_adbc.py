"""dlt with Arrow tables that go through parquet files and ADBC instead of CSV files and COPY."""

import sys

import dlt_arrow

if __name__ == "__main__":
    dlt_arrow.main(*sys.argv[1:], files="parquet")
