"""The Job that a run becomes on Kubernetes, as dagster-k8s sends it with our instance's configuration."""

import json
import logging
import threading
from collections.abc import Iterator, Mapping
from http import HTTPStatus
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
from dagster_k8s.client import DagsterKubernetesClient

from nexhealth_pipeline.orchestration.command_runs import COMMAND_TAGS

from .files import INSTANCE, code_location, policies_of, with_pull_secrets

IMAGE = "{repository}:{tag}".format(**code_location()["image"])


class Cluster(ThreadingHTTPServer):
    """A cluster's API that holds nothing: it takes what is sent, and answers each question with `status`."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Api)
        self.taken: list[tuple[str, Any]] = []
        """Path and body of each object."""
        self.status = HTTPStatus.NOT_FOUND
        self._thread = threading.Thread(target=self.serve_forever)
        self._thread.start()

    def close(self) -> None:
        """From now on connections are refused. May be called twice."""
        self.shutdown()
        self._thread.join()
        self.server_close()


class Api(BaseHTTPRequestHandler):
    """What it answers."""

    server: Cluster

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.taken.append((self.path, json.loads(body)))
        self.send_response(201)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        self.send_error(self.server.status)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


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
def cluster() -> Iterator[Cluster]:
    """The cluster that Dagster talks to."""
    server = Cluster()
    yield server
    server.close()


@pytest.fixture
def instance(
    configured: dict[str, Any], cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[DagsterInstance]:
    """The instance with our launcher."""
    monkeypatch.setenv("DAGSTER_K8S_PIPELINE_RUN_NAMESPACE", "nexhealth")  # the chart sets it
    (tmp_path / "kubeconfig").write_text(kubeconfig(f"http://127.0.0.1:{cluster.server_port}"))
    launcher = json.loads(json.dumps(configured["run_launcher"]))
    launcher["config"] |= {"load_incluster_config": False, "kubeconfig_file": str(tmp_path / "kubeconfig")}
    (tmp_path / "dagster.yaml").write_text(yaml.safe_dump({"run_launcher": launcher, "telemetry": {"enabled": False}}))
    with DagsterInstance.from_config(str(tmp_path)) as configured_so:
        yield configured_so


@pytest.fixture
def job(instance: DagsterInstance, cluster: Cluster) -> Any:
    """What is sent when a run is launched."""
    pointer = ModuleCodePointer("nexhealth_pipeline.definitions", "defs")
    repository = RepositoryPythonOrigin("python", pointer, IMAGE, DEFAULT_DAGSTER_ENTRY_POINT)
    run = create_run_for_test(
        instance, "nexhealth_locations", job_code_origin=JobPythonOrigin("nexhealth_locations", repository)
    )
    instance.run_launcher.launch_run(LaunchRunContext(dagster_run=run, workspace=None))
    ((path, body),) = cluster.taken
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
    instance: DagsterInstance, tags: dict[str, str], status: DagsterRunStatus
) -> None:
    """A command works in the pod it was given in: failed, it would go on, and a schedule begin beside it."""
    assert after_a_look(instance, tags) is status


@pytest.mark.parametrize("answer", [HTTPStatus.INTERNAL_SERVER_ERROR, HTTPStatus.TOO_MANY_REQUESTS, None])
def test_a_cluster_that_cannot_be_asked_fails_no_run(
    instance: DagsterInstance, cluster: Cluster, monkeypatch: pytest.MonkeyPatch, answer: HTTPStatus | None
) -> None:
    """A control plane is away for minutes when it is upgraded, and pods work on. None = it refuses connections."""
    monkeypatch.setattr(DagsterKubernetesClient.get_job_status, "__defaults__", (0.0,))  # else ten seconds a question
    if answer is None:
        cluster.close()
    else:
        cluster.status = answer
    assert after_a_look(instance, {}) is DagsterRunStatus.STARTED


def after_a_look(instance: DagsterInstance, tags: Mapping[str, str]) -> DagsterRunStatus:
    """The status of a run that is going on, once Dagster's monitor has looked at it."""
    run = create_run_for_test(instance, "nexhealth_locations", status=DagsterRunStatus.STARTED, tags=dict(tags))
    (record,) = instance.get_run_records()
    monitor_started_run(instance, None, record, logging.getLogger(__name__))  # type: ignore[arg-type]
    after = instance.get_run_by_id(run.run_id)
    assert after is not None
    return after.status
