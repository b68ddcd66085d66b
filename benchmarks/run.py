"""`make bench`: every benchmark one after the other, into benchmarks/RESULTS.md.

    make bench                      all, at full size (about two hours on two cores)
    make bench QUICK=1              all, small (less than five minutes after the first set-up)
    make bench ONLY="bench budget"  some; the others' figures stay as they were kept

Makes benchmarks/.venv first, with whom we are compared to. Sizes: each script's own options
(`python benchmarks/bench.py --help`). A part that fails is told in the report, and the others go on.
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
from results import FOLDER, Part, keep, kept

HERE = Path(__file__).parent
VENV = HERE / ".venv"


@dataclass(frozen=True)
class Script:
    """A benchmark: its file, and what it is given."""

    name: str
    title: str = ""
    """For one that only prints; others title their own part."""
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
    Script("memory", quick=("--records", "10000", "50000")),
    Script(
        "nightly", quick=("--locations", "20", "--patients", "20", "--full-locations", "1", "--full-patients", "10")
    ),
    Script("budget", quick=("--seconds", "12", "--processes", "4", "--mix", "appointment list")),
    Script("startup", quick=("--rounds", "1")),
    Script("webhook_row", quick=("--warm", "5", "--cold", "0")),
    Script(
        "receiver", "The receiver: events a second against latency", quick=("--rate", "100", "300", "--seconds", "4")
    ),
    Script("change_feed", "What the change feed costs a load", quick=("--records", "10000", "--rounds", "1")),
    Script("growth", "Growth of the databases per night", quick=("--locations", "5", "--nights", "10")),
    Script("ticks", "What ticks of sensors and schedules cost", quick=("--locations", "50", "--events", "1000")),
    Script("pages", "Dagster's pages of many locations", quick=("--locations", "50", "--nights", "2", "--rounds", "1")),
)
"""In the report's order. One whose file is not there is left out."""


def set_up() -> None:
    """Make benchmarks/.venv unless it is as requirements.txt says."""
    wanted = hashlib.sha256((HERE / "requirements.txt").read_bytes() + sys.version.encode()).hexdigest()
    stamp = VENV / "stamp"
    if stamp.exists() and stamp.read_text() == wanted:
        return
    print("Setting up benchmarks/.venv (dlt, matplotlib), a few minutes the first time ...", flush=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", VENV], check=True)
    pip = (VENV / "bin" / "python", "-m", "pip", "--disable-pip-version-check", "--no-input", "-qq", "install")
    subprocess.run([*pip, "-r", HERE / "requirements.txt"], check=True)
    stamp.write_text(wanted)


def run(script: Script, *, quick: bool) -> bool:
    """Run one, showing what it prints; whether it succeeded. What it found is kept."""
    new = FOLDER / f"{script.name}.new"
    began = time.monotonic()
    options = script.quick if quick else script.full
    print(f"\n== {script.name} {' '.join(options)}", flush=True)
    command = [sys.executable, str(script.path), *options, *(() if script.title else ("--json", str(new)))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, bufsize=1) as process:
        assert process.stdout is not None
        said = []
        try:
            for line in process.stdout:
                print(line, end="", flush=True)
                said.append(line)
        except KeyboardInterrupt:
            process.terminate()  # it ends what it started, too
            raise
    failed = process.returncode != 0
    part = kept(new) if new.exists() else Part(script.name, script.title or script.name, output="".join(said))
    new.unlink(missing_ok=True)
    part.quick, part.failed = quick, failed
    keep(part, FOLDER / f"{script.name}.json")
    print(f"-- {script.name}: {'failed' if failed else 'done'} after {time.monotonic() - began:.0f} s", flush=True)
    return not failed


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
    chosen = [one for one in SCRIPTS if one.path.exists() and (not given.only or one.name in given.only)]
    succeeded = [run(one, quick=given.quick) for one in chosen]
    subprocess.run([VENV / "bin" / "python", HERE / "charts.py"], check=True)
    report.write([one.name for one in SCRIPTS])
    print(f"\n{report.FILE.relative_to(HERE.parent)} is written; {succeeded.count(False)} of {len(chosen)} failed")
    return 0 if all(succeeded) else 1


if __name__ == "__main__":
    sys.exit(main())
