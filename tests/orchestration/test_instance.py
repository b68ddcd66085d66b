"""Where `nexhealth` finds its Dagster instance, and that the files it brings agree."""

import os
from pathlib import Path

import pytest
from dagster import DagsterInstance

from nexhealth_pipeline.errors import InvalidSetting
from nexhealth_pipeline.orchestration import instance
from nexhealth_pipeline.settings import Settings, load_settings

REPO = Path(__file__).resolve().parents[2]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings({"NEXHEALTH_HOME": str(tmp_path / "a home")}, environ={}, env_file=None)


@pytest.mark.parametrize("name", ["dagster.yaml", "workspace.yaml"])
def test_the_packaged_file_equals_the_one_in_the_repository(name: str) -> None:
    """A wheel must not behave otherwise than a checkout."""
    assert (REPO / "nexhealth_pipeline" / "orchestration" / name).read_bytes() == (REPO / name).read_bytes()


def test_the_nearest_folder_upward_with_our_storage_is_the_home(tmp_path: Path, settings: Settings) -> None:
    """Called in a subfolder of a checkout, the command must meet the checkout's instance."""
    (tmp_path / "dagster.yaml").write_bytes((REPO / "dagster.yaml").read_bytes())
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    assert instance.dagster_home(settings, start=below) == tmp_path


@pytest.mark.parametrize(
    "content", ["", "storage:\n  sqlite:\n    base_dir: /tmp/x\n", "- a list\n", "{not yaml", "storage: {custom: 3}\n"]
)
def test_a_strangers_dagster_yaml_on_the_way_is_passed_by(tmp_path: Path, settings: Settings, content: str) -> None:
    """Another project's instance must not be taken over."""
    (tmp_path / "dagster.yaml").write_text(content)
    assert instance.dagster_home(settings, start=tmp_path) == tmp_path / "a home" / "dagster"


def test_without_a_checkout_the_packaged_files_are_written_and_renewed(tmp_path: Path, settings: Settings) -> None:
    """After an upgrade of the wheel the old copy must not stay."""
    home = instance.dagster_home(settings, start=tmp_path)
    assert home == tmp_path / "a home" / "dagster"
    (home / "dagster.yaml").write_text("old: true\n")
    instance.dagster_home(settings, start=tmp_path)
    assert (home / "dagster.yaml").read_bytes() == (REPO / "dagster.yaml").read_bytes()
    assert sorted(file.name for file in home.iterdir()) == ["dagster.yaml", "workspace.yaml"]
    assert instance.workspace_file(home) == home / "workspace.yaml"


def test_what_the_user_chose_counts_and_an_empty_folder_is_named(tmp_path: Path, settings: Settings) -> None:
    """A wrong DAGSTER_HOME must not silently start a history elsewhere."""
    with pytest.raises(InvalidSetting, match="DAGSTER_HOME"):
        instance.dagster_home(settings, chosen=str(tmp_path))
    (tmp_path / "dagster.yaml").write_text("")
    assert instance.dagster_home(settings, chosen=str(tmp_path)) == tmp_path
    assert instance.workspace_file(tmp_path).parent == REPO / "nexhealth_pipeline" / "orchestration"


@pytest.mark.parametrize("chosen", [f"/tmp/{'a' * 300}", "~nosuchuser/dagster"], ids=["too long", "nobody's"])
def test_a_chosen_folder_that_cannot_be_looked_into_holds_none(settings: Settings, chosen: str) -> None:
    """The system refuses even the look: a wrong setting, no bug."""
    with pytest.raises(InvalidSetting, match=r"DAGSTER_HOME .*holds no dagster\.yaml"):
        instance.dagster_home(settings, chosen=chosen)


def test_the_instance_is_ours_in_every_part(
    tmp_path: Path, settings: Settings, empty_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loose files belong below NEXHEALTH_HOME, and nothing is sent to the vendor of Dagster."""
    monkeypatch.setenv("DAGSTER_DATABASE_URL", empty_database_url)
    monkeypatch.setenv("NEXHEALTH_HOME", str(tmp_path / "a home"))
    monkeypatch.setenv("DAGSTER_HOME", "")
    monkeypatch.chdir(tmp_path)
    with instance.open_instance(settings) as opened:
        assert os.environ["DAGSTER_HOME"] == str(tmp_path / "a home" / "dagster")
        assert type(opened.event_log_storage).__module__ == "nexhealth_pipeline.orchestration.event_log"
        assert opened.storage_directory() == str(tmp_path / "a home" / "dagster" / "storage")
        assert not opened.telemetry_enabled
        assert opened.run_monitoring_enabled
        assert opened.run_retries_enabled
        assert not opened.run_retries_retry_on_asset_or_op_failure
        with DagsterInstance.get() as again:
            assert again.get_ref() == opened.get_ref()
