"""A receiver that the warehouse lets in no more: its log says why, and what to mend."""

import asyncio
import contextlib
import gc
import logging
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass

import psycopg
import pytest

from nexhealth_pipeline.errors import WarehouseError
from nexhealth_pipeline.webhooks.receiving.link import Link
from nexhealth_pipeline.webhooks.receiving.warehouse_watch import WarehouseWatch

from .receiving import settings


@dataclass
class Courier:
    """A role of the receiver's own, and an administrator."""

    name: str
    url: str
    admin: psycopg.Connection

    def changed(self, statement: str) -> None:
        """Change the role, and end its connections."""
        self.admin.execute(statement.format(self.name))
        self.admin.execute(
            "SELECT pg_terminate_backend(pid, 20000) FROM pg_stat_activity WHERE usename = %s", (self.name,)
        )


@pytest.fixture
def courier(no_events: str) -> Iterator[Courier]:
    name = f"courier_{uuid.uuid4().hex[:8]}"
    with psycopg.connect(no_events, autocommit=True) as admin:
        admin.execute(f"CREATE ROLE {name} LOGIN")
        courier = Courier(name, no_events.replace("postgres@", f"{name}@"), admin)
        yield courier
        courier.changed("DROP ROLE IF EXISTS {}")


def told(caplog: pytest.LogCaptureFixture, level: int = logging.WARNING) -> list[str]:
    """Why there is no connection, as was said at least so loud."""
    return [
        record.__dict__["nexhealth"]["error"]
        for record in caplog.records
        if record.levelno >= level and record.message == "no connection to the warehouse"
    ]


@contextlib.asynccontextmanager
async def opened(url: str) -> AsyncIterator[Link]:
    link = Link(url, on_change=lambda _: None)
    await link.open()
    yield link
    await link.close()


async def until(look: Callable[[], bool]) -> None:
    """Wait until `look()` is true."""
    async with asyncio.timeout(20):
        while not look():
            await asyncio.sleep(0.02)


def test_each_reason_is_said_aloud_once(courier: Courier, caplog: pytest.LogCaptureFixture) -> None:
    """It said OperationalError every two seconds, to nobody who looks for warnings."""

    async def live_through() -> None:
        async with opened(courier.url) as link:
            assert link.is_up
            courier.changed("ALTER ROLE {} NOLOGIN")
            with contextlib.suppress(WarehouseError):
                await link.execute("SELECT 1", {})
            await until(lambda: len(told(caplog, logging.INFO)) > 2)
            courier.changed("DROP ROLE {}")
            await until(lambda: len(told(caplog)) > 1)
            courier.changed("CREATE ROLE {} LOGIN")
            await until(lambda: link.is_up)

    with caplog.at_level(logging.INFO):
        asyncio.run(live_through())
    refused, absent = told(caplog)
    assert f"does not let role {courier.name} log in" in refused
    assert f"has no role {courier.name}: create it" in absent


def test_secrets_that_cannot_be_read_say_so_as_well(courier: Courier, caplog: pytest.LogCaptureFixture) -> None:
    """That "the connection was lost" sent its reader to the network."""
    courier.changed("DROP ROLE {}")
    WarehouseWatch(courier.url, settings(), None, every_seconds=10.0, seconds=4.0).look()
    assert [f"has no role {courier.name}" in record.__dict__["nexhealth"]["error"] for record in caplog.records] == [
        True
    ]


def test_a_statement_whose_caller_gave_up_is_nobodys_traceback(no_events: str) -> None:
    """A receiver that ended beside one that hung logged it, outside of our own format."""
    said: list[str] = []

    async def give_up() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: said.append(context["message"]))
        async with opened(no_events) as link:
            hanging = asyncio.create_task(link.execute("SELECT pg_sleep(60)", {}))
            await asyncio.sleep(0.2)
            hanging.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await hanging
        await asyncio.sleep(0.2)
        gc.collect()

    asyncio.run(give_up())
    assert said == []
