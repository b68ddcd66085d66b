"""Endpoints that are there already: taken over, left alone or replaced, and never another's by surprise."""

from collections.abc import Callable
from contextlib import suppress

import pytest

from nexhealth_pipeline.client.client import NexHealthClient
from nexhealth_pipeline.errors import BadRequest, InvalidSetting
from nexhealth_pipeline.webhooks.endpoints import live_secrets
from nexhealth_pipeline.webhooks.registering.remote import Remote
from nexhealth_pipeline.webhooks.sealing import Sealer
from tests.client.stub import Reply, Seen, Stub, envelope, refusal, running
from tests.sync.kit import Unlimited

from .account import EVERYTHING, URL, Account, Killed, creating, killed_after
from .vendor import SEALING_KEY, without_secrets


def test_an_endpoint_made_by_hand_is_taken_over(account: Account) -> None:
    number = account.vendor.make(URL)
    account.vendor.make("https://somebody.example.com/else")
    account.set_up(prune=True)
    assert [one.endpoint_id for one in account.rows] == [number]
    assert len(account.vendor.endpoints()) == 2  # the other is not ours
    assert account.vendor.topics(number) == EVERYTHING


def test_what_stands_on_a_later_page_is_there_as_well() -> None:
    """These lists are said to come whole; one that is not met would be made once more, and every event posted twice."""

    def answer(seen: Seen) -> Reply:
        begin = int(seen.query.get("end_cursor") or 0)
        info = {"has_next_page": begin == 0, "end_cursor": str(begin + 1)}
        return envelope([{"id": 2 - begin, "target_url": URL, "resource_type": "P", "event": "e"}], page_info=info)

    with running(Stub()) as stub:
        stub.answer = answer
        key = {"api_keys": {"": "k"}, "budget_for": lambda _: Unlimited()}
        client = NexHealthClient(api_url=stub.url, timeout_seconds=5.0, **key)  # type: ignore[arg-type]
        remote = Remote(client, "")
        assert [one.id for one in remote.endpoints()] == [one.id for one in remote.subscriptions(1)] == [1, 2]
        client.close()


def test_anothers_whose_secret_is_hidden_is_named_and_nothing_is_changed(account: Account) -> None:
    """Whoever made it may still need it; there is nothing to verify its events with."""
    other = account.vendor.make(URL)
    account.vendor.alter = without_secrets
    for dry_run in (True, False):
        with pytest.raises(InvalidSetting, match=rf"endpoint {other}\. .* --replace") as refused:
            account.set_up(dry_run=dry_run)
        assert refused.value.exit_status == 2
    assert (account.vendor.changes(), account.rows) == ([], [])
    assert "?2" in str(refused.value)
    assert not account.set_up(f"{URL}?2").warnings, "what the text says works"
    assert other in account.vendor.endpoints()


def test_one_that_was_registered_as_it_no_longer_is_can_be_deleted(account: Account) -> None:
    """With a slash at its end, which the receiver never knew."""
    account.set_up()
    account.db.execute("UPDATE nexhealth_webhooks SET target_url = target_url || '/'")
    assert account.remove(f"{URL}/").removed == [(16001, f"{URL}/")]


def test_anothers_is_replaced_where_that_is_asked_for_and_its_subscriptions_move(account: Account) -> None:
    account.set_up()
    account.db.execute("TRUNCATE nexhealth_webhooks")
    account.vendor.alter = without_secrets
    done = account.set_up(replace=True)
    assert (done.keys[0].subscriptions_moved, done.keys[0].subscriptions_created) == (len(EVERYTHING), 0)
    assert done.keys[0].endpoints_removed == [16001]
    assert account.is_right()


def test_ours_whose_secret_got_lost_is_replaced_without_asking(account: Account) -> None:
    """The sealing key was lost, or the list had left it out for a while and it counted as removed."""
    account.set_up(sealer=Sealer(["lost" * 10]))
    account.vendor.alter = without_secrets
    assert account.set_up().keys[0].endpoints_removed == [16001]
    account.db.execute("UPDATE nexhealth_webhooks SET removed_at = now()")
    assert account.set_up().keys[0].endpoints_removed == [16002]
    assert account.is_right()


def test_one_that_was_there_when_a_set_up_was_killed_is_not_taken_for_its_own(account: Account) -> None:
    """What the killed one has made is replaced, what others have made is not."""
    account.vendor.alter = without_secrets
    with pytest.MonkeyPatch.context() as patch, suppress(Killed):
        other = account.vendor.make("https://elsewhere.example.com/x")
        killed_after(1, patch)
        account.set_up()
    account.vendor.change(other, target_url=URL)
    with pytest.raises(InvalidSetting, match=f"endpoint {other}\\."):
        account.set_up()
    assert account.set_up(replace=True).keys[0].endpoints_removed == [other, other + 1]
    assert account.is_right()
    later = account.vendor.make(URL)
    assert account.set_up(prune=True).keys[0].others == [later]


def test_what_somebody_makes_after_a_refused_set_up_is_not_taken_for_its_own(account: Account) -> None:
    account.vendor.alter = without_secrets
    account.vendor.meddle = lambda seen: refusal(400) if creating(seen) else None
    with pytest.raises(BadRequest):
        account.set_up()
    account.vendor.meddle = lambda seen: None
    account.vendor.make(URL)
    with pytest.raises(InvalidSetting):
        account.set_up()


