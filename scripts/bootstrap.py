"""Set up in .venv all that `make demo` and `make test` need, with the standard library alone.

    python3 scripts/bootstrap.py      what `make setup` calls; a second call ends at its stamp

What a bare Debian lacks is worked around without touching the system: where ensurepip or Python's C
headers are missing, apt-get fetches the Debian packages that hold them into .venv, with a state of
its own (no root needed), and they are unpacked there. PyTorch comes first, through pip, and stays
pinned while the rest is installed. CMake and Ninja come from pip. Without a compiler the install is
pure Python, and one line says so.

pip's own configuration (index, certificates, proxies) is respected. The log is .venv/setup.log.
Not covered: Windows; other systems than Debian without ensurepip (the message tells what to do).
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / "setup.stamp"
LOG = VENV / "setup.log"
TORCH = "torch>=2.11,<2.14"
OLDEST = (3, 10)


class SetupError(Exception):
    """Something that the user has to do; one line, or a few."""


def say(text: str) -> None:
    print(f"setup: {text}", flush=True)


def compiler() -> str | None:
    return os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")


def fingerprint() -> str:
    """Changes when what is installed would: project file, C++ part, compiler, place."""
    sources = [ROOT / "pyproject.toml", ROOT / "CMakeLists.txt", Path(__file__).resolve()]
    sources += sorted((ROOT / "qwenkit" / "ops" / "csrc").iterdir())
    digest = hashlib.sha256(f"{ROOT} {compiler()}".encode())
    for path in sources:
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def is_current() -> bool:
    return STAMP.is_file() and PYTHON.exists() and STAMP.read_text() == fingerprint()


def run(*command: str | Path, env: dict[str, str] | None = None) -> None:
    """Run a command with its output on the terminal. Errors: SetupError naming it."""
    done = subprocess.run([str(part) for part in command], env=env, cwd=ROOT)
    if done.returncode:
        words = " ".join(str(part) for part in command)
        raise SetupError(f"this command failed with code {done.returncode}:\n    {words}")


def quietly(*command: str | Path, cwd: Path = ROOT) -> str | None:
    """The command's output, or None when it is missing or fails."""
    try:
        done = subprocess.run(
            [str(part) for part in command], cwd=cwd, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def pip(*arguments: str | Path, env: dict[str, str] | None = None) -> None:
    bar = "on" if sys.stdout.isatty() else "off"
    options = ("--quiet", "--disable-pip-version-check", "--progress-bar", bar, "--log", LOG)
    run(PYTHON, "-m", "pip", "install", *options, *arguments, env=env)


def fetch_debian(pattern: str, *packages: str) -> Path | None:
    """Unpack Debian packages under .venv/debian; the folder once `pattern` is in it, else None."""
    folder = VENV / "debian"
    if any(folder.glob(pattern)):
        return folder
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        return None
    state = VENV / "apt"
    for part in ("lists/partial", "cache/archives/partial"):
        (state / part).mkdir(parents=True, exist_ok=True)
    apt = ["apt-get", "-qq", "-o", f"Dir::State::lists={state / 'lists'}"]
    apt += ["-o", f"Dir::Cache={state / 'cache'}", "-o", "Debug::NoLocking=1"]
    if os.geteuid() == 0:  # apt's own user may not be let into this folder
        apt += ["-o", "APT::Sandbox::User=root"]
    if quietly(*apt, "update") is not None:
        quietly(*apt, "download", *packages, cwd=state)
    for archive in sorted(state.glob("*.deb")):
        quietly("dpkg-deb", "-x", archive, folder)
    shutil.rmtree(state)
    return folder if any(folder.glob(pattern)) else None


def make_venv() -> None:
    """.venv with a working pip; an unfinished one is finished, a broken one made anew."""
    if quietly(PYTHON, "-c", "") is None:
        say(f"making .venv with Python {sys.version.split()[0]}")
        shutil.rmtree(VENV, ignore_errors=True)
        bare = ["--without-pip"] if importlib.util.find_spec("ensurepip") is None else []
        run(sys.executable, "-m", "venv", *bare, VENV)
    version = quietly(PYTHON, "-c", "import sys; print('%d %d' % sys.version_info[:2])") or "0 0"
    if tuple(map(int, version.split())) < OLDEST:
        raise SetupError(".venv holds a Python that is too old; remove .venv and try again.")
    if quietly(PYTHON, "-m", "pip", "--version") is None:
        install_pip()


def install_pip() -> None:
    """pip into a .venv that was made without it (Debian keeps ensurepip in python3-venv)."""
    if quietly(PYTHON, "-m", "ensurepip") is not None:
        return
    wheels = sorted(Path("/usr/share/python-wheels").glob("pip-*.whl"))
    if not wheels:
        say("this Python has no pip; fetching Debian's")
        folder = fetch_debian("usr/share/python-wheels/pip-*.whl", "python3-pip-whl")
        wheels = sorted(folder.glob("usr/share/python-wheels/pip-*.whl")) if folder else []
    for wheel in reversed(wheels):
        if quietly(PYTHON, wheel / "pip", "install", "--no-index", wheel) is not None:
            return
    raise SetupError(
        "this Python has neither ensurepip nor pip, and Debian's package could not be fetched.\n"
        "    As root: apt-get install python3-venv. "
        "Or name another Python: make setup PYTHON=python3.12"
    )


def install_torch() -> str:
    """PyTorch through pip, unless a fitting one is there; returns the pin for all that follows."""
    say(f"installing {TORCH} (the largest part)")
    pip(TORCH)
    version = quietly(PYTHON, "-c", "import importlib.metadata as m; print(m.version('torch'))")
    if not version:
        raise SetupError(f"pip installed PyTorch, but it cannot be found; see {LOG}.")
    return f"torch=={version}"


def find_headers() -> dict[str, str]:
    """Environment for the build: empty where Python's headers are installed, or none can be had."""
    if Path(sysconfig.get_path("include"), "Python.h").is_file():
        return {}
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    folder = fetch_debian(f"usr/include/{version}/Python.h", f"lib{version}-dev")
    if folder is None:
        return {}
    include = folder / "usr" / "include"
    search = [str(include), *filter(None, [os.environ.get("CPLUS_INCLUDE_PATH")])]
    return {
        "SKBUILD_CMAKE_DEFINE": f"Python_INCLUDE_DIR={include / version}",
        "CPLUS_INCLUDE_PATH": os.pathsep.join(search),
    }


def install_project(torch: str) -> None:
    """The build tools, the dependencies and qwenkit itself, editable; torch stays what it is."""
    constraints = VENV / "constraints.txt"
    constraints.write_text(torch + "\n")
    say("installing the build tools")
    lines = (ROOT / "pyproject.toml").read_text().splitlines()
    requires = next(line for line in lines if line.startswith("requires = "))
    pip("-c", constraints, *ast.literal_eval(requires.partition("=")[2].strip()))
    missing = [tool for tool in ("cmake", "ninja") if shutil.which(tool) is None]
    try:
        if missing:
            pip("-c", constraints, *missing)
    except (
        SetupError
    ) as error:  # no wheel for this platform: the compiler may still be of use elsewhere
        say(f"{error}\n    Going on without {' and '.join(missing)}.")
    say("installing qwenkit and its dependencies")
    env = {**os.environ, **find_headers()}
    env["PATH"] = f"{VENV / 'bin'}{os.pathsep}{env.get('PATH', '')}"
    pip("-c", constraints, "--no-build-isolation", "-e", f"{ROOT}[dev]", env=env)


def report() -> None:
    """Import what was installed, and say in one line whether the C++ part is in it."""
    probe = "from qwenkit.ops import cpu; print(cpu.unavailable_reason() or cpu.instruction_set())"
    answer = quietly(PYTHON, "-c", probe, cwd=VENV)
    if answer is None:
        raise SetupError(f"qwenkit was installed but does not import; see {LOG}.")
    if answer.startswith(("portable", "avx")):
        say(f"done; the C++ part is built (instruction set {answer})")
        return
    hint = "" if compiler() else " There is no C++ compiler (on Debian: apt-get install g++)."
    say(f"done, but the C++ part could NOT be built: slower, all else the same.{hint} Log: {LOG}")


def main() -> int:
    if sys.version_info < OLDEST:
        found = ".".join(map(str, sys.version_info[:3]))
        print(f"setup: qwenkit needs Python 3.10 or newer, this is {found}.", file=sys.stderr)
        print("    Name another one: make setup PYTHON=python3.12", file=sys.stderr)
        return 1
    if is_current():
        return 0
    try:
        make_venv()
        STAMP.unlink(missing_ok=True)
        install_project(install_torch())
        report()
        STAMP.write_text(fingerprint())
    except SetupError as error:
        print(f"setup: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
