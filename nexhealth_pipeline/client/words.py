"""The vendor's own words out of an error text, without what may be a record's value.

An API error can quote what was asked for or found: a name, a birthday, an address. What helps the
reader is the vendor's fixed sentence ("Missing parameter start", "Location with id ... not
found"). So only words stay that such sentences are made of, for a name may be written small as well, and
a few capitalised ones with which they begin. An answer that succeeded may say in such words that it
ignored a parameter (API.md C.1); names of parameters that were sent are nobody's data.
"""

import re
from collections.abc import Iterable, Mapping
from functools import cache

__all__ = ["ignored_parameters", "says_ignored", "vendor_words"]

_LONGEST = 200
"""Characters kept; the vendor's known sentences have fewer than 100 (API.md A.4)."""
_PASSED_OVER = r"(?:\bignor(?:ed|ing)(?![^\W_])|\bun(?:known|supported|permitted|recogni[sz]ed)\b|\binvalid\b)"
"""Words for what was asked in vain; `ignored_parameters` is one as well."""
_CLEAR = rf"(?:{_PASSED_OVER}|(?:\bnot|n't) (?:supported|recogni[sz]ed|permitted)\b)"
_VERDICT = (
    rf"(?:{_CLEAR}|\bno effect\b|(?:\bnot|n't) (?:an? )?(?:allowed|accepted|valid)\b"
    r"|\bno longer (?:supported|recogni[sz]ed|permitted|allowed|accepted|valid)\b)"
)
"""Those that are not clear are said of anything (`API v2 is no longer supported`): only a parameter's own counts."""
_PARAMETER, _S = r"(?<![^\W_])(?:query )?param(?:eter)?", r"(?:s|\(s\))?"
_IS = r":? ?(?:is|was|has|has been|will be)? ?"
_ARE = r":? ?(?:are|were|have|have been|will be)? ?"
"""Told apart: in `Requests with that parameter are no longer accepted` the parameter is not what is refused."""
_PARAMETERS_ARE = rf"{_PARAMETER}(?:{_IS}|(?:s|\(s\)){_ARE})"
_QUOTE, _VALUE = "[\"'`]", r"(?:=[^\s,;)]*)?"
_WORD = r"[\w\[\]]{1,60}"
_BETWEEN, _NAMED = "(?:, (?:and )?| and )", rf":?{_QUOTE}?{_WORD}{_QUOTE}?{_VALUE}"
_BEFORE, _AFTER = f"(?:{_NAMED}{_BETWEEN})*", f"(?:{_BETWEEN}{_NAMED})*"
"""Other parameters in a list of them; Rails writes each with a colon."""
_LEADS_TO, _END = r"[\s:(\[-]+", r"(?=\s*(?:[.;)\]]|$))"
_BY_VERDICT = (
    rf"ANY{_AFTER} {_PARAMETERS_ARE}{_VERDICT}",
    rf"{_PARAMETER}{_S}{_LEADS_TO}{_BEFORE}ANY(?:{_IS}|{_AFTER}{_ARE}){_VERDICT}",
    rf"ANY(?:{_IS}|{_AFTER}{_ARE}){_VERDICT} {_PARAMETER}",
    rf"SURE{_IS}{_VERDICT}",
    rf"(?:SURE{_BETWEEN}{_BEFORE}{_NAMED}|{_NAMED}{_BETWEEN}SURE){_ARE}{_VERDICT}",
    rf"{_PARAMETERS_ARE}{_VERDICT}(?:: | ?[(\[]){_BEFORE}ANY{_AFTER}{_END}",
    rf"{_VERDICT} {_PARAMETER}{_S}{_LEADS_TO}{_BEFORE}ANY",
)
"""How a sentence says it of a parameter: ANY stands for its name, SURE for one that is no word of any sentence."""
_BESIDE_CLEAR = (
    "QUOTED",
    rf"ANY{_AFTER} {_PARAMETER}",
    rf"{_PARAMETER}{_S}{_LEADS_TO}{_BEFORE}ANY",
    rf"{_PASSED_OVER}(?:{_LEADS_TO}{_BEFORE}SURE|: ?{_BEFORE}ANY){_AFTER}{_END}",
)
"""How one with a clear verdict names a parameter, wherever the verdict stands."""
_FORMS = {
    "ANY": rf"(?!(?:is|are|was|were|has|have|will)\b){_NAMED}",
    "SURE": rf"(?:{_QUOTE}{_WORD}{_QUOTE}|\b[^\W_]{{1,30}}_\w{{1,30}}|\b\w{{1,60}}\[\])",
}
"""Of a parameter whose name is not known."""
_SENTENCES = re.compile(r"[.;]\s+")
_BUT = re.compile(r"\b(?:without|unless|except|other than)\b[^,]*", re.IGNORECASE)
"""Of what it is not said."""
_WORDS = (
    # What any sentence has; not `may` and `will`, which are names.
    """a about after again all alone already also an and another any are aren't as at be because been before being
    between born both but by can can't cannot could did didn't do does doesn't don't each either else except for from given
    had has hasn't have haven't here how if in into is isn't it its last least left less like longer many missing more
    most must need needs neither no nor not nothing of on once one only or other others out over own per please same
    set should since some such than that the their them then there these they this those to too under unless until up
    use used uses using was wasn't we were what when where whether which who with within without won't would you your
    """
    # What is said of a request and its answer.
    """accept accepted accepts access account action address allowed api array ask asked authenticate authentication
    application assigned associated authorization authorized bad belong belongs blank body boolean cancelled characters
    closed configured connected connection contact contain contains content correct create created credentials cursor data
    date dates day days deactivated default deleted denied deprecated disabled duplicate effect empty enable enabled endpoint endpoints enough equal error errors event events exceed exceeded
    exist exists expected expired failed false field fields filter filters find following forbidden format found gateway get
    greater header headers hour hours ids ignore ignored ignores ignoring include included includes integer internal invalid json key
    integration later limit limits list lists maintenance malformed match matches maximum method minimum minutes month months number numbers object
    occurred offered omitted order overloaded page pages param parameter parameters params parsed past path perform permission permissions
    permitted possible post present processed product provide provided query quota range rate reach reached read
    recognised recognized record records refresh refused removed request requested requests require required requires
    resource resources response retry returned revoked route row rows schema scope seconds see send sent server service
    short single size soon support supported sync taken temporarily time timed timeout timestamp token tokens true try type unable
    unauthorized unavailable unexpected unknown unpermitted unprocessable unrecognised unrecognized unsupported updated
    url valid value values version window write wrong yet zone
    """
    # What it may be about.
    """adjustment adjustments alert alerts appointment appointments availability charge charges claim claims clinic
    coverage coverages document documents fee finance guarantor institution institutions insurance ledger location
    locations name names office offices operatories operatory patient patients payment payments phone plan plans
    practice practices procedure procedures provider providers recall recalls schedule slots subdomain subdomains
    subscription subscriptions treatment types webhook webhooks
    """
    # Parameters that are sent (`catalog`, `client.client`).
    """active appointment_id end end_cursor guarantor_id id ignore_past_dates ignored_parameters inactive include_deleted
    include_disabled institution_id location_id location_strict new_endpoint_id patient_id per_page provider_id
    resource_type show_zero_balances sort start target_url updated_since
    """
)
_VOCABULARY = frozenset(_WORDS.split())
"""Of words written small, those that stay."""
_PLAIN = re.compile(r"([a-z][a-z_']{0,23})[,.:;]?")
_BEGINNINGS = frozenset(
    [
        "Access",
        "Bad",
        "Ignored",
        "Ignoring",
        "Invalid",
        "Include",
        "Location",
        "Missing",
        "No",
        "Not",
        "Parameter",
        "Please",
        "Subdomain",
        "The",
        "Too",
        "Unauthorized",
        "Unknown",
        "Unpermitted",
        "Unrecognised",
        "Unrecognized",
        "Unsupported",
        "You",
    ]
)


