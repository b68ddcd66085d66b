"""A run that lost a test is no success: pytest's own crash in a worker of pytest-xdist leaves exit status 0.

The other worker goes on, and what the crashed one had left is passed over (pytest 9.2, pytest-xdist 3.8).
"""

import pytest

_crashes: list[str] = []


def pytest_internalerror(excrepr: object) -> None:
    """Called in the worker, and once more in the controlling process."""
    _crashes.append(str(excrepr))


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Exit status 3, whatever the tests that were run say."""
    if _crashes:
        session.exitstatus = pytest.ExitCode.INTERNAL_ERROR
