"""Endpoints that another takes the place of: what they have lost until then is read for that one."""

from contextlib import suppress
from datetime import datetime, timedelta

import pytest

from nexhealth_pipeline.warehouse.webhook_health import examine
from nexhealth_pipeline.webhooks.registering.checking import EndpointVerdict
from nexhealth_pipeline.webhooks.registering.one_key import KeyWork
from nexhealth_pipeline.webhooks.sealing import Sealer
from tests.client.stub import Reply, Seen, refusal

from .account import EVERYTHING, URL, Account, Killed, killed_after, looked_at, subscribing
from .vendor import HARBOR, without_secrets

OLD = "https://old.example.com/hook"
AGAIN = timedelta(microseconds=1)
"""So much a hole moves that is passed on again: once as its endpoint retires, and once with the subscriptions."""


def holes(account: Account) -> dict[int, datetime | None]:
    """Since when events may be missing, by endpoint."""
    return {one.endpoint_id: one.hole_since for one in account.rows}


def refuse_harbor(account: Account) -> None:
    """From now on."""
    account.vendor.meddle = lambda seen: refusal(403) if seen.query.get("subdomain") == HARBOR[1] else None


def refuse_nobody(account: Account) -> None:
    account.vendor.meddle = lambda seen: None


def rotated_but_for_harbor(account: Account) -> None:
    """The retired endpoint is the only one that Harbor's events are posted to."""
    account.set_up()
    refuse_harbor(account)
    account.set_up(rotate=True)


def test_the_hole_of_an_endpoint_that_is_rotated_passes_to_its_successor(account: Account) -> None:
    """The retired one has no subscriptions: nothing was read for its hole, which was closed."""
    account.set_up()
    [old] = account.rows
    account.vendor.change(16001, active=False)
    account.set_up(rotate=True)
    assert holes(account) == {16001: None, 16002: old.registered_at - AGAIN}


def test_a_hole_is_both_endpoints_while_the_retired_one_still_has_an_institution(account: Account) -> None:
    account.set_up()
    [old] = account.rows
    account.vendor.change(16001, active=False)
    refuse_harbor(account)
    account.set_up(rotate=True)
    assert holes(account) == {16001: old.registered_at, 16002: old.registered_at - AGAIN}
    account.db.execute("UPDATE nexhealth_webhooks SET hole_since = NULL WHERE endpoint_id = 16002")
    refuse_nobody(account)
    account.set_up()
    assert holes(account) == {16001: None, 16002: old.registered_at}


@pytest.mark.parametrize("count", [2, 4])
def test_a_hole_outlives_a_rotation_that_was_killed(account: Account, count: int) -> None:
    """After the successor was made (2), or when some was moved, none of which was noted."""
    account.set_up()
    [old] = account.rows
    account.vendor.change(16001, active=False)
    with pytest.MonkeyPatch.context() as patch, suppress(Killed):
        killed_after(1 + count, patch)
        account.set_up(rotate=True)
    account.set_up()
    since = {one.endpoint_id: one.hole_since for one in account.rows if one.subscriptions}
    assert since == {16002: old.registered_at - AGAIN}
    assert not [one for one in account.rows if one.hole_since is not None and not one.subscriptions]


def test_the_hole_of_a_second_endpoint_with_one_url_passes_to_the_first(account: Account) -> None:
    account.set_up()
    account.set_up(OLD)
    second = account.rows[1]
    account.vendor.change(16002, target_url=URL, active=False)
    account.db.execute("UPDATE nexhealth_webhooks SET target_url = %s", (URL,))
    account.set_up()
    assert account.rows[1].retire_at is not None
    assert holes(account) == {16001: second.registered_at - AGAIN, 16002: None}


def test_what_an_endpoint_was_still_to_be_sent_when_its_secret_got_lost_is_read(account: Account) -> None:
    """The receiver refused it for hours, and it was deleted with all that would have been repeated."""
    account.set_up(sealer=Sealer(["lost" * 10]))
    [old] = account.rows
    account.vendor.alter = without_secrets
    assert account.set_up().keys[0].endpoints_removed == [16001]
    assert holes(account) == {16002: old.registered_at}


@pytest.mark.parametrize("way", ["pruned", "removed"])
def test_what_an_endpoint_of_another_url_was_still_to_be_sent_is_read(account: Account, way: str) -> None:
    """Its host had been gone for ten hours, which is why there is another."""
    account.set_up(OLD)
    [old] = account.rows
    account.set_up(prune=way == "pruned")
    if way == "removed":
        account.remove(OLD)
    assert holes(account) == {16002: old.registered_at}


