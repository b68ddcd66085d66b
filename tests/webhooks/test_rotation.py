"""Rotation, pruning and removal: what is deleted at NexHealth, and when."""

import time
from datetime import timedelta
from typing import Any

import pytest
from psycopg import sql

from nexhealth_pipeline.errors import InvalidSetting
from nexhealth_pipeline.warehouse.webhook_health import examine
from nexhealth_pipeline.webhooks.endpoints import OVERLAP
from nexhealth_pipeline.webhooks.registering.checking import EndpointVerdict
from nexhealth_pipeline.webhooks.registering.registration import Removal
from tests.client.stub import refusal

from .account import EVENTS, EVERYTHING, URL, Account, looked_at
from .vendor import HARBOR, WILLOW, without_secrets


def test_a_rotation_moves_the_subscriptions_and_both_secrets_live_for_49_hours(account: Account) -> None:
    account.set_up()
    done = account.set_up(rotate=True)
    assert (done.keys[0].endpoint_id, done.keys[0].rotated_from) == (16002, 16001)
    assert (done.keys[0].subscriptions_moved, done.keys[0].subscriptions_created) == (len(EVERYTHING), 0)
    assert (account.vendor.topics(16001), account.vendor.topics(16002)) == ([], EVERYTHING)
    assert account.secrets() == account.true_secrets()
    account.vendor.stub.seen.clear()
    account.set_up()
    assert account.vendor.changes() == []
    account.db.execute("UPDATE nexhealth_webhooks SET retire_at = retire_at - %s", (OVERLAP - timedelta(minutes=1),))
    account.set_up()
    assert set(account.vendor.endpoints()) == {16001, 16002}
    account.db.execute("UPDATE nexhealth_webhooks SET retire_at = retire_at - interval '1 minute'")
    assert account.set_up().keys[0].endpoints_removed == [16001]
    assert account.is_right()


@pytest.mark.parametrize("way", ["rotate", "dry_run"])
def test_a_server_that_ends_idle_transactions_does_not_end_ours(account: Account, way: str) -> None:
    """An exchange of endpoints, and all of a dry run, is one transaction, which idles for as long as NexHealth is asked."""
    account.set_up()
    options: dict[str, Any] = {way: True}
    limited = sql.SQL("ALTER DATABASE {} SET idle_in_transaction_session_timeout = 200")
    account.db.execute(limited.format(sql.Identifier(account.db.info.dbname)))
    account.vendor.meddle = lambda seen: time.sleep(0.5) if seen.path == "/webhook_endpoints" else None
    try:
        assert account.set_up(**options).exit_status == 0
    finally:
        account.db.execute(sql.SQL("ALTER DATABASE {} RESET ALL").format(sql.Identifier(account.db.info.dbname)))


def time_is_over(account: Account) -> None:
    """The retired endpoint may be deleted."""
    account.db.execute("UPDATE nexhealth_webhooks SET retire_at = retire_at - %s", (OVERLAP,))


def watched(account: Account) -> list[tuple[int, EndpointVerdict]]:
    return [(one.endpoint_id, one.verdict) for one in looked_at(account)]


def without_harbor(account: Account, way: str) -> dict[str, Any]:
    """Options of a set-up that does not look at one of the institutions."""
    if way == "not asked for":
        return {"settings": {"NEXHEALTH_SUBDOMAINS": WILLOW[1]}}
    account.vendor.meddle = lambda seen: refusal(403) if seen.query.get("subdomain") == HARBOR[1] else None
    return {}


@pytest.mark.parametrize("way", ["not asked for", "refused"])
def test_a_retired_endpoint_stays_while_it_has_an_institution_that_was_not_looked_at(
    account: Account, way: str
) -> None:
    """Of 50 institutions one was asked for: 49 hours later the events of the others ended, and nobody said so."""
    account.set_up()
    account.set_up(rotate=True, **without_harbor(account, way))
    time_is_over(account)
    account.set_up(**without_harbor(account, way))
    assert watched(account) == [(16001, EndpointVerdict.OVERDUE), (16002, EndpointVerdict.OK)]
    assert {number for number, _ in account.vendor.topics(16001)} == {HARBOR[0]}
    account.vendor.meddle = lambda seen: None
    # What was moved off it just now has its 49 hours as well: repeats of what it was sent still come.
    assert account.set_up().keys[0].endpoints_removed == []
    assert watched(account) == [(16001, EndpointVerdict.RETIRING), (16002, EndpointVerdict.OK)]
    assert account.secrets() == account.true_secrets()
    time_is_over(account)
    assert account.set_up().keys[0].endpoints_removed == [16001]
    assert account.is_right()


