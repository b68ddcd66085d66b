"""Whether the endpoint that signed an event may tell of its institution.

Who has the API key of one institution can read the secrets of our endpoints there, and sign with them what he likes of
any other. So an event that another key's endpoint signed is no more than a hint: the API is asked, with the institution's
own key. None is refused for that: what is known of an endpoint may lag behind what NexHealth posts to it.
"""

import logging

import msgspec
import psycopg

from nexhealth_pipeline.client.client import NexHealthClient
from nexhealth_pipeline.errors import MissingSetting
from nexhealth_pipeline.sync.practice import Institution

__all__ = ["Vouchers"]

_LOG = logging.getLogger(__name__)
# An endpoint that two keys list has a row for each. One that was retired may have no subscriptions left, and a key that was
# replaced is still that of the endpoints which no set-up has looked for since: so its others' subscriptions count, too.
# But not those that were removed, which keep what they were subscribed for: an institution may have left the key since.
_VOUCHES = """
SELECT coalesce(bool_or(coalesce(signer.key_hash = %(own)s, false) OR EXISTS (
    SELECT FROM nexhealth_webhooks other WHERE other.key_hash = signer.key_hash AND other.subscriptions @> %(told)s::jsonb
        AND (other.removed_at IS NULL OR other.endpoint_id = signer.endpoint_id)
)), true) FROM nexhealth_webhooks signer WHERE signer.endpoint_id = %(endpoint)s
"""


class Vouchers:
    """Knows whose events each endpoint signs, as far as it was asked on one connection."""

    def __init__(self, connection: psycopg.Connection, client: NexHealthClient) -> None:
        self._connection, self._client = connection, client
        self._judged: dict[tuple[int, int], bool] = {}

    def vouches(self, endpoint_id: int | None, institution: Institution) -> bool:
        """Whether an event of `institution` that this endpoint signed is believed; None = a secret from the settings.

        It is where the endpoint is of the institution's key, or where an endpoint of its own key is subscribed for it.
        """
        if endpoint_id is None:
            return True
        pair = endpoint_id, institution.id
        if pair not in self._judged:
            self._judged[pair] = self._judge(endpoint_id, institution.subdomain)
            if not self._judged[pair]:
                seen = {"endpoint_id": endpoint_id, "institution_id": institution.id}
                _LOG.warning(
                    "events signed by an endpoint of another API key are hints only", extra={"nexhealth": seen}
                )
        return self._judged[pair]

    def _judge(self, endpoint_id: int, subdomain: str) -> bool:
        try:
            own = self._client.key_hash(subdomain)
        except MissingSetting:
            own = None
        told = msgspec.json.encode([{"subdomain": subdomain}]).decode()
        row = self._connection.execute(_VOUCHES, {"own": own, "told": told, "endpoint": endpoint_id}).fetchone()
        assert row is not None  # an aggregate
        return bool(row[0])
