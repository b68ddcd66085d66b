"""An API that keeps failing at one institution, one event or one key: the others are set up all the same."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from nexhealth_pipeline.client.retry import RetryPolicy
from nexhealth_pipeline.errors import ServerFailed, Unreachable
from nexhealth_pipeline.webhooks.registering import registration
from nexhealth_pipeline.webhooks.registering.subscribing import Topic, declared_topics
from tests.client.stub import Reply, Seen

from .account import EVERYTHING, TOPICS, URL, Account, subscribing
from .vendor import HARBOR, OTHER_KEY, WILLOW, only_once, without_secrets

OF_WILLOW = [one for one in EVERYTHING if one[0] == WILLOW[0]]


def failing(*subdomains: str, status: int = 500) -> Callable[[Seen], Reply | None]:
    """For `meddle`: whatever is asked of these institutions fails."""
    return lambda seen: Reply(status, b"{}") if seen.query.get("subdomain") in subdomains else None


def failing_events(*events: str) -> Callable[[Seen], Reply | None]:
    """For `meddle`: subscribing to these fails."""
    return lambda seen: Reply(500, b"{}") if subscribing(seen) and json.loads(seen.body)["event"] in events else None


def nothing_fails(_seen: Seen) -> None:
    return None


def test_an_institution_that_the_api_fails_at_stops_only_itself_and_is_named(account: Account) -> None:
    """One of fifty kept the others from ever being set up."""
    account.vendor.meddle = failing(HARBOR[1])
    done = account.set_up()
    assert (done.exit_status, [what for what, _ in done.failures]) == (1, [HARBOR[1]])
    assert account.is_right(OF_WILLOW)
    account.vendor.meddle = nothing_fails
    assert account.set_up().exit_status == 0
    assert account.is_right()


def test_an_event_that_the_api_fails_at_is_named_and_the_others_are_made(account: Account) -> None:
    bad = TOPICS[0].event
    account.vendor.meddle = failing_events(bad)
    done = account.set_up()
    assert sorted(what for what, _ in done.failures) == sorted(one for _, one in (WILLOW, HARBOR))
    assert all(why.startswith(f"{bad}: ") for _, why in done.failures)
    assert account.is_right([one for one in EVERYTHING if one[1] != bad])


def test_any_number_of_events_may_fail_and_the_others_are_made(
    account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fifth ended the institution, and no set-up ever came to the events after it."""
    topics = declared_topics()[:12]
    bad = {one.event for one in topics[1:7]}
    monkeypatch.setattr(registration, "declared_topics", lambda: topics)
    account.vendor.meddle = failing_events(*bad)
    account.vendor.stub.seen.clear()
    done = account.set_up()
    asked = account.vendor.asked
    institutions = (WILLOW, HARBOR)
    assert sorted((what, why.split(":")[0]) for what, why in done.failures) == sorted(
        (name, event) for _, name in institutions for event in bad
    )
    made = [(number, one.event) for number, _ in institutions for one in topics if one.event not in bad]
    assert account.is_right(sorted(made))
    changes = [one for one in asked if one.startswith("POST") and one.endswith("/webhook_subscriptions")]
    looks = [one for one in asked if one.startswith("GET") and one.endswith("/webhook_subscriptions")]
    assert (len(changes), len(looks)) == (len(made) + 2 * 2 * len(bad), 2 * 3)


def test_an_event_that_the_api_fails_at_once_is_asked_for_again(account: Account) -> None:
    once = only_once(subscribing)
    account.vendor.meddle = lambda seen: Reply(500, b"{}") if once(seen) else None
    assert account.set_up().exit_status == 0
    assert account.is_right()


def test_where_the_api_fails_at_all_institutions_the_set_up_does(account: Account) -> None:
    account.vendor.meddle = failing(WILLOW[1], HARBOR[1])
    with pytest.raises(ServerFailed):
        account.set_up()


def test_an_api_that_does_not_answer_fails_the_set_up(account: Account) -> None:
    """It is nothing that one institution has and others have not."""
    account.vendor.meddle = failing(HARBOR[1], status=408)
    with pytest.raises(Unreachable):
        account.set_up()


def test_after_several_failures_in_a_row_the_rest_is_not_asked(account: Account) -> None:
    """Each costs minutes: of a thousand institutions an outage cost days."""
    more = [(11300 + number, f"practice-{number}") for number in range(5)]
    account.know(*more)
    down = [HARBOR[1], *(name for _, name in more)]
    account.vendor.meddle = failing(*down)
    account.vendor.stub.seen.clear()
    done = account.set_up(settings={"NEXHEALTH_CONCURRENCY": "1"})
    asked = {seen.query["subdomain"] for seen in account.vendor.stub.data_requests if "subdomain" in seen.query}
    assert asked == {WILLOW[1], *down[:3]}
    assert [what for what, _ in done.failures] == down
    assert account.is_right(OF_WILLOW)


def test_what_an_institution_had_stays_known_while_the_api_fails_at_it(account: Account) -> None:
    account.set_up()
    account.vendor.meddle = failing(HARBOR[1])
    account.set_up()
    assert account.is_right()
    account.set_up(rotate=True)
    assert {one.subdomain for one in account.rows[0].subscribed} == {HARBOR[1]}
    account.vendor.meddle = nothing_fails
    account.set_up()
    assert (account.vendor.topics(16001), account.vendor.topics(16002)) == ([], EVERYTHING)


