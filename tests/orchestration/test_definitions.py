"""The code location as Dagster sees it: a name that changes here loses its history, so each change must be seen."""

import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest

from nexhealth_pipeline.catalog.collection import Scope
from nexhealth_pipeline.catalog.collections import COLLECTIONS
from nexhealth_pipeline.definitions import defs
from nexhealth_pipeline.errors import InvalidSetting
from nexhealth_pipeline.orchestration.assets import PARTITIONS

GRAPH = defs.resolve_asset_graph()
EXPECTED_GROUPS = {
    "clinical": {"clinical_notes", "procedures", "treatment_plans"},
    "insurance": {"coverage_subscribers", "insurance_coverages", "insurance_plans"},
    "ledger": {
        *("adjustment_types", "adjustments", "charges", "claims", "fee_schedule_procedures", "fee_schedules"),
        *("guarantor_balances", "insurance_balances", "payment_plans", "payment_types", "payments"),
    },
    "patients": {
        *("alerts", "document_types", "documents", "patient_addresses", "patient_recalls", "patients"),
        "recall_types",
    },
    "practice": {
        *("institutions", "locations", "nex_staff", "operatories", "providers", "sync_status", "working_hours"),
        "working_hour_labels",
    },
    "scheduling": {"appointment_descriptors", "appointment_types", "appointments"},
}
LOADS_ALONE = """
import sys
def forbid(event, args):
    if event == "open":
        path, mode = str(args[0]), args[1] or "r"
        if set(mode) & set("wax+") or path.endswith((".env", ".toml", ".yaml")):
            raise AssertionError(f"opened {path}")
    elif event in ("socket.connect", "socket.bind", "subprocess.Popen", "os.fork", "os.mkdir", "os.exec"):
        raise AssertionError(event)
import dagster, pandas, psycopg, requests, sqlalchemy  # their own business
sys.dont_write_bytecode = True
sys.addaudithook(forbid)
from nexhealth_pipeline.definitions import defs
from nexhealth_pipeline.errors import InvalidSetting
defs.resolve_all_job_defs() if hasattr(defs, "resolve_all_job_defs") else defs.resolve_asset_graph()
print("loaded")
"""


