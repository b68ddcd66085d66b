"""Every file under `deploy/` fits the package: its commands, settings, pages, names and versions are those of the code."""

import importlib
import re
import shutil
import subprocess
from typing import Any

import click
import pytest
import yaml

from nexhealth_pipeline.catalog.collection import Scope
from nexhealth_pipeline.settings import Settings, load_settings
from nexhealth_pipeline.webhooks.receiving import serving
from nexhealth_pipeline.webhooks.receiving.health import pages
from nexhealth_pipeline.webhooks.receiving.metrics import Metrics
from nexhealth_pipeline.webhooks.target import WEBHOOK_PATH
from tests.command_lines import parse

from .files import (
    COMPOSE,
    DEPLOY,
    DOCKERFILE,
    GUIDE,
    INSTANCE,
    ROOT,
    VALUES,
    code_location,
    containers,
    environments,
    manifests,
    our_commands,
    pods,
    settings_file,
    with_pull_secrets,
)

FIELDS = {str(field.alias): field for field in Settings.model_fields.values()}
SECRETS = {name for name, field in FIELDS.items() if "SecretStr" in str(field.annotation)}
NOT_OURS = {"DAGSTER_HOME", "POSTGRES_DB", "POSTGRES_USER", "POSTGRES_PASSWORD"}
COMMANDS = our_commands()
MOUNTED = "/opt/nexhealth/instance/workspace.yaml"
"""Where the image has the `workspace.yaml` of the compose file."""


def taken_apart(line: list[str]) -> None:
    """As it will be where the files are. Raises UsageError."""
    parse([str(DEPLOY / "compose" / "workspace.yaml") if word == MOUNTED else word for word in line])


@pytest.mark.parametrize(("place", "line"), COMMANDS, ids=[f"{place}: {' '.join(line)}" for place, line in COMMANDS])
def test_every_command_exists_and_takes_its_options(place: str, line: list[str]) -> None:
    taken_apart(line)


def test_what_the_guide_runs_inside_a_container_is_among_them() -> None:
    """Of Compose and of the cluster: whether all is well, the first rows before a night, and events."""
    lines = [line for place, line in COMMANDS if place == "guide"]
    assert lines.count(["nexhealth", "doctor"]) == 2
    assert lines.count(["nexhealth", "sync"]) == 2
    assert len([line for line in lines if line[:3] == ["nexhealth", "webhooks", "setup"]]) == 2


def test_a_wrong_option_is_noticed() -> None:
    """Else the test above could not fail."""
    for wrong in (
        ["nexhealth", "serve", "--hots", "x"],
        ["dagster", "api", "grpc", "--prot", "1"],
        ["dagster-daemon", "rum"],
    ):
        with pytest.raises(click.UsageError):
            taken_apart(wrong)


def test_commands_are_looked_for_everywhere() -> None:
    assert {place.split(" ")[0].rstrip(",") for place, _ in COMMANDS} == {
        "compose",
        "kubernetes",
        "Dockerfile",
        "chart",
        "guide",
    }


def test_the_code_location_is_the_repository_s() -> None:
    """Its name is part of the identity of schedules and sensors, on every kind of installation."""
    (home,) = yaml.safe_load((ROOT / "workspace.yaml").read_text())["load_from"]
    (compose,) = yaml.safe_load((DEPLOY / "compose" / "workspace.yaml").read_text())["load_from"]
    (chart,) = VALUES["dagsterWebserver"]["workspace"]["servers"]
    name = home["python_module"]["location_name"]
    assert compose["grpc_server"]["location_name"] == chart["name"] == name
    assert (chart["host"], chart["port"]) == (code_location()["name"], code_location()["port"])
    lines = [line for _, line in COMMANDS if line[1:3] == ["api", "grpc"]]
    assert len(lines) == 2
    for line in lines:
        assert line[line.index("--location-name") + 1] == name
        assert importlib.import_module(line[line.index("--module-name") + 1]).defs


