"""Makes `.venv` fit `requirements.lock` and `pyproject.toml`; does nothing when it does already.

Run by make with whatever Python 3 there is, so it uses the standard library alone and says clearly when
that Python is not the right one. A stamp inside `.venv` says for which lock, project file, interpreter and
folder it was made. It is taken away before anything is changed and written when all is done: a set-up
that was interrupted has none and is begun again.

    python3 scripts/set_up.py            set up
    python3 scripts/set_up.py --usable   exit 0 if this Python can be used, 1 with the reason if not
    python3 scripts/set_up.py --lock     write requirements.lock and deploy/requirements.lock again (more arguments go to uv)
"""

import fcntl
import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OLDEST, NEWEST = (3, 11), (3, 14)
UV = "uv==0.13.9"
COMPILE = (
    *("pip", "compile", "pyproject.toml", "-q"),
    *("--universal", "--python-version", "3.11", "--generate-hashes", "--no-strip-extras", "--no-emit-index-url"),
    *("--custom-compile-command", "make lock"),
)
LOCKS = (
    ("--extra", "dev", "-o", "requirements.lock"),
    # What goes into the container image, in the versions that were tested.
    ("--extra", "deploy", "-c", "requirements.lock", "-o", "deploy/requirements.lock"),
)


class SetUpFailed(Exception):
    """The text says why."""


def why_unusable() -> str:
    """Why this interpreter cannot be used; empty if it can."""
    found = sys.version_info[:2]
    if not OLDEST <= found <= NEWEST:
        return f"{sys.executable} is Python {found[0]}.{found[1]}; 3.11 to 3.14 is needed"
    try:
        import ensurepip  # noqa: F401 - only whether it is there
        import venv  # noqa: F401 - as above
    except ImportError:
        return f"{sys.executable} has no venv module (on Debian and Ubuntu: apt install python3-venv)"
    return ""


def set_up(root: Path) -> None:
    """Bring `root`/.venv up to date with as little work as is safe."""
    folder = root / ".venv"
    stamp = folder / "stamp"
    packages, project = packages_wanted(root), digest(root / "pyproject.toml")
    made_for = read_stamp(folder)
    if made_for == [packages, project]:
        return
    if stamp.exists():
        stamp.unlink()
    if made_for[:1] != [packages]:
        sys.stdout.write("Setting up .venv, a few minutes the first time ...\n")
        sys.stdout.flush()
        make_venv(folder)
        install(folder, "--require-hashes", "-r", str(root / "requirements.lock"))
    install(folder, "--no-deps", "--no-build-isolation", "-e", str(root))
    stamp.write_text(f"{packages}\n{project}\n")


def packages_wanted(root: Path) -> str:
    """What the installed packages depend on: the lock, the interpreter, and the folder their scripts name."""
    facts = (digest(root / "requirements.lock"), sys.version.split(" ")[0].rsplit(".", 1)[0], str(root))
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read_stamp(folder: Path) -> "list[str]":
    """The two lines of the stamp; none where there is no stamp or the environment's Python has gone."""
    stamp = folder / "stamp"
    return stamp.read_text().split() if stamp.exists() and python_of(folder).exists() else []


def make_venv(folder: Path) -> None:
    """Make a new, empty environment in `folder`, which may be the one that this Python is of: it is activated, or named."""
    if folder.exists():
        shutil.rmtree(str(folder))
    run(getattr(sys, "_base_executable", "") or sys.executable, "-I", "-m", "venv", str(folder))


def install(folder: Path, *arguments: str) -> None:
    """`pip install` in the environment `folder`, undisturbed by the user's habits elsewhere."""
    options = ("--disable-pip-version-check", "--no-input", "-qq", "install", "--no-user")
    run(str(python_of(folder)), "-I", "-m", "pip", *options, *arguments)


def python_of(folder: Path) -> Path:
    """The interpreter of the environment `folder`."""
    return folder / "bin" / "python"


def write_lock(root: Path, *arguments: str) -> None:
    """Resolve pyproject.toml for every supported system and Python, with uv in an environment of its own."""
    tools = root / ".venv.tools"
    if not (tools / UV).exists():
        make_venv(tools)
        install(tools, UV)
        (tools / UV).touch()
    for lock in LOCKS:
        run(str(tools / "bin" / "uv"), *COMPILE, *lock, *arguments)


def run(*command: str) -> None:
    """Run a command in the project's folder. Raises SetUpFailed where it fails; it has said why itself."""
    if subprocess.call(command, cwd=str(ROOT), stdin=subprocess.DEVNULL):
        raise SetUpFailed(f"Set-up stopped, this failed: {' '.join(command)}")


def main(arguments: "list[str]") -> None:
    """Do what the command line asks. Raises SetUpFailed."""
    reason = why_unusable()
    if reason:
        raise SetUpFailed(reason)
    if arguments == ["--usable"]:
        return
    with (ROOT / ".venv.lock").open("w") as lock:  # two `make` at once: the second waits and finds it done
        fcntl.flock(lock, fcntl.LOCK_EX)
        if arguments[:1] == ["--lock"]:
            write_lock(ROOT, *arguments[1:])
        else:
            set_up(ROOT)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (SetUpFailed, OSError) as error:
        sys.exit(str(error))
