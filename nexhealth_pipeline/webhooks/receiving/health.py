"""What people and monitors ask the receiver: is it alive, is it ready, what has it counted. Not for the internet."""

from collections.abc import Callable

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from nexhealth_pipeline.webhooks.receiving.metrics import CONTENT_TYPE, Metrics
from nexhealth_pipeline.webhooks.receiving.warehouse_watch import Known

__all__ = ["pages"]


def pages(known: Callable[[], Known], database_is_up: Callable[[], bool], metrics: Metrics) -> Starlette:
    """`/health/live`, `/health/ready` and `/metrics`; anything else is 404."""

    async def live(_: Request) -> Response:
        return JSONResponse({"live": True})

    async def ready(_: Request) -> Response:
        now, up = known(), database_is_up()
        found = {"database": up, "schema": now.schema_fits, "secrets": len(now.secrets)}
        is_ready = all(found.values())
        return JSONResponse({"ready": is_ready, **found}, status_code=200 if is_ready else 503)

    async def counted(_: Request) -> Response:
        metrics.database.set(database_is_up())
        metrics.secrets.set(len(known().secrets))
        return Response(metrics.text(), headers={"content-type": CONTENT_TYPE})

    async def nothing(_: Request, __: Exception) -> Response:
        return PlainTextResponse("unknown", status_code=404)

    return Starlette(
        routes=[Route("/health/live", live), Route("/health/ready", ready), Route("/metrics", counted)],
        exception_handlers={404: nothing},
    )
