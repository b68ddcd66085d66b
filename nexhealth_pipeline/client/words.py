"""The vendor's own words out of an error text, without what may be a record's value.

An API error can quote what was asked for or found: a name, a birthday, an address. What helps the
reader is the vendor's fixed sentence ("Missing parameter start", "Location with id ... not
found"). So only lower-case words stay, and
a few capitalised ones with which such sentences begin. An answer that succeeded may say in such words that it
ignored a parameter (API.md C.1); names of parameters that were sent are nobody's data.
"""

import re
from collections.abc import Iterable

__all__ = ["ignored_parameters", "says_ignored", "vendor_words"]

_LONGEST = 200
"""Characters kept; the vendor's known sentences have fewer than 100 (API.md A.4)."""
_VERDICT = (
    r"(?:ignor(?:ed?|es|ing)\b|un(?:known|supported|permitted|recogni[sz]ed)|invalid|no effect"
    r"|(?:not|n't|no longer) (?:an? )?(?:supported|recogni[sz]ed|permitted|allowed|accepted|valid))"
)
_IGNORED = re.compile(_VERDICT, re.IGNORECASE)
_BETWEEN, _NAMED = "(?:, (?:and )?| and )", r":?[\w\[\]]+"
_BEFORE, _AFTER = f"(?:{_NAMED}{_BETWEEN})*", f"(?:{_BETWEEN}{_NAMED})*"
"""Other parameters in a list of them; Rails writes each with a colon."""
_LEADS_TO = r"[\s:(\[-]+"
_AS_PARAMETER = (
    r"[\"'`]NAME[\"'`]",
    rf"\bNAME{_AFTER} (?:query )?param(?:eter)?s?\b",
    rf"\bparam(?:eter)?s?{_LEADS_TO}{_BEFORE}:?NAME(?!\w)",
    rf"\bNAME:? ?(?:is|was|were|has|has been|will be)? ?{_VERDICT}",
    rf"\bNAME{_BETWEEN}{_BEFORE}{_NAMED} (?:are|were) {_VERDICT}",
    rf"{_NAMED}{_BETWEEN}NAME are {_VERDICT}",
    rf"{_VERDICT}{_LEADS_TO}{_BEFORE}:?NAME(?=[,.;)\]]|$| and )",
)
"""How a sentence names a parameter."""
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


def vendor_words(texts: Iterable[str]) -> str:
    """The texts, joined and reduced; "" where nothing is left."""
    return "; ".join(filter(None, (_reduced(text) for text in texts)))[:_LONGEST]


def says_ignored(text: str) -> bool:
    """Whether the words of an answer that succeeded mean that something asked for was passed over."""
    return _IGNORED.search(text) is not None


def ignored_parameters(texts: Iterable[str], names: Iterable[str]) -> frozenset[str]:
    """Those of the parameters sent that the texts of an answer that succeeded name as passed over."""
    said = [text for text in texts if says_ignored(text)]
    return frozenset(name for name in names if said and any(_names(text, name) for text in said))


def _names(text: str, parameter: str) -> bool:
    """Whether the text names it as a parameter: `active` and `page` are words of any sentence as well."""
    name = re.escape(parameter.removesuffix("[]")) + r"(?:\[\])?"
    return any(re.search(one.replace("NAME", name), text[: 5 * _LONGEST], re.IGNORECASE) for one in _AS_PARAMETER)


def _reduced(text: str) -> str:
    words = text[: 5 * _LONGEST].split()
    kept = [word if _PLAIN.fullmatch(word) or word in _BEGINNINGS else "…" for word in words]
    return "" if set(kept) <= {"…"} else " ".join(kept)
