"""How NexHealth hands out a list (API.md D)."""

from enum import StrEnum

__all__ = ["MOST_A_PAGE", "Paging"]


class Paging(StrEnum):
    """How the pages of one list follow each other."""

    CURSOR = "cursor"
    """`page_info.end_cursor` goes into the next request."""
    NONE = "none"
    """One answer holds the whole list."""
    ONE = "one"
    """The answer is the one object whose id ends the path."""
    PAGE = "page"
    """`page` counts up from 1 (nex_staff only)."""


MOST_A_PAGE: dict[Paging, int] = {Paging.CURSOR: 1000, Paging.NONE: 1000, Paging.ONE: 1, Paging.PAGE: 300}
"""Most records a page holds (API.md D.1, D.2); we always ask for so many, because requests are what is scarce."""
