"""How NexHealth hands out a list (API.md D)."""

from enum import StrEnum

__all__ = ["Paging"]


class Paging(StrEnum):
    """How the pages of one list follow each other."""

    CURSOR = "cursor"
    """`page_info.end_cursor` goes into the next request."""
    NONE = "none"
    """One answer holds everything."""
    PAGE = "page"
    """`page` counts up from 1 (nex_staff only)."""
