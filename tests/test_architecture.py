"""The house rules, read from the sources: floors, cycles, sizes, forbidden imports, lazy torch.

Each rule is a function over `{module name: source}`, so that the last tests can hand it a small
package that breaks the rule and see it say so.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILE_LINES = 400
FUNCTION_LINES = 60

# Who may import whom, besides its own package and the floor below all.
PLAIN = {"config", "options", "errors", "utils"}
MAY_IMPORT: dict[str, set[str]] = {
    **{name: set() for name in PLAIN},
    "ops": set(),
    "io": set(),
    "prompt": set(),
    "model": {"ops", "io"},
    "tasks": {"io", "prompt"},
    "engine": {"model", "ops"},
    "llm": {"engine", "model", "prompt", "io"},
    "server": {"llm", "engine", "prompt"},
    "train": {"model", "engine", "llm", "prompt", "tasks", "ops", "io"},
    "quant": {"model", "ops", "io", "prompt", "tasks"},
    "eval": {"llm", "engine", "model", "prompt", "tasks", "ops", "io"},
    "agent": {"llm", "prompt", "tasks"},
    "publish": {"io"},
}
MAY_IMPORT["cli"] = set(MAY_IMPORT)
MAY_IMPORT["__main__"] = {"cli"}
FORBIDDEN = {"transformers", "pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal"}
NO_TORCH = PLAIN

Sources = dict[str, str]


class Import(NamedTuple):
    """One imported name: `target` is a module of the package when it is one, else as written."""

    source: str
    line: int
    target: str
    function: str | None


def read_package() -> Sources:
    """Every module of qwenkit by dotted name; a package stands under the name of its folder."""
    sources = {}
    for path in sorted((ROOT / "qwenkit").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        sources[name] = path.read_text(encoding="utf-8")
    return sources


PACKAGE = read_package()


def imports(sources: Sources, name: str) -> Iterator[Import]:
    """Every import of one module, at any depth, under TYPE_CHECKING and in functions too."""

    def walk(node: ast.AST, function: str | None) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            inside = function
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                inside = child.name
            for target in targets(sources, child):
                yield Import(name, child.lineno, target, function)  # type: ignore[attr-defined]
            yield from walk(child, inside)

    yield from walk(ast.parse(sources[name]), None)


def targets(sources: Sources, node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield alias.name
    elif isinstance(node, ast.ImportFrom):
        module = "." * node.level + (node.module or "")
        for alias in node.names:
            whole = f"{module}.{alias.name}"
            yield whole if whole in sources else module
    elif isinstance(node, ast.Call) and ast.unparse(node.func) in (
        "importlib.import_module",
        "import_module",
        "__import__",
    ):
        first = node.args[0] if node.args else None
        yield first.value if isinstance(first, ast.Constant) else "<computed import>"


def part(module: str) -> str:
    """The row of the table that a module belongs to: `qwenkit.io.hub` → `io`; "" for the root."""
    return (module.split(".") + [""])[1]


def bad_edges(sources: Sources) -> list[str]:
    """Imports against the table, relative imports, and imports that cannot be read."""
    problems = []
    for name in sources:
        for found in imports(sources, name):
            where = f"{name}:{found.line}"
            if found.target.startswith((".", "<")) and part(name) != "cli":
                problems.append(f"{where}: {found.target}: write the module's full name")
            if found.target.split(".")[0] != "qwenkit":
                continue
            here, there = part(name), part(found.target)
            if here == "":  # the root hands out LLM, lazily
                allowed = there == "llm"
            else:
                known = here in MAY_IMPORT
                allowed = known and there in {"", here, *PLAIN, *MAY_IMPORT[here]}
            if not allowed:
                problems.append(f"{where}: {here or 'the root'} may not import {there}")
    return problems


def cycles(sources: Sources) -> list[str]:
    """Rings of modules that import each other.

    `from qwenkit.io import hub` is an edge to the module `hub`, not to the package's `__init__`,
    which may gather names from its modules.
    """
    edges: dict[str, set[str]] = {name: set() for name in sources}
    for name in sources:
        for found in imports(sources, name):
            if found.target in sources and not (name == "qwenkit" and found.function):
                edges[name].add(found.target)
    edges["qwenkit"] = edges.get("qwenkit", set()) - {"qwenkit.llm"}
    done: set[str] = set()
    rings = []

    def visit(name: str, path: list[str]) -> None:
        if name in path:
            rings.append(" → ".join([*path[path.index(name) :], name]))
        elif name not in done:
            for target in sorted(edges[name]):
                visit(target, [*path, name])
            done.add(name)

    for name in sorted(sources):
        visit(name, [])
    return rings


def floor_cycles(table: dict[str, set[str]]) -> list[str]:
    """The table itself must be free of rings."""
    rest = {name: set(below) for name, below in table.items()}
    while free := [name for name, below in rest.items() if not below & rest.keys() - {name}]:
        for name in free:
            del rest[name]
    return sorted(rest)


def oversize(sources: Sources) -> list[str]:
    problems = []
    for name, text in sources.items():
        if (lines := text.count("\n")) > FILE_LINES:
            problems.append(f"{name} has {lines} lines, over {FILE_LINES}")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > FUNCTION_LINES:
                    problems.append(f"{name}.{node.name} has {length} lines, over {FUNCTION_LINES}")
    return problems


def imports_in_functions(sources: Sources) -> list[str]:
    """Only the command line may, and the root's `__getattr__`."""
    return [
        f"{name}:{found.line}: {found.target} imported inside {found.function}"
        for name in sources
        if part(name) != "cli"
        for found in imports(sources, name)
        if found.function and not (name == "qwenkit" and found.function == "__getattr__")
    ]