def test_the_definitions_load_with_nothing_set_and_touch_nothing(tmp_path: Path) -> None:
    """Dagster loads them in every process, also where no database can be reached."""
    done = subprocess.run(
        [sys.executable, "-c", LOADS_ALONE],
        cwd=tmp_path,
        env={"HOME": str(tmp_path), "PATH": ""},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout == "loaded\n", done.stderr
    assert list(tmp_path.iterdir()) == []


def test_assets_and_their_groups() -> None:
    """Asset keys are table names; runs, partitions and alerts hang on them."""
    groups: dict[str, set[str]] = {}
    for key in GRAPH.materializable_asset_keys:
        groups.setdefault(str(GRAPH.get(key).group_name), set()).add(key.to_user_string().removeprefix("nexhealth_"))
    assert groups == EXPECTED_GROUPS


def test_jobs_schedules_and_sensors() -> None:
    """All run by default; renaming one switches the old one off for everybody."""
    repository = defs.get_repository_def()
    assert {job.name for job in repository.get_all_jobs()} - {"__ASSET_JOB"} == {
        "nexhealth_practice",
        "nexhealth_institutions",
        "nexhealth_locations",
        "nexhealth_appointments",
        "nexhealth_appointment_changes",
        "nexhealth_patient",
        "nexhealth_checks",
        "nexhealth_webhook_apply",
        "nexhealth_webhook_replay",
        "nexhealth_webhook_setup",
        "nexhealth_webhook_watchdog",
    }
    schedules = {one.name: one for one in repository.schedule_defs}
    assert {name: (one.cron_schedule, one.job_name) for name, one in schedules.items()} == {
        "nexhealth_nightly_practice": ("0 2 * * *", "nexhealth_practice"),
        "nexhealth_nightly_institutions": ("0 2 * * *", "nexhealth_institutions"),
        "nexhealth_nightly_locations": ("0 2 * * *", "nexhealth_locations"),
        "nexhealth_nightly_appointments": ("0 2 * * *", "nexhealth_appointments"),
        "nexhealth_nightly_appointment_changes": ("0 2 * * *", "nexhealth_appointment_changes"),
        "nexhealth_catchup_institutions": ("30 9 * * *", "nexhealth_institutions"),
        "nexhealth_catchup_locations": ("30 9 * * *", "nexhealth_locations"),
        "nexhealth_catchup_appointments": ("30 9 * * *", "nexhealth_appointments"),
        "nexhealth_catchup_appointment_changes": ("30 9 * * *", "nexhealth_appointment_changes"),
        "nexhealth_webhook_watchdog": ("*/15 * * * *", "nexhealth_webhook_watchdog"),
    }
    assert {one.execution_timezone for one in schedules.values()} == {"UTC"}
    assert {one.default_status for one in schedules.values()} == {dg.DefaultScheduleStatus.RUNNING}
    assert {one.name: one.default_status for one in repository.sensor_defs} == {
        "nexhealth_dead_runs": dg.DefaultSensorStatus.RUNNING,
        "nexhealth_checks_after_syncs": dg.DefaultSensorStatus.RUNNING,
        "nexhealth_webhook_events": dg.DefaultSensorStatus.RUNNING,
    }


@pytest.mark.parametrize("name", [name for name, one in COLLECTIONS.items() if one.is_asset])
def test_an_asset_says_what_it_is_and_where_its_rows_are(name: str) -> None:
    """The asset page is the first place where an analyst looks."""
    collection, node = COLLECTIONS[name], GRAPH.get(dg.AssetKey(f"nexhealth_{name}"))
    assert node.description == collection.doc
    assert list(node.owners) == ["team:data-engineering"]
    assert node.kinds == {"nexhealth", "postgres"}
    assert node.metadata["dagster/table_name"] == f"public.nexhealth_{name}"
    schema = node.metadata["dagster/column_schema"]
    assert {"institution_id", "raw", "synced_at", "deleted_at"} <= {column.name for column in schema.columns}
    assert all(column.description and column.tags for column in schema.columns)
    assert node.partitions_def == PARTITIONS[collection.scope]
    assert {key.to_user_string() for key in node.parent_keys} == {
        f"nexhealth_{parent}" for parent in collection.upstream
    }
    if PARTITIONS[collection.scope] is not None:
        assert node.backfill_policy == dg.BackfillPolicy.single_run()


def test_each_scope_has_the_partitions_its_collections_are_kept_by() -> None:
    """Names of partition definitions are stored with every key."""
    assert PARTITIONS[Scope.PRACTICE] is None
    names = [PARTITIONS[scope].name for scope in (Scope.INSTITUTION, Scope.LOCATION)]  # type: ignore[union-attr]
    assert names == ["nexhealth_institutions", "nexhealth_locations"]
    months = PARTITIONS[Scope.LOCATION_MONTH]
    assert isinstance(months, dg.MultiPartitionsDefinition)
    assert months.partition_dimension_names == ["location", "month"]


def test_runs_execute_in_one_process_without_pools() -> None:
    """A killed run would keep its slot of a pool, and the next one hang."""
    assert defs.executor is dg.in_process_executor
    assert {pool for key in GRAPH.materializable_asset_keys for pool in GRAPH.get(key).pools or ()} == set()


def test_a_cron_of_the_environment_reaches_the_schedules(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Another setting that is wrong must be told by runs, not keep the code from loading."""
    from nexhealth_pipeline.orchestration import schedules

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NEXHEALTH_NIGHTLY", "15 4 * * *")
    monkeypatch.setenv("NEXHEALTH_TIMEZONE", "America/Denver")
    monkeypatch.setenv("NEXHEALTH_CONCURRENCY", "many")
    made = {one.name: one for one in schedules._schedules()}
    nightly, catchup = made["nexhealth_nightly_locations"], made["nexhealth_catchup_locations"]
    assert (nightly.cron_schedule, nightly.execution_timezone) == ("15 4 * * *", "America/Denver")
    assert catchup.cron_schedule == "30 9 * * *"


def test_a_cron_that_never_comes_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Dagster would refuse it, too, without a word of where it comes from."""
    from nexhealth_pipeline.orchestration import schedules

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NEXHEALTH_NIGHTLY", "0 25 * * *")
    with pytest.raises(InvalidSetting, match="NEXHEALTH_NIGHTLY"):
        schedules._schedules()


def test_dagster_finds_one_thing_to_serve() -> None:
    """It refuses a module in which the same definitions go by two names."""
    from dagster._core.workspace.autodiscovery import loadable_targets_from_python_module

    found = loadable_targets_from_python_module("nexhealth_pipeline.definitions", working_directory=None)
    assert [target.attribute for target in found] == ["defs"]