def test_every_variable_is_a_setting() -> None:
    names = {variable for _, variable, _ in environments()}
    assert names - NOT_OURS <= FIELDS.keys()
    assert len(names & FIELDS.keys()) > 10


ELSEWHERE = {"NEXHEALTH_HOME", "NEXHEALTH_API_KEYS_FILE"}
"""Settings that the image has, or that name a file which would have to be mounted."""
NOT_FOR_RECEIVERS = {"NEXHEALTH_API_KEY", "DAGSTER_DATABASE_URL"}


def test_every_setting_reaches_who_reads_it() -> None:
    """Compose passes on what is named and nothing else: a retention that stays behind is never heard of."""
    given = {name: set(service.get("environment", {})) for name, service in COMPOSE["services"].items()}
    assert given["code"] == FIELDS.keys() - ELSEWHERE
    assert given["receiver"] == FIELDS.keys() - ELSEWHERE - NOT_FOR_RECEIVERS
    receiver = {name for place, name, _ in environments() if place == "kubernetes nexhealth-receiver/receiver"}
    assert {name for name in SECRETS if "WEBHOOK" in name} <= receiver


def test_the_settings_that_are_given_are_valid() -> None:
    found = load_settings(environ=settings_file(), env_file=None)
    assert {field.alias for name, field in Settings.model_fields.items() if name in found.model_fields_set} == set(
        settings_file()
    )


def test_a_setting_that_is_not_its_default_says_why() -> None:
    """Else a default of long ago stays in the cluster, and nobody knows whether it was chosen."""
    defaults = {str(field.alias): str(field.default) for field in Settings.model_fields.values()}
    _, *lines = (DEPLOY / "kubernetes" / "settings.env").read_text().splitlines()  # the first one is about the file
    above = dict(zip(lines, ["", *lines], strict=False))
    assert [
        line
        for line in lines
        if "=" in line and defaults[line.split("=")[0]] != line.split("=", 1)[1] and not above[line].startswith("#")
    ] == []


def test_no_secret_is_in_a_file() -> None:
    """Compose takes them from its environment, Kubernetes from Secrets."""
    kept = [(place, name, value) for place, name, value in environments() if name in SECRETS or "PASSWORD" in name]
    assert len(kept) > 10
    for place, name, value in kept:
        if place.startswith("compose"):
            assert re.fullmatch(rf"\$\{{{name}:(\?.*|-)\}}", value), (place, name)
        else:
            assert value["secretKeyRef"]["key"] == name, (place, name)
    assert not SECRETS & settings_file().keys()
    for path in DEPLOY.rglob("*"):
        if path.is_file() and path.suffix != ".lock":
            assert not re.search(r"://\w+:(?!password@)[^\s@$/]+@", path.read_text()), path


def test_who_needs_no_patient_data_does_not_reach_it() -> None:
    """Webserver and daemon see Dagster's history only, the receiver no API key; who has more has no right in the cluster."""
    for place in (
        "compose daemon",
        "compose webserver",
        "compose webserver-read-only",
        "chart dagsterWebserver",
        "chart dagsterDaemon",
    ):
        assert {name for where, name, _ in environments() if where == place} - {"DAGSTER_HOME"} == {
            "DAGSTER_DATABASE_URL"
        }
    for place in ("compose receiver", "kubernetes nexhealth-receiver/receiver"):
        assert "NEXHEALTH_API_KEY" not in {name for where, name, _ in environments() if where == place}
    account = next(one for one in manifests() if one["kind"] == "ServiceAccount")
    assert INSTANCE["run_launcher"]["config"]["service_account_name"] == account["metadata"]["name"]
    assert not any(one["kind"] in ("Role", "RoleBinding", "ClusterRoleBinding") for one in manifests())
    (row,) = (one for one in GUIDE.splitlines() if one.startswith("| webserver "))
    assert "Jobs and pods" in row, "the chart's role for webserver and daemon"
    # The chart binds a role to the code location's account unless it is told not to.
    assert VALUES["dagster-user-deployments"]["rbacEnabled"] is False


