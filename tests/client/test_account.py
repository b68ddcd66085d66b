"""Page accounting without a server: what a pass must remember."""

from datetime import UTC, datetime

from nexhealth_pipeline.catalog.paging import Paging
from nexhealth_pipeline.client import account as account_module
from nexhealth_pipeline.client.account import PageAccount, fingerprint
from nexhealth_pipeline.client.page import Page


def page(content: str, cursor: str = "", *, more: bool = False) -> Page:
    records = [content.encode()] if content else []
    now = datetime(2026, 1, 1, tzinfo=UTC)
    return Page(1, records, cursor, more, now, 1, 0, 0.0, 10, None, None, fingerprint(records))


def read(account: PageAccount, *pages: Page) -> list[str | None]:
    problems = []
    for one in pages:
        problems.append(account.problem(one))
        account.accept(one)
    return problems


def test_a_long_loop_of_cursors_is_noticed_where_it_closes():
    pages = [page(f"r{n}", f"c{n}", more=True) for n in range(500)]
    assert set(read(PageAccount(Paging.CURSOR, ""), *pages)) == {None}
    account = PageAccount(Paging.CURSOR, "")
    read(account, *pages)
    assert account.problem(page("new", "c3", more=True)) == "the cursor leads back to a page already read"


def test_the_cursor_a_pass_resumed_from_counts_as_seen():
    account = PageAccount(Paging.CURSOR, "c4")
    read(account, page("r5", "c5", more=True))
    assert account.problem(page("r6", "c4", more=True)) is not None


def test_an_empty_last_page_is_fine():
    assert read(PageAccount(Paging.CURSOR, ""), page("r", "c", more=True), page("", "c")) == [None, None]


def test_a_judged_page_may_be_judged_again():
    """A second look at the same place must not call it a repetition."""
    account = PageAccount(Paging.CURSOR, "")
    good = page("r", "c", more=True)
    assert account.problem(good) is None
    assert account.problem(good) is None


def test_memory_is_bounded(monkeypatch):
    monkeypatch.setattr(account_module, "_REMEMBERED", 10)
    account = PageAccount(Paging.CURSOR, "")
    read(account, *(page(f"r{n}", f"c{n}", more=True) for n in range(100)))
    assert len(account._seen._order) == len(account._seen._members) == 20
    assert account.problem(page("new", "c99", more=True)) is not None


def test_the_same_records_written_differently_are_a_repeated_page():
    """Risk: another escaping, or a field that moves with every answer, hides that rows are missing."""
    first = [b'{"id": 1, "updated_at": "t", "name": "\\u00e9"}', b'{"id": 2}']
    second = [b'{"name": "x", "updated_at": "t", "id": 1}', b'{"id": 2, "now": 7}']
    assert fingerprint(first) == fingerprint(second)
    assert fingerprint(first) != fingerprint([b'{"id": 1, "updated_at": "u"}', b'{"id": 2}'])


def test_a_page_read_by_an_earlier_run_is_known_again():
    """Risk: each resumed run commits the repeated page once more, until the list looks complete."""
    account = PageAccount(Paging.CURSOR, "c2", [page(name, more=True).fingerprint for name in ("r0", "r1")])
    assert account.problem(page("r0", "c3", more=True)) == "the page repeats one already read"
