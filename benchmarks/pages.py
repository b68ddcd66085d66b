"""How long Dagster's pages take to show what they are opened for: a small practice's, beside those of a large one.

    python benchmarks/pages.py                        1,000 locations, 30 nights of history
    python benchmarks/pages.py --locations 100 --nights 3

Both instances are served at once and each page is opened in both by a headless Chromium (benchmarks/browser.py, in
benchmarks/.venv): for the first time, with an empty cache, and again, as by somebody who works with it. What the small
one takes is the browser's and the machine's share; the difference is what the size costs. Needs Chromium: where there is none, says so and ends with status 77.
"""

import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from many_locations import Size, fill
from results import NOT_HERE, Part, Table, arguments, show, spread
from serving import environment, server

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
}
"""Path of each page, and what stands there once it shows what it is for."""


@contextmanager
def served(size: Size) -> Iterator[str]:
    """An instance of that size and its webserver; the pages' address."""
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
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [sys.executable, "-P", "-m", "dagster_webserver", "-h", "127.0.0.1", "-p", str(port)]
        process = subprocess.Popen(
            [*command, "-w", str(HERE.parent / "workspace.yaml")],
            env=given, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            yield _ready(f"http://127.0.0.1:{port}", process)
        finally:
            process.terminate()
            process.wait()


def _ready(url: str, process: subprocess.Popen[bytes]) -> str:
    while process.poll() is None:
        try:
            urllib.request.urlopen(f"{url}/server_info").close()
        except OSError:
            time.sleep(0.2)
        else:
            return url
    raise SystemExit(f"the webserver ended with status {process.returncode}")


def browsed(urls: list[str], chromium: str, rounds: int) -> list[dict[str, dict[str, list[float]]]]:
    """Seconds until each page of each instance showed what it is for, `first` and `again`, once a round."""
    command = [str(HERE / ".venv" / "bin" / "python"), str(HERE / "browser.py"), chromium, str(rounds)]
    wanted = json.dumps({"urls": urls, "pages": PAGES})
    done = subprocess.run(command, input=wanted, stdout=subprocess.PIPE, text=True, check=True)
    found: list[dict[str, dict[str, list[float]]]] = json.loads(done.stdout)
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
    with served(Size(5, 2)) as small, served(Size(given.locations, given.nights)) as large:
        seconds = browsed([small, large], chromium, given.rounds)
    rows = [[name, *(spread(one[name][kind], 2) for kind in ("first", "again") for one in seconds)] for name in PAGES]
    text = (
        f"Seconds until a page shows what it is for, in a headless Chromium, {given.rounds} round(s): of 5 locations with 2 nights "
        f"of history, and of {given.locations:,} with {given.nights}, both served at once by `dagster-webserver`; opened with an empty "
        "cache, and again. What the small one takes is Dagster's own, the browser's and the machine's; the difference is what the size costs."
    )
    columns = ["page", "small, first", "large, first", "small, again", "large, again"]
    show(Part("pages", "Dagster's pages of many locations", text, [Table(columns, rows)]), given.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
