"""What a program costs, by the kernel's account."""

import os
import sys

import measure


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
