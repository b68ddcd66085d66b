"""Registration: what a set-up makes, leaves and refuses."""

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from nexhealth_pipeline.catalog.collections import DECLARED
from nexhealth_pipeline.errors import InvalidSetting, KeyRefused, MissingSetting, NoAccess
from nexhealth_pipeline.webhooks.endpoints import (
    record_inactive,
)
from tests.client.stub import Reply, Seen, refusal

from .account import EVERYTHING, URL, Account, Opened, subscribing
from .vendor import HARBOR, KEY, NARROW_KEY, OTHER_KEY, SEALING_KEY, WILLOW, only_once

# What a set-up makes -------------------------------------------------------------------------------------------------


def test_a_first_set_up_subscribes_every_institution_to_every_declared_event(account: Account) -> None:
    done = account.set_up()
    assert account.is_right()
    [key] = done.keys
    assert (key.created, key.subscriptions, key.subscriptions_created) == (True, len(EVERYTHING), len(EVERYTHING))
    assert (key.institutions, done.exit_status) == (2, 0)
    assert account.rows[0].target_url == URL
    assert account.rows[0].active


def test_every_declared_event_is_one_of_the_vendors(
    account: Account, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    done = account.set_up()
    declared = {name for one in DECLARED if one.events for name in one.events.names}
    assert {event for _, event in account.vendor.topics(16001)} == declared
    assert done.keys[0].subscriptions == 2 * len(declared)


def test_a_second_set_up_only_looks(account: Account) -> None:
    account.set_up()
    account.vendor.stub.seen.clear()
    done = account.set_up(prune=True)
    assert account.vendor.changes() == []
    assert done.keys[0].changes == 0
    assert account.is_right()


def test_a_copy_of_a_warehouse_leaves_the_endpoints_alone_that_it_was_told_are_not_its_own(account: Account) -> None:
    """Risk: a backup restored for tests deletes what production is sent its events by. The statement is operations.md's."""
    account.set_up()
    account.db.execute("UPDATE nexhealth_webhooks SET removed_at = now()")
    before = account.vendor.topics(16001)
    assert account.set_up("https://tests.example.com/x", prune=True).keys[0].endpoints_removed == []
    assert (account.vendor.topics(16001), account.vendor.topics(16002)) == (before, before)
    assert [number for number, _ in account.secrets()] == [16002]
    assert account.remove(None).removed == [(16002, "https://tests.example.com/x")]
    assert (set(account.vendor.endpoints()), account.vendor.topics(16001)) == ({16001}, before)


def test_a_dry_run_says_what_it_would_do_and_does_nothing(account: Account) -> None:
    done = account.set_up(dry_run=True)
    assert account.vendor.changes() == []
    assert (account.rows, account.vendor.endpoints()) == ([], {})
    assert (done.keys[0].endpoint_id, done.keys[0].subscriptions_created) == (0, len(EVERYTHING))
    account.set_up()
    before = account.rows
    account.vendor.stub.seen.clear()
    told = account.set_up("https://elsewhere.example.com/x", dry_run=True, prune=True)
    assert account.vendor.changes() == []
    assert account.rows == before
    assert told.keys[0].endpoints_removed == [before[0].endpoint_id]
    assert account.set_up(dry_run=True, rotate=True).keys[0].subscriptions_moved == len(EVERYTHING)
    assert account.rows == before


def test_the_institutions_are_those_of_the_warehouse_limited_by_the_settings(account: Account) -> None:
    account.set_up(settings={"NEXHEALTH_SUBDOMAINS": HARBOR[1]})
    assert account.is_right([one for one in EVERYTHING if one[0] == HARBOR[0]])
    assert "GET /institutions" not in account.vendor.asked


def test_a_warehouse_that_knows_nobody_yet_asks_which_institutions_there_are(account: Account) -> None:
    """Registering may come before the first sync."""
    account.db.execute("TRUNCATE nexhealth_institutions")
    account.set_up()
    assert account.is_right()
    assert "GET /institutions" in account.vendor.asked


def test_nobody_to_subscribe_is_an_error_that_names_the_limit(account: Account) -> None:
    with pytest.raises(InvalidSetting, match="NEXHEALTH_SUBDOMAINS \\(nobody\\)"):
        account.set_up(settings={"NEXHEALTH_SUBDOMAINS": "nobody"})
    assert account.vendor.endpoints() == {}


def test_what_is_missing_or_inactive_is_mended_and_nothing_else_touched(account: Account) -> None:
    account.set_up()
    registry = account.vendor.box.webhooks.registry
    first, second, *_ = registry.subscriptions
    registry.remove_subscription(first.id)
    registry.change_subscription(second.id, active=False)
    account.vendor.stub.seen.clear()
    done = account.set_up()
    assert len(account.vendor.changes()) == 2
    assert (done.keys[0].subscriptions_created, done.keys[0].subscriptions_resumed) == (1, 1)
    assert account.is_right()


def test_progress_counts_the_subscriptions(account: Account) -> None:
    told: list[tuple[int, int]] = []
    account.set_up(on_progress=lambda done, planned: told.append((done, planned)))
    assert told[-1] == (len(EVERYTHING), len(EVERYTHING))
    assert [done for done, _ in told] == sorted(done for done, _ in told)


# Keys and refusals ---------------------------------------------------------------------------------------------------


def test_each_key_has_an_endpoint_of_its_own(account: Account, tmp_path: Path) -> None:
    keys = tmp_path / "keys.toml"
    keys.write_text(f'{HARBOR[1]} = "{OTHER_KEY}"\n')
    done = account.set_up(settings={"NEXHEALTH_API_KEYS_FILE": str(keys)})
    assert [(one.key_name, one.institutions) for one in done.keys] == [("", 1), (HARBOR[1], 1)]
    topics = [{number for number, _ in account.vendor.topics(one.endpoint_id)} for one in account.rows]
    assert topics == [{WILLOW[0]}, {HARBOR[0]}]
    assert len({one.key_hash for one in account.rows}) == 2
    assert account.secrets() == account.true_secrets()


def test_the_endpoint_of_a_key_of_which_nothing_is_wanted_any_more_goes_with_prune(
    account: Account, tmp_path: Path
) -> None:
    """NexHealth posted on what happened there, to a receiver that is not to have it, and it could only be forgotten here."""
    keys = tmp_path / "keys.toml"
    keys.write_text(f'{HARBOR[1]} = "{OTHER_KEY}"\n')
    with_keys = {"NEXHEALTH_API_KEYS_FILE": str(keys)}
    account.set_up(settings=with_keys)
    ours, theirs = account.rows
    left_out = with_keys | {"NEXHEALTH_SUBDOMAINS": WILLOW[1]}
    account.set_up(settings=left_out)
    assert len(account.vendor.endpoints()) == 2, "without it nothing is deleted"
    dry = account.set_up(settings=left_out, prune=True, dry_run=True)
    assert [one.endpoints_removed for one in dry.keys] == [[], [theirs.endpoint_id]]
    assert (len(account.vendor.endpoints()), len(account.rows)) == (2, 2)
    done = account.set_up(settings=left_out, prune=True)
    ended = done.keys[1]
    assert (ended.key_name, ended.institutions, ended.changes) == (HARBOR[1], 0, 1)
    assert (done.exit_status, ended.endpoints_removed) == (0, [theirs.endpoint_id])
    assert [*account.vendor.endpoints()] == [one.endpoint_id for one in account.rows] == [ours.endpoint_id]
    assert [one.key_name for one in account.set_up(settings=left_out, prune=True).keys] == [""]


def test_what_a_key_had_that_was_replaced_goes_with_the_one_that_came_for_it(account: Account, tmp_path: Path) -> None:
    """Both have the same endpoints: nothing was found, and nothing said of what NexHealth posted on."""
    keys = tmp_path / "keys.toml"
    keys.write_text(f'{HARBOR[1]} = "{OTHER_KEY}"\n')
    with_keys = {"NEXHEALTH_API_KEYS_FILE": str(keys)}
    account.set_up(settings=with_keys)
    ours, theirs = account.rows
    account.lose_key()
    done = account.set_up(settings=with_keys | {"NEXHEALTH_SUBDOMAINS": WILLOW[1]}, prune=True)
    assert [one.endpoints_removed for one in done.keys] == [[], [theirs.endpoint_id]]
    assert [*account.vendor.endpoints()] == [one.endpoint_id for one in account.rows] == [ours.endpoint_id]


@pytest.mark.parametrize("known", [True, False], ids=["others are known", "nobody is known"])
def test_nothing_is_pruned_by_a_name_that_is_not_known(account: Account, tmp_path: Path, *, known: bool) -> None:
    """Mistyped, or not read since it was renamed: the endpoint of its key was deleted, and events for days with it."""
    keys = tmp_path / "keys.toml"
    keys.write_text(f'{HARBOR[1]} = "{OTHER_KEY}"\n')
    with_keys = {"NEXHEALTH_API_KEYS_FILE": str(keys)}
    account.set_up(settings=with_keys)
    if not known:
        account.db.execute("TRUNCATE nexhealth_institutions")
    account.vendor.stub.seen.clear()
    mistyped = with_keys | {"NEXHEALTH_SUBDOMAINS": f"{WILLOW[1]},harbour-smiles"}
    with pytest.raises(InvalidSetting, match=r"^NEXHEALTH_SUBDOMAINS: no institution 'harbour-smiles' is known yet"):
        account.set_up(settings=mistyped, prune=True)
    assert account.vendor.changes() == []
    assert account.set_up(settings=mistyped).exit_status == 0
    assert len(account.vendor.endpoints()) == len(account.rows) == 2


def test_a_key_of_which_nothing_is_known_keeps_its_endpoint(account: Account, tmp_path: Path) -> None:
    """Its institutions may be read by the next night, or are not here after a loss: that nobody wants them nobody said."""
    keys = tmp_path / "keys.toml"
    keys.write_text(f'{HARBOR[1]} = "{OTHER_KEY}"\n')
    with_keys = {"NEXHEALTH_API_KEYS_FILE": str(keys)}
    account.set_up(settings=with_keys)
    account.db.execute("DELETE FROM nexhealth_institutions WHERE id = %s", (HARBOR[0],))
    assert [one.key_name for one in account.set_up(settings=with_keys, prune=True).keys] == [""]
    assert len(account.vendor.endpoints()) == len(account.rows) == 2


def test_an_institution_that_is_refused_stops_only_itself_and_is_named(account: Account) -> None:
    """One wrong subdomain of fifty must not cost the others their events."""
    done = account.set_up(settings={"NEXHEALTH_API_KEY": NARROW_KEY})
    assert [what for what, _ in done.failures] == [HARBOR[1]]
    assert "no access" in done.failures[0][1]
    assert (done.exit_status, done.as_json()["failures"][0]["what"]) == (1, HARBOR[1])
    assert account.is_right([one for one in EVERYTHING if one[0] == WILLOW[0]])


def test_a_key_that_is_refused_spoils_its_own_institutions_only(account: Account, tmp_path: Path) -> None:
    keys = tmp_path / "keys.toml"
    keys.write_text(f'{HARBOR[1]} = "revoked"\n')
    done = account.set_up(settings={"NEXHEALTH_API_KEYS_FILE": str(keys)})
    assert [what for what, _ in done.failures] == [f"the key of {HARBOR[1]}"]
    assert account.is_right([one for one in EVERYTHING if one[0] == WILLOW[0]])
    with pytest.raises(KeyRefused):
        account.set_up(settings={"NEXHEALTH_API_KEY": "revoked"})


def test_an_institution_without_a_key_is_named(account: Account, tmp_path: Path) -> None:
    keys = tmp_path / "keys.toml"
    keys.write_text(f'{WILLOW[1]} = "{NARROW_KEY}"\n')
    done = account.set_up(settings={"NEXHEALTH_API_KEY": "", "NEXHEALTH_API_KEYS_FILE": str(keys)})
    assert [what for what, _ in done.failures] == [HARBOR[1]]
    assert done.keys[0].institutions == 1


def refusing(*resource_types: str) -> Callable[[Seen], Reply | None]:
    def meddle(seen: Seen) -> Reply | None:
        refused = subscribing(seen) and json.loads(seen.body)["resource_type"] in resource_types
        return refusal(403, "You don't have access to perform this action") if refused else None

    return meddle


def test_what_the_vendor_has_not_enabled_is_said_and_is_no_failure(account: Account) -> None:
    """Finance is off by default (API.md K)."""
    account.vendor.meddle = refusing("Charge")
    done = account.set_up()
    assert done.keys[0].not_enabled == {name: ["Charge"] for _, name in (WILLOW, HARBOR)}
    assert done.exit_status == 0
    account.vendor.meddle = lambda seen: None
    account.set_up()
    assert account.is_right()


def test_a_refusal_of_what_every_practice_has_is_a_failure(account: Account) -> None:
    account.vendor.meddle = refusing("Patient")
    done = account.set_up()
    assert sorted(what for what, _ in done.failures) == [HARBOR[1], WILLOW[1]]
    assert done.keys[0].subscriptions == len(EVERYTHING) - 4


def test_an_event_that_the_api_does_not_know_is_named_and_the_others_are_made(account: Account) -> None:
    def meddle(seen: Seen) -> Reply | None:
        unknown = subscribing(seen) and json.loads(seen.body)["event"] == "charge_deleted"
        return refusal(400, "event does not have a valid value") if unknown else None

    account.vendor.meddle = meddle
    done = account.set_up()
    assert len(done.failures) == 2
    assert done.failures[0][1].startswith("charge_deleted: ")
    assert done.keys[0].subscriptions == len(EVERYTHING) - 2


# What is refused before anything is sent, and what must never show ---------------------------------------------------


def test_without_a_sealing_key_nothing_is_made(account: Account) -> None:
    with pytest.raises(MissingSetting, match="NEXHEALTH_WEBHOOK_KEY"):
        account.set_up(settings={"NEXHEALTH_WEBHOOK_KEY": ""})
    assert account.vendor.asked == []


def test_a_url_that_cannot_be_used_sends_nothing(account: Account) -> None:
    with pytest.raises(InvalidSetting):
        account.set_up("http://hooks.example.com/")
    assert account.vendor.asked == []


def test_the_only_key_without_access_is_an_error(account: Account) -> None:
    account.vendor.meddle = lambda seen: refusal(403) if seen.path == "/webhook_endpoints" else None
    with pytest.raises(NoAccess):
        account.set_up()


def test_no_secret_shows_in_logs_results_or_errors(account: Account, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    account.vendor.lose = only_once(subscribing)
    done = account.set_up(rotate=True)
    record_inactive(account.db, account.rows[0])
    account.set_up(rotate=True)
    account.vendor.meddle = lambda seen: Reply(500, b"{}") if seen.method == "DELETE" else None
    shown = [repr(record.__dict__) for record in caplog.records if record.name.startswith("nexhealth_pipeline.")]
    shown += [repr(done), json.dumps(done.as_json()), repr(account.rows), repr(account.remove(None))]
    secrets = [one.secret_key for one in account.vendor.endpoints().values()]
    assert len(secrets) == 2
    assert not [text for text in shown for secret in [*secrets, KEY, SEALING_KEY] if secret in text]
