"""Where a setting comes from, and what is said when it cannot be used."""

import inspect
import runpy
from pathlib import Path
from typing import Any

import pytest

from nexhealth_pipeline import settings as settings_module
from nexhealth_pipeline.errors import InvalidSetting, MissingSetting
from nexhealth_pipeline.settings import INTERNAL_PREFIX, Settings, internal_environment, load_settings

CANARY = "sk-canary-5550100"


def load(environ: dict[str, str] | None = None, flags: dict[str, str] | None = None, **more: Any) -> Settings:
    return load_settings(flags, environ=environ or {}, **({"env_file": None} | more))


@pytest.fixture
def env_file(tmp_path: Path) -> Path:
    path = tmp_path / ".env"
    path.write_text("NEXHEALTH_CONCURRENCY=10\nNEXHEALTH_BATCH_PAGES='11'\n# comment\nexport NEXHEALTH_TIMEZONE=UTC\n")
    return path


def test_flag_before_environment_before_env_file_before_default(env_file: Path) -> None:
    environ = {"NEXHEALTH_CONCURRENCY": "20"}
    flags = {"NEXHEALTH_CONCURRENCY": "30"}
    assert load().concurrency == 6
    assert load(env_file=env_file).concurrency == 10
    assert load(environ, env_file=env_file).concurrency == 20
    assert load(environ, flags, env_file=env_file).concurrency == 30
    assert load(environ, flags, env_file=env_file).batch_pages == 11


def test_a_commands_choice_for_its_children_wins_over_all_but_flags(env_file: Path) -> None:
    """Dagster's commands load `.env` over the environment, and would undo what `nexhealth dev --demo` chose."""
    choice = internal_environment({"NEXHEALTH_CONCURRENCY": "40", "DATABASE_URL": "postgresql://x/y"})
    assert set(choice) == {f"{INTERNAL_PREFIX}NEXHEALTH_CONCURRENCY", f"{INTERNAL_PREFIX}DATABASE_URL"}
    environ = {"NEXHEALTH_CONCURRENCY": "20"} | choice
    assert load(environ, env_file=env_file).concurrency == 40
    assert load(environ).database_url is not None
    assert load(environ, {"NEXHEALTH_CONCURRENCY": "50"}, env_file=env_file).concurrency == 50


def test_an_empty_value_counts_as_unset(env_file: Path) -> None:
    assert load({"NEXHEALTH_CONCURRENCY": ""}, env_file=env_file).concurrency == 10
    assert load({"NEXHEALTH_API_KEY": ""}).api_key is None


def test_a_missing_env_file_is_none(tmp_path: Path) -> None:
    assert load(env_file=tmp_path / "none").concurrency == 6


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_an_env_file_in_another_encoding_is_named(tmp_path: Path, encoding: str) -> None:
    """Editors of other systems write it so; the message of the error itself would show what is in it."""
    path = tmp_path / ".env"
    path.write_text(f"# Schlüssel\nNEXHEALTH_API_KEY={CANARY}\n", encoding=encoding)
    with pytest.raises(InvalidSetting, match="UTF-8") as caught:
        load(env_file=path)
    assert str(path) in str(caught.value)
    assert CANARY not in str(caught.value)
    assert caught.value.__suppress_context__


