"""What is installed: the wheel and the source archive have everything they need, and a machine
without a compiler gets a pure-Python wheel. The set-up script says what it cannot do."""

from __future__ import annotations

import ast
import importlib.util
import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it

ROOT = Path(__file__).resolve().parents[1]
NEEDS_BACKEND = pytest.mark.skipif(
    importlib.util.find_spec("scikit_build_core") is None, reason="the build backend is missing"
)


def build(kind: str, folder: Path, **environment: str) -> Path:
    """`kind` "wheel" or "sdist", through the backend's own entry point, offline."""
    settings: dict[str, Any] = {"build-dir": str(folder / "build")}
    call = f"b.build_{kind}({str(folder)!r}, {settings!r})"
    code = f"import scikit_build_core.build as b; print('made', {call})"
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return folder / run.stdout.splitlines()[-1].removeprefix("made ")


def package_files() -> set[str]:
    """Every file of the package that belongs to an install, assets included."""
    files = set()
    for path in (ROOT / "qwenkit").rglob("*"):
        name = path.relative_to(ROOT)
        if path.is_file() and not {"__pycache__", "csrc"} & set(name.parts):
            files.add(str(name))
    return files


@NEEDS_BACKEND
def test_without_a_compiler_the_wheel_is_pure_python_and_complete(tmp_path: Path) -> None:
    wheel = build("wheel", tmp_path, CC="/bin/false", CXX="/bin/false")
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = next(name for name in names if name.endswith("METADATA"))
        text = archive.read(metadata).decode()
        scripts = next(name for name in names if name.endswith("entry_points.txt"))
        assert "qwenkit = qwenkit.cli:main" in archive.read(scripts).decode()
    installed = {name for name in names if ".dist-info/" not in name}
    assert installed == {name for name in package_files() if not name.endswith(".so")}
    assert "License-Expression: Apache-2.0" in text
    assert "Requires-Dist: torch<2.14,>=2.11" in text
    assert not [line for line in text.splitlines() if "dashscope" in line and "extra" not in line]


@NEEDS_BACKEND
def test_the_source_archive_can_be_built_from(tmp_path: Path) -> None:
    with tarfile.open(build("sdist", tmp_path)) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert package_files() <= names | {n for n in package_files() if n.endswith(".so")}
    csrc = {str(path.relative_to(ROOT)) for path in (ROOT / "qwenkit/ops/csrc").iterdir()}
    assert csrc | {"CMakeLists.txt", "pyproject.toml", "LICENSE", "NOTICE", "README.md"} <= names
    assert not [name for name in names if name.startswith((".venv", "build/", "out/", "runs/"))]


def test_the_package_imports_only_what_it_declares() -> None:
    """A dependency that nobody imports, or an import that nobody declares, is a mistake."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    spelt = {"pyyaml": "yaml"}
    bare = [name.split(">")[0].split("[")[0].strip() for name in project["dependencies"]]
    declared = {spelt.get(name, name).replace("-", "_") for name in bare}
    imported = set()
    for path in (ROOT / "qwenkit").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                imported.add(node.module.split(".")[0])
    # Only for type checkers, and torch brings it. Triton comes with torch where there is a GPU.
    imported -= {"typing_extensions", "triton"}
    declared -= {"httptools"}  # uvicorn's parser, which uvicorn does not ask for by itself
    assert imported - set(sys.stdlib_module_names) - {"qwenkit"} == declared


@pytest.fixture
def bootstrap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """scripts/bootstrap.py on a tree of its own."""
    spec = importlib.util.spec_from_file_location("bootstrap", ROOT / "scripts" / "bootstrap.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (tmp_path / "qwenkit" / "ops" / "csrc").mkdir(parents=True)
    for name in ("pyproject.toml", "CMakeLists.txt", "qwenkit/ops/csrc/module.cpp"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    venv = tmp_path / ".venv"
    (venv / "bin").mkdir(parents=True)
    for name, value in {
        "ROOT": tmp_path,
        "VENV": venv,
        "PYTHON": venv / "bin" / "python",
        "STAMP": venv / "setup.stamp",
        "LOG": venv / "setup.log",
    }.items():
        monkeypatch.setattr(module, name, value)
    yield module


def test_a_second_call_does_nothing_until_something_changes(bootstrap: Any) -> None:
    assert not bootstrap.is_current()
    bootstrap.PYTHON.symlink_to(sys.executable)
    bootstrap.STAMP.write_text(bootstrap.fingerprint())
    assert bootstrap.is_current() and bootstrap.main() == 0
    for name in ("pyproject.toml", "CMakeLists.txt", "qwenkit/ops/csrc/module.cpp"):
        path = bootstrap.ROOT / name
        before = path.read_bytes()
        path.write_bytes(before + b"\n")
        assert not bootstrap.is_current(), name
        path.write_bytes(before)
    assert bootstrap.is_current()
    (bootstrap.ROOT / "qwenkit/ops/csrc/new.inc").write_text("")
    assert not bootstrap.is_current()


def test_a_compiler_that_appears_is_a_change(
    bootstrap: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "/opt/compiler/g++")
    with_one = bootstrap.fingerprint()
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", "")
    assert bootstrap.fingerprint() != with_one


def test_an_old_python_is_told(
    bootstrap: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bootstrap, "OLDEST", (99, 0))
    assert bootstrap.main() == 1
    assert "make setup PYTHON=" in capsys.readouterr().err
    assert not bootstrap.STAMP.exists()


def test_without_any_pip_it_says_what_to_install(
    bootstrap: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bootstrap, "quietly", lambda *words, **rest: None)
    monkeypatch.setattr(bootstrap, "fetch_debian", lambda *names: None)
    with pytest.raises(bootstrap.SetupError, match="apt-get install python3-venv"):
        bootstrap.install_pip()


def test_a_failing_step_leaves_no_stamp(
    bootstrap: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_network(*words: str, **rest: Any) -> None:
        raise bootstrap.SetupError("this command failed with code 1:\n    pip install torch")

    monkeypatch.setattr(bootstrap, "make_venv", lambda: None)
    monkeypatch.setattr(bootstrap, "pip", no_network)
    assert bootstrap.main() == 1
    assert "pip install torch" in capsys.readouterr().err
    assert not bootstrap.STAMP.exists()
