"""Envelopes and records, byte by byte."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexhealth_pipeline.catalog.collections import DECLARED
from nexhealth_pipeline.client import page as page_module
from nexhealth_pipeline.client.page import BodyMalformed, decode_envelope, records_of
from nexhealth_pipeline.client.split import split_envelope
from nexhealth_pipeline.client.words import ignored_parameters, says_ignored, vendor_words

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)
RECORDS = st.lists(st.dictionaries(st.text(max_size=4), VALUES, max_size=4), max_size=5)


@given(RECORDS, st.booleans(), st.booleans())
def test_cutting_by_brackets_gives_the_records_a_parser_gives(records, spaced, ascii_only):
    """The tolerant path must never cut inside a record."""
    separators = (" , ", " : ") if spaced else (",", ":")
    envelope = {"code": True, "error": ["],{"], "data": records, "page_info": {"data": [1], "has_next_page": False}}
    body = json.dumps(envelope, separators=separators, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    parts = split_envelope(body)
    assert parts is not None
    assert [json.loads(element) for element in parts.elements] == records
    assert json.loads(parts.rest) == envelope | {"data": None}


@pytest.mark.parametrize(
    "body", [b'{"data":[}', b'{"data":[{]}', b'{"data":[1', b"]", b"", b'{"code":true}', b'{"data":1}']
)
def test_brackets_that_do_not_match_are_no_envelope(body):
    assert split_envelope(body) is None


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b"<html>",
        b'{"code":true,"data":"text"}',
        b'{"code":true,"data":7}',
        b'{"code":1,"data":[]}',
        b'{"code":true,"data":[],"page_info":{"has_next_page":"no"}}',
        b'{"code":true,"data":[NaN],"count":NaN}',
        b'{"code":true,"data":[{"id":1}',
        b'\xff{"code":true,"data":[]}',
        b'{"code":true,"description":"a\xff","data":[]}',
        b'{"code":true,"data":[],"page_info":{"has_next_page":true,"end_cursor":"a\xff"}}',
    ],
)
def test_what_is_no_answer_is_malformed(body):
    with pytest.raises(BodyMalformed):
        decode_envelope(body)


def test_a_list_is_cut_in_one_walk(monkeypatch):
    """It is nearly every answer, and a walk over a page of a thousand records takes as long as all else with it."""
    monkeypatch.setattr(page_module, "_WIRE", None)
    found = decode_envelope(b'{"code":true, "data": [ {"id": 1} , null, [2] ],"count":3,"more":0}')
    assert (found.data, found.total, found.is_list) == ([b'{"id": 1}', b"null", b"[2]"], 3, True)


@pytest.mark.parametrize("data", [b"[]", b"[7]", b'{"id":7}', b"null", b'"text"'])
def test_of_data_given_twice_the_last_counts(data):
    """As any parser has it, whatever the first one was."""
    found = decode_envelope(b'{"code":true,"data":%s,"data":[{"id":1}]}' % data)
    assert (found.data, found.is_list) == ([b'{"id":1}'], True)


@pytest.mark.parametrize("data", [b"[{}]", b"{}", b"null", b"7"])
def test_what_a_refusal_brings_along_is_no_data(data):
    assert decode_envelope(b'{"code":false,"data":%s}' % data).data == []


@pytest.mark.parametrize("piece", range(1, 9))
def test_bytes_that_are_no_text_are_noticed_wherever_they_stand(monkeypatch, piece):
    """A page is looked at in pieces, whose edges may cut a character."""
    monkeypatch.setattr(page_module, "_PIECE", piece)
    assert not decode_envelope('{"code":true,"data":["aé€😀"]}'.encode()).garbled
    for spoilt in (b"\xff", b"\xe2\x82", b"\xf0\x9f\x98", b"\xed\xa0\x80"):
        found = decode_envelope(b'{"code":true,"data":[1,"' + spoilt + b'"]}')
        assert found.garbled
        assert found.data == [b"1", b'"' + spoilt + b'"']


def test_description_and_error_may_be_text_list_or_null():
    for text in ('"missing parameter"', '["missing parameter"]', "null", "[]", '[null, 3, "missing parameter"]'):
        body = f'{{"code":false,"error":{text},"description":[],"data":null}}'.encode()
        assert decode_envelope(body).words in ("missing parameter", "")


def test_an_end_cursor_may_be_a_number_or_null():
    for text, cursor in (("null", ""), ("17", "17"), ('"a="', "a=")):
        body = f'{{"code":true,"data":[],"page_info":{{"has_next_page":true,"end_cursor":{text}}}}}'.encode()
        assert decode_envelope(body).end_cursor == cursor


@pytest.mark.parametrize(
    ("inside", "found"),
    [(b'""', []), (b"null", []), (b'"x"', [b'"x"']), (b"false", [b"false"]), (b"[1]", [b"1"]), (b"{}", [b"{}"])],
)
def test_what_stands_in_a_record_for_a_list_is_a_record_unless_it_is_nothing(inside, found):
    """The encoder refuses it, with a note. Refused here, a patient whose address is a text failed the slice each night."""
    assert records_of(decode_envelope(b'{"code":true,"data":[{"id":1,"at":%s}]}' % inside), ("at",)) == found


def test_a_list_that_is_cut_within_a_record_is_malformed():
    with pytest.raises(BodyMalformed):
        records_of(decode_envelope(b'{"code":true,"data":["x"]}'), ("at",))


def test_a_line_s_end_within_a_text_is_the_fault_of_its_record():
    """Not of the page, which would be asked for again for ever, and those after it never."""
    envelope = decode_envelope(b'{"code":true,"data":[{"id":1,"a":"x\ny"},{"id":2}]}')
    assert envelope.data == [b'{"id":1,"a":"x\ny"}', b'{"id":2}']


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("Missing parameter start", "Missing parameter start"),
        ("Location with id 348511 not found", "Location with id … not found"),
        ("You don't have access to perform this action", "You don't have access to perform this action"),
        ("Anna O'Neil born 1990-01-02 has a@b.c", "… … born … has …"),
        ("Smith", ""),
        ("patient with name john smith, born in june, not found", "patient with name … … born in … not found"),
        ("may will and grace_smith not pass", "… … and … not …"),
        ("no access to perform this action", "no access to perform this action"),
        (
            "The include parameter is not supported by this endpoint and was ignored",
            "The include parameter is not supported by this endpoint and was ignored",
        ),
        ("Name has already been taken", "… has already been taken"),
        ("must be less than or equal to 1000", "must be less than or equal to …"),
        ("range cannot exceed 31 days", "range cannot exceed … days"),
        ("", ""),
    ],
)
def test_only_the_vendors_own_words_are_quoted(text, kept):
    assert vendor_words([text]) == kept


def test_the_names_of_parameters_that_are_sent_are_quoted():
    """A new collection's belong among the words."""
    sent = {
        "resource_type",
        "new_endpoint_id",
        "target_url",
        "subdomain",
        "location_id",
        "per_page",
        "end_cursor",
        "page",
    }
    for one in DECLARED:
        sent.update(name for pass_ in one.passes for name, _ in pass_.params)
        sent.update(filter(None, (one.increment, one.patient_filter, one.guarantor_filter)))
        sent.update((one.window.start, one.window.end) if one.window else ())
    for name in sorted(name for name in sent if not name.endswith("[]")):
        assert vendor_words([f"unknown parameter {name}"]) == f"unknown parameter {name}"


