"""Of the test run itself."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

_OURS = """
pytest_plugins = ["tests.crashes"]
"""
_CRASHES = f"""
{_OURS}
def pytest_runtest_makereport(item, call):
    if item.name == "test_b" and call.when == "call" and hasattr(item.config, "workerinput"):
        raise SystemError("as Python 3.11's parser in depth")
"""


@pytest.mark.parametrize(("conftest", "status"), [(_CRASHES, 3), (_OURS, 0)])
def test_a_run_that_lost_a_test_is_no_success(tmp_path: Path, conftest: str, status: int) -> None:
    """Risk: a submission lands of which half the tests were never run."""
    (tmp_path / "conftest.py").write_text(conftest)
    (tmp_path / "test_x.py").write_text("".join(f"def test_{name}(): pass\n" for name in "abc"))
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n", "2", "-p", "no:cacheprovider", "--rootdir", ".", "."],
        check=False,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert ended.returncode == status, ended.stdout
