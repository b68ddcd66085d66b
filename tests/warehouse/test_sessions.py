"""A pooler in transaction mode is told from all other ways to a server, and refused."""

import psycopg
import pytest

from nexhealth_pipeline.errors import WarehouseError
from nexhealth_pipeline.warehouse import sessions
from nexhealth_pipeline.warehouse.connect import connect
from nexhealth_pipeline.warehouse.migrate import upgrade
from nexhealth_pipeline.warehouse.sessions import _are_shared, keeps_sessions, require_sessions
from tests.poolers import pooler


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the addresses of other tests, whose ports come again."""
    monkeypatch.setattr(sessions, "_kept", set())


def test_a_pooler_in_transaction_mode_is_refused(server_url: str) -> None:
    """Risk: a run's lock is the next client's, and a living run is closed as dead."""
    with pooler(server_url, sessions=False) as url:
        with connect(url, autocommit=True) as one, connect(url, autocommit=True) as other:
            for each in (one, other):
                assert each.execute("SELECT pg_try_advisory_lock(20)").fetchone() == (True,), "both hold it"
        with pytest.raises(WarehouseError, match="pooler in transaction mode, where locks do not hold"):
            require_sessions(url)
        with pytest.raises(WarehouseError, match="pooler in transaction mode"):
            upgrade(url)


def test_several_poolers_behind_one_address_are_refused_as_one_is(server_url: str) -> None:
    """Risk: two connections that come to two of them share nothing, and the process takes it for session mode."""
    with pooler(server_url, sessions=False, many=3) as url, pytest.raises(WarehouseError, match="in transaction mode"):
        require_sessions(url)


def test_a_pooler_in_session_mode_is_none(server_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is looked at once in a process."""
    with pooler(server_url, sessions=True) as url:
        require_sessions(url)
        monkeypatch.setattr(sessions, "_are_shared", lambda clients: pytest.fail("asked again"))
        with connect(url) as connection:
            require_sessions(url, connection)


def test_the_server_itself_is_told_by_one_question(server_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every run asks, and every tick."""
    monkeypatch.setattr(sessions, "_opened", lambda url: pytest.fail("connected once more"))
    with connect(server_url) as connection:
        assert keeps_sessions(server_url, connection)
        assert connection.info.transaction_status is psycopg.pq.TransactionStatus.IDLE


def test_a_session_that_two_connections_get_is_shared(server_url: str) -> None:
    """As two clients of a pooler with a single session to give see it."""
    with connect(server_url, autocommit=True) as one, connect(server_url, autocommit=True) as other:
        assert _are_shared([one, one])
        assert not _are_shared([one, other])
