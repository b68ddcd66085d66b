"""The receiver killed with -9 while events come: what it acknowledged is in the table."""

import http.client
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from nexhealth_pipeline.webhooks.target import WEBHOOK_PATH
from tests.waiting import until
from tests.webhooks.receiving import SECRET, event, events, signed

_VICTIM = """
import sys
from nexhealth_pipeline.settings import load_settings
from nexhealth_pipeline.webhooks.receiving import connections, serving
url, secret = sys.argv[1:]
listener = serving.bind("127.0.0.1", 0)
settings = load_settings({"NEXHEALTH_WEBHOOK_SECRETS": secret}, environ={}, env_file=None)
serving.serve(url, settings, None, listener, on_ready=lambda: print(listener.getsockname()[1], flush=True))
"""


def _kill_under_load(url: str, first: int, seconds: float) -> set[int]:
    """Start a receiver, send from four threads, kill -9; returns the events that were acknowledged."""
    command = [sys.executable, "-c", _VICTIM, url, SECRET]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as victim:
        assert victim.stdout is not None
        port = int(victim.stdout.readline())
        acknowledged: set[int] = set()
        senders = [
            threading.Thread(target=_send_until_gone, args=(port, first + k * 10_000, acknowledged)) for k in range(4)
        ]
        for sender in senders:
            sender.start()
        try:
            until(lambda: acknowledged)
            time.sleep(seconds)
        finally:
            os.kill(victim.pid, signal.SIGKILL)
        for sender in senders:
            sender.join()
    return acknowledged


def _send_until_gone(port: int, number: int, acknowledged: set[int]) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        while True:
            body = event(number)
            connection.request("POST", WEBHOOK_PATH, body, signed(body))
            response = connection.getresponse()
            if response.status == 200 and response.read() == b"stored":
                acknowledged.add(number)
            number += 1
    except (OSError, http.client.HTTPException):
        connection.close()


def _kills(url: str, rounds: int) -> None:
    for k in range(rounds):
        acknowledged = _kill_under_load(url, k * 100_000, 0.1 + (k % 7) * 0.03)
        kept = {row["resource_ids"][0] for row in events(url, "status = 'pending'")}
        assert acknowledged
        assert acknowledged <= kept


def test_whatever_was_acknowledged_outlives_kill_9(no_events: str) -> None:
    """Promise 11. The soak test does it twenty times."""
    _kills(no_events, 2)


_ASKED = f"""
import signal
from nexhealth_pipeline.cli.household import end_like_interrupt
signal.signal(signal.SIGINT, signal.default_int_handler)
end_like_interrupt()
{_VICTIM}
print("ended")
"""


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_receiver_that_is_asked_to_end_does_so_in_order(no_events: str, sent: signal.Signals) -> None:
    """A terminal that closes too: in the midst of anything, what was taken would go unanswered."""
    command = [sys.executable, "-c", _ASKED, no_events, SECRET]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as receiver:
        try:
            assert receiver.stdout is not None
            receiver.stdout.readline()
            receiver.send_signal(sent)
            assert receiver.communicate(timeout=30)[0] == "ended\n"
        finally:
            receiver.kill()  # else what fails above waits for it, and leaves it behind
    assert receiver.returncode == 0


@pytest.mark.soak
def test_whatever_was_acknowledged_outlives_twenty_kills(no_events: str) -> None:
    """As above, longer."""
    _kills(no_events, 20)
