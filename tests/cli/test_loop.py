"""The loop that `nexhealth demo` shows: how a run of it that did not end well ends the command."""

from typing import Any

import pytest

from nexhealth_pipeline.cli import loop
from nexhealth_pipeline.cli.realm import Realm
from nexhealth_pipeline.errors import Cancelled, PipelineError
from nexhealth_pipeline.orchestration import webhook_launch
from nexhealth_pipeline.orchestration.webhook_launch import WebhookRun
from nexhealth_pipeline.settings import load_settings


@pytest.mark.parametrize(("status", "kind", "words"), [(130, Cancelled, "stopped"), (1, PipelineError, "run r1 of")])
def test_a_run_that_was_stopped_has_not_failed(
    monkeypatch: pytest.MonkeyPatch, status: int, kind: type[PipelineError], words: str
) -> None:
    """Whoever pressed Ctrl-C is not to be sent into the log."""

    def run(*_: object, **__: Any) -> WebhookRun:
        return WebhookRun("r1", exit_status=status)

    monkeypatch.setattr(webhook_launch, "run_webhook_job", run)
    realm = Realm(load_settings({}, environ={}, env_file=None), "sandbox", "demo", "demo_dagster")
    with pytest.raises(PipelineError, match=words) as caught:
        loop._run(realm, "nexhealth_webhook_apply", {})
    assert (type(caught.value), caught.value.exit_status) == (kind, status)