def test_quotes_are_short():
    assert len(vendor_words(["a word " * 1000])) == 200


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ("The `include` parameter is not supported by this endpoint and was ignored", {"include[]"}),
        ('Unknown parameter "Location_Strict"', {"location_strict"}),
        ("Ignored: active, location_strict", {"active", "location_strict"}),
        ("Ignored: inactive", set()),
        ("Ignored parameters: page, active and location_strict", {"active", "location_strict"}),
        ("location_strict was ignored", {"location_strict"}),
        ("include[] is not supported", {"include[]"}),
        ("The following parameters are not supported: location_strict, active", {"active", "location_strict"}),
        ("The active and location_strict parameters are no longer supported", {"active", "location_strict"}),
        ("Unrecognized parameter: active", {"active"}),
        ("location_strict was not recognised", {"location_strict"}),
        ("Unpermitted parameter: :active", {"active"}),
        ("found unpermitted parameters: :active, :include", {"active", "include[]"}),
        ("active is not a valid parameter", {"active"}),
        ("active param ignored", {"active"}),
        ("Ignoring parameter `active`", {"active"}),
        ("include, location_strict and active are ignored", {"location_strict"}),
        ("Ignoring active and location_strict", {"location_strict"}),
        ("Ignored query parameters - active", {"active"}),
        ("Parameters not allowed (active, include[])", {"active", "include[]"}),
        ("location_strict: not permitted", {"location_strict"}),
        ("active has no effect on this endpoint", set()),
        ("location_strict has no effect on this endpoint", {"location_strict"}),
        ("The active parameter has no effect on this endpoint", {"active"}),
        ("`active` isn't supported here", {"active"}),
        ("Inactive providers are ignored unless active is set", set()),
        ("The page parameter is ignored; use end_cursor to page active records", set()),
        ("Rows with an unknown location_strict are left out", set()),
        ("1,000 active patients", set()),
        ("Patients that are not active are not allowed in this list", set()),
        ("Not supported: active recalls of a location", set()),
        ("Some parameters were ignored", set()),
        ("Ignored parameter(s): active", {"active"}),
        ("Unrecognized parameter(s): active", {"active"}),
        ("Ignored: active=true", {"active"}),
        ("Ignored: location_strict=false, active=true", {"active", "location_strict"}),
        ("ignored_parameters: active", {"active"}),
        ("The parameter active is no longer supported", {"active"}),
        ("'active' and 'include[]' are not valid", {"active", "include[]"}),
        ("active: no longer supported", {"active"}),
        ("Requests without the location_strict parameter are no longer accepted.", set()),
        ("Requests with the location_strict parameter are no longer accepted.", set()),
        ("API v2 is no longer supported. The `location_strict` parameter will be required.", set()),
        ("The page parameter is ignored. Send the active parameter", set()),
        ("Values other than true and false are not allowed for the active parameter.", set()),
        ("This list ignores active and no-show appointments", set()),
        ("Reports ignore active, deleted and merged providers", set()),
        ("Ignored: active, deleted and merged providers", set()),
        ("Ignored active and no-show appointments", set()),
        ("Parameters other than `active` are ignored", set()),
        ("The ignore_past_dates parameter goes with active", set()),
        ("", set()),
    ],
)
def test_parameters_that_an_answer_did_not_heed_are_found_by_name(said, found):
    """However they are quoted; what the vendor says besides names none."""
    assert ignored_parameters([said], ["include[]", "active", "location_strict"]) == found


