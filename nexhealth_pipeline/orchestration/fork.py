"""Several Dagster runs side by side, out of one command that has paid for its imports once.

Each run gets a forked child of its own: two runs in threads of one process deadlock in Dagster's
logging, and a fresh interpreter costs seconds. A child is forked after the imports and before any
connection or thread, so it shares nothing but code with its parent.

Ctrl-C reaches parent and children; a child ends its run on a committed page. A second Ctrl-C ends the
children at once, which loses nothing that was committed. When the parent dies, the children stop as if
by Ctrl-C.
"""

import json
import os
import selectors
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NamedTuple

from nexhealth_pipeline.errors import Cancelled, PipelineError
from nexhealth_pipeline.log import places

__all__ = ["Outcome", "run_side_by_side"]


_STOP = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_BESIDE_SECONDS = 1.0
"""So long after SIGHUP a SIGTERM means the same."""


class Outcome(NamedTuple):
    """How one task ended."""

    result: Any
    """What the task returned (through JSON), or None where it did not return."""
    status: int
    """Exit status of the child: 0 returned, an error's `exit_status`, 130 stopped, negative = killed by that signal.

    One that a second Ctrl-C killed was stopped; so was, of those that returned, one at least where Ctrl-C came.
    """
    message: str
    """The text of the PipelineError that ended it, else empty."""


class _Child(NamedTuple):
    pid: int
    answer: int


def run_side_by_side(
    tasks: Sequence[Callable[[], Any]], *, tick: Callable[[], None] | None = None, every: float = 0.5
) -> list[Outcome]:
    """Run each of `tasks` in a forked child and return how each ended, in order.

    A task returns something that JSON can hold. `tick` is called in the parent about each `every`
    seconds while children run (the parent may open connections then, since nothing forks any more). What it
    raises stops the children as Ctrl-C does, and comes out of here once they have ended.
    """
    if threading.active_count() > 1:
        raise RuntimeError("fork before any thread is started: a lock held by a thread would stay locked in the child")
    alive = os.pipe()
    children: list[_Child] = []
    with _signals_passed_to(children) as received:
        with _signals_held():  # or one could come when a child is there and not yet in the list
            children.extend(_fork(task, alive) for task in tasks)
        os.close(alive[0])
        try:
            outcomes = _gather(children, tick, every)
        finally:
            os.close(alive[1])
    if received() > 1:
        outcomes = [_stopped(outcome) if outcome.status == -signal.SIGKILL else outcome for outcome in outcomes]
    if received():
        # It may have come when no child was left that could say so: somebody must, or the command would go on.
        done = next((place for place, outcome in enumerate(outcomes) if outcome.status == 0), None)
        if done is not None:
            outcomes[done] = _stopped(outcomes[done])
    return outcomes


def _fork(task: Callable[[], Any], alive: tuple[int, int]) -> _Child:
    """A child that runs `task`; its answer comes through a pipe."""
    answer, reply = os.pipe()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # nobody reads it any more, or the disk is full
            stream.flush()
    pid = os.fork()
    if pid:
        os.close(reply)
        return _Child(pid, answer)
    status = 1
    try:
        # Ctrl-C in a terminal reaches its whole process group: Dagster's helper processes would die of it loudly.
        os.setpgrp()
        os.close(answer)
        os.close(alive[1])
        for number in _heeded():
            signal.signal(number, signal.default_int_handler)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP)
        threading.Thread(target=_stop_with_parent, args=(alive[0],), daemon=True).start()
        status, text = _call(task)
        with os.fdopen(reply, "w", encoding="utf-8") as stream:
            stream.write(text)
        sys.stdout.flush()
        sys.stderr.flush()
    except KeyboardInterrupt:  # before the task began, or while its answer was told
        status = Cancelled.exit_status
    finally:
        os._exit(status)  # the parent's exit handlers are not the child's


def _call(task: Callable[[], Any]) -> tuple[int, str]:
    """Exit status and answer (JSON) of one task."""
    try:
        return 0, json.dumps({"result": task()})
    except PipelineError as error:
        return error.exit_status, json.dumps({"message": str(error)})
    except KeyboardInterrupt:
        return Cancelled.exit_status, "{}"
    except BaseException as error:  # a child must end by its status, whatever happened
        # Its message may quote a row, so it is never shown.
        sys.stderr.write("\n  ".join((f"unexpected {type(error).__name__}", *places(error))) + "\n")
        return 1, "{}"


def _outcome(status: int, text: str) -> Outcome:
    try:
        answer = json.loads(text)
    except json.JSONDecodeError:  # it ended before it had told all
        answer = {}
    return Outcome(answer.get("result"), status, answer.get("message", ""))


def _stopped(outcome: Outcome) -> Outcome:
    return outcome._replace(status=Cancelled.exit_status)


def _gather(children: Sequence[_Child], tick: Callable[[], None] | None, every: float) -> list[Outcome]:
    """Wait until every child has ended; how each did. Where `tick` raises, they are stopped first."""
    texts = {child.answer: b"" for child in children}
    with selectors.DefaultSelector() as selector:
        for child in children:
            selector.register(child.answer, selectors.EVENT_READ)
        try:
            _read(selector, texts, tick, every)
        except BaseException:
            for child in children:
                _send(child.pid, signal.SIGINT)
            _read(selector, texts, None, every)
            raise
        finally:
            statuses = [_ended(child.pid) for child in children]
    return [_outcome(status, texts[child.answer].decode()) for status, child in zip(statuses, children, strict=True)]


def _read(
    selector: selectors.BaseSelector, texts: dict[int, bytes], tick: Callable[[], None] | None, every: float
) -> None:
    """Read the answers to their end. A pipe closes with its child, however that ends."""
    while selector.get_map():
        for key, _ in selector.select(every):
            chunk = os.read(key.fd, 65536)
            texts[key.fd] += chunk
            if not chunk:
                selector.unregister(key.fd)
                os.close(key.fd)
        if tick is not None:
            tick()


def _ended(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _heeded() -> list[signal.Signals]:
    """Those of `_STOP` that are heeded: a terminal that closes is no matter to what runs under `nohup`."""
    return [one for one in _STOP if one != signal.SIGHUP or signal.getsignal(one) is not signal.SIG_IGN]


def _stop_with_parent(alive: int) -> None:
    """In a child: wait until the parent is gone (its end of the pipe closes), then stop the run."""
    os.read(alive, 1)
    os.kill(os.getpid(), signal.SIGINT)


@contextmanager
def _signals_passed_to(children: Sequence[_Child]) -> Iterator[Callable[[], int]]:
    """In the parent: the first signal of `_STOP` stops the children gently, a second one kills them.

    A terminal that closes is no second one: shell and kernel tell of it both, and service managers beside SIGTERM, which
    may come to be handled after it. Gives what tells how many came.
    """
    received = 0
    closed_at = -_BESIDE_SECONDS

    def handle(number: int, _frame: FrameType | None) -> None:
        nonlocal received, closed_at
        beside = number == signal.SIGTERM and time.monotonic() - closed_at < _BESIDE_SECONDS
        if number == signal.SIGHUP:
            closed_at = time.monotonic()
        if received and (beside or number == signal.SIGHUP):
            return
        received += 1
        for child in children:
            _send(child.pid, signal.SIGINT if received == 1 else signal.SIGKILL)

    before = {number: signal.signal(number, handle) for number in _heeded()}
    try:
        yield lambda: received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _signals_held() -> Iterator[None]:
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOP)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP)


def _send(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):  # it ended meanwhile
        os.kill(pid, number)