def test_a_retired_endpoint_does_not_wait_for_an_institution_that_is_gone(account: Account) -> None:
    account.set_up()
    account.set_up(rotate=True, settings={"NEXHEALTH_SUBDOMAINS": WILLOW[1]})
    time_is_over(account)
    account.db.execute("UPDATE nexhealth_institutions SET deleted_at = now() WHERE id = %s", HARBOR[:1])
    assert account.set_up().keys[0].endpoints_removed == [16001]


@pytest.mark.parametrize("way", ["not asked for", "refused"])
def test_what_an_institution_is_subscribed_to_stays_known_while_it_is_not_looked_at(account: Account, way: str) -> None:
    """Whether its events arrive, and what is read of it after an outage, goes by that."""
    account.set_up()
    account.set_up(**without_harbor(account, way))
    assert account.is_right()
    account.vendor.meddle = lambda seen: None
    account.vendor.box.webhooks.registry.remove_subscription(account.rows[0].subscribed[0].id)
    account.set_up()
    assert account.is_right()


def test_a_retired_endpoint_that_stays_is_told_of_until_who_left_is_pruned(account: Account) -> None:
    """A secret that leaked was valid for ever, and nothing said so."""
    account.set_up()
    account.set_up(rotate=True, **without_harbor(account, "refused"))
    assert failing(account) == {}
    assert all(one.fine for one in looked_at(account))
    time_is_over(account)
    account.set_up()
    assert failing(account) == {"retired_deleted": 1}
    overdue, _ = looked_at(account)
    assert (overdue.endpoint_id, overdue.verdict, overdue.fine) == (16001, EndpointVerdict.OVERDUE, False)
    assert all(word in overdue.reason for word in (HARBOR[1], f"setup {URL}", "NEXHEALTH_SUBDOMAINS", "--prune"))
    assert WILLOW[1] not in overdue.reason
    done = account.set_up(settings={"NEXHEALTH_SUBDOMAINS": WILLOW[1]}, prune=True)
    assert (done.exit_status, done.keys[0].endpoints_removed) == (0, [16001])
    assert failing(account) == {}
    assert [number for number, _ in account.secrets()] == [16002]


def test_an_institution_that_left_is_waited_for_until_it_is_pruned(account: Account) -> None:
    """NexHealth refuses to delete its subscriptions, too: nothing ended the warning that its events do not come."""
    account.set_up()
    two_days_pass(account)
    account.set_up(**without_harbor(account, "refused"))
    left_out = without_harbor(account, "not asked for")
    account.set_up(**left_out)
    assert silent(account) == {WILLOW[0], HARBOR[0]}
    done = account.set_up(prune=True, **left_out)
    assert [what for what, _ in done.failures] == [HARBOR[1]] * len(EVENTS)
    assert silent(account) == {WILLOW[0]}


def two_days_pass(account: Account) -> None:
    """Since all that is registered was."""
    account.db.execute(
        "UPDATE nexhealth_webhooks SET registered_at = registered_at - interval '2 days', subscriptions ="
        " (SELECT jsonb_agg(one || jsonb_build_object('since', (one ->> 'since')::timestamptz - interval '2 days'))"
        "  FROM jsonb_array_elements(subscriptions) one)"
    )


def test_an_institution_that_joins_is_not_missed_before_it_had_the_time_to_send_anything(account: Account) -> None:
    """Its subscriptions are at an endpoint that is years old: the set-up was followed by a warning within minutes."""
    account.set_up(settings={"NEXHEALTH_SUBDOMAINS": WILLOW[1]})
    two_days_pass(account)
    account.set_up()
    assert silent(account) == {WILLOW[0]}
    two_days_pass(account)
    account.set_up()
    assert silent(account) == {WILLOW[0], HARBOR[0]}


def test_a_first_set_up_has_nothing_to_rotate(account: Account) -> None:
    assert account.set_up(rotate=True).keys[0].rotated_from is None
    assert len(account.vendor.endpoints()) == 1


