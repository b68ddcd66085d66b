"""Answers that get lost and set-ups that are killed: the next one goes on."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from nexhealth_pipeline.errors import InvalidSetting, ServerFailed
from tests.client.stub import Seen

from .account import EVERYTHING, URL, Account, Killed, creating, killed_after, subscribing
from .vendor import HARBOR, OTHER_KEY, only_once, without_secrets


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


def killed_with_a_key_that_is_lost(account: Account, **options: Any) -> None:
    """The endpoint is made, and nobody has its secret."""
    account.vendor.alter = without_secrets
    with pytest.MonkeyPatch.context() as patch:
        killed_after(1, patch)
        with suppress(Killed):
            account.set_up(**options)
    account.lose_key()


def test_a_set_up_that_was_killed_is_gone_on_with_by_the_next_key(account: Account) -> None:
    """The endpoint that it had made was taken for another's, so that nothing was done without --replace."""
    killed_with_a_key_that_is_lost(account)
    account.set_up()
    assert list(account.vendor.endpoints()) == [16002]
    assert account.is_right()


def test_a_rotation_that_was_killed_is_gone_on_with_by_the_next_key(account: Account) -> None:
    account.set_up()
    killed_with_a_key_that_is_lost(account, rotate=True)
    assert account.set_up().keys[0].others == []
    assert list(account.vendor.endpoints()) == [16001]
    assert account.is_right()


def test_what_was_begun_in_another_account_says_nothing_about_this_one(account: Account, tmp_path: Path) -> None:
    """Else somebody's endpoint, which was not there where that one was made, were deleted as ours."""
    killed_with_a_key_that_is_lost(account)
    account.vendor.forget()
    account.vendor.alter = without_secrets
    theirs = account.vendor.make(URL)
    keys = tmp_path / "keys.toml"
    keys.write_text(f'{HARBOR[1]} = "{OTHER_KEY}"\n')
    two_keys = {"NEXHEALTH_API_KEYS_FILE": str(keys)}  # whose it was, nothing tells where nothing was there before
    for there_before, settings in (([theirs + 1], {}), ([], two_keys)):
        account.db.execute("UPDATE nexhealth_webhook_attempts SET there_before = %s", (there_before,))
        with pytest.raises(InvalidSetting, match=f"endpoint {theirs}"):
            account.set_up(settings=settings)
    assert list(account.vendor.endpoints()) == [theirs]


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("count", [1, 2, 7, 11])
def test_a_rotation_that_was_killed_is_gone_on_with(account: Account, count: int, *, again: bool, hidden: bool) -> None:
    """Killed between making the successor and storing its secret (1), or anywhere later."""
    account.set_up()
    if hidden:
        account.vendor.alter = without_secrets
    with pytest.MonkeyPatch.context() as patch:
        killed_after(count, patch)
        with suppress(Killed):
            account.set_up(rotate=True)
    assert account.set_up(rotate=again).keys[0].others == []
    assert list(account.vendor.endpoints()) == [one.endpoint_id for one in account.rows]
    current = next(one for one in account.rows if one.retire_at is None)
    assert account.vendor.topics(current.endpoint_id) == EVERYTHING
    others = [account.vendor.topics(number) for number in account.vendor.endpoints() if number != current.endpoint_id]
    assert [topics for topics in others if topics] == []
