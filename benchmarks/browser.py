"""Opens pages in a headless Chromium and says how long each took; run by benchmarks/pages.py in benchmarks/.venv."""

import json
import sys
import time
from typing import Any

from playwright.sync_api import Browser, sync_playwright

_OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
_PATIENCE_MS = 120_000
_SHOWS = "pattern => new RegExp(pattern).test(document.body ? document.body.innerText : '')"


def seconds(browser: Browser, url: str, pattern: str) -> float:
    """Seconds from opening the page, with an empty cache, until its text matches `pattern`."""
    context = browser.new_context(viewport={"width": 1500, "height": 950})
    page = context.new_page()
    began = time.monotonic()
    page.goto(url, wait_until="commit")
    page.wait_for_function(_SHOWS, arg=pattern, timeout=_PATIENCE_MS)
    took = time.monotonic() - began
    context.close()
    return took


def main() -> int:
    """Pages from standard input, times to standard output; progress to standard error."""
    executable, rounds = sys.argv[1], int(sys.argv[2])
    wanted: dict[str, Any] = json.load(sys.stdin)
    found: list[dict[str, list[float]]] = [{name: [] for name in wanted["pages"]} for _ in wanted["urls"]]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=_OPTIONS)
        for name, (path, pattern) in wanted["pages"].items():
            for url, times in zip(wanted["urls"] * rounds, found * rounds, strict=True):
                times[name].append(seconds(browser, url + path, pattern))
            print(f"{name}: {[one[name][-1].__round__(2) for one in found]}", file=sys.stderr, flush=True)
        browser.close()
    json.dump(found, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
