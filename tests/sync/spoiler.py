"""A proxy before the sandbox that spoils chosen answers on the wire, in ways that no honest server can be told to."""

import http.client
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import parse_qs, urlsplit

from tests.http_servers import QuietHandler, serving

Steps = list[bytes | float]
"""Bytes to send and seconds to wait, in turn; then the connection is closed."""


def drip(piece: bytes, pause: float, times: int) -> Steps:
    """A piece and a pause, so many times."""
    return [piece, pause] * times


class Spoiler:
    """Spoils every answer whose (path, location_id) is in `spoilt`."""

    def __init__(self) -> None:
        self.spoilt: dict[tuple[str, str | None], Steps] = {}
        self.url = ""
        self.ending = threading.Event()


@contextmanager
def spoiling(api_url: str) -> Iterator[Spoiler]:
    spoiler = Spoiler()
    target = urlsplit(api_url).netloc

    class Handler(QuietHandler):
        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            steps = spoiler.spoilt.get((parts.path, parse_qs(parts.query).get("location_id", [None])[0]))
            if steps is None:
                self.pass_on()
            else:
                self.spoil(steps)

        do_POST = do_GET

        def pass_on(self) -> None:
            connection = http.client.HTTPConnection(target, timeout=60)
            connection.request(self.command, self.path, headers=dict(self.headers.items()))
            answer = connection.getresponse()
            length = answer.headers["Content-Length"]
            try:
                body = answer.read()
            except http.client.IncompleteRead as cut:
                body, self.close_connection = cut.partial, True
            connection.close()
            self.send_response_only(answer.status)
            for name, text in answer.getheaders():
                if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                    self.send_header(name, text)
            self.send_header("Content-Length", length or str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def spoil(self, steps: Steps) -> None:
            with suppress(OSError):
                for step in steps:
                    if spoiler.ending.is_set():
                        return
                    if isinstance(step, float):
                        spoiler.ending.wait(step)
                    else:
                        self.wfile.write(step)

    with serving(Handler) as spoiler.url:
        try:
            yield spoiler
        finally:
            spoiler.ending.set()
