"""Opens pages in a headless Chromium and says how long each took; run by benchmarks/pages.py in benchmarks/.venv."""

import json
import sys
import tempfile
import time
from typing import Any

from playwright.sync_api import BrowserContext, sync_playwright

_OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
_PATIENCE_MS = 120_000
_SHOWS = "pattern => new RegExp(pattern).test(document.body ? document.body.innerText : '')"
_VISITS_BEFORE = 2
"""Visits after which Chromium keeps a script's compiled form."""
_WINDOW: Any = {"width": 1500, "height": 950}


def seconds(context: BrowserContext, url: str, pattern: str) -> float:
    """Seconds from opening the page in a new tab until its text matches `pattern`."""
    page = context.new_page()
    began = time.monotonic()
    page.goto(url, wait_until="commit")
    page.wait_for_function(_SHOWS, arg=pattern, timeout=_PATIENCE_MS)
    took = time.monotonic() - began
    page.close()
    return took


def main() -> int:
    """Pages from standard input, times to standard output: of each instance, by page, `first` and `again`."""
    executable, rounds = sys.argv[1], int(sys.argv[2])
    wanted: dict[str, Any] = json.load(sys.stdin)
    found: list[dict[str, dict[str, list[float]]]] = [
        {name: {"first": [], "again": []} for name in wanted["pages"]} for _ in wanted["urls"]
    ]
    with sync_playwright() as playwright, tempfile.TemporaryDirectory(prefix="nexhealth-bench-") as profile:
        empty = playwright.chromium.launch(executable_path=executable, args=_OPTIONS)
        # A profile on disk, as people's: a private window's does not keep what it compiled.
        used = playwright.chromium.launch_persistent_context(
            profile, executable_path=executable, args=_OPTIONS, viewport=_WINDOW
        )
        for name, (path, pattern) in wanted["pages"].items():
            for url, times in zip(wanted["urls"], found, strict=True):
                for _ in range(_VISITS_BEFORE):
                    seconds(used, url + path, pattern)
                for _ in range(rounds):
                    context = empty.new_context(viewport=_WINDOW)
                    times[name]["first"].append(seconds(context, url + path, pattern))
                    context.close()
                    times[name]["again"].append(seconds(used, url + path, pattern))
            latest = [{kind: round(each[-1], 2) for kind, each in one[name].items()} for one in found]
            print(f"{name}: {latest}", file=sys.stderr, flush=True)
        used.close()
        empty.close()
    json.dump(found, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
