"""Registration: what a set-up makes, leaves and deletes at NexHealth, and how it goes on after what went wrong."""

import json
import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from nexhealth_pipeline.catalog.collections import DECLARED
from nexhealth_pipeline.errors import InvalidSetting, KeyRefused, MissingSetting, NoAccess, ServerFailed
from nexhealth_pipeline.sync.session import SyncSession
from nexhealth_pipeline.webhooks import registration
from nexhealth_pipeline.webhooks.endpoints import (
    OVERLAP,
    Endpoint,
    known_endpoints,
    live_secrets,
    record_inactive,
)
from nexhealth_pipeline.webhooks.registration import Removal, SetUp, remove, set_up
from nexhealth_pipeline.webhooks.sealing import Sealer
from nexhealth_pipeline.webhooks.subscribing import declared_topics
from tests.client.stub import Reply, Seen, refusal

from .vendor import HARBOR, KEY, NARROW_KEY, OTHER_KEY, SEALING_KEY, WILLOW, Vendor, only_once, without_secrets

Opened = Callable[..., AbstractContextManager[SyncSession]]
URL = "https://hooks.example.com/api/nexhealth-webhook"
TOPICS = tuple(one for one in declared_topics() if one.resource_type in {"Patient", "Charge"})
"""Those that the tests subscribe to: the code is the same for all, only faster."""
EVENTS = sorted(one.event for one in TOPICS)
EVERYTHING = sorted((number, event) for number, _ in (WILLOW, HARBOR) for event in EVENTS)
SEALER = Sealer([SEALING_KEY])


class Account:
    """Runs set-ups against the vendor and looks what became of it."""

    def __init__(self, vendor: Vendor, opened: Opened, db: psycopg.Connection) -> None:
        self.vendor, self.opened, self.db = vendor, opened, db

    def set_up(self, url: str = URL, settings: dict[str, str] | None = None, **options: Any) -> SetUp:
        with self.opened(**(settings or {})) as session:
            return set_up(session, url, **options)

    def remove(self, url: str | None) -> Removal:
        with self.opened() as session:
            return remove(session, url)

    @property
    def rows(self) -> list[Endpoint]:
        return known_endpoints(self.db)

    def secrets(self) -> list[tuple[int | None, str]]:
        return [(one.endpoint_id, one.secret) for one in live_secrets(self.db, SEALER)]

    def true_secrets(self) -> list[tuple[int | None, str]]:
        return [(number, one.secret_key) for number, one in sorted(self.vendor.endpoints().items(), reverse=True)]

    def know(self, *institutions: tuple[int, str]) -> None:
        """Put institutions into the warehouse."""
        for number, subdomain in institutions:
            self.db.execute(
                "INSERT INTO nexhealth_institutions (institution_id, id, name, subdomain, synced_at, source_read_at,"
                " row_hash) VALUES (%(id)s, %(id)s, 'A', %(name)s, now(), now(), '')",
                {"id": number, "name": subdomain},
            )

    def is_right(self, topics: Sequence[tuple[int, str]] = EVERYTHING) -> bool:
        """One endpoint with exactly these subscriptions, known with its true secret."""
        [row] = self.rows
        subscribed = sorted((one.subdomain, one.event) for one in row.subscribed)
        names = dict((WILLOW, HARBOR))
        return (
            self.vendor.topics(row.endpoint_id) == list(topics)
            and subscribed == sorted((names[number], event) for number, event in topics)
            and self.secrets() == self.true_secrets()
        )


