"""Who takes part in the comparison: none ends well without having read."""

import pytest
from contestants import limit, ours
from requests.exceptions import ConnectionError as NotConnected

from nexhealth_pipeline.sandbox import SandboxServer


@pytest.mark.timeout(60)
def test_the_limit_script_ends_where_its_fetching_thread_fails() -> None:
    """The error ended that thread alone, and the other one waited for its pages for ever."""
    with pytest.raises(NotConnected):
        list(limit.pages("http://127.0.0.1:9", ""))


def test_ours_says_how_many_records_it_read(database_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    with SandboxServer(patients=5, appointments_per_patient=1, limits=False, api_keys={"bench": None}) as box:
        ours.main(box.url, database_url, "full")
    counts = [[int(word) for word in line.split()] for line in capsys.readouterr().out.splitlines()]
    assert counts
    assert all(read >= inserted + updated > 0 for read, inserted, updated in counts[:1])


@pytest.mark.parametrize(("path", "named"), [("/sync_status", "sync_status"), ("/patients", "patients ")])
def test_ours_ends_with_an_error_where_a_list_could_not_be_read(database_url: str, path: str, named: str) -> None:
    """It ended well, and sooner than any other."""
    with SandboxServer(patients=5, appointments_per_patient=1, limits=False, api_keys={"bench": None}) as box:
        box.faults.add("status", path=path, status=400)
        with pytest.raises(SystemExit, match=f"{named}.*: failed, "):
            ours.main(box.url, database_url, "full")
