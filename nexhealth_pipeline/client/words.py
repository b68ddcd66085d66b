"""The vendor's own words out of an error text, without what may be a record's value.

An API error can quote what was asked for or found: a name, a birthday, an address. What helps the
reader is the vendor's fixed sentence ("Missing parameter start", "Location with id ... not
found"). So only lower-case words stay, and
a few capitalised ones with which such sentences begin. An answer that succeeded may say in such words that it
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
_PLAIN = re.compile(r"[a-z][a-z_']{0,23}[,.:;]?")
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
    kept = [word if _PLAIN.fullmatch(word) or word in _BEGINNINGS else "…" for word in words]
    return "" if set(kept) <= {"…"} else " ".join(kept)
