"""Every exception this package raises on purpose, grouped by what the caller should do.

    PipelineError
    |-- ConfigurationError       correct a setting or the command line, then run again     (exit 2)
    |   |-- MissingSetting
    |   `-- InvalidSetting
    |-- ApiError                 NexHealth could not be read                                (exit 3)
    |   |-- KeyRefused           401 that a new token did not cure: correct the API key
    |   |-- NoAccess             403: ask the vendor, or correct the subdomain
    |   |-- NotFound             404: the thing is gone, or was never reachable
    |   |-- BadRequest           400, 501 and other refusals: the request itself is wrong
    |   |   `-- CursorExpired    400, 404, 410 or 422 to a request that went on from a cursor: begin that pass again
    |   |-- TryLater             every retry was used up: run again later
    |   |   |-- Unreachable      no connection, or no answer in time
    |   |   |-- ServerFailed     5xx, or an answer that is no NexHealth answer
    |   |   `-- RateLimited      429 for longer than the client waits
    |   `-- ProtocolBroken       the answer contradicts the paging contract: report it
    |-- RecordRefused            one record cannot be loaded: it goes to quarantine
    |-- WarehouseError           the database could not be used                             (exit 4)
    |   |-- WarehouseUnreachable
    |   |-- WarehouseOutdated    run `nexhealth db upgrade`
    |   |-- WarehouseNewer       install a newer nexhealth_pipeline
    |   |-- WarehouseRefused     it holds the other kind of data (sandbox or real)
    |   |-- MissingRights        grant what the message names
    |   |-- ClocksDiffer         the database's and this host's: set the wrong one right
    |   |-- ValueRefused         a column cannot hold a value: leave that row out, the others can be written
    |   |-- ChangesGone          the change feed does not go back so far: read the tables anew
    |   `-- BudgetUnavailable    the shared rate budget cannot be asked: nothing is sent
    `-- Cancelled                the user asked to stop; the last page is committed         (exit 130)

Messages name the thing, the value and the fix. They never hold a record's values, a secret or a
driver's text: NexHealth's numeric ids, collection and field names only.
"""

from typing import ClassVar

__all__ = [
    "ApiError",
    "BadRequest",
    "BudgetUnavailable",
    "Cancelled",
    "ChangesGone",
    "ClocksDiffer",
    "ConfigurationError",
    "CursorExpired",
    "InvalidSetting",
    "KeyRefused",
    "MissingRights",
    "MissingSetting",
    "NoAccess",
    "NotFound",
    "PipelineError",
    "ProtocolBroken",
    "RateLimited",
    "RecordRefused",
    "ServerFailed",
    "TryLater",
    "Unreachable",
    "ValueRefused",
    "WarehouseError",
    "WarehouseNewer",
    "WarehouseOutdated",
    "WarehouseRefused",
    "WarehouseUnreachable",
]


class PipelineError(Exception):
    """Base of all errors raised on purpose; `exit_status` is what the command line ends with.

    The counters say what the failed read cost before it ended, so that the sync log's sums stay
    right: requests sent, of these repeats, seconds spent waiting for the rate budget or after a
    429, bytes of answers received.
    """

    exit_status: ClassVar[int] = 1
    requests: int = 0
    retries: int = 0
    throttled_seconds: float = 0.0
    bytes: int = 0

    def charge(self, other: "PipelineError") -> None:
        """Add what the read cost that `other` ended, where this error tells of several."""
        self.requests += other.requests
        self.retries += other.retries
        self.throttled_seconds += other.throttled_seconds
        self.bytes += other.bytes


class ConfigurationError(PipelineError):
    """Correct a setting or the command line, then run again."""

    exit_status = 2


class MissingSetting(ConfigurationError):
    """A setting that is needed here has no value."""


class InvalidSetting(ConfigurationError):
    """A setting or argument has a value that cannot be used."""


class ApiError(PipelineError):
    """NexHealth could not be read. `status` is the HTTP status, or None where there was no answer."""

    exit_status = 3
    refused_keys: frozenset[str] = frozenset()
    """Names of the API keys that were refused, where what the others reach was handed out before; else none."""

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class KeyRefused(ApiError):
    """401 that a new token did not cure: correct the API key."""

    exit_status = 2


class NoAccess(ApiError):
    """403: the vendor has not enabled this, or the subdomain is wrong; some paths answer 401 instead, as to a bad token."""


class NotFound(ApiError):
    """404: the thing is gone, or was never reachable with this key."""


class BadRequest(ApiError):
    """The API refuses the request itself (400, 415, 422, 501, ...); repeating it cannot help."""


class CursorExpired(BadRequest):
    """The API refuses a request that went on from a stored cursor: begin that pass again."""


class TryLater(ApiError):
    """Every retry was used up on failures that pass; run again later."""


class Unreachable(TryLater):
    """No connection to the API, or no answer in time."""


class ServerFailed(TryLater):
    """The API kept answering 5xx (but 501), or with something that is not a NexHealth answer."""


class RateLimited(TryLater):
    """The API kept answering 429."""


class ProtocolBroken(ApiError):
    """Pages contradict the paging contract (repeated page, cursor that does not move)."""


class RecordRefused(PipelineError):
    """One record cannot be loaded. `field` and `rule` say why; the value is never named."""

    def __init__(self, field: str, rule: str) -> None:
        super().__init__(f"{field}: {rule}")
        self.field = field
        self.rule = rule


class WarehouseError(PipelineError):
    """The database could not be used."""

    exit_status = 4


class WarehouseUnreachable(WarehouseError):
    """No connection to PostgreSQL."""


class WarehouseOutdated(WarehouseError):
    """Migrations are missing: run `nexhealth db upgrade`."""


class WarehouseNewer(WarehouseError):
    """A newer release has prepared this warehouse: install that release."""


class WarehouseRefused(WarehouseError):
    """The warehouse holds the other kind of data (sandbox or real)."""


class MissingRights(WarehouseError):
    """The database role lacks a right that the message names."""


class ClocksDiffer(WarehouseError):
    """By the clocks of the database and of this host it cannot be told what is old: set the wrong one right."""


class ValueRefused(WarehouseError):
    """A value that its column cannot hold; without that row the statement would have been carried out."""


class ChangesGone(WarehouseError):
    """Changes after a reader's place in the change feed are kept no more: take a new one, read the tables anew."""


class BudgetUnavailable(WarehouseError):
    """The shared rate budget cannot be asked, so no request is sent."""


class Cancelled(PipelineError):
    """The user asked to stop; everything read so far is committed up to a page."""

    exit_status = 130
