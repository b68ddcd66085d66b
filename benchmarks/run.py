"""`make bench`: every benchmark one after the other, into benchmarks/RESULTS.md.

    make bench                      all, at full size (about three hours on two cores)
    make bench QUICK=1              all, small, into benchmarks/quick/ (some minutes after the first set-up)
    make bench ONLY="bench budget"  some; the others' figures stay as they were kept

Makes benchmarks/.venv first, with whom we are compared to. Sizes: each script's own options
(`python benchmarks/bench.py --help`). What a part that fails had found before stays, and the others go on; one that
cannot be measured on this machine (no browser) is left out.
"""

import argparse
import hashlib
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import report
from results import NOT_HERE, keep, kept

HERE = Path(__file__).parent
VENV = HERE / ".venv"


@dataclass(frozen=True)
class Script:
    """A benchmark: its file, and what it is given."""

    name: str
    full: tuple[str, ...] = ()
    quick: tuple[str, ...] = ()
    file: str = ""
    """Unless `name`.py."""

    @property
    def path(self) -> Path:
        """The file."""
        return HERE / (self.file or f"{self.name}.py")


SCRIPTS = (
    Script("bench", quick=("--records", "10000", "--rounds", "1")),
    Script("no_change", quick=("--records", "5000", "--rounds", "1")),
    Script("memory", quick=("--records", "10000", "50000", "--rounds", "1")),
    Script("night", ("night",), ("night", "--locations", "20", "--patients", "20"), "nightly.py"),
    Script(
        "night_by_daemon",
        ("night_by_daemon",),
        ("night_by_daemon", "--locations", "7", "--patients", "20"),
        "nightly.py",
    ),
    Script("full_load", ("full_load",), ("full_load", "--locations", "1", "--patients", "10"), "nightly.py"),
    Script("documents", ("documents",), ("documents", "--patients", "50"), "nightly.py"),
    Script("budget", quick=("--seconds", "12", "--processes", "4", "--mix", "appointment list")),
    Script("startup", quick=("--rounds", "1")),
    Script("events", quick=("--partitions", "200", "--rounds", "1")),
    Script("webhook_row", quick=("--warm", "5", "--cold", "0")),
    Script("receiver", quick=("--rate", "100", "300", "--seconds", "4")),
    Script("change_feed", quick=("--records", "10000", "--rounds", "1")),
    Script("growth", quick=("--locations", "5", "--nights", "10")),
    Script("ticks", quick=("--locations", "50", "--events", "1000")),
    Script("pages", quick=("--locations", "50", "--nights", "2", "--rounds", "1")),
)
"""In the report's order."""


def set_up() -> None:
    """Make benchmarks/.venv unless it is as requirements.txt says. Raises SystemExit where it cannot be made."""
    wanted = hashlib.sha256((HERE / "requirements.txt").read_bytes() + sys.version.encode()).hexdigest()
    stamp, python = VENV / "stamp", VENV / "bin" / "python"
    if python.exists() and stamp.exists() and stamp.read_text() == wanted:
        return
    print("Setting up benchmarks/.venv (dlt, matplotlib), a few minutes the first time ...", flush=True)
    stamp.unlink(missing_ok=True)  # until all is there: what is interrupted is begun again
    pip = (python, "-m", "pip", "--disable-pip-version-check", "--no-input", "-qq", "install")
    for command in (
        (sys.executable, "-m", "venv", "--clear", VENV),
        (*pip, "-r", HERE / "requirements.txt"),
    ):
        if subprocess.run(command, check=False).returncode:
            raise SystemExit(
                "benchmarks/.venv cannot be set up: it takes a package index (the network) and Python's venv module; "
                f"this failed: {' '.join(map(str, command))}"
            )
    stamp.write_text(wanted)


def run(script: Script, folder: Path, *, quick: bool) -> bool:
    """Run one, showing what it prints; whether it succeeded, or cannot here. What it found is kept in `folder`."""
    new = folder / f"{script.name}.new"
    began = time.monotonic()
    options = script.quick if quick else script.full
    print(f"\n== {script.name} {' '.join(options)}", flush=True)
    with subprocess.Popen([sys.executable, str(script.path), *options, "--json", str(new)]) as process:
        try:
            status = process.wait()
        except KeyboardInterrupt:
            process.terminate()  # it ends what it started, too
            raise
    if new.exists():
        part = kept(new)
        part.quick, part.failed = quick, status != 0
        keep(part, folder / f"{script.name}.json")
        new.unlink()
    word = {0: "done", NOT_HERE: "left out"}.get(status, "failed")
    print(f"-- {script.name}: {word} after {time.monotonic() - began:.0f} s", flush=True)
    return status in (0, NOT_HERE)


def main() -> int:
    """Run, draw, write; status 1 where a part failed."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("only", nargs="*", metavar="NAME", help=f"of: {', '.join(one.name for one in SCRIPTS)}")
    parser.add_argument("--quick", action="store_true", help="small sizes")
    given = parser.parse_args()
    unknown = set(given.only) - {one.name for one in SCRIPTS}
    if unknown:
        parser.error(f"no benchmark {sorted(unknown)[0]!r}; there are {', '.join(one.name for one in SCRIPTS)}")
    set_up()
    chosen = [one for one in SCRIPTS if not given.only or one.name in given.only]
    place = HERE / "quick" if given.quick else HERE
    succeeded = [run(one, place / "results", quick=given.quick) for one in chosen]
    subprocess.run([VENV / "bin" / "python", HERE / "charts.py", place], check=True)
    written = report.write(place, [one.name for one in SCRIPTS])
    print(f"\n{written.relative_to(HERE.parent)} is written; {succeeded.count(False)} of {len(chosen)} failed")
    return 0 if all(succeeded) else 1


if __name__ == "__main__":
    sys.exit(main())
