"""Pages of one very wide window, in parts where the server does not take it whole.

What span the appointments list takes is not documented (API.md I.15), so everything is asked at once and
halved where that is refused. Parts have cursors of their own: a pass read in parts has no cursor to go on
from, and a killed one begins anew, which is harmless.
"""

import logging
from collections.abc import Iterable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from nexhealth_pipeline.catalog.collection import Window
from nexhealth_pipeline.client.client import NexHealthClient
from nexhealth_pipeline.client.page import Page
from nexhealth_pipeline.client.request import ApiRequest
from nexhealth_pipeline.errors import BadRequest, ServerFailed, Unreachable
from nexhealth_pipeline.sync.plan import api_time

__all__ = ["pages_in_parts"]

_NARROWEST = timedelta(days=40)
"""A window this narrow (a month and a day on both sides) is not halved: the refusal is not about its width."""
_NO_METHOD = (405, 501)
"""Refusals of the list itself, whatever window is asked for."""
_FORM = "%Y-%m-%dT%H:%M:%S%z"
_log = logging.getLogger(__name__)


def pages_in_parts(
    client: NexHealthClient,
    request: ApiRequest,
    window: Window,
    *,
    cursor: str = "",
    page: int = 0,
    previous: Iterable[str] = (),
) -> Iterator[Page]:
    """The pages of `request`, whose parameters `window.start` and `window.end` bound it.

    Raises ApiError, as the client does, where a window of `_NARROWEST` is refused as well.
    """
    pages = client.pages(request, cursor=cursor, page=page, previous=previous)
    try:
        first = next(pages)
    except (BadRequest, ServerFailed, Unreachable) as failure:
        if cursor or failure.status in _NO_METHOD or not _wide(request, window):
            raise
        if not isinstance(failure, BadRequest):
            # A server that is down is no reason to try ever smaller windows, each with all its retries.
            client.get(_probe(request, window))
    else:
        yield first
        yield from pages
        return
    _log.warning("window refused, asking for its halves", extra={"nexhealth": {"path": request.path}})
    early, late = _halves(request, window)
    for part in pages_in_parts(client, early, window):
        yield replace(part, has_next=True, end_cursor="")
    for part in pages_in_parts(client, late, window):
        yield replace(part, end_cursor="")


def _bounds(request: ApiRequest, window: Window) -> tuple[datetime, datetime]:
    params = dict(request.params)
    start, end = (datetime.strptime(params[name], _FORM).astimezone(UTC) for name in (window.start, window.end))
    return start, end


def _wide(request: ApiRequest, window: Window) -> bool:
    start, end = _bounds(request, window)
    return end - start > _NARROWEST


def _halves(request: ApiRequest, window: Window) -> tuple[ApiRequest, ApiRequest]:
    """Two requests that share the middle: a row exactly there comes twice rather than never."""
    start, end = _bounds(request, window)
    middle = (start + (end - start) / 2).replace(microsecond=0)
    return _bounded(request, window, start, middle), _bounded(request, window, middle, end)


def _probe(request: ApiRequest, window: Window) -> ApiRequest:
    """The request for one narrow window of today: whether the server answers that list at all."""
    today = datetime.now(UTC).replace(microsecond=0)
    return replace(_bounded(request, window, today - _NARROWEST, today), per_page=1)


def _bounded(request: ApiRequest, window: Window, start: datetime, end: datetime) -> ApiRequest:
    bounds = {window.start: api_time(start), window.end: api_time(end)}
    return replace(request, params=tuple((name, bounds.get(name, value)) for name, value in request.params))