def forbidden(sources: Sources) -> list[str]:
    """Pickle in any shape, the test-only oracle, and torch where a floor is plain Python."""
    problems = []
    for name, text in sources.items():
        for found in imports(sources, name):
            head = found.target.split(".")[0]
            if head in FORBIDDEN:
                problems.append(f"{name}:{found.line}: {head} is not for the package")
            if head == "torch" and (part(name) in NO_TORCH or name == "qwenkit.engine.scheduler"):
                problems.append(f"{name}:{found.line}: no torch here")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in (
                "torch.load",
                "torch.save",
            ):
                problems.append(f"{name}:{node.lineno}: {ast.unparse(node.func)} is pickle")
    return problems


def without_docstring(sources: Sources) -> list[str]:
    """Modules that do not say what they are for; an empty `__init__` has nothing to say."""
    return [
        name
        for name, text in sources.items()
        if text.strip() and not ast.get_docstring(ast.parse(text))
    ]


def test_imports_follow_the_table() -> None:
    assert bad_edges(PACKAGE) == []
    assert floor_cycles(MAY_IMPORT) == []


def test_no_module_imports_itself_over_others() -> None:
    assert cycles(PACKAGE) == []


def test_files_and_functions_keep_their_size() -> None:
    assert oversize(PACKAGE) == []


def test_only_the_command_line_imports_inside_functions() -> None:
    assert imports_in_functions(PACKAGE) == []


def test_no_pickle_no_oracle_and_no_torch_on_the_plain_floors() -> None:
    assert forbidden(PACKAGE) == []


def test_every_module_says_its_contract() -> None:
    assert without_docstring(PACKAGE) == []


def test_the_tests_mirror_the_package() -> None:
    """A test folder without its package is a leftover; test files may be finer than modules."""
    packages = {part(name) for name in PACKAGE} - {""}
    folders = {
        path.parent.relative_to(ROOT / "tests") for path in (ROOT / "tests").rglob("test_*.py")
    }
    assert {folder.parts[0] for folder in folders if folder.parts} <= packages
    assert not list((ROOT / "tests").rglob("__init__.py"))


def modules_after(code: str) -> set[str]:
    """The top-level modules that are loaded once `code` has run in a fresh interpreter."""
    probe = f"{code}\nimport sys; print(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    run = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0, run.stderr
    return set(run.stdout.splitlines()[-1].split())


@pytest.mark.parametrize("code", ["import qwenkit", "import qwenkit.cli"])
def test_importing_is_cheap(code: str) -> None:
    assert modules_after(code).isdisjoint({"torch", "numpy", "transformers"})


def test_loading_a_model_imports_no_compiler() -> None:
    """PyTorch's own, which comes with sympy and takes two seconds."""
    code = "from qwenkit.llm import LLM\nLLM('tiny-instruct').close()"
    assert modules_after(code).isdisjoint({"sympy"})


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["--version"]])
def test_help_imports_no_torch(arguments: list[str]) -> None:
    code = (
        "from qwenkit.cli import main\n"
        f"try: code = main({arguments!r})\n"
        "except SystemExit as stop: code = stop.code\n"
        "assert not code, code"
    )
    assert modules_after(code).isdisjoint({"torch", "numpy", "transformers"})


