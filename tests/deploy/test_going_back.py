"""The guide's way back to the release before: what it stops is there, and what starts again is what was stopped."""

import re

import yaml

from .files import COMPOSE, DEPLOY, GUIDE, manifests

SECTION = GUIDE.partition("\n## Going back to the release before\n")[2].partition("\n## ")[0]
COMMANDS = [line for block in re.findall(r"```\n(.*?)```", SECTION, re.DOTALL) for line in block.splitlines()]


def test_on_one_host_the_image_before_is_kept_under_a_name_of_its_own_and_started_as_it_is() -> None:
    """Built anew from the checkout, it would be a release with the old one's name."""
    (name,) = re.findall(r"`(\w+)=nexhealth-pipeline:", SECTION)
    built = [service["image"] for service in COMPOSE["services"].values() if "build" in service]
    assert built
    assert all(image.startswith(f"${{{name}:-") for image in built)
    stop, up = (line for line in COMMANDS if line.startswith("docker compose "))
    files = {re.findall(r" -f (\S+) ", line)[0] for line in (stop, up)}
    assert files == {"deploy/compose/compose.yaml"}
    assert stop.endswith(" stop"), "not down: a database of the profile, and what runs printed, stay"
    assert up.endswith(" up -d --no-build")


def test_in_a_cluster_all_that_uses_the_warehouse_ends_and_comes_again() -> None:
    """Of the chart all of it; of ours what is no Job and no part of the chart. Whoever goes on would write meanwhile."""
    (release,) = re.findall(r"helm upgrade --install (\w+) ", GUIDE)
    assert f"helm -n nexhealth uninstall {release}" in COMMANDS
    assert "kubectl -n nexhealth delete job --all" in COMMANDS
    resting = {re.findall(r" scale deployment (\S+) --replicas=0$", line)[0] for line in COMMANDS if " scale " in line}
    ours = {one["metadata"]["name"]: one for one in manifests() if one["kind"] in {"Deployment", "StatefulSet"}}
    assert resting == ours.keys()
    kustomization = yaml.safe_load((DEPLOY / "kubernetes" / "kustomization.yaml").read_text())
    assert kustomization["namespace"] == "nexhealth"
    assert all(one["spec"]["replicas"] > 0 for one in ours.values()), "apply brings back what it states"
