"""dlt's rest_api source with less to do: objects within a record stay JSON instead of becoming columns."""

import sys

import dlt_rest

if __name__ == "__main__":
    dlt_rest.main(*sys.argv[1:], objects_as_json=True)
