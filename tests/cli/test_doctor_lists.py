"""What `nexhealth doctor` asks for what a key reaches: all of it, as a sync does."""

from nexhealth_pipeline.cli import doctor_api
from nexhealth_pipeline.client.client import NexHealthClient
from tests.client.stub import Reply, Seen, Stub, envelope, running
from tests.sync.kit import Unlimited


def test_locations_on_a_later_page_are_looked_at_as_well() -> None:
    """The list is said to come whole; were it cut, doctor would call an office unknown that a sync reads."""

    def answer(seen: Seen) -> Reply:
        first = not seen.query.get("end_cursor")
        info = {"has_next_page": first, "end_cursor": "c" if first else "d"}
        return envelope([{"id": 1, "locations": [{"id": 11 if first else 12}]}], page_info=info)

    with running(Stub()) as stub:
        stub.answer = answer
        key = {"api_keys": {"": "k"}, "budget_for": lambda _: Unlimited()}
        client = NexHealthClient(api_url=stub.url, timeout_seconds=5.0, **key)  # type: ignore[arg-type]
        assert [one["id"] for one in doctor_api._records(client, [""], "/locations", ("locations",))] == [11, 12]
        client.close()