def test_the_instance_differs_where_a_cluster_does() -> None:
    """Queue, retries and retention were tried out with the repository's file; a copy that drifts loses that."""
    home = yaml.safe_load((ROOT / "dagster.yaml").read_text())
    differing = {name for name in home.keys() | INSTANCE.keys() if home.get(name) != INSTANCE.get(name)}
    assert differing == {"run_launcher", "compute_logs", "run_monitoring"}
    # A pod waits for room and its image, a process for nothing: three failed starts, and the night is over.
    ours, here = INSTANCE["run_monitoring"], home["run_monitoring"]
    assert ours | {"start_timeout_seconds": here["start_timeout_seconds"]} == here
    assert 3600 <= ours["start_timeout_seconds"] < 86400 / (1 + INSTANCE["run_retries"]["max_retries"])
    assert re.search(r"^COPY .*\bdagster\.yaml .*/opt/nexhealth/instance/$", DOCKERFILE, re.MULTILINE)


def test_names_lead_somewhere() -> None:
    """ConfigMaps and Secrets that pods take: made by the kustomization, or to be made as the guide says."""
    kustomization = yaml.safe_load((DEPLOY / "kubernetes" / "kustomization.yaml").read_text())
    made = {one["name"] for one in kustomization["configMapGenerator"]}
    taken = set(re.findall(r"(?:configMapRef|configMap): \{name: ([\w-]+)\}", _all_text()))
    taken |= set(INSTANCE["run_launcher"]["config"]["env_config_maps"]) | {"nexhealth-dagster-instance"}
    assert taken == made
    secrets = set(re.findall(r"secretKeyRef: \{name: ([\w-]+)", _all_text()))
    secrets |= set(INSTANCE["run_launcher"]["config"]["env_secrets"]) | {VALUES["global"]["postgresqlSecretName"]}
    secrets |= {one["name"] for one in code_location()["envSecrets"]}
    assert secrets == set(re.findall(r"create secret generic ([\w-]+)", GUIDE))
    for name in kustomization["resources"]:
        assert (DEPLOY / "kubernetes" / name).is_file()


def test_the_secret_of_a_private_registry_goes_where_its_comments_are() -> None:
    """In one place of five forgotten, some pods wait for ever: the receiver's, at the next node that has no image yet."""
    ours = [{"name": "nexhealth-registry"}]
    namespace, secret = "kubectl create namespace nexhealth", "create secret docker-registry nexhealth-registry "
    assert GUIDE.index(namespace) < GUIDE.index(secret), "it is made in the namespace"
    (values,) = with_pull_secrets("helm/values.yaml")
    assert values["imagePullSecrets"] == values["dagster-user-deployments"]["imagePullSecrets"] == ours
    for name in ("receiver", "migrate"):
        workload, *_ = with_pull_secrets(f"kubernetes/{name}.yaml")
        assert workload["spec"]["template"]["spec"]["imagePullSecrets"] == ours


def test_images_that_are_not_ours_are_named() -> None:
    """Of the chart's own first containers: without them, webserver and daemon never start, and nobody knows of the images."""
    text = (DEPLOY / "helm" / "values.yaml").read_text()
    named = yaml.safe_load(re.sub(r"^( *)# (busybox:|  image:|image:)", r"\1\2", text, flags=re.MULTILINE))
    for part in ("postgresql", "busybox"):
        assert f"`{part}.image`" in GUIDE.partition("\n## In a cluster\n")[2].partition("\n```\n")[0]
        assert named[part]["image"].keys() == {"repository", "tag"}
    assert named["postgresql"]["enabled"] is False