def test_a_retired_endpoint_that_was_deleted_at_its_time_leaves_no_hole(account: Account) -> None:
    account.set_up()
    account.set_up(rotate=True)
    account.vendor.box.webhooks.registry.remove_endpoint(16001)
    assert [one.verdict for one in looked_at(account)] == [EndpointVerdict.REMOVED, EndpointVerdict.OK]
    assert holes(account) == {16002: None}


def test_a_retired_endpoint_that_still_has_an_institution_is_switched_on_again(account: Account) -> None:
    """NexHealth had switched it off: that institution's events were lost, and nobody said so."""
    rotated_but_for_harbor(account)
    old = account.rows[0]
    account.vendor.change(16001, active=False)
    retired, current = looked_at(account)
    assert (retired.verdict, current.verdict) == (EndpointVerdict.REACTIVATED, EndpointVerdict.OK)
    assert account.vendor.endpoints()[16001].active
    assert holes(account) == {16001: old.registered_at, 16002: None}
    assert [one.verdict for one in looked_at(account)] == [EndpointVerdict.RETIRING, EndpointVerdict.OK]


def test_one_that_cannot_be_switched_on_is_told_of(account: Account) -> None:
    rotated_but_for_harbor(account)
    account.vendor.change(16001, active=False)
    account.vendor.meddle = lambda seen: refusal(403) if seen.method == "PATCH" else None
    assert [one.verdict for one in looked_at(account)] == [EndpointVerdict.INACTIVE, EndpointVerdict.OK]
    failed = {one.rule.name: one.sample_ids for one in examine(account.db, silence_hours=24) if one.count}
    assert failed["endpoint_active"] == {0: ("16001",)}


def test_what_a_retired_endpoint_has_lost_is_read_although_its_institution_moves_before_the_watchdog_looks(
    account: Account,
) -> None:
    rotated_but_for_harbor(account)
    old = account.rows[0]
    account.vendor.change(16001, active=False)
    refuse_nobody(account)
    account.set_up()
    assert holes(account) == {16001: None, 16002: old.registered_at}


def test_a_retired_endpoint_that_somebody_deleted_with_an_institution_leaves_its_hole(account: Account) -> None:
    rotated_but_for_harbor(account)
    old = account.rows[0]
    account.vendor.box.webhooks.registry.remove_endpoint(16001)
    refuse_nobody(account)
    account.set_up()
    assert holes(account) == {16002: old.registered_at}
    assert account.is_right()


@pytest.mark.parametrize("retired", [True, False])
def test_an_endpoint_that_somebody_deleted_is_missed_until_each_institution_has_another(
    account: Account, *, retired: bool
) -> None:
    """Its hole was closed by reads of those that had, and no rule named the one that was refused."""
    if retired:
        rotated_but_for_harbor(account)
    else:
        account.set_up()
        refuse_harbor(account)
    old = account.rows[0]
    account.vendor.box.webhooks.registry.remove_endpoint(16001)
    assert account.set_up().exit_status == 1
    assert [one.verdict for one in looked_at(account)] == [EndpointVerdict.MISSING, EndpointVerdict.OK]
    assert holes(account)[16001] == old.registered_at
    refuse_nobody(account)
    account.set_up()
    assert holes(account) == {16002: old.registered_at if retired else old.registered_at - AGAIN}
    assert account.is_right()


def test_what_an_endpoint_that_somebody_deleted_has_lost_is_read_for_those_that_have_another(account: Account) -> None:
    """None of it was, until the last of them was subscribed: nothing fills the hole of an endpoint that is not there."""
    account.set_up()
    [old] = account.rows
    account.vendor.box.webhooks.registry.remove_endpoint(16001)
    refuse_harbor(account)
    account.set_up()
    assert holes(account) == {16001: old.registered_at, 16002: old.registered_at}
    assert {one.subdomain for one in account.rows[0].subscribed} == {HARBOR[1]}
    account.db.execute("UPDATE nexhealth_webhooks SET hole_since = NULL WHERE endpoint_id = 16002")
    account.set_up()
    assert holes(account) == {16001: old.registered_at, 16002: None}
    refuse_nobody(account)
    account.set_up()
    assert holes(account) == {16002: old.registered_at}
    assert account.is_right()


@pytest.mark.parametrize("retired", [True, False])
def test_an_institution_that_can_be_looked_at_but_not_subscribed_has_no_other_endpoint(
    account: Account, *, retired: bool
) -> None:
    """Its subscriptions were listed, none of them, and so it counted as one that has another."""
    account.set_up()
    refuse_harbor(account)
    account.set_up(rotate=retired)
    old = account.rows[0]
    account.vendor.box.webhooks.registry.remove_endpoint(16001)
    account.vendor.meddle = lambda seen: (
        refusal(403) if subscribing(seen) and seen.query.get("subdomain") == HARBOR[1] else None
    )
    assert [what for what, _ in account.set_up().failures] == [HARBOR[1]]
    assert [one.verdict for one in looked_at(account)] == [EndpointVerdict.MISSING, EndpointVerdict.OK]
    assert {one.subdomain for one in account.rows[0].subscribed} == {HARBOR[1]}
    assert holes(account)[16001] == old.registered_at
    refuse_nobody(account)
    account.set_up()
    assert holes(account) == {16002: old.registered_at if retired else old.registered_at - AGAIN}
    assert account.is_right()


