"""A caller of the sandbox over real HTTP, and a clock that tests turn by hand."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import requests

from nexhealth_pipeline.sandbox import SandboxServer

BASE = datetime(2026, 11, 20, 9, 30, tzinfo=UTC)
WILLOW, HARBOR = "willow-dental", "harbor-smiles"
NORTH, SOUTH, DESERT, CLOSED = 348511, 348512, 348513, 348514
PIER, ISLAND = 348621, 348622
ALL_TIME = {"start": "1900-01-01", "end": "2200-01-01"}


class HandClock:
    """Stands still until a test moves it."""

    def __init__(self, start: float = BASE.timestamp() + 3600) -> None:
        self.seconds = start

    def __call__(self) -> float:
        return self.seconds

    def forward(self, seconds: float) -> None:
        self.seconds += seconds


class Caller:
    """GETs with a bearer token, authenticated at first use."""

    def __init__(self, server: SandboxServer) -> None:
        self.server = server
        self.session = requests.Session()
        self.session.trust_env = False

    def authenticate(self, key: str | None = None) -> requests.Response:
        answer = self.session.post(
            self.server.url + "/authenticates", headers={"Authorization": key or self.server.api_key}
        )
        if answer.status_code == 201:
            self.session.headers["Authorization"] = f"Bearer {answer.json()['data']['token']}"
        return answer

    def get(self, path: str, /, **params: Any) -> requests.Response:
        if "Authorization" not in self.session.headers:
            self.authenticate()
        headers = params.pop("headers", None)
        renamed = {name.replace("__", "[]"): value for name, value in params.items()}
        return self.session.get(
            self.server.url + path, params=renamed, headers=headers, allow_redirects=False, timeout=5
        )

    def data(self, path: str, /, **params: Any) -> Any:
        answer = self.get(path, **params)
        assert answer.status_code == 200, answer.text
        return answer.json()["data"]

    def errors(self, path: str, /, **params: Any) -> tuple[int, list[str]]:
        answer = self.get(path, **params)
        assert answer.json()["code"] is False
        return answer.status_code, answer.json()["error"]

    def pages(self, path: str, /, **params: Any) -> Iterator[dict[str, Any]]:
        cursor = ""
        while True:
            body = self.get(path, **(params | {"end_cursor": cursor})).json()
            yield body
            if not body["page_info"]["has_next_page"]:
                return
            cursor = body["page_info"]["end_cursor"]

    def walk(self, path: str, /, **params: Any) -> list[dict[str, Any]]:
        return [record for page in self.pages(path, **({"per_page": 1000} | params)) for record in page["data"]]

    def admin(self, method: str, path: str, body: Any = None) -> requests.Response:
        return self.session.request(method, self.server.url + path, json=body, timeout=5)

    def close(self) -> None:
        self.session.close()