def _compiled(ways: Iterable[str], forms: Mapping[str, str]) -> re.Pattern[str]:
    """Any of the ways, the names in them in these forms."""
    filled = (re.sub("QUOTED|SURE|ANY", lambda one: forms[one[0]], way) for way in ways)
    return re.compile("|".join(filled), re.IGNORECASE)


_SAYS_CLEARLY = _compiled([_CLEAR], {})
_SAYS_OF_ONE = _compiled([rf"{_PARAMETERS_ARE}{_VERDICT}", rf"{_VERDICT} {_PARAMETER}", *_BY_VERDICT], _FORMS)


def vendor_words(texts: Iterable[str]) -> str:
    """The texts, joined and reduced; "" where nothing is left."""
    return "; ".join(filter(None, (_reduced(text) for text in texts)))[:_LONGEST]


def says_ignored(text: str) -> bool:
    """Whether the words of an answer that succeeded mean that something asked for was passed over."""
    return any(
        _SAYS_CLEARLY.search(sentence) or _SAYS_OF_ONE.search(_BUT.sub("", sentence)) for sentence in _sentences(text)
    )


def ignored_parameters(texts: Iterable[str], names: Iterable[str]) -> frozenset[str]:
    """Those of the parameters sent that the texts of an answer that succeeded name as passed over."""
    said = [_BUT.sub("", sentence) for text in texts for sentence in _sentences(text)]
    return frozenset(name for name in names if any(_names(sentence, name) for sentence in said))


def _sentences(text: str) -> list[str]:
    """A verdict in one is about nothing that the next one names."""
    return _SENTENCES.split(text[: 5 * _LONGEST])


def _names(sentence: str, parameter: str) -> bool:
    """Whether the sentence names it as a parameter: `active` and `page` are words of any sentence as well."""
    by_verdict, beside_clear = _patterns(parameter)
    if by_verdict.search(sentence):
        return True
    return _SAYS_CLEARLY.search(sentence) is not None and beside_clear.search(sentence) is not None


@cache
def _patterns(parameter: str) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """The ways to name it, with a verdict of its own and beside a clear one."""
    name = re.escape(parameter.removesuffix("[]"))
    quoted = rf"{_QUOTE}{name}(?:\[\])?{_QUOTE}"
    plain = rf"(?<![\w-]):?{name}(?:\[\])?(?![\w\[-]){_VALUE}"
    sure = plain if "_" in parameter else rf"(?<![\w-]):?{name}\[\]"
    forms = {"QUOTED": quoted, "SURE": f"(?:{quoted}|{sure})", "ANY": f"(?:{quoted}|{plain})"}
    return _compiled([*_BY_VERDICT, rf"ANY: ?{_VERDICT}"], forms), _compiled(_BESIDE_CLEAR, forms)


def _reduced(text: str) -> str:
    words = text[: 5 * _LONGEST].split()
    kept = [word if _is_vendors(word) else "…" for word in words]
    return "" if set(kept) <= {"…"} else " ".join(kept)


def _is_vendors(word: str) -> bool:
    plain = _PLAIN.fullmatch(word)
    return word in _BEGINNINGS if plain is None else plain[1] in _VOCABULARY
