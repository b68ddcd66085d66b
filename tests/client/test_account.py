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


def test_a_page_whose_elements_hold_none_of_the_records_may_have_a_next_one():
    """Institutions without locations are no empty page; that it ends is seen by the cursor, and only with one."""
    pages = page("", "c1", more=True), page("r", "c2", more=True)
    nested = PageAccount(Paging.NONE, "", records_at=("locations",))
    assert read(nested, *pages) == [None, None]
    assert nested.problem(page("", "c1", more=True)) == "the cursor leads back to a page already read"
    assert read(nested, page("", "c3", more=True)) == [None]
    assert nested.problem(page("", "c4", more=True)) == "an empty page claims that more follow", "new cursors for ever"
    assert nested.problem(page("", more=True)) == "an empty page claims that more follow"
    assert PageAccount(Paging.NONE, "").problem(pages[0]) == "an empty page claims that more follow"


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


def wide_page(**changed: str) -> list[bytes]:
    """A thousand records with ids, some of them (`r7`) with another version."""
    return [
        b'{"id": %d, "updated_at": "%s"}' % (number, changed.get(f"r{number}", "t").encode()) for number in range(1000)
    ]


def test_a_few_records_stand_for_a_wide_page():
    """A page that comes again while one of its records changes is a repeated page none the less."""
    assert fingerprint(wide_page(r7="u")) == fingerprint(wide_page())


def test_a_wide_page_is_told_by_its_edges_and_its_length():
    """Neighbouring pages, a shifted one and a short one are others."""
    pages = [wide_page(), wide_page(r0="u"), wide_page(r999="u"), wide_page()[1:], wide_page()[:-1]]
    middle = [wide_page()[:500], wide_page()[500:], [*wide_page()[:400], *wide_page()[401:]]]
    assert len({fingerprint(one) for one in [*pages, *middle]}) == len(pages) + len(middle)


def test_every_record_of_a_short_page_counts():
    short = wide_page()[:16]
    others = [[*short[:place], b'{"id": -1}', *short[place + 1 :]] for place in range(len(short))]
    assert len({fingerprint(one) for one in [short, *others]}) == len(short) + 1


def test_where_a_record_has_no_id_all_count():
    """Records without an id may be equal: two pages may have the few looked at in common and be different ones."""
    nameless = [b'{"amount": 1}'] * 1000
    assert fingerprint(nameless) != fingerprint([*nameless[:7], b'{"amount": 2}', *nameless[8:]])
    mixed = [b'{"amount": 1}', *wide_page()]
    assert fingerprint(mixed) != fingerprint([b'{"amount": 1}', *wide_page(r7="u")])
