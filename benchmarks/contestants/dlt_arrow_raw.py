"""dlt at its fastest that also keeps the raw JSON, as ours and the limit script do."""

import sys

import dlt_arrow

if __name__ == "__main__":
    dlt_arrow.main(*sys.argv[1:], keep_raw=True)
