"""How long Dagster's pages take to show what they are opened for: a small practice's, beside those of a large one.

    python benchmarks/pages.py                        1,000 locations, 30 nights of history
    python benchmarks/pages.py --locations 100 --nights 3

Both instances are served at once, for each page by webservers that have just been started, and it is opened in both by
a headless Chromium (benchmarks/browser.py, in benchmarks/.venv): cold, as the first page that the server shows to
anybody; first, in a browser that was never there, of a server that has shown it; and again, as by somebody who works
with it. What the small one takes is the browser's and the machine's share; the difference is what the size costs.
Needs Chromium: where there is none, says so and ends with status 77.
"""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from many_locations import NIGHT, Size, fill
from results import NOT_HERE, Part, Table, arguments, show, spread
from serving import environment, served, server

HERE = Path(__file__).parent
PAGES = {
    "runs": ("/runs", "nexhealth_practice"),
    "catalog": ("/assets", "nexhealth_patients|patients"),
    "timeline": ("/overview", "nexhealth_"),
    "asset patients": ("/assets/nexhealth_patients", "Latest materialization|Row count"),
    "partitions of patients": ("/assets/nexhealth_patients?view=partitions", r"Materialized \(\d+\)"),
    "one partition of patients": ("/assets/nexhealth_patients?view=partitions&partition=practice-0.1", "records_read"),
    "events of patients": ("/assets/nexhealth_patients?view=events", r"practice-\d+\.\d+"),
    "partitions of appointments": ("/assets/nexhealth_appointments?view=partitions", r"Materialized \(\d{2,}\)"),
    "automation": ("/automation", "nexhealth_nightly"),
    "ticks of a sensor": ("/locations/nexhealth_pipeline/sensors/nexhealth_dead_runs", "View logs"),
    "lineage of a group": ("/locations/nexhealth_pipeline/asset-groups/patients/lineage", r"\d+% filled"),
    "a night's run, its steps": (f"/runs/{NIGHT}", "read_locations"),
    "a night's run, its first events": (f"/runs/{NIGHT}", "ASSET_MATERIALIZATION"),
}
"""Path of each page, and what stands there once it shows what it is for."""
KINDS = ("cold", "first", "again")
"""Of opening a page (benchmarks/browser.py)."""


@contextmanager
def filled(size: Size) -> Iterator[dict[str, str]]:
    """An instance of that size; the environment of its processes."""
    with server() as (postgres, home):
        for name in ("nexhealth", "dagster"):
            postgres.create_database(name)
        given = environment(home, DATABASE_URL=postgres.url("nexhealth"), DAGSTER_DATABASE_URL=postgres.url("dagster"),
                            DAGSTER_HOME=HERE.parent)  # fmt: skip
        began = time.monotonic()
        events = fill(given, postgres.url("dagster"), size)
        took = time.monotonic() - began
        print(
            f"{size.locations:,} locations, {size.nights} nights: {events:,} events written in {took:.0f} s", flush=True
        )
        yield given


def browsed(urls: list[str], shows: str, chromium: str, rounds: int) -> list[dict[str, list[float]]]:
    """Seconds until the page at each address showed what it is for, by kind of opening."""
    command = [str(HERE / ".venv" / "bin" / "python"), str(HERE / "browser.py"), chromium, str(rounds)]
    wanted = json.dumps({"urls": urls, "shows": shows})
    done = subprocess.run(command, input=wanted, stdout=subprocess.PIPE, text=True, check=True)
    found: list[dict[str, list[float]]] = json.loads(done.stdout)
    return found


def main() -> int:
    """Fill, serve, browse, print, keep; status NOT_HERE where there is no Chromium."""
    parser = arguments(__doc__)
    parser.add_argument("--locations", type=int, default=1000)
    parser.add_argument("--nights", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        print("no Chromium is installed, and pages need a browser (Debian: apt install chromium)", file=sys.stderr)
        return NOT_HERE
    rows = []
    with filled(Size(5, 2)) as little, filled(Size(given.locations, given.nights)) as much:
        for name, (path, shows) in PAGES.items():
            with served(little) as small, served(much) as large:
                seconds = browsed([small + path, large + path], shows, chromium, given.rounds)
            rows.append([name, *(spread(one[kind], 2) for kind in KINDS for one in seconds)])
            print(*rows[-1], sep="  ", flush=True)
    text = (
        f"Seconds until a page shows what it is for, in a headless Chromium: of 5 locations with 2 nights "
        f"of history, and of {given.locations:,} with {given.nights}, both served at once by `dagster-webserver`, which is started anew for each page. "
        f"Cold: the first page that a server shows since its start, in a browser that was never there, once; first: such a browser, of a server that has "
        f"shown the page, {given.rounds} round(s); again: a browser that has seen it, as many. "
        "What the small one takes is Dagster's own, the browser's and the machine's; the difference is what the size costs. "
        "The history was written by SQL, so that the first look at an asset's partitions ever, the large one's cold, counts all of it; "
        "Dagster keeps that, and after it only what came since is counted."
    )
    columns = ["page", *(f"{size}, {kind}" for kind in KINDS for size in ("small", "large"))]
    show(Part("pages", "Dagster's pages of many locations", text, [Table(columns, rows)]), given.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
