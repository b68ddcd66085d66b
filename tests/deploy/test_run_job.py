"""The Job that a run becomes on Kubernetes, as dagster-k8s sends it with our instance's configuration."""

import json
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from dagster import DagsterInstance, DagsterRunStatus
from dagster._core.code_pointer import ModuleCodePointer
from dagster._core.launcher import LaunchRunContext
from dagster._core.origin import DEFAULT_DAGSTER_ENTRY_POINT, JobPythonOrigin, RepositoryPythonOrigin
from dagster._core.test_utils import create_run_for_test
from dagster._daemon.monitoring.run_monitoring import monitor_started_run

from nexhealth_pipeline.orchestration.command_runs import COMMAND_TAGS

from .files import INSTANCE, code_location, policies_of, with_pull_secrets

IMAGE = "{repository}:{tag}".format(**code_location()["image"])


@contextmanager
def cluster() -> Iterator[tuple[str, list[tuple[str, Any]]]]:
    """Takes what is sent to a cluster's API, and holds nothing: address, and path and body of each object."""
    taken: list[tuple[str, Any]] = []

    class Api(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            taken.append((self.path, json.loads(body)))
            self.send_response(201)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            self.send_error(404)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Api)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", taken
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def kubeconfig(address: str) -> str:
    """A file that leads kubernetes' client to `address`."""
    return yaml.safe_dump(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "here",
            "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me"}}],
            "clusters": [{"name": "here", "cluster": {"server": address}}],
            "users": [{"name": "me", "user": {}}],
        }
    )


@pytest.fixture
def configured() -> dict[str, Any]:
    """What the instance's file says."""
    return INSTANCE


@pytest.fixture
def daemon(
    configured: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[DagsterInstance, list[tuple[str, Any]]]]:
    """The instance with our launcher, and what that sends to the cluster."""
    monkeypatch.setenv("DAGSTER_K8S_PIPELINE_RUN_NAMESPACE", "nexhealth")  # the chart sets it
    with cluster() as (address, taken):
        (tmp_path / "kubeconfig").write_text(kubeconfig(address))
        launcher = json.loads(json.dumps(configured["run_launcher"]))
        launcher["config"] |= {"load_incluster_config": False, "kubeconfig_file": str(tmp_path / "kubeconfig")}
        (tmp_path / "dagster.yaml").write_text(
            yaml.safe_dump({"run_launcher": launcher, "telemetry": {"enabled": False}})
        )
        with DagsterInstance.from_config(str(tmp_path)) as instance:
            yield instance, taken


@pytest.fixture
def job(daemon: tuple[DagsterInstance, list[tuple[str, Any]]]) -> Any:
    """What is sent when a run is launched."""
    instance, taken = daemon
    pointer = ModuleCodePointer("nexhealth_pipeline.definitions", "defs")
    repository = RepositoryPythonOrigin("python", pointer, IMAGE, DEFAULT_DAGSTER_ENTRY_POINT)
    run = create_run_for_test(
        instance, "nexhealth_locations", job_code_origin=JobPythonOrigin("nexhealth_locations", repository)
    )
    instance.run_launcher.launch_run(LaunchRunContext(dagster_run=run, workspace=None))
    ((path, body),) = taken
    assert path.endswith("/namespaces/nexhealth/jobs")
    return body


def test_a_run_has_what_it_needs_and_no_more(job: dict[str, Any]) -> None:
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["image"] == IMAGE
    assert container["args"][1:3] == ["api", "execute_run"]
    assert {one["name"]: one.get("value") for one in container["env"]}["DAGSTER_HOME"] == "/opt/nexhealth/instance"
    assert [(kind, ref["name"]) for one in container["envFrom"] for kind, ref in one.items()] == [
        ("configMapRef", "nexhealth-settings"),
        ("secretRef", "nexhealth-database"),
        ("secretRef", "nexhealth-api"),
    ]
    assert pod["serviceAccountName"] == "nexhealth-runs"
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == 10001
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def test_a_run_has_room_and_time(job: dict[str, Any]) -> None:
    """Its root is read-only, so folders to write to are its own; it may take two minutes to end on a page."""
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    volumes = {one["name"] for one in pod["volumes"]}
    mounts = {one["mountPath"]: one["name"] for one in container["volumeMounts"]}
    assert mounts.keys() == {"/var/lib/nexhealth", "/tmp"}
    assert set(mounts.values()) <= volumes
    assert container["resources"]["limits"]["memory"] == "1Gi"
    assert pod["terminationGracePeriodSeconds"] == 120
    assert pod["restartPolicy"] == "Never"
    assert job["spec"]["ttlSecondsAfterFinished"] == 86400


def test_nobody_reaches_a_run(job: dict[str, Any]) -> None:
    (policy,) = policies_of(job["spec"]["template"]["metadata"]["labels"])
    assert policy["spec"]["policyTypes"] == ["Ingress"]
    assert "ingress" not in policy["spec"]


@pytest.mark.parametrize("configured", list(with_pull_secrets("kubernetes/dagster.yaml")), ids=["private registry"])
def test_a_run_s_image_may_come_from_a_private_registry(job: dict[str, Any]) -> None:
    """By the line that stands there as a comment."""
    assert job["spec"]["template"]["spec"]["imagePullSecrets"] == [{"name": "nexhealth-registry"}]


@pytest.mark.parametrize(
    ("tags", "status"),
    [(COMMAND_TAGS, DagsterRunStatus.STARTED), ({}, DagsterRunStatus.FAILURE)],
    ids=["a command's", "the daemon's"],
)
def test_a_run_without_a_job_has_failed_unless_it_is_a_command_s(
    daemon: tuple[DagsterInstance, list[tuple[str, Any]]], tags: dict[str, str], status: DagsterRunStatus
) -> None:
    """A command works in the pod it was given in: failed, it would go on, and a schedule begin beside it."""
    instance, _ = daemon
    run = create_run_for_test(instance, "nexhealth_locations", status=DagsterRunStatus.STARTED, tags=dict(tags))
    (record,) = instance.get_run_records()
    monitor_started_run(instance, None, record, logging.getLogger(__name__))  # type: ignore[arg-type]
    after = instance.get_run_by_id(run.run_id)
    assert after is not None
    assert after.status is status
