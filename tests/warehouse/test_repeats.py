"""What is done once more, and what is not."""

import logging

import psycopg
import pytest
from psycopg import errors

from nexhealth_pipeline.warehouse.repeats import AGAIN, repeated


class Work:
    """Fails with each of these, and then is done."""

    def __init__(self, *failures: type[psycopg.Error]) -> None:
        self.left = list(failures)
        self.undone = 0

    def __call__(self) -> str:
        if self.left:
            raise self.left.pop(0)
        return "done"

    def undo(self) -> None:
        self.undone += 1


def test_what_is_nobodys_fault_is_done_again_after_each_failure_was_undone() -> None:
    work = Work(*AGAIN)
    assert repeated(work, undo=work.undo) == "done"
    assert work.undone == len(AGAIN)


def test_it_is_not_done_for_ever() -> None:
    work = Work(*[errors.DeadlockDetected] * 3)
    with pytest.raises(errors.DeadlockDetected):
        repeated(work, undo=work.undo, tries=3)
    assert (work.left, work.undone) == ([], 3)


def test_each_repetition_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """Risk: a warehouse where every batch is made several times is slow, and nothing says why."""
    caplog.set_level(logging.INFO, logger="nexhealth_pipeline.warehouse.repeats")
    repeated(Work(errors.DeadlockDetected, errors.LockNotAvailable))
    told = [(record.message, record.__dict__["nexhealth"]) for record in caplog.records]
    again = "a transaction is made again"
    assert told == [(again, {"sqlstate": "40P01", "try": 1}), (again, {"sqlstate": "55P03", "try": 2})]


@pytest.mark.parametrize("failure", [errors.DiskFull, errors.InsufficientPrivilege, errors.UniqueViolation])
def test_what_would_fail_again_is_tried_once(failure: type[psycopg.Error]) -> None:
    work = Work(failure)
    with pytest.raises(failure):
        repeated(work, undo=work.undo)
    assert work.undone == 0
