"""Which opening of a page a figure is of."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import pages
import pytest


def test_each_page_s_cold_figure_is_of_servers_that_showed_nothing_before(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first figure was of a server that had shown the page twice."""
    running: list[str] = []
    shown: list[tuple[str, ...]] = []

    @contextmanager
    def served(given: dict[str, str]) -> Iterator[str]:
        running.append(f"http://{given['size']}-{len(shown)}")
        yield running[-1]
        running.pop()

    def browsed(urls: list[str], shows: str, chromium: str, rounds: int) -> list[dict[str, list[float]]]:
        shown.append(tuple(url.partition("//")[2].partition("/")[0] for url in urls))
        assert [url.startswith(server) for url, server in zip(urls, running, strict=True)] == [True, True]
        return [{"cold": [3.0 + large], "first": [2.0 + large], "again": [1.0 + large]} for large in (0, 10)]

    monkeypatch.setattr(pages, "filled", lambda size: nullcontext({"size": str(size.locations)}))
    monkeypatch.setattr(pages, "served", served)
    monkeypatch.setattr(pages, "browsed", browsed)
    monkeypatch.setattr("shutil.which", lambda name: name)
    monkeypatch.setattr("sys.argv", ["pages.py", "--locations", "100", "--nights", "3", "--rounds", "1"])
    assert pages.main() == 0
    assert shown == [(f"5-{number}", f"100-{number}") for number in range(len(pages.PAGES))]
    told = capsys.readouterr().out
    assert "| page | small, cold | large, cold | small, first | large, first | small, again | large, again |" in told
    assert "| runs | 3.00 | 13.00 | 2.00 | 12.00 | 1.00 | 11.00 |" in told
