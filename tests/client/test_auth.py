"""Tokens without a network: lifetimes, renewal, one failure for all who wait."""

import base64
import itertools
import json
import threading

import pytest

from nexhealth_pipeline.client.auth import Token, TokenKeeper, token_lifetime
from nexhealth_pipeline.client.cost import Cost
from nexhealth_pipeline.errors import Unreachable


def jwt(**claims: object) -> str:
    return f"h.{base64.urlsafe_b64encode(json.dumps(claims).encode()).rstrip(b'=').decode()}.s"


@pytest.mark.parametrize(
    ("token", "seconds"),
    [
        (jwt(iat=1000, exp=1020), 20.0),
        (jwt(exp=4600), 3600.0),
        (jwt(iat=0, exp=1020), 20.0),  # backdated: the API's clock knows better
        (jwt(iat=1000, exp=900), 1.0),
        ("opaque", 3000.0),
        ("a.b.c", 3000.0),
        (jwt(exp="soon"), 3000.0),
        (jwt(exp=10**400), 3000.0),
        (jwt(), 3000.0),
    ],
)
def test_the_lifetime_is_the_shortest_the_token_admits(token, seconds):
    assert token_lifetime(token, api_now=1000.0) == seconds


@pytest.mark.parametrize(("lifetime", "renewed_after"), [(20.0, 16.0), (3600.0, 3540.0)])
def test_a_token_is_renewed_a_bit_before_its_end(lifetime, renewed_after):
    now = [0.0]
    asked = []
    keeper = TokenKeeper(lambda cost: asked.append(1) or Token(f"t{len(asked)}", lifetime), monotonic=lambda: now[0])
    assert keeper.current(Cost()) == "Bearer t1"
    now[0] = renewed_after - 0.1
    assert keeper.current(Cost()) == "Bearer t1"
    now[0] = renewed_after
    assert keeper.current(Cost()) == "Bearer t2"


def test_a_refused_token_is_forgotten_only_while_it_is_the_current_one():
    """Of ten threads with the old token only the first may cause a new one."""
    asked = []
    keeper = TokenKeeper(lambda cost: asked.append(1) or Token(f"t{len(asked)}", 3600.0), monotonic=lambda: 0.0)
    old = keeper.current(Cost())
    assert keeper.refused(old), "no answer ever came with it"
    new = keeper.current(Cost())
    assert not keeper.refused(old), "another thread had lost it before"
    assert keeper.current(Cost()) == new
    assert len(asked) == 2


def test_a_token_that_was_taken_before_says_nothing_of_the_key_when_it_is_refused():
    """Else threads that lose each other's tokens would call a good key refused."""
    asked = []
    keeper = TokenKeeper(lambda cost: asked.append(1) or Token(f"t{len(asked)}", 3600.0), monotonic=lambda: 0.0)
    token = keeper.current(Cost())
    keeper.accepted(token)
    assert not keeper.refused(token)
    assert keeper.refused(keeper.current(Cost())), "this one nobody took"


def test_a_late_answer_to_a_token_that_is_over_says_nothing_of_the_next_one():
    asked = []
    keeper = TokenKeeper(lambda cost: asked.append(1) or Token(f"t{len(asked)}", 3600.0), monotonic=lambda: 0.0)
    first = keeper.current(Cost())
    keeper.refused(first)
    second = keeper.current(Cost())
    keeper.accepted(second)
    keeper.accepted(first)
    assert not keeper.refused(second), "it was taken before"


class Door:
    """A lock that opens `when_all` once five have come to it."""

    def __init__(self, lock, when_all):
        self._lock, self._when_all, self._came = lock, when_all, itertools.count(1)

    def __enter__(self):
        if next(self._came) == 5:
            self._when_all.set()
        return self._lock.__enter__()

    def __exit__(self, *failure):
        self._lock.__exit__(*failure)


def test_those_in_line_get_the_failure_of_the_first_without_trying_again():
    """64 threads that each use up every retry would take an hour to say that the host is down."""
    begun, asked = threading.Event(), []

    def ask(cost: Cost) -> Token:
        asked.append(1)
        begun.set()
        line.wait(20)
        raise Unreachable("down")

    keeper = TokenKeeper(ask, monotonic=lambda: 0.0)
    line = threading.Event()
    keeper._lock = Door(keeper._lock, line)  # type: ignore[assignment]
    failures = []

    def current() -> None:
        try:
            keeper.current(Cost())
        except Unreachable as error:
            failures.append(error)

    threads = [threading.Thread(target=current) for _ in range(5)]
    threads[0].start()
    begun.wait(5)
    for thread in threads[1:]:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(failures) == 5
    assert len(asked) == 1
    with pytest.raises(Unreachable):
        keeper.current(Cost())
    assert len(asked) == 2


def test_a_token_does_not_print_itself():
    assert "secret" not in repr(Token("secret", 1.0))