def test_what_is_to_be_changed_is_said_before_the_first_command() -> None:
    """Who goes by it line by line else has pods without an image, nights in the afternoon, and databases that are not there."""
    host, cluster = (
        GUIDE.partition(f"\n## {one}\n")[2].partition("\n## ")[0] for one in ("On one host", "In a cluster")
    )
    before, _, _ = host.partition("docker compose -f")
    assert "Both must exist" in before
    assert "NEXHEALTH_TIMEZONE=" in before
    before, _, _ = cluster.partition("\n```\n")
    image = code_location()["image"]["repository"]
    files = [*DEPLOY.glob("helm/*"), *DEPLOY.glob("kubernetes/*")]
    with_image = {f"`{one.relative_to(DEPLOY)}`" for one in files if image in one.read_text()}
    (row,) = (one for one in before.splitlines() if image in one)
    assert set(re.findall(r"`[\w/]+\.yaml`", row)) == with_image
    for said in (
        "host, port, user and database of Dagster's",
        "NEXHEALTH_TIMEZONE",
        "Ingress' host",
        "NEXHEALTH_WEBHOOK_PROXIES",
    ):
        assert said in before
    # Who takes it for a failure never comes to the line below.
    assert host.count("1 is warnings only") == " ".join(cluster.split()).count("1 is warnings only") == 1


def test_a_first_load_has_room_in_the_code_location() -> None:
    """It stands beside the server: 200 MiB each are promised. What it reads first, alone, is the practice's."""
    forks = [*(scope for scope in Scope if scope is not Scope.PRACTICE), "changes of appointments", "housekeeping"]
    processes = len(["the command", *forks])
    assert processes == 6
    assert "`nexhealth sync` is up to six processes" in (DEPLOY / "helm" / "values.yaml").read_text()
    assert int(code_location()["resources"]["limits"]["memory"].removesuffix("Mi")) >= (1 + processes) * 200


def test_the_restart_reaches_whoever_got_a_secret_at_its_start() -> None:
    """Else a new password of a database is known to half of the pods, and the others go out one by one, days later."""
    (line,) = (one for one in GUIDE.splitlines() if "rollout restart" in one)
    kinds = {one["metadata"]["name"]: one["kind"] for one in manifests() if "template" in one.get("spec", {})}
    takers = {name for name, pod in pods() if "secretKeyRef" in str(pod)}
    assert {kinds[name] for name in takers} == {"Deployment", "Job"}, "a Job begins anew with each release"
    # Those of the chart are Deployments of the same namespace, and take secrets.
    assert all("secretKeyRef" in str(VALUES[part]["env"]) for part in ("dagsterWebserver", "dagsterDaemon"))
    assert code_location()["envSecrets"]
    assert f"-n {yaml.safe_load((DEPLOY / 'kubernetes' / 'kustomization.yaml').read_text())['namespace']} " in line
    assert line.endswith(" rollout restart deployment"), "of all, not of some"


def test_a_secret_is_changed_by_what_changes_it() -> None:
    """`create` alone refuses one that is there; and with half of its keys, pods find the others missing at their next start."""
    (line,) = (one for one in GUIDE.splitlines() if "--dry-run=client" in one)
    assert "--from-env-file=" in line
    assert line.endswith(" -o yaml | kubectl -n nexhealth apply -f -")
    before, _, after = GUIDE.partition(line)
    assert "All its keys have to stand there" in before
    assert "rollout restart" in after
    keys = (ROOT / "docs" / "operations.md").read_text().partition("\n## Keys\n")[2]
    assert keys.index("[how one is changed](../deploy/README.md#in-a-cluster)") < keys.index("**The API key.**")


def _all_text() -> str:
    return "".join(path.read_text() for path in DEPLOY.rglob("*.yaml"))


def test_probes_ask_pages_that_exist() -> None:
    """And the internet reaches the one path that NexHealth posts to."""
    routes = {route.path for route in pages(lambda: None, lambda: True, Metrics()).routes}  # type: ignore[attr-defined,arg-type,return-value]
    receiver = next(container for name, container in containers() if name == "nexhealth-receiver/receiver")
    asked = {kind: receiver[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "liveness", "readiness")}
    assert set(asked.values()) <= routes
    assert asked["readiness"] == "/health/ready"
    assert asked["liveness"] == "/health/live"
    assert re.search(r":8090(/[\w/]+)'", COMPOSE["services"]["receiver"]["healthcheck"]["test"][-1])[1] in routes  # type: ignore[index]
    ingress = next(one for one in manifests() if one["kind"] == "Ingress")
    (rule,) = ingress["spec"]["rules"]
    assert [(one["path"], one["pathType"]) for one in rule["http"]["paths"]] == [(WEBHOOK_PATH, "Exact")]
    assert ingress["spec"]["tls"][0]["hosts"] == [rule["host"]]


