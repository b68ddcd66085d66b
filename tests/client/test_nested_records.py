"""Records that lie inside the answer's elements: descended into, and told apart from another answer."""

import json
from dataclasses import replace

import pytest

from nexhealth_pipeline.catalog.paging import Paging
from nexhealth_pipeline.client.request import ApiRequest
from nexhealth_pipeline.errors import ServerFailed
from tests.client.stub import envelope

SINGLE = ApiRequest("/patients/7", (), "demo", Paging.ONE)


def ids(pages):
    return [json.loads(record)["id"] for page in pages for record in page.records]


def test_nested_lists_are_exploded_where_the_request_says_so(client, stub):
    institutions = [{"id": 1, "locations": [{"id": 10}, {"id": 11}]}, {"id": 2, "locations": None}, {"id": 3}]
    stub.script(envelope(institutions, count=3))
    page = client.get(ApiRequest("/locations", records_at=("locations",)))
    assert ids([page]) == [10, 11]
    assert page.total == 3


def test_a_list_that_comes_without_what_it_was_to_be_nested_in_holds_the_records_themselves(client, stub):
    """Risk: locations answered by themselves are no location at all, and a sync of nothing ends with 0."""
    asked = ApiRequest("/locations", records_at=("locations",))
    stub.script(envelope([{"id": 10, "institution_id": 1}, {"id": 11, "institution_id": 1}]))
    assert ids([client.get(asked)]) == [10, 11]
    mixed = [{"id": 10, "institution_id": 1}, {"id": 1, "locations": [{"id": 12, "institution_id": 1}]}]
    stub.script(envelope(mixed))
    assert ids([client.get(asked)]) == [10, 12]
    stub.script(envelope([]))
    assert client.get(asked).records == []


def test_a_list_whose_elements_neither_hold_the_records_nor_are_some_is_another_answer(client, stub):
    for wrong in (
        [{"id": 1, "offices": [{"id": 10}]}, {"id": 2}],
        [{"id": 1, "subdomain": "a", "offices": [{"id": 10}]}],
    ):
        stub.script(*[envelope(wrong)] * 20)
        with pytest.raises(ServerFailed, match="neither hold the records asked for nor are some"):
            client.get(ApiRequest("/locations", records_at=("locations",)))


@pytest.mark.parametrize(("wrong", "words"), [({"status": "ok"}, "an object"), (None, "null")])
def test_what_is_no_list_is_told_as_such(client, stub, wrong, words):
    stub.script(*[envelope(wrong)] * 20)
    with pytest.raises(ServerFailed, match=f"no NexHealth answer: {words} where a list belongs"):
        client.get(ApiRequest("/locations", records_at=("locations",)))


def test_an_institution_that_comes_without_the_key_of_its_locations_has_none(client, stub):
    stub.script(envelope([{"id": 1, "name": "A", "subdomain": "a", "emrs": ["x"], "phone_number": None}]))
    assert client.get(ApiRequest("/locations", records_at=("locations",))).records == []


def test_a_page_of_institutions_without_locations_is_followed_to_the_next(client, stub):
    """Should they come in pages one day: the first page's may be all new ones."""
    pages = {
        "": envelope([{"id": 1, "locations": []}], page_info={"has_next_page": True, "end_cursor": "c"}),
        "c": envelope([{"id": 2, "locations": [{"id": 12}]}], page_info={"has_next_page": False}),
    }
    stub.answer = lambda seen: pages[seen.query.get("end_cursor", "")]
    assert ids(client.pages(ApiRequest("/locations", records_at=("locations",)))) == [12]


def test_one_thing_may_lack_what_lies_in_it(client, stub):
    """A patient without an address, whose key is left out then, is no failure."""
    stub.script(envelope({"id": 7, "institution_id": 1}))
    assert client.get(replace(SINGLE, records_at=("address",))).records == []