@pytest.mark.parametrize(
    "mask",
    [
        pytest.param(lambda secret: f"{secret[:3]}*****", id="stars"),
        pytest.param(lambda secret: f"{secret[:12]}...{secret[-12:]}", id="dots"),
        pytest.param(lambda secret: f"{'x' * (len(secret) - 4)}{secret[-4:]}", id="leading x"),
        pytest.param(lambda secret: f"{secret[:4]}{'X' * (len(secret) - 4)}", id="trailing x"),
        pytest.param(lambda secret: secret[-4:], id="the end"),
        pytest.param(lambda secret: secret[:-1], id="the beginning"),
        pytest.param(lambda secret: secret[1:], id="a long end"),
        pytest.param(lambda secret: "set", id="a word"),
    ],
)
def test_a_masked_secret_is_none(account: Account, mask: Callable[[str], str]) -> None:
    """Taken for one, it would replace the right one, and every event would be refused."""
    account.set_up()
    account.vendor.alter = lambda seen, data: (
        [one | {"secret_key": mask(one["secret_key"])} for one in data] if seen.path == "/webhook_endpoints" else data
    )
    account.set_up()
    assert account.is_right()


@pytest.mark.parametrize("known", [True, False])
def test_a_part_of_a_secret_is_none_where_there_is_nothing_to_compare_it_with(account: Account, *, known: bool) -> None:
    """The key that sealed the whole one was lost, or the endpoint is another's."""
    if known:
        account.set_up(sealer=Sealer(["lost" * 10]))
    else:
        account.vendor.make(URL)
    account.vendor.alter = lambda seen, data: (
        [one | {"secret_key": one["secret_key"][-8:]} for one in data]
        if (seen.method, seen.path) == ("GET", "/webhook_endpoints")
        else data
    )
    if not known:
        with pytest.raises(InvalidSetting, match="--replace"):
            account.set_up()
    assert account.set_up(replace=not known).keys[0].endpoints_removed == [16001]
    assert account.is_right()


def test_a_secret_as_short_as_the_apis_own_example_is_one(account: Account) -> None:
    account.vendor.box.webhooks.registry.change_endpoint(account.vendor.make(URL), secret_key="NArWk7gdI96Bdn")
    account.set_up()
    assert account.secrets() == [(16001, "NArWk7gdI96Bdn")]


def test_ours_goes_before_another_with_the_same_url_which_is_named(account: Account) -> None:
    other = account.vendor.make(URL)
    account.vendor.change(other, target_url="https://elsewhere.example.com/x")
    account.set_up()
    account.vendor.change(other, target_url=URL)
    done = account.set_up(prune=True)
    assert (done.keys[0].endpoint_id, done.keys[0].others) == (16002, [other])
    assert set(account.vendor.endpoints()) == {16001, 16002}


def test_a_secret_that_is_known_to_the_settings_alone_is_left_alone(account: Account) -> None:
    """Whoever set NEXHEALTH_WEBHOOK_SECRETS cares for that endpoint."""
    account.set_up()
    other = account.vendor.make(URL)
    account.vendor.alter = without_secrets
    done = account.set_up(settings={"NEXHEALTH_WEBHOOK_SECRETS": "by-hand"})
    assert done.keys[0].others == [other]
    assert other in account.vendor.endpoints()


def test_an_inactive_endpoint_is_activated_and_its_hole_remembered(account: Account) -> None:
    """What was not posted meanwhile is read by polling."""
    account.set_up()
    [row] = account.rows
    account.vendor.change(row.endpoint_id, active=False)
    done = account.set_up()
    assert done.keys[0].reactivated
    assert account.vendor.endpoints()[row.endpoint_id].active
    assert account.rows[0].active
    assert account.rows[0].hole_since == row.registered_at


def test_an_endpoint_that_somebody_deleted_is_made_anew_with_its_hole(account: Account) -> None:
    account.set_up()
    [old] = account.rows
    account.vendor.box.webhooks.registry.remove_endpoint(old.endpoint_id)
    account.set_up()
    assert account.is_right()
    assert account.rows[0].endpoint_id != old.endpoint_id
    assert account.rows[0].hole_since == old.registered_at


def test_another_secret_at_the_api_is_taken_over_beside_the_old_one(account: Account) -> None:
    account.set_up()
    [before] = account.secrets()
    account.vendor.box.webhooks.registry.change_endpoint(16001, secret_key="changed-there-to-this")
    account.set_up()
    assert account.secrets() == [(16001, "changed-there-to-this"), before]


def test_a_lost_sealing_key_is_got_over_where_the_api_shows_secrets(account: Account) -> None:
    account.set_up(sealer=Sealer(["lost" * 10]))
    account.set_up()
    assert account.is_right()


def test_a_new_sealing_key_seals_everything_anew(account: Account) -> None:
    account.set_up()
    new = "the-new-key-" + "n" * 32
    account.set_up(settings={"NEXHEALTH_WEBHOOK_KEY": f"{new},{SEALING_KEY}"})
    assert [one.endpoint_id for one in live_secrets(account.db, Sealer([new]))] == [16001]
