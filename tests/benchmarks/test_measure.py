"""What a program costs, by the kernel's account."""

import os
import subprocess
import sys
import time

import measure
import pytest
import receiver


def test_a_programs_peak_is_its_own_and_not_that_of_who_started_it():
    """Else a benchmark that holds much tells of itself: a started process begins with the peak of its parent."""
    ballast = bytearray(300 << 20)
    ballast[::4096] = b"x" * len(ballast[::4096])
    used = measure.accounted([sys.executable, "-S", "-c", "print('so')"], os.environ)
    assert (used.status, used.output) == (0, "so\n")
    assert 1 < used.rss < 100


def test_children_count_and_the_status_is_the_programs():
    spin = "import time\nwhile time.process_time() < 0.3: pass"
    program = f"import subprocess, sys; subprocess.run([sys.executable, '-S', '-c', {spin!r}]); sys.exit(3)"
    used = measure.accounted([sys.executable, "-S", "-c", program], os.environ)
    assert used.status == 3
    assert used.cpu >= 0.3
    assert used.wall >= 0.3


def test_the_peak_of_a_process_that_stands_stays_when_it_has_let_go():
    """And is found among grandchildren by what was started, since the daemon starts the code server."""
    mark = "no-such-service"
    holder = f"b = bytearray(80 << 20); b[::4096] = b'x' * len(b[::4096]); del b; print('{mark}', flush=True); input()"
    program = f"import subprocess, sys; subprocess.run([sys.executable, '-S', '-c', {holder!r}])"
    with subprocess.Popen(
        [sys.executable, "-S", "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == f"{mark}\n"
        assert 80 < measure.peak_rss_of(f"print('{mark}'") < 140
        assert 1 < measure.peak_rss(process.pid) < 60
        process.communicate("\n")
    with pytest.raises(FileNotFoundError):
        measure.peak_rss(process.pid)
    with pytest.raises(LookupError, match=mark):
        measure.peak_rss_of(mark)


def test_what_has_ended_and_was_not_waited_for_has_no_peak_and_breaks_nothing(monkeypatch: pytest.MonkeyPatch):
    """A receiver that died under its benchmark stands like that until the end, and the figures until then were lost."""
    with subprocess.Popen([sys.executable, "-S", "-c", "pass"]) as process:
        until = time.monotonic() + 30
        while measure._stat(process.pid)[0] != "Z":
            assert time.monotonic() < until
            time.sleep(0.01)
        with pytest.raises(ProcessLookupError, match=str(process.pid)):
            measure.peak_rss(process.pid)
        assert receiver.memory_of(process.pid) is None
        monkeypatch.setattr(measure, "_descendants", lambda: {process.pid: []})
        with pytest.raises(LookupError):
            measure.peak_rss_of("")
    part = receiver.part_of([], 10, 1, receiver.memory_of(process.pid))
    assert part.text.endswith("left of the cores.")