def test_an_env_file_that_cannot_be_read_is_named(env_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root reads everything, so the refusal is made here."""

    def refused(*_: object) -> dict[str, str]:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(settings_module, "dotenv_values", refused)
    with pytest.raises(InvalidSetting, match=r"\.env cannot be read \(Permission denied\)"):
        load(env_file=env_file)


def test_the_env_file_of_the_working_folder_is_read(monkeypatch: pytest.MonkeyPatch, env_file: Path) -> None:
    monkeypatch.chdir(env_file.parent)
    monkeypatch.delenv("NEXHEALTH_CONCURRENCY", raising=False)
    assert load_settings().concurrency == 10


def test_variables_that_are_no_settings_are_left_alone() -> None:
    assert load({"NEXHEALTH_TEST_HOME": "/x", "PATH": "/bin"}) == load()


def test_secrets_print_as_stars() -> None:
    settings = load(
        {
            "NEXHEALTH_API_KEY": CANARY,
            "DATABASE_URL": f"postgresql://u:{CANARY}@h/d",
            "DAGSTER_DATABASE_URL": f"postgresql://u:{CANARY}@h/d",
        }
    )
    shown = f"{settings!r} {settings} {settings.model_dump()} {settings.model_dump_json()}"
    assert CANARY not in shown
    assert "**********" in shown
    assert settings.api_keys() == {"": CANARY}


BAD = [
    ("NEXHEALTH_RATE_SHARE", "1.5"),
    ("NEXHEALTH_RATE_SHARE", "0"),
    ("NEXHEALTH_RATE_SHARE", "nan"),
    ("NEXHEALTH_CONCURRENCY", "many"),
    ("NEXHEALTH_CONCURRENCY", "0"),
    ("NEXHEALTH_BATCH_PAGES", "101"),
    ("NEXHEALTH_OVERLAP_MINUTES", "-1"),
    ("NEXHEALTH_TIMEOUT_SECONDS", "0"),
    ("NEXHEALTH_API_URL", "nexhealth.info"),
    ("NEXHEALTH_TIMEZONE", "Mars/Olympus"),
    ("NEXHEALTH_LOG_LEVEL", "LOUD"),
]


@pytest.mark.parametrize(("name", "value"), BAD)
def test_a_bad_value_is_named_with_its_setting(name: str, value: str) -> None:
    with pytest.raises(InvalidSetting) as caught:
        load({name: value})
    assert name in str(caught.value)
    assert repr(value) in str(caught.value)
    assert caught.value.__suppress_context__


def test_subdomains_are_a_comma_list() -> None:
    assert load({"NEXHEALTH_SUBDOMAINS": " willow, harbor ,,"}).subdomains == ("willow", "harbor")
    assert load().subdomains == ()


def test_without_any_key_the_setting_to_set_is_named() -> None:
    with pytest.raises(MissingSetting, match="NEXHEALTH_API_KEY"):
        load().api_keys()


def test_institutions_may_have_keys_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    path.write_text(f'willow = "{CANARY}"\n')
    environ = {"NEXHEALTH_API_KEYS_FILE": str(path)}
    assert load(environ).api_keys() == {"willow": CANARY}
    assert load(environ | {"NEXHEALTH_API_KEY": "k"}).api_keys() == {"willow": CANARY, "": "k"}
    path.write_text("")
    assert load(environ | {"NEXHEALTH_API_KEY": "k"}).api_keys() == {"": "k"}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot be read"),
        ("# none yet", "holds no key"),
        (f"willow = {CANARY}", "not valid TOML"),
        (f"willow = '{CANARY}'\nharbor = 5", "harbor"),
        (f"harbor = ''\nwillow = '{CANARY}'", "harbor"),
    ],
)
def test_a_keys_file_that_cannot_be_used_is_named_without_its_keys(
    tmp_path: Path, content: str | None, words: str
) -> None:
    path = tmp_path / "keys.toml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InvalidSetting) as caught:
        load({"NEXHEALTH_API_KEYS_FILE": str(path)}).api_keys()
    assert "NEXHEALTH_API_KEYS_FILE" in str(caught.value)
    assert words in str(caught.value)
    assert CANARY not in str(caught.value)


@pytest.mark.parametrize("name", ["NEXHEALTH_API_KEYS_FILE", "NEXHEALTH_HOME"])
def test_a_tilde_in_a_path_is_the_home_folder_or_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No shell writes it out in `.env` or in quotes."""
    monkeypatch.setenv("HOME", "/home/of-mine")
    assert Path("/home/of-mine/x") in load({name: "~/x"}).model_dump().values()
    with pytest.raises(InvalidSetting, match=rf"{name} \(value: '~nosuchuser/x'\): .* write the whole path"):
        load({name: "~nosuchuser/x"})


def test_every_setting_has_an_environment_name_and_a_meaning() -> None:
    source = Path(inspect.getfile(Settings)).read_text(encoding="utf-8")
    for name, field in Settings.model_fields.items():
        assert field.alias
        assert field.alias.isupper()
        after = source.split(f'alias="{field.alias}"', 1)[1]
        assert '"""' in after[:400], f"{name} has no docstring"


def test_making_the_settings_looks_at_no_source() -> None:
    """To find its source, `inspect` asks the file system after every module there is: 20,000 calls at each start."""
    looked_for: list[object] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inspect, "getmodule", lambda *given: looked_for.append(given))
        runpy.run_path(settings_module.__file__)
    assert looked_for == []


def test_a_setting_cannot_be_changed_afterwards() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load().concurrency = 5
