"""Cursor pages: sizes, both directions, every sort, and cursors that do not belong to the query."""

import re

import pytest

from .calls import ALL_TIME, NORTH, SOUTH, WILLOW, Caller

WHERE = {"subdomain": WILLOW, "location_id": NORTH}


def test_a_page_has_five_rows_unless_asked_and_never_more_than_a_thousand(reader: Caller) -> None:
    """Risk: the default of 5 multiplies the requests; above 1,000 the server decides."""
    assert len(reader.data("/patients", **WHERE)) == 5
    assert len(reader.data("/patients", **WHERE, per_page=7)) == 7
    appointments = {"subdomain": WILLOW, "location_id": NORTH, **ALL_TIME}
    assert len(reader.data("/appointments", **appointments, per_page=5000)) <= 1000


@pytest.mark.parametrize("sort", ["", "id", "-id", "updated_at", "-updated_at"])
def test_walking_forward_gives_each_row_once_in_the_order_asked_for(reader: Caller, sort: str) -> None:
    """Risk: a row lost or doubled at a page border."""
    pages = list(reader.pages("/patients", **WHERE, per_page=6, sort=sort))
    rows = [row for page in pages for row in page["data"]]
    whole = reader.walk("/patients", **WHERE)
    field = sort.lstrip("-") or "id"
    assert rows == sorted(whole, key=lambda row: (row[field], row["id"]), reverse=sort.startswith("-"))
    assert [page["page_info"]["has_previous_page"] for page in pages] == [False] + [True] * (len(pages) - 1)
    assert [page["page_info"]["has_next_page"] for page in pages] == [True] * (len(pages) - 1) + [False]


@pytest.mark.parametrize("sort", ["id", "-updated_at"])
def test_walking_back_with_start_cursor_gives_the_same_pages(reader: Caller, sort: str) -> None:
    """Risk: `start_cursor` goes backward, not forward."""
    pages = list(reader.pages("/patients", **WHERE, per_page=6, sort=sort))
    last = pages[2]["page_info"]
    back = reader.get("/patients", **WHERE, per_page=6, sort=sort, start_cursor=last["start_cursor"]).json()
    assert back["data"] == pages[1]["data"]
    assert back["page_info"] == pages[1]["page_info"]


def test_cursors_are_url_safe_and_the_empty_one_starts(reader: Caller) -> None:
    """Risk: the vendor's sample puts cursors into a URL unescaped."""
    first = reader.get("/patients", **WHERE, end_cursor="", start_cursor="").json()
    assert re.fullmatch(r"[A-Za-z0-9_-]+", first["page_info"]["end_cursor"])
    assert first["data"] == reader.data("/patients", **WHERE)


@pytest.mark.parametrize("text", ["garbage", "AAAA", "%", "ÿ", "null"])
def test_a_cursor_that_is_none_is_refused(reader: Caller, text: str) -> None:
    """Risk: starting again at the first page on a bad cursor would double rows silently."""
    assert reader.errors("/patients", **WHERE, end_cursor=text) == (400, ["Invalid cursor"])


@pytest.mark.parametrize("other", [{"sort": "updated_at"}, {"location_id": SOUTH}, {"inactive": "true"}])
def test_a_cursor_of_another_query_is_refused(reader: Caller, other: dict[str, object]) -> None:
    """Risk: a resumed pass with other filters must notice."""
    cursor = reader.get("/patients", **WHERE).json()["page_info"]["end_cursor"]
    status, errors = reader.errors("/patients", **(WHERE | other), end_cursor=cursor)
    assert status == 400
    assert errors[0].startswith("Invalid cursor")
    assert reader.get("/patients", **WHERE, per_page=50, end_cursor=cursor).status_code == 200


def test_a_list_that_selects_nothing_is_an_empty_last_page(reader: Caller) -> None:
    """Risk: an empty collection is normal and has no cursors."""
    body = reader.get("/patients", **WHERE, updated_since="2100-01-01").json()
    info = {"has_previous_page": False, "has_next_page": False, "start_cursor": "", "end_cursor": ""}
    assert (body["data"], body["page_info"]) == ([], info)
    assert "count" not in body


def test_rows_that_change_under_a_walk_are_neither_lost_nor_doubled_by_id(caller: Caller) -> None:
    """Risk: with sort by id a deletion or creation elsewhere must not shift a page."""
    ids = [row["id"] for row in caller.walk("/patients", **WHERE)]
    pages = caller.pages("/patients", **WHERE, per_page=5)
    seen = [row["id"] for row in next(pages)["data"]]
    caller.server.state.delete("patients", ids[1])
    caller.server.state.update("patients", ids[8], {"first_name": "Moved"})
    new = caller.server.state.create("patients", subdomain=WILLOW, location_ids=[NORTH]).id
    seen += [row["id"] for page in pages for row in page["data"]]
    assert seen == [*ids, new]