@pytest.mark.parametrize(
    ("said", "means"),
    [
        ("ignored_parameters: active", True),
        ("The … parameter was ignored", True),
        ("The … parameter is no longer supported", True),
        ("Some params are not accepted", True),
        ("patient_id is not accepted", True),
        ("Not a valid parameter: …", True),
        ("Parameters other than page are ignored", True),
        ("Some phone numbers are not valid", False),
        ("v2 is no longer supported", False),
        ("Requests without the location_id parameter are no longer accepted", False),
        ("Requests with the location_id parameter are no longer accepted", False),
        ("Values other than true and false are not allowed for the active parameter", False),
        ("This list ignores cancelled appointments", False),
        ("The ignore_past_dates parameter hides past hours", False),
        ("Faxes are no longer accepted. See the list of parameters", False),
    ],
)
def test_only_what_is_said_of_parameters_says_that_one_was_passed_over(said, means):
    """Risk: a notice of anything ends every read with a filter for as long as the vendor prints it."""
    assert says_ignored(said) is means


def test_what_an_answer_says_is_not_shown():
    """It may quote what was asked for."""
    found = decode_envelope(b'{"code":true,"description":"Ignored name Anna","data":[]}')
    assert (found.words, "Anna" in repr(found)) == ("Ignored name \u2026", False)
    assert decode_envelope(b'{"code":false,"error":["Ignored"],"data":[]}').description == ()