def test_receivers_that_are_not_ready_hold_no_node() -> None:
    """Without a secret none is, and then each may be all that the budget lets go: a drain would wait for ever."""
    (budget,) = (one["spec"] for one in manifests() if one["kind"] == "PodDisruptionBudget")
    assert budget["unhealthyPodEvictionPolicy"] == "AlwaysAllow"
    (pod,) = (one for one in manifests() if one["kind"] == "Deployment")
    assert budget["selector"] == pod["spec"]["selector"]
    before, _, _ = GUIDE.partition("\n## In a cluster\n")[2].partition("\n```\n")
    assert "without webhooks take `receiver.yaml` out" in before


def test_dagster_s_pages_are_asked_where_they_are() -> None:
    """The chart's own probe stays at port 80: then no pod is ever ready."""
    webserver = VALUES["dagsterWebserver"]
    assert webserver["readinessProbe"]["httpGet"]["port"] == webserver["service"]["port"]
    assert f"port-forward service/dagster-webserver {webserver['service']['port']}\n" in GUIDE


def test_nothing_starts_before_both_databases_are_at_this_release() -> None:
    """On one host; in a cluster the guide's order sees to it."""
    services = COMPOSE["services"]
    migrations = {name for name in services if name.startswith("migrate")}
    assert services["code"]["depends_on"].keys() == migrations
    assert services["receiver"]["depends_on"].keys() == {"migrate"}
    for name in ("daemon", "webserver", "webserver-read-only"):
        assert services[name]["depends_on"] == {"code": {"condition": "service_healthy"}}
    for name in migrations:
        assert services[name]["depends_on"] == {"postgres": {"condition": "service_healthy", "required": False}}
    migrate, rest = GUIDE.index("job/nexhealth-migrate"), GUIDE.index("kubectl apply -k")
    assert migrate < rest < GUIDE.index("helm upgrade --install")


def test_there_is_time_to_stop() -> None:
    (pod,) = (pod for name, pod in pods() if name == "nexhealth-receiver")
    before = int(pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][-1])
    assert pod["terminationGracePeriodSeconds"] > before + serving._STOP_SECONDS
    assert int(COMPOSE["services"]["receiver"]["stop_grace_period"].rstrip("s")) > serving._STOP_SECONDS
    run = INSTANCE["run_launcher"]["config"]["run_k8s_config"]["pod_spec_config"]
    assert run["termination_grace_period_seconds"] < INSTANCE["run_monitoring"]["cancel_timeout_seconds"]


@pytest.mark.parametrize(("name", "spec"), list(pods()), ids=[name for name, _ in pods()])
def test_pods_run_without_rights(name: str, spec: dict[str, Any]) -> None:
    assert spec["securityContext"]["runAsNonRoot"]
    assert spec["automountServiceAccountToken"] is False
    for container in [*spec.get("initContainers", []), *spec["containers"]]:
        _no_rights(container["securityContext"])
        assert container["resources"]["limits"]["memory"]
    assert spec["securityContext"]["runAsUser"] == _user()


def test_dagster_s_pods_run_without_rights() -> None:
    launcher = INSTANCE["run_launcher"]["config"]
    parts = [VALUES["dagsterWebserver"], VALUES["dagsterDaemon"], code_location()]
    for pod, container in [
        *((part["podSecurityContext"], part["securityContext"]) for part in parts),
        (launcher["run_k8s_config"]["pod_spec_config"]["security_context"], launcher["security_context"]),
    ]:
        assert pod["runAsNonRoot"]
        assert pod["runAsUser"] == _user()
        _no_rights(container)


def _user() -> int:
    return int(re.findall(r"^USER (\d+):\d+$", DOCKERFILE, re.MULTILINE)[-1])