def test_the_root_hands_out_llm_and_nothing_else() -> None:
    import qwenkit

    assert qwenkit.__all__ == sorted(qwenkit.__all__)
    assert qwenkit.LLM.__name__ == "LLM"
    with pytest.raises(AttributeError, match="no attribute 'Model'"):
        _ = qwenkit.Model


# --- the rules can fail -----------------------------------------------------------------------


def package(**modules: str) -> Sources:
    """A fake package: `io__hub="…"` is qwenkit.io.hub."""
    root = modules.pop("qwenkit", "")
    names = {f"qwenkit.{key.replace('__', '.')}": text for key, text in modules.items()}
    return {"qwenkit": root, **names}


@pytest.mark.parametrize(
    "modules",
    [
        {"io": "from qwenkit.model import qwen", "model": ""},
        {"ops": "import qwenkit.io.hub", "io__hub": ""},
        {"engine": "from qwenkit import prompt", "prompt": ""},
        {"llm": "def f():\n    from qwenkit.server import app", "server": ""},
        {"train": "if TYPE_CHECKING:\n    from qwenkit.eval import run", "eval": ""},
        {
            "publish": "try:\n    from qwenkit.quant import gptq\nexcept ImportError: pass",
            "quant": "",
        },
        {"model": "import importlib\nimportlib.import_module('qwenkit.engine')", "engine": ""},
        {"model": "import importlib\nimportlib.import_module(name)"},
        {"model": "from . import engine", "engine": ""},
        {"errors": "from qwenkit.io import hub", "io": ""},
        {"novelty": "from qwenkit.errors import X", "errors": ""},
        {"llm": "from qwenkit.cli import main", "cli": ""},
        {"qwenkit": "from qwenkit.io import hub", "io": ""},
    ],
)
def test_a_forbidden_edge_is_found(modules: dict[str, str]) -> None:
    assert len(bad_edges(package(**modules))) == 1


def test_allowed_edges_pass() -> None:
    fine = package(
        errors="",
        ops="from qwenkit.ops import reference\nimport torch",
        ops__reference="from qwenkit.errors import OptionError",
        io="from qwenkit import __version__",
        model="from qwenkit import ops\nfrom qwenkit.io.hub import resolve",
        io__hub="",
        cli="def f():\n    from qwenkit.train import loop",
        train="",
    )
    assert bad_edges(fine) == cycles(fine) == imports_in_functions(fine) == forbidden(fine) == []


def test_a_cycle_is_found_even_when_it_hides() -> None:
    ring = package(
        io__a="from qwenkit.io import b",
        io__b="if TYPE_CHECKING:\n    from qwenkit.io.c import C",
        io__c="def f():\n    import qwenkit.io.a",
    )
    assert cycles(ring) == ["qwenkit.io.a → qwenkit.io.b → qwenkit.io.c → qwenkit.io.a"]
    assert floor_cycles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == ["a", "b", "c", "d"]


def test_big_files_and_functions_are_found() -> None:
    long_function = "def f():\n" + "    x = 1\n" * FUNCTION_LINES
    assert oversize(package(io=long_function)) == [
        f"qwenkit.io.f has 61 lines, over {FUNCTION_LINES}"
    ]
    assert oversize(package(io="x = 1\n" * 401)) == [f"qwenkit.io has 401 lines, over {FILE_LINES}"]
    assert oversize(package(io="x = 1\n" * 400)) == []


def test_imports_in_functions_and_forbidden_names_are_found() -> None:
    assert len(imports_in_functions(package(io="class A:\n  def f(self):\n    import os"))) == 1
    assert len(forbidden(package(io="import pickle"))) == 1
    assert len(forbidden(package(model="from transformers import AutoModel"))) == 1
    assert len(forbidden(package(train="import torch\ntorch.load('x')"))) == 1
    assert len(forbidden(package(config="import torch.nn"))) == 1
    assert len(forbidden(package(engine__scheduler="import torch"))) == 1
    assert without_docstring(package(io="import os")) == ["qwenkit.io"]


def test_a_module_that_loads_torch_is_noticed() -> None:
    assert "torch" in modules_after("import torch")


def test_the_table_is_the_one_in_the_documentation() -> None:
    """ARCHITECTURE.md repeats the table; where the two differ, one of them is wrong."""
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|$", text, flags=re.M))
    assert rows, "no table of imports in ARCHITECTURE.md"
    for name, cell in rows.items():
        assert set(re.findall(r"`(\w+)`", cell)) == MAY_IMPORT[name], name
    existing = {part(name) for name in PACKAGE} - {"", "__main__", "cli", *PLAIN}
    assert existing <= rows.keys()
