"""What an answer that succeeded says it did not heed (API.md C.1): told once, and refused where rows would be wrong.

The vendor's descriptions are mostly harmless, and an unknown parameter alone is no failure. But a list that was not
narrowed, or not opened to what it hides by default, looks like a complete one: patients would be noted at offices that
do not list them, and what is hidden would be marked as gone.
"""

import logging
from collections.abc import Iterable

from nexhealth_pipeline.client.page import Page
from nexhealth_pipeline.client.words import says_ignored
from nexhealth_pipeline.errors import BadRequest
from nexhealth_pipeline.sync.filters import Filters
from nexhealth_pipeline.sync.plan import PassPlan

__all__ = ["Heed"]

_log = logging.getLogger(__name__)


class Heed:
    """Looks at the answers of one slice as they come."""

    def __init__(self, label: str, filters: Filters) -> None:
        self._label, self._filters = label, filters
        self._told: set[tuple[str, str]] = set()

    def require(self, plan: PassPlan, pages: Iterable[Page]) -> None:
        """Raise BadRequest for an answer that says that it did not heed what its rows depend on."""
        for page in pages:
            if page.warning is not None or page.ignored:
                # Where none of its words can be shown, the names that were sent can.
                words = page.warning or f"ignored {', '.join(sorted(page.ignored))}"
                self._tell(plan, words)
                self._require(plan, page, words)

    def _tell(self, plan: PassPlan, warning: str) -> None:
        said = (plan.pass_.name, warning)
        if said not in self._told:
            self._told.add(said)
            told = {"slice": self._label, "pass": plan.pass_.name, "api": warning}
            level = logging.WARNING if says_ignored(warning) else logging.INFO
            _log.log(level, "the API says something of its answer", extra={"nexhealth": told})

    def _require(self, plan: PassPlan, page: Page, warning: str) -> None:
        if not says_ignored(warning) and not page.ignored:
            return
        if self._filters:
            asked = f"asked by {self._filters.in_words()}"
        elif lost := sorted(page.ignored & _needed(plan)):
            asked = f"asked with {' and '.join(lost)}"
        elif plan.pass_.membership and not page.ignored and "param" in warning:
            asked = "asked whom the location lists"
        else:
            return
        raise BadRequest(
            f"{self._label}: {asked}, but NexHealth says that it did not heed every parameter"
            f' ("{warning}"): nothing of that answer was loaded'
        )


def _needed(plan: PassPlan) -> frozenset[str]:
    """Parameters without which the answer is another one."""
    fixed = {name for name, _ in plan.pass_.params} - {*plan.pass_.dispensable}
    return frozenset(fixed | {"location_id"})