def test_an_endpoint_that_somebody_deleted_is_missed_for_the_events_that_the_api_fails_at(account: Account) -> None:
    """What it had lost of all the others was not read, although there is another that they are posted to."""
    bad = TOPICS[0].event
    account.set_up()
    [old] = account.rows
    account.vendor.box.webhooks.registry.remove_endpoint(16001)
    account.vendor.meddle = failing_events(bad)
    account.set_up()
    missing, current = account.rows
    assert (missing.endpoint_id, {one.event for one in missing.subscribed}) == (16001, {bad})
    assert current.hole_since == missing.hole_since == old.registered_at
    account.vendor.meddle = nothing_fails
    account.set_up()
    assert account.is_right()


def half_rotated(account: Account, bad: Topic) -> None:
    """What Harbor has is at the endpoint that was replaced; of one event an inactive subscription is at the new one."""
    account.set_up()
    account.vendor.meddle = failing(HARBOR[1])
    account.set_up(rotate=True)
    add_inactive(account, bad)


def add_inactive(account: Account, topic: Topic) -> None:
    """A subscription of Harbor's at the new endpoint."""
    registry = account.vendor.box.webhooks.registry
    registry.add_subscription(16002, HARBOR[0], topic.resource_type, topic.event, active=False)


def resuming(seen: Seen) -> bool:
    return seen.method == "PATCH" and seen.path.startswith("/webhook_endpoints/16002/webhook_subscriptions/")


def test_an_inactive_subscription_that_the_api_fails_to_resume_stops_only_itself(account: Account) -> None:
    """The whole institution stayed with the endpoint that had been replaced, its other events as well."""
    bad = TOPICS[0]
    half_rotated(account, bad)
    account.vendor.meddle = lambda seen: Reply(500, b"{}") if resuming(seen) else None
    done, of_bad = account.set_up(), (HARBOR[0], bad.event)
    assert [(what, why.split(":")[0]) for what, why in done.failures] == [(HARBOR[1], bad.event)]
    assert [(one.subdomain, one.event) for one in account.rows[0].subscribed] == [(HARBOR[1], bad.event)]
    others = [one for one in EVERYTHING if one != of_bad]
    assert (account.vendor.topics(16001), account.vendor.topics(16002)) == ([of_bad], others)
    account.vendor.meddle = nothing_fails
    assert account.set_up().exit_status == 0
    assert (account.vendor.topics(16001), account.vendor.topics(16002)) == ([], EVERYTHING)


def test_one_that_is_resumed_at_the_second_try_takes_the_place_of_the_other(account: Account) -> None:
    """Left where it is, the other would let every event come twice."""
    half_rotated(account, TOPICS[0])
    failures = [Reply(500, b"{}")] * RetryPolicy().attempts
    account.vendor.meddle = lambda seen: failures.pop() if resuming(seen) and failures else None
    done = account.set_up()
    assert (done.exit_status, done.keys[0].subscriptions_resumed, failures) == (0, 1, [])
    assert (account.vendor.topics(16001), account.vendor.topics(16002)) == ([], EVERYTHING)


def test_an_endpoint_is_not_pruned_while_an_institution_may_have_no_other(account: Account) -> None:
    account.set_up("https://old.example.com/hook")
    account.vendor.meddle = failing(HARBOR[1])
    assert account.set_up(prune=True).keys[0].endpoints_removed == []
    account.vendor.meddle = nothing_fails
    assert account.set_up(prune=True).keys[0].endpoints_removed == [16001]
    assert account.is_right()


def test_an_endpoint_is_not_replaced_before_its_subscriptions_have_moved(account: Account) -> None:
    account.set_up()
    account.db.execute("TRUNCATE nexhealth_webhooks")
    account.vendor.alter = without_secrets
    account.vendor.meddle = failing(HARBOR[1])
    assert account.set_up(replace=True).keys[0].endpoints_removed == []
    account.vendor.meddle = nothing_fails
    done = account.set_up(replace=True).keys[0]
    assert (done.endpoints_removed, done.subscriptions_moved) == ([16001], len(EVERYTHING) - len(OF_WILLOW))
    assert account.is_right()


def test_nor_while_the_api_fails_to_resume_what_would_take_the_place_of_one(account: Account) -> None:
    account.set_up()
    account.db.execute("TRUNCATE nexhealth_webhooks")
    account.vendor.alter = without_secrets
    account.vendor.meddle = failing(HARBOR[1])
    account.set_up(replace=True)
    add_inactive(account, TOPICS[0])
    account.vendor.meddle = lambda seen: Reply(500, b"{}") if resuming(seen) else None
    assert account.set_up(replace=True).keys[0].endpoints_removed == []
    assert account.vendor.topics(16001) == [(HARBOR[0], TOPICS[0].event)]
    account.vendor.meddle = nothing_fails
    assert account.set_up(replace=True).keys[0].endpoints_removed == [16001]
    assert account.is_right()


def test_a_key_that_the_api_fails_at_spoils_its_own_institutions_only(account: Account, tmp_path: Path) -> None:
    keys = tmp_path / "keys.toml"
    keys.write_text(f'{HARBOR[1]} = "{OTHER_KEY}"\n')
    account.vendor.meddle = failing(HARBOR[1])
    done = account.set_up(settings={"NEXHEALTH_API_KEYS_FILE": str(keys)})
    assert [what for what, _ in done.failures] == [f"the key of {HARBOR[1]}"]
    assert account.vendor.topics(16001) == OF_WILLOW
    assert [(one.endpoint_id, one.target_url) for one in account.rows] == [(16001, URL), (16002, URL)]
