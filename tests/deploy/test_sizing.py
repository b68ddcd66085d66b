"""The guide's tables of sizes follow from the planner and from what was measured."""

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from nexhealth_pipeline.catalog.collection import Scope
from nexhealth_pipeline.catalog.collections import COLLECTIONS, DECLARED
from nexhealth_pipeline.sync.options import Mode

from .files import DEPLOY, GUIDE, INSTANCE, ROOT


@pytest.fixture(scope="module")
def sizing() -> ModuleType:
    """benchmarks/sizing.py, which is no part of a package."""
    spec = importlib.util.spec_from_file_location("sizing", ROOT / "benchmarks" / "sizing.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["sizing"] = module  # its dataclasses look there for their names
    spec.loader.exec_module(module)
    return module


def test_the_tables_are_up_to_date(sizing: ModuleType) -> None:
    """Run `.venv/bin/python benchmarks/sizing.py --write` where this fails."""
    assert sizing.written(GUIDE, sizing.ON) == GUIDE
    assert GUIDE.count("\n| 1,000 |") == 3


def test_requests_are_those_of_the_readme(sizing: ModuleType) -> None:
    """Of appointments two a location and night, and two a month; of documents one a changed patient and of the rotation."""
    changes, first = (sizing.requests(20, mode, sizing.ON) for mode in (Mode.INCREMENTAL, Mode.FULL))
    appointments, documents = COLLECTIONS["appointments"].path, COLLECTIONS["documents"].path
    assert changes[appointments] == 2 * 20
    assert first[appointments] == 2 * 53 * 20
    assert changes[documents] == 20 * (60 + 134)
    assert first[documents] == 20 * 4000
    night = sizing.night(20, sizing.ON)
    assert night[documents] == changes[documents], "the database that is reconciled asks for no more of them"
    assert night[appointments] == round((7 * 2 + 2 * 53) * 20 / 7)
    assert "makes 600 of a location's 750 requests" in GUIDE
    assert round(sum(night.values()) / 20, -1) == 750


def test_a_key_is_enough_for_as_many_locations_as_the_guide_says(sizing: ModuleType) -> None:
    """Between eight in the evening and the morning's catch-up there are some eight hours."""
    assert "about 550 locations" in GUIDE
    night = sizing.night(550, sizing.ON)
    assert 6 < sizing.hours(night, night) < 8


def test_with_many_keys_the_cores_are_what_limits(sizing: ModuleType) -> None:
    """A hundred keys' limits let a night of 1,000 locations through in minutes; three runs' cores do not."""
    of_a_key, of_all = sizing.night(10, sizing.ON), sizing.night(1000, sizing.ON)
    hours = sizing.hours(of_a_key, of_all)
    client, _ = sizing.cpu(of_all)
    assert hours * 3600 >= client / sizing.RUNS_AT_ONCE
    assert hours > sizing.hours(of_a_key, of_a_key)
    limits = {one["key"]: one["limit"] for one in INSTANCE["concurrency"]["runs"]["tag_concurrency_limits"]}
    assert limits["nexhealth/bulk"] == sizing.RUNS_AT_ONCE


def test_no_night_is_shorter_than_its_longest_run(sizing: ModuleType) -> None:
    """Of the lists of locations a tick asks for one run, and a second one of what it reconciles: one process has six sevenths."""
    of_a_key, of_all = sizing.night(10, sizing.ON), sizing.night(1000, sizing.ON)
    paths = {one.path for one in DECLARED if one.scope is Scope.LOCATION}
    client, _ = sizing.cpu({path: number for path, number in of_all.items() if path in paths})
    assert sizing.hours(of_a_key, of_all) * 3600 >= 6 / 7 * client


def test_one_host_is_enough_for_a_key_where_a_node_is_not(sizing: ModuleType) -> None:
    """Of the size that the guide names: the rate limits hold the application back, what pods request is held free."""
    assert "one key 2 cores and 4 GB on one host" in GUIDE
    assert "a node of 2 cores and 4 GB has no room" in GUIDE
    for count in sizing.SIZES:
        night = sizing.night(count, sizing.ON)
        assert sum(sizing.cpu(night)) / 3600 / sizing.hours(night, night) < 0.2
    assert sizing.memory() * 2**20 < 4e9 / 2, "with what else a host has to do"
    cores, mib = sizing.reserved()
    assert cores > 2
    assert mib == 3 * 512 + 4 * 512 + 2 * 192, "Dagster's parts, runs, receivers"


def test_what_pods_reserve_is_the_same_in_every_spelling(
    sizing: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A core may stand there as "1" and a GiB as 1Gi: it counted as a thousandth, or was no number."""
    as_it_is, found = sizing.reserved(), 0
    for name in ("helm/values.yaml", "kubernetes/dagster.yaml", "kubernetes/receiver.yaml"):
        text, changed = re.subn(r"cpu: 250m, memory: 512Mi", 'cpu: "0.25", memory: 0.5Gi', (DEPLOY / name).read_text())
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
        found += changed
    assert found == 3
    monkeypatch.setattr(sizing, "DEPLOY", tmp_path)
    assert sizing.reserved() == as_it_is


def test_the_memory_of_what_stands_all_the_time_is_told_as_it_was_measured(sizing: ModuleType) -> None:
    """The receiver's too: it is on the same host."""
    code, webserver, daemon, receiver = sizing.MEASURED.mib_of_services
    told = f"code location {code}, webserver {webserver}, daemon {daemon}, receiver {receiver}"
    assert told in " ".join(GUIDE.split())
    assert sizing.memory() == sizing.PROCESSES * sizing.MEASURED.mib_of_a_run + code + webserver + daemon + receiver


def test_dagster_ends_no_run_of_a_backfill_that_takes_as_long_as_the_guide_says(sizing: ModuleType) -> None:
    """It is one run however much it reads, and what is ended counts as failed. What was measured took up to 1.11 of the floor."""
    first = sizing.requests(1000, Mode.FULL, sizing.ON)
    hours = sizing.hours(first, first)
    assert f"| {hours:.1f} |" in GUIDE
    assert hours * 1.11 * 3600 < INSTANCE["run_monitoring"]["max_runtime_seconds"]