def test_a_retired_endpoint_that_somebody_deletes_while_it_is_looked_at_leaves_its_hole(account: Account) -> None:
    """What it had of an institution was forgotten, and with that, that anything was lost."""
    rotated_but_for_harbor(account)
    old = account.rows[0]

    def delete_it(seen: Seen) -> None:
        if seen.path == "/webhook_endpoints/16001/webhook_subscriptions":
            with suppress(KeyError):
                account.vendor.box.webhooks.registry.remove_endpoint(16001)

    account.vendor.meddle = delete_it
    assert account.set_up().exit_status == 0
    assert [one.verdict for one in looked_at(account)] == [EndpointVerdict.MISSING, EndpointVerdict.OK]
    account.set_up()
    assert holes(account) == {16002: old.registered_at}
    assert account.is_right()


def test_its_hole_outlives_a_set_up_that_was_killed(account: Account) -> None:
    """The institution had another endpoint, and nobody knew any more that the one before had lost events."""
    rotated_but_for_harbor(account)
    old = account.rows[0]
    account.vendor.box.webhooks.registry.remove_endpoint(16001)
    refuse_nobody(account)
    with pytest.MonkeyPatch.context() as patch, suppress(Killed):
        patch.setattr(KeyWork, "_forget_missing", dying)
        account.set_up()
    account.set_up()
    assert holes(account) == {16002: old.registered_at}
    assert account.is_right()


def dying(*_args: object) -> None:
    """What a set-up does not come to."""
    raise Killed


def test_a_retired_endpoint_that_somebody_deleted_with_an_institution_is_missing_until_that_has_another(
    account: Account,
) -> None:
    """It was forgotten, and its hole closed by reads of the others: nobody named the institution that had none."""
    rotated_but_for_harbor(account)
    old = account.rows[0]
    account.vendor.box.webhooks.registry.remove_endpoint(16001)
    retired, current = looked_at(account)
    assert (retired.verdict, retired.fine, current.verdict) == (EndpointVerdict.MISSING, False, EndpointVerdict.OK)
    assert "nexhealth webhooks setup" in retired.reason
    assert holes(account) == {16001: old.registered_at, 16002: None}
    assert {one.rule.name for one in examine(account.db, silence_hours=24) if one.count} >= {"endpoint_active"}
    refuse_nobody(account)
    account.set_up()
    assert holes(account) == {16002: old.registered_at}
    assert account.is_right()


def test_an_inactive_subscription_is_resumed_and_takes_the_place_of_the_one_that_would_be_moved(
    account: Account,
) -> None:
    """Nobody says that an endpoint may have two subscriptions to one event: a move beside it may be refused."""
    rotated_but_for_harbor(account)
    account.vendor.box.webhooks.registry.add_subscription(16002, HARBOR[0], "Patient", "patient_updated", active=False)
    [twin] = [one.id for one in account.vendor.box.webhooks.registry.subscriptions if not one.active]
    [source] = [one.id for one in account.rows[0].subscribed if one.event == "patient_updated"]
    refuse_nobody(account)
    account.vendor.stub.seen.clear()
    done = account.set_up()
    assert (done.exit_status, done.keys[0].subscriptions_resumed) == (0, 1)
    changes = [one for one in account.vendor.changes() if one.endswith((f"/{twin}", f"/{source}"))]
    assert changes == [
        f"PATCH /webhook_endpoints/16002/webhook_subscriptions/{twin}",
        f"DELETE /webhook_endpoints/16001/webhook_subscriptions/{source}",
    ]
    assert (account.vendor.topics(16001), account.vendor.topics(16002)) == ([], EVERYTHING)


def test_a_subscription_is_moved_although_there_is_an_inactive_one_that_cannot_be_resumed(account: Account) -> None:
    """The active one was dropped first, and the institution had none."""
    rotated_but_for_harbor(account)
    account.vendor.box.webhooks.registry.add_subscription(16002, HARBOR[0], "Patient", "patient_updated", active=False)

    def refuse_to_resume(seen: Seen) -> Reply | None:
        return refusal(400) if seen.method == "PATCH" and seen.path.startswith("/webhook_endpoints/16002/") else None

    account.vendor.meddle = refuse_to_resume
    assert account.set_up().exit_status == 0
    assert (account.vendor.topics(16001), account.vendor.topics(16002)) == ([], EVERYTHING)