def test_pruning_deletes_what_is_ours_and_no_longer_wanted(account: Account) -> None:
    account.set_up("https://old.example.com/hook")
    account.set_up()
    registry = account.vendor.box.webhooks.registry
    registry.add_subscription(16002, WILLOW[0], "Message", "message_created")
    registry.add_subscription(16002, None, "Onboarding", "onboarding_created")
    registry.add_subscription(16002, WILLOW[0], "Patient", "patient_updated")  # a double
    kept = account.set_up(settings={"NEXHEALTH_SUBDOMAINS": WILLOW[1]})
    assert kept.keys[0].subscriptions_removed == 0
    done = account.set_up(settings={"NEXHEALTH_SUBDOMAINS": WILLOW[1]}, prune=True)
    assert done.keys[0].subscriptions_removed == 3 + len(EVENTS)
    assert done.keys[0].endpoints_removed == [16001]
    assert account.is_right([one for one in EVERYTHING if one[0] == WILLOW[0]])


def test_pruning_leaves_an_institution_alone_that_is_refused_just_now(account: Account) -> None:
    account.set_up()
    account.vendor.meddle = lambda seen: refusal(403) if seen.query.get("subdomain") == HARBOR[1] else None
    done = account.set_up(prune=True)
    assert (done.exit_status, done.keys[0].subscriptions_removed) == (1, 0)
    assert account.vendor.topics(16001) == EVERYTHING


def test_removing_deletes_at_the_api_and_the_secret_counts_no_more(account: Account) -> None:
    account.set_up()
    account.set_up("https://second.example.com/hook")
    assert account.remove(URL).removed == [(16001, URL)]
    assert list(account.vendor.endpoints()) == [16002]
    assert [number for number, _ in account.secrets()] == [16002]
    with pytest.raises(InvalidSetting, match=r"https://second\.example\.com/hook"):
        account.remove(URL)
    account.vendor.box.webhooks.registry.remove_endpoint(16002)  # gone already: as good
    assert account.remove(None).removed == [(16002, "https://second.example.com/hook")]
    assert account.remove(None) == Removal()
    assert account.rows == []


def test_what_cannot_be_removed_is_named_and_stays_known(account: Account) -> None:
    account.set_up()
    account.vendor.meddle = lambda seen: refusal(403) if seen.method == "DELETE" else None
    done = account.remove(None)
    assert (done.exit_status, [what for what, _ in done.failures]) == (1, ["endpoint 16001"])
    account.vendor.meddle = lambda seen: None
    account.lose_key()
    assert "--forget" in account.remove(None).failures[0][1]
    assert len(account.rows) == 1


def test_with_a_new_api_key_the_endpoints_of_the_old_one_are_gone_on_with(account: Account) -> None:
    """Their secrets are known here alone: NexHealth need not show them, and nothing is made, moved or deleted."""
    account.set_up()
    account.lose_key()
    account.vendor.stub.seen.clear()
    account.vendor.alter = without_secrets
    account.set_up()
    assert account.vendor.changes() == []
    assert account.is_right()
    assert account.remove(URL).removed == [(16001, URL)]


def test_an_endpoint_whose_key_is_gone_can_be_forgotten_and_no_other(account: Account) -> None:
    """Else `endpoint_active` failed for ever: a revoked key cannot be set again."""
    account.set_up()
    account.lose_key()
    account.vendor.box.webhooks.registry.remove_endpoint(16001)
    account.set_up()
    account.db.execute("UPDATE nexhealth_webhooks SET checked_at = now() - interval '1 day' WHERE endpoint_id = 16001")
    assert failing(account) == {"endpoint_active": 1}
    account.vendor.stub.seen.clear()
    done = account.remove(URL, forget=True)
    assert (done.forgotten, done.removed, done.exit_status) == ([(16001, URL)], [], 0)
    assert account.vendor.changes() == []
    assert failing(account) == {}
    assert account.is_right()
    assert account.remove(None, forget=True) == Removal()


def test_a_forgotten_endpoint_that_the_next_key_lists_is_ours_all_the_same(account: Account) -> None:
    account.set_up()
    account.lose_key()
    account.remove(URL, forget=True)
    account.vendor.alter = without_secrets
    account.set_up()
    assert list(account.vendor.endpoints()) == [16002]
    assert account.is_right()


def failing(account: Account) -> dict[str, int]:
    """Failed rules of continuous sync, and how often."""
    return {one.rule.name: one.count for one in examine(account.db, silence_hours=24) if one.count}


def silent(account: Account) -> set[int]:
    """Institutions whose events are missed."""
    found = {one.rule.name: one for one in examine(account.db, silence_hours=24)}
    return set(found["events_arrive"].institutions)
