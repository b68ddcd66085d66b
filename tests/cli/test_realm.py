"""What the demo sees of the settings (nothing but its home), and what Dagster's processes get to see."""

import os
from pathlib import Path

import pytest

from nexhealth_pipeline.cli import realm as module
from nexhealth_pipeline.cli.realm import account, demo, demo_environment, demo_home, real_environment, shut_in_demo
from nexhealth_pipeline.errors import InvalidSetting
from nexhealth_pipeline.sandbox import SANDBOX_API_KEY
from nexhealth_pipeline.settings import load_settings
from tests.cli.conftest import REAL_KEY

ADDRESS = "postgresql://postgres@/demo?host=/x"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with an account in `.env`, and another home by the environment."""
    monkeypatch.chdir(tmp_path)
    Path(".env").write_text(
        f"NEXHEALTH_API_KEY={REAL_KEY}\nNEXHEALTH_SUBDOMAINS=acme\nNEXHEALTH_RATE_SHARE=not-a-number\n"
        "NEXHEALTH_HOME=from-dotenv\nDATABASE_URL=postgresql://real/warehouse\n"
    )
    monkeypatch.setattr(module.Realm, "warehouse_url", lambda self: ADDRESS)
    monkeypatch.setattr(module.Realm, "dagster_url", lambda self: ADDRESS + "d")
    (tmp_path / "from-dotenv").mkdir()
    return tmp_path


def test_the_demo_ignores_every_setting_but_its_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing synthetic may meet a real practice, even where `.env` cannot be used at all."""
    monkeypatch.setenv("DATABASE_URL", "postgresql://real/warehouse")
    settings = demo("http://127.0.0.1:1").settings
    assert settings.database_url is None
    assert settings.subdomains == ()
    assert settings.rate_share == 1.0, "its key is its own"
    assert settings.api_keys() == {"": SANDBOX_API_KEY}
    assert settings.data_kind == "sandbox"
    assert settings.home == home / "from-dotenv"


@pytest.mark.parametrize(
    ("name", "expected"), [("NEXHEALTH_HOME", "mine"), ("NEXHEALTH_INTERNAL_NEXHEALTH_HOME", "mine")]
)
def test_the_home_has_its_usual_precedence(
    home: Path, monkeypatch: pytest.MonkeyPatch, name: str, expected: str
) -> None:
    """The environment wins over `.env`, as everywhere."""
    monkeypatch.setenv(name, expected)
    assert demo_home() == home / expected


def test_dagsters_processes_of_a_demo_see_the_demo_only(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They read the settings themselves; a real key that came through would read a real practice."""
    monkeypatch.setenv("NEXHEALTH_API_KEYS_FILE", "/real/keys.toml")
    monkeypatch.setenv("NEXHEALTH_INTERNAL_NEXHEALTH_SUBDOMAINS", "acme")
    monkeypatch.setenv("DAGSTER_HOME", "/real/dagster")
    environment = demo_environment(demo("http://127.0.0.1:1"))
    assert "DAGSTER_HOME" not in environment
    seen = load_settings(environ=environment, env_file=None)
    assert seen.api_keys() == {"": SANDBOX_API_KEY}
    assert seen.subdomains == ()
    assert seen.database_url is not None
    assert seen.database_url.get_secret_value() == ADDRESS
    assert seen.dagster_database_url is not None
    assert seen.dagster_database_url.get_secret_value() == ADDRESS + "d"
    assert environment["PATH"] == os.environ["PATH"]


def test_a_demo_whose_dotenv_cannot_be_read_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its home may stand in there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NEXHEALTH_HOME", raising=False)
    (tmp_path / ".env").write_text("NEXHEALTH_HOME=here", encoding="utf-16")
    with pytest.raises(InvalidSetting, match="UTF-8"):
        demo_home()


def test_a_process_shut_in_the_demo_sees_no_dotenv(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sync's forked children read the settings from where they are."""
    monkeypatch.setenv("NEXHEALTH_SUBDOMAINS", "acme")
    shut_in_demo(demo("http://127.0.0.1:1"))
    seen = load_settings()
    assert (seen.subdomains, seen.api_url) == ((), "http://127.0.0.1:1")
    assert Path.cwd() == home / "from-dotenv"


def test_choices_reach_dagsters_processes_over_dotenv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dagster lets `.env` win over the environment (measured): `nexhealth dev` would ignore what its shell says."""
    monkeypatch.chdir(tmp_path)
    Path(".env").write_text("NEXHEALTH_CONCURRENCY=2\nNEXHEALTH_RATE_SHARE=0.5\n")
    (tmp_path / "keys.toml").write_text('acme = "k"\n')
    monkeypatch.setenv("NEXHEALTH_RATE_SHARE", "0.6")
    monkeypatch.setenv("NEXHEALTH_API_KEY", REAL_KEY)
    monkeypatch.setenv("NEXHEALTH_API_KEYS_FILE", "keys.toml")
    monkeypatch.setenv("NEXHEALTH_SUBDOMAINS", "acme,other")
    environment = real_environment(account())
    dagsters = environment | {"NEXHEALTH_RATE_SHARE": "0.5", "NEXHEALTH_SUBDOMAINS": "wrong"}  # what it does with .env
    monkeypatch.chdir("/")
    seen = load_settings(environ=dagsters, env_file=None)
    assert (seen.rate_share, seen.concurrency, seen.subdomains) == (0.6, 2, ("acme", "other"))
    assert seen.api_keys() == {"": REAL_KEY, "acme": "k"}
    assert seen.timeout_seconds == load_settings({}, environ={}, env_file=None).timeout_seconds
