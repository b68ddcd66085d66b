"""Lists about everything a key reaches, asked once for each API key (institutions may have keys of their own).

A key that was revoked, or may no longer do this, spoils its own institutions and nobody else's.
"""

from collections.abc import Iterator
from dataclasses import replace

from nexhealth_pipeline.client.client import NexHealthClient
from nexhealth_pipeline.client.page import Page
from nexhealth_pipeline.client.request import ApiRequest
from nexhealth_pipeline.errors import ApiError, KeyRefused, MissingSetting, NoAccess
from nexhealth_pipeline.sync.slices import SliceResult

__all__ = ["pages_of_every_key", "was_read_for"]


def pages_of_every_key(client: NexHealthClient, request: ApiRequest) -> Iterator[Page]:
    """The pages of `request` with each key.

    Where keys are refused, the pages of the others come first, all saying that more follows, so that nobody
    takes them for the whole; then the refusals are raised as one. Raises ApiError.
    """
    pages: list[Page] = []
    refusals: dict[str, ApiError] = {}
    names = client.key_names()
    for name in names:
        try:
            pages += client.pages(replace(request, key_name=name))
        except (KeyRefused, NoAccess) as refusal:
            if len(names) == 1:
                raise
            refusals[name] = refusal
    for page in pages:
        yield replace(page, has_next=page.has_next or bool(refusals))
    if refusals:
        raise _as_one(refusals)


def was_read_for(client: NexHealthClient, result: SliceResult, subdomain: str) -> bool:
    """Whether a list that failed was read with the key of this institution: only others' keys were refused."""
    if not result.refused_keys:
        return False
    try:
        mine = client.key_hash(subdomain)
    except MissingSetting:  # its line is no more in the file
        return False
    return mine not in {client.key_hash(name) for name in result.refused_keys}


def _as_one(refusals: dict[str, ApiError]) -> ApiError:
    """An error that names each key by its institution, and carries what all of them cost."""
    first = next(iter(refusals.values()))
    texts = [f"{f'the key of {name}' if name else 'NEXHEALTH_API_KEY'}: {one}" for name, one in refusals.items()]
    error = type(first)("; ".join(texts), status=first.status)
    error.refused_keys = frozenset(refusals)
    for one in refusals.values():
        error.charge(one)
    return error
