"""Dagster is loaded without a look for garbage, and only where something runs."""

import gc
import subprocess
import sys

import pytest

from nexhealth_pipeline.cli.loading import loading


def test_garbage_is_looked_for_again_afterwards() -> None:
    """Risk: a sync of millions of records that keeps every cycle there ever was."""
    with loading():
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(ImportError), loading():
        raise ImportError
    assert gc.isenabled()


def test_no_garbage_is_looked_for_in_what_is_loaded() -> None:
    """It found none, and took a fifth of the time; a forked child would copy what it looks through."""
    program = (
        "import gc; from nexhealth_pipeline.cli.loading import loading; looks = []\n"
        "gc.callbacks.append(lambda *_: looks.append(1))\n"
        "with loading(): import nexhealth_pipeline.orchestration.launch\n"
        "print(len(looks), gc.get_freeze_count() > 100_000)"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["0", "True"]