@pytest.fixture
def account(
    nexhealth_account: Vendor, opened: Opened, db: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> Account:
    monkeypatch.setattr(registration, "declared_topics", lambda: TOPICS)
    account = Account(nexhealth_account, opened, db)
    account.know(WILLOW, HARBOR)
    return account


# What a set-up makes ------------------------------------------------------------------------------------------------


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


# Keys and refusals --------------------------------------------------------------------------------------------------


def test_each_key_has_an_endpoint_of_its_own(account: Account, tmp_path: Path) -> None:
    keys = tmp_path / "keys.toml"
    keys.write_text(f'{HARBOR[1]} = "{OTHER_KEY}"\n')
    done = account.set_up(settings={"NEXHEALTH_API_KEYS_FILE": str(keys)})
    assert [(one.key_name, one.institutions) for one in done.keys] == [("", 1), (HARBOR[1], 1)]
    topics = [{number for number, _ in account.vendor.topics(one.endpoint_id)} for one in account.rows]
    assert topics == [{WILLOW[0]}, {HARBOR[0]}]
    assert len({one.key_hash for one in account.rows}) == 2
    assert account.secrets() == account.true_secrets()


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


def subscribing(seen: Seen) -> bool:
    return seen.method == "POST" and seen.path.endswith("/webhook_subscriptions")


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


# Answers that get lost, set-ups that are killed -----------------------------------------------------------------------


def creating(seen: Seen) -> bool:
    return seen.method == "POST" and seen.path == "/webhook_endpoints"


@pytest.mark.parametrize("matches", [creating, subscribing])
def test_a_change_whose_answer_is_lost_is_not_made_twice(account: Account, matches: Callable[[Seen], bool]) -> None:
    """Two endpoints, or two subscriptions, would post every event twice."""
    account.vendor.lose = only_once(matches)
    assert account.set_up().exit_status == 0
    assert len(account.vendor.endpoints()) == 1
    assert account.is_right()


def test_a_move_whose_answer_is_lost_is_taken_as_made(account: Account) -> None:
    account.set_up()
    account.vendor.lose = only_once(lambda seen: seen.method == "PATCH")
    account.set_up(rotate=True)
    assert account.vendor.topics(max(account.vendor.endpoints())) == EVERYTHING


def test_an_endpoint_of_which_nobody_learnt_the_secret_is_replaced(account: Account) -> None:
    """The answer was lost, and the list does not show secrets."""
    account.vendor.lose = only_once(creating)
    account.vendor.alter = without_secrets
    account.set_up()
    assert list(account.vendor.endpoints()) == [16002]
    assert account.is_right()


def test_an_api_that_never_tells_secrets_is_an_error_and_leaves_nothing_behind(account: Account) -> None:
    def alter(seen: Seen, data: Any) -> Any:
        return data | {"secret_key": None} if creating(seen) else without_secrets(seen, data)

    account.vendor.alter = alter
    with pytest.raises(ServerFailed, match="secret"):
        account.set_up()
    assert account.vendor.endpoints() == {}


class Killed(BaseException):
    """As if the process had gone."""


def killed_after(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """End the set-up right after its change number `count` was answered."""
    from nexhealth_pipeline.client.client import NexHealthClient

    call, left = NexHealthClient.call, [count]

    def dying(self: NexHealthClient, *args: Any) -> list[bytes]:
        answer = call(self, *args)
        left[0] -= 1
        if left[0] <= 0:
            raise Killed
        return answer

    monkeypatch.setattr(NexHealthClient, "call", dying)


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("count", [1, 2, 7])
def test_a_set_up_that_was_killed_is_gone_on_with(account: Account, count: int, *, hidden: bool) -> None:
    """Killed between making the endpoint and storing its secret (1), or anywhere later."""
    if hidden:
        account.vendor.alter = without_secrets
    with pytest.MonkeyPatch.context() as patch:
        killed_after(count, patch)
        with suppress(Killed):
            account.set_up()
    account.set_up()
    assert account.is_right()
    assert len(account.vendor.endpoints()) == 1


@pytest.mark.parametrize("count", [1, 2, 7, 11])
def test_a_rotation_that_was_killed_is_gone_on_with(account: Account, count: int) -> None:
    account.set_up()
    with pytest.MonkeyPatch.context() as patch:
        killed_after(count, patch)
        with suppress(Killed):
            account.set_up(rotate=True)
    account.set_up()
    current = next(one for one in account.rows if one.retire_at is None)
    assert account.vendor.topics(current.endpoint_id) == EVERYTHING
    others = [account.vendor.topics(number) for number in account.vendor.endpoints() if number != current.endpoint_id]
    assert [topics for topics in others if topics] == []


# Endpoints that are there already -----------------------------------------------------------------------------------


def test_an_endpoint_made_by_hand_is_taken_over(account: Account) -> None:
    number = account.vendor.make(URL)
    account.vendor.make("https://somebody.example.com/else")
    account.set_up(prune=True)
    assert [one.endpoint_id for one in account.rows] == [number]
    assert len(account.vendor.endpoints()) == 2  # the other is not ours
    assert account.vendor.topics(number) == EVERYTHING


def test_one_whose_secret_is_hidden_is_replaced_and_its_subscriptions_move(account: Account) -> None:
    account.set_up()
    account.db.execute("TRUNCATE nexhealth_webhooks")
    account.vendor.alter = without_secrets
    done = account.set_up()
    assert (done.keys[0].subscriptions_moved, done.keys[0].subscriptions_created) == (len(EVERYTHING), 0)
    assert done.keys[0].endpoints_removed == [16001]
    assert account.is_right()


def test_a_masked_secret_is_none(account: Account) -> None:
    """Taken for one, it would replace the right one, and every event would be refused."""
    account.set_up()
    account.vendor.alter = lambda seen, data: (
        [one | {"secret_key": "abc*****"} for one in data] if seen.path == "/webhook_endpoints" else data
    )
    account.set_up()
    assert account.is_right()


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
    account.vendor.box.webhooks.registry.change_endpoint(16001, secret_key="changed-there")
    account.set_up()
    assert account.secrets() == [(16001, "changed-there"), before]


def test_a_lost_sealing_key_is_got_over_where_the_api_shows_secrets(account: Account) -> None:
    account.set_up(sealer=Sealer(["lost" * 10]))
    account.set_up()
    assert account.is_right()


def test_a_new_sealing_key_seals_everything_anew(account: Account) -> None:
    account.set_up()
    new = "the-new-key-" + "n" * 32
    account.set_up(settings={"NEXHEALTH_WEBHOOK_KEY": f"{new},{SEALING_KEY}"})
    assert [one.endpoint_id for one in live_secrets(account.db, Sealer([new]))] == [16001]


# Rotation, pruning, removal -------------------------------------------------------------------------------------------


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
    account.db.execute("UPDATE nexhealth_webhooks SET key_hash = 'of a key that is not set'")
    assert "key" in account.remove(None).failures[0][1]
    assert len(account.rows) == 1


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
