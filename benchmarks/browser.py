"""Opens a page in a headless Chromium and says how long it took; run by benchmarks/pages.py in benchmarks/.venv."""

import json
import sys
import tempfile
import time
from typing import Any

from playwright.sync_api import BrowserContext, sync_playwright

_OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
_PATIENCE_MS = 300_000
"""A run of a thousand locations has 44,000 events, all of which its page loads."""
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
    """A page of each address from standard input, seconds to standard output: by address, of each kind of opening."""
    executable, rounds = sys.argv[1], int(sys.argv[2])
    wanted: dict[str, Any] = json.load(sys.stdin)
    found: list[dict[str, list[float]]] = [{"cold": [], "first": [], "again": []} for _ in wanted["urls"]]
    with sync_playwright() as playwright, tempfile.TemporaryDirectory(prefix="nexhealth-bench-") as profile:
        empty = playwright.chromium.launch(executable_path=executable, args=_OPTIONS)

        def unknown(url: str) -> float:
            """Seconds in a browser that was never there."""
            context = empty.new_context(viewport=_WINDOW)
            took = seconds(context, url, wanted["shows"])
            context.close()
            return took

        # A profile on disk, as people's: a private window's does not keep what it compiled.
        used = playwright.chromium.launch_persistent_context(
            profile, executable_path=executable, args=_OPTIONS, viewport=_WINDOW
        )
        for url, times in zip(wanted["urls"], found, strict=True):
            times["cold"].append(unknown(url))
            for _ in range(_VISITS_BEFORE):
                seconds(used, url, wanted["shows"])
            for _ in range(rounds):
                times["first"].append(unknown(url))
                times["again"].append(seconds(used, url, wanted["shows"]))
        used.close()
        empty.close()
    json.dump(found, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
