"""Who may reach which pod: every pod has a policy, and each lets in whom its ports are for."""

from ipaddress import ip_network
from typing import Any

import pytest
import yaml

from .files import DEPLOY, GUIDE, VALUES, code_location, containers, manifests, policies_of, selects

_OF_THE_CHART = {"app.kubernetes.io/name": "dagster", "app.kubernetes.io/instance": "dagster"}
WEBSERVER = {**_OF_THE_CHART, "component": "dagster-webserver"}
READ_ONLY = {**_OF_THE_CHART, "component": "dagster-webserver-read-only"}
DAEMON = {**_OF_THE_CHART, "component": "dagster-daemon", "deployment": "daemon"}
CODE = {
    "app.kubernetes.io/name": "dagster-user-deployments",
    "app.kubernetes.io/instance": "dagster",
    "component": "user-deployments",
    "deployment": code_location()["name"],
}
"""What the templates of Dagster's chart give their pods (1.13); a run's labels: test_run_job.py."""


OURS = {
    one["metadata"]["name"]: one["spec"]["template"]["metadata"]["labels"]
    for one in manifests()
    if "template" in one.get("spec", {})
}
"""Labels of the pods of our own workloads, by the workload's name."""


def policy_of(labels: dict[str, str]) -> dict[str, Any]:
    """The specification of the only policy of a pod: of several, each would let in its own."""
    (only,) = policies_of(labels)
    assert only["spec"]["policyTypes"] == ["Ingress"]
    specification: dict[str, Any] = only["spec"]
    return specification


@pytest.mark.parametrize("labels", [WEBSERVER, READ_ONLY, DAEMON, CODE, *OURS.values()])
def test_no_pod_is_open_to_all_of_the_cluster(labels: dict[str, str]) -> None:
    """What no policy selects, every pod reaches: also a workload that is added one day."""
    for rule in policy_of(labels).get("ingress", []):
        assert rule["from"]
        assert rule["ports"]


def test_webserver_and_daemon_alone_reach_the_code_location() -> None:
    (rule,) = policy_of(CODE)["ingress"]
    assert rule["ports"] == [{"protocol": "TCP", "port": code_location()["port"]}]
    (who,) = rule["from"]
    assert who.keys() == {"podSelector"}, "of this namespace"
    asking = (WEBSERVER, READ_ONLY, DAEMON, CODE, OURS["nexhealth-receiver"])
    told = [selects(who["podSelector"], one) for one in asking]
    assert told == [True, True, True, False, False]


@pytest.mark.parametrize("labels", [WEBSERVER, READ_ONLY, DAEMON, OURS["nexhealth-migrate"]])
def test_nobody_reaches_what_asks_no_password_or_serves_nothing(labels: dict[str, str]) -> None:
    assert "ingress" not in policy_of(labels)


def test_the_receiver_is_reached_from_the_ingress_controller_and_from_monitors() -> None:
    (rule,) = policy_of(OURS["nexhealth-receiver"])["ingress"]
    container = next(one for name, one in containers() if name == "nexhealth-receiver/receiver")
    assert [one["port"] for one in rule["ports"]] == [one["containerPort"] for one in container["ports"]]
    (who,) = rule["from"]
    namespaces = [{"kubernetes.io/metadata.name": name} for name in ("ingress-nginx", "monitoring", "other")]
    assert [selects(who["namespaceSelector"], one) for one in namespaces] == [True, True, False]


def test_a_controller_that_is_in_no_namespace_is_let_in_by_its_addresses() -> None:
    """On the nodes' own network, and a cloud's load balancer, it has no pod's labels: all events would stay outside."""
    text = (DEPLOY / "kubernetes" / "network-policy.yaml").read_text()
    chosen = yaml.safe_load_all(text.replace("# - ipBlock:", "- ipBlock:"))
    (spec,) = (one["spec"] for one in chosen if one["metadata"]["name"] == "nexhealth-receiver")
    (rule,) = spec["ingress"]
    _, addresses = rule["from"]
    ip_network(addresses["ipBlock"]["cidr"])
    assert "`ipBlock`" in GUIDE


def test_it_is_applied_by_itself_and_said_to_be_untried() -> None:
    """A label of the chart's that changed would cut the daemon off from the code, in the night after a release."""
    kustomization = yaml.safe_load((DEPLOY / "kubernetes" / "kustomization.yaml").read_text())
    text = (DEPLOY / "kubernetes" / "network-policy.yaml").read_text()
    assert "network-policy.yaml" not in kustomization["resources"]
    assert "not tried in a cluster" in text
    assert f"port {VALUES['dagsterWebserver']['service']['port']}." in text
    assert f"kubectl -n {kustomization['namespace']} apply -f deploy/kubernetes/network-policy.yaml" in GUIDE