def _no_rights(context: dict[str, Any]) -> None:
    assert context["allowPrivilegeEscalation"] is False
    assert context["readOnlyRootFilesystem"] is True
    assert context["capabilities"] == {"drop": ["ALL"]}


def test_the_image_is_made_of_what_was_tested() -> None:
    """Its lock has the versions of the development lock, the cluster client, and no test tool."""
    tested, shipped = _versions("requirements.lock"), _versions("deploy/requirements.lock")
    assert {name: version for name, version in shipped.items() if tested.get(name, version) != version} == {}
    assert {"dagster", "dagster-k8s", "psycopg", "hatchling"} <= shipped.keys()
    assert not {"pytest", "mypy", "ruff", "hypothesis", "uv"} & shipped.keys()
    assert "--require-hashes" in DOCKERFILE
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    copied = [
        word
        for line in re.findall(r"^COPY (?!--from)(?:--chmod=\d+ )?(.*) \S+$", DOCKERFILE, re.MULTILINE)
        for word in line.split()
    ]
    assert len(copied) == 6
    for name in copied:
        assert (ROOT / name).exists()
        assert f"!{name}" in ignored
    gone = re.search(r"pip uninstall -y (.*)$", DOCKERFILE, re.MULTILINE)
    assert gone is not None
    assert set(gone[1].split()) - {"pip"} <= shipped.keys()


def test_files_of_a_checkout_that_is_for_its_owner_alone_can_be_read() -> None:
    """Those of a umask of 027: copied, or mounted, they keep their rights, and the image's user is another one."""
    _, _, shipped = DOCKERFILE.rpartition("FROM ")
    copies = re.findall(r"^COPY (?!--from)(.*)$", shipped, re.MULTILINE)
    assert len(copies) == 1
    assert all(one.startswith("--chmod=0644 ") for one in copies)
    assert all("file" not in one for one in COMPOSE["configs"].values())
    for service in COMPOSE["services"].values():
        assert {one.split(":")[0] for one in service.get("volumes", [])} <= COMPOSE["volumes"].keys()
        # Compose writes contents into the container before its start, which it refuses where that is read-only.
        assert not (service.get("configs") and service.get("read_only"))


def test_logs_of_containers_do_not_fill_the_disk() -> None:
    """Docker keeps what a container says for good unless it is told otherwise."""
    assert {name for name, one in COMPOSE["services"].items() if one.get("logging") != {"driver": "local"}} == set()


def test_the_chart_is_of_the_dagster_that_was_tested() -> None:
    """Its version is Dagster's: another one's templates may start our image with options that it does not have."""
    wanted = _versions("requirements.lock")["dagster"]
    for text in (GUIDE, (DEPLOY / "helm" / "values.yaml").read_text()):
        assert re.findall(r"dagster/dagster --version (\S+)", text) == [wanted]


def _versions(name: str) -> dict[str, str]:
    pinned = re.findall(r"^([\w.-]+)(?:\[[\w,-]+\])?==([^\s;]+)", (ROOT / name).read_text(), re.MULTILINE)
    return dict(pinned)


def test_the_kustomization_builds() -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed")
    done = subprocess.run(
        ["kubectl", "kustomize", str(DEPLOY / "kubernetes")], check=True, capture_output=True, text=True
    )
    built = {(one["kind"], one["metadata"]["name"]): one for one in yaml.safe_load_all(done.stdout)}
    assert {one["metadata"]["namespace"] for one in built.values()} == {"nexhealth"}
    assert yaml.safe_load(built["ConfigMap", "nexhealth-dagster-instance"]["data"]["dagster.yaml"]) == INSTANCE
    image = built["Deployment", "nexhealth-receiver"]["spec"]["template"]["spec"]["containers"][0]["image"]
    (chosen,) = {code_location()["image"]["repository"] + ":" + code_location()["image"]["tag"]}
    assert image == chosen
    assert {container["image"] for name, container in containers() if "migrate" in name} == {chosen}
