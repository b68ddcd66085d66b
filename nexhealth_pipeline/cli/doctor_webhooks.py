"""Doctor's questions about continuous sync: do our endpoints still exist, are they active, can their secrets be opened?

Where nothing was registered there is nothing to find: webhooks are optional, the nightly run is not.
"""

from collections.abc import Iterator

from nexhealth_pipeline.cli.doctor_api import doctors_client
from nexhealth_pipeline.cli.findings import Finding, Group, Level
from nexhealth_pipeline.cli.realm import Realm
from nexhealth_pipeline.client.client import NexHealthClient
from nexhealth_pipeline.errors import ApiError, ConfigurationError, PipelineError
from nexhealth_pipeline.warehouse.connect import connect, driver_errors
from nexhealth_pipeline.warehouse.migrate import HEAD, current_revision
from nexhealth_pipeline.webhooks.endpoints import Endpoint, known_endpoints
from nexhealth_pipeline.webhooks.registering.remote import Remote
from nexhealth_pipeline.webhooks.sealing import Sealer

__all__ = ["webhook_findings"]


def webhook_findings(realm: Realm) -> Iterator[Finding]:
    """Findings about registered endpoints; none where key or database cannot be used, which others tell."""
    try:
        known = _known(realm)
        client = doctors_client(realm.settings) if known else None
    except PipelineError:
        return
    if client is None:
        return
    try:
        yield from _secrets(realm, known)
        yield from _active(client, known)
    finally:
        client.close()


def _known(realm: Realm) -> list[Endpoint]:
    with connect(realm.warehouse_url(), autocommit=True) as connection, driver_errors("looking for webhook endpoints"):
        found = known_endpoints(connection) if current_revision(connection) == HEAD else []
    # One that was replaced is the only one of the institutions that it still has.
    return [one for one in found if one.retire_at is None or one.subscriptions]


def _secrets(realm: Realm, known: list[Endpoint]) -> Iterator[Finding]:
    try:
        sealer = Sealer.of(realm.settings)
        for endpoint in known:
            sealer.open(endpoint.secret, f"the secret of {endpoint.label}")
    except ConfigurationError as error:
        fix = "The receiver cannot check signatures until then and answers 503."
        yield Finding("webhook_key", Level.FAILED, Group.SETTINGS, str(error), fix)


def _active(client: NexHealthClient, known: list[Endpoint]) -> Iterator[Finding]:
    names = client.names_by_hash()
    listed: dict[str, dict[int, bool]] = {}
    for endpoint in known:
        name = names.get(endpoint.key_hash)
        if name is None:
            fix = (
                f"Add that key; or, with the key that replaced it, run `nexhealth webhooks setup {endpoint.target_url}`; "
                f"or forget it: `nexhealth webhooks remove {endpoint.target_url} --forget`."
            )
            yield _warning(endpoint, "its API key is not among the settings", fix)
            continue
        try:
            if name not in listed:
                listed[name] = {one.id: one.active for one in Remote(client, name).endpoints()}
        except ApiError as error:
            yield _warning(endpoint, f"NexHealth cannot be asked about it: {error}", "Try again.")
            continue
        except ConfigurationError as error:  # the environment's proxy or certificates
            fix = "Correct the variable that it names, or unset it."
            yield _warning(endpoint, f"NexHealth cannot be asked about it: {error}", fix)
            continue
        yield _finding(endpoint, listed[name].get(endpoint.endpoint_id))


def _finding(endpoint: Endpoint, active: bool | None) -> Finding:
    again = f"Run `nexhealth webhooks setup {endpoint.target_url}`"
    if active is None:
        return _warning(endpoint, "NexHealth has it no more, so no event comes", f"{again}.")
    if not active:
        reason = "NexHealth switched it off after 48 hours of errors"
        return _warning(endpoint, reason, f"See that it can be reached, then {again[0].lower()}{again[1:]}.")
    message = f"NexHealth posts events to {endpoint.target_url} ({endpoint.label})"
    return Finding("webhook", Level.OK, Group.API, message)


def _warning(endpoint: Endpoint, problem: str, fix: str) -> Finding:
    return Finding("webhook", Level.WARNING, Group.API, f"{endpoint.label} ({endpoint.target_url}): {problem}", fix)
