"""The files of `deploy/`, and what they run, name and set."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from tests.command_lines import OURS

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose" / "compose.yaml").read_text())
VALUES: dict[str, Any] = yaml.safe_load((DEPLOY / "helm" / "values.yaml").read_text())
INSTANCE: dict[str, Any] = yaml.safe_load((DEPLOY / "kubernetes" / "dagster.yaml").read_text())
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
GUIDE = (DEPLOY / "README.md").read_text()


def with_pull_secrets(name: str) -> Iterator[Any]:
    """The documents of a file of `deploy/`, with the Secret of a private registry that stands there as a comment."""
    text = (DEPLOY / name).read_text()
    yield from yaml.safe_load_all(re.sub(r"# (image_?pull_?secrets: )", r"\1", text, flags=re.IGNORECASE))


def manifests() -> Iterator[dict[str, Any]]:
    """Every Kubernetes object that is written out."""
    for path in sorted((DEPLOY / "kubernetes").glob("*.yaml")):
        yield from (one for one in yaml.safe_load_all(path.read_text()) if "kind" in one)


def pods() -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and pod template of every workload."""
    for one in manifests():
        template = one.get("spec", {}).get("template")
        if template:
            yield one["metadata"]["name"], template["spec"]


def policies_of(labels: dict[str, str]) -> list[dict[str, Any]]:
    """The network policies that select a pod with these labels."""
    policies = [one for one in manifests() if one["kind"] == "NetworkPolicy"]
    return [one for one in policies if selects(one["spec"]["podSelector"], labels)]


def selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    """Whether a selector of Kubernetes' is of something with these labels; of operators it knows `In` alone."""
    expressions = selector.get("matchExpressions", [])
    assert {one["operator"] for one in expressions} <= {"In"}
    return selector.get("matchLabels", {}).items() <= labels.items() and all(
        labels.get(one["key"]) in one["values"] for one in expressions
    )


def containers() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every container of every pod, with its pod's name."""
    for name, pod in pods():
        for container in [*pod.get("initContainers", []), *pod["containers"]]:
            yield f"{name}/{container['name']}", container


def code_location() -> dict[str, Any]:
    """The chart's values for the pod that holds the code."""
    (only,) = VALUES["dagster-user-deployments"]["deployments"]
    return only


def command_lines() -> Iterator[tuple[str, list[str]]]:
    """Where it stands, and every command line of a program of ours."""
    for name, service in COMPOSE["services"].items():
        yield f"compose {name}", service.get("command", [])
        yield f"compose {name} health", service.get("healthcheck", {}).get("test", [])[1:]
    for name, container in containers():
        yield f"kubernetes {name}", container["command"]
    (last,) = re.findall(r"^CMD (\[.*\])$", DOCKERFILE, re.MULTILINE)
    yield "Dockerfile", yaml.safe_load(last)
    # As the chart puts it together.
    chosen = code_location()["dagsterApiGrpcArgs"]
    yield "chart, code location", ["dagster", "api", "grpc", "-h", "0.0.0.0", "-p", "4000", *chosen]
    for block in re.findall(r"```\w*\n(.*?)```", GUIDE, re.DOTALL):
        for line in block.splitlines():
            words = shlex.split(line, comments=True)
            inner = words[words.index("--") + 1 :] if "--" in words and words[0] in ("kubectl", "docker") else words
            if words[:2] == ["docker", "compose"] and "exec" in words:
                inner = words[words.index("exec") + 2 :]  # after the service's name
            yield "guide", inner


def our_commands() -> list[tuple[str, list[str]]]:
    """Those of `command_lines` that the image's programs take."""
    return [(place, line) for place, line in command_lines() if line and line[0] in OURS]


def environments() -> Iterator[tuple[str, str, Any]]:
    """Where, which variable, and its value: a text, or what the value is taken from."""
    for name, service in COMPOSE["services"].items():
        for variable, value in service.get("environment", {}).items():
            yield f"compose {name}", variable, value
    for name, container in containers():
        for one in container.get("env", []):
            yield f"kubernetes {name}", one["name"], one.get("value", one.get("valueFrom"))
    for part in ("dagsterWebserver", "dagsterDaemon"):
        for one in VALUES[part]["env"]:
            yield f"chart {part}", one["name"], one.get("value", one.get("valueFrom"))
    for variable, value in settings_file().items():
        yield "settings.env", variable, value


def settings_file() -> dict[str, str]:
    """The pairs of `settings.env`."""
    lines = (DEPLOY / "kubernetes" / "settings.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
