"""What the READMEs and guides show must exist: commands, flags, targets, links. And no text of the
repository may speak of one particular machine."""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from qwenkit.cli import main
from qwenkit.cli.overview import VERBS as OVERVIEW
from qwenkit.options import VERBS, flag_name

ROOT = Path(__file__).resolve().parents[1]
READMES = ["README.md", "README.zh.md"]
GUIDES = sorted(
    str(path.relative_to(ROOT))
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "dev").glob("*.md")]
)
TINY = ROOT / "qwenkit" / "assets" / "tiny-instruct" / "config.json"


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.M | re.S)


def shown_commands(text: str) -> list[str]:
    """Every `qwenkit …` in code: fenced, indented or between backticks."""
    lines = re.findall(r"^(?: {4}|)(?:\S+=\S+ |echo .*\| )?(qwenkit .+)$", text, flags=re.M)
    lines += re.findall(r"`(?:\S+=\S+ )?(qwenkit [^`\n]+)`", text)
    return [re.sub(r"\s+#.*$", "", line).strip() for line in lines]


def check_command(command: str) -> None:
    """The verb exists, and so does each flag of it."""
    words = shlex.split(command.replace("[", "").replace("]", ""))[1:]
    verb = next((word for word in words if word in VERBS), None)
    if verb is None:
        assert words[0] in ("--help", "VERB", "train") or words[0].isupper(), command
        return
    assert words[0] in (verb, "train", "bench", "dev"), command
    known = {flag_name(name) for name in VERBS[verb].model_fields}
    shorts = {"-p", "-h"}
    for word in words[1:]:
        if word.startswith("-"):
            fine = {*known, *shorts, "--help", "--config", "--json"}
            assert word.split("=")[0] in fine, f"{command}: {word}"


@pytest.mark.parametrize("name", GUIDES)
def test_commands_exist_with_their_flags(name: str) -> None:
    for command in shown_commands(read(name)):
        check_command(command)


@pytest.mark.parametrize("name", READMES)
def test_the_two_commands_come_first(name: str) -> None:
    first = blocks(read(name), "bash")[0].splitlines()
    assert [line.split("#")[0].strip() for line in first] == ["make demo", "make test"]
    assert read(name).index("make demo") < 40


@pytest.mark.parametrize("name", READMES)
def test_every_verb_is_in_the_table_of_commands(name: str) -> None:
    rows = re.findall(r"^\| `qwenkit ([^`]+)` \|", read(name), flags=re.M)
    verbs = {re.sub(r"^(train|bench|dev) ", "", row).split()[0] for row in rows}
    assert verbs == set(VERBS)


def test_both_readmes_show_the_same_code() -> None:
    shown = []
    for name in READMES:
        code = "".join(blocks(read(name), "bash") + blocks(read(name), "python"))
        code = re.sub(r'\s+#.*$|"[^"\n]*"', "", code, flags=re.M)
        shown.append(code)
    assert shown[0] == shown[1]
    assert len(shown_commands(read(READMES[0]))) == len(shown_commands(read(READMES[1])))


@pytest.mark.parametrize("name", GUIDES)
def test_make_targets_exist(name: str) -> None:
    targets = set(re.findall(r"^([a-z]+):", read("Makefile"), flags=re.M))
    shown = re.findall(r"(?:^|`)(?: {4})?make ([a-z]+)", read(name), flags=re.M)
    assert set(shown) <= targets, set(shown) - targets


@pytest.mark.parametrize("name", GUIDES)
def test_links_lead_somewhere(name: str) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", read(name)):
        if not target.startswith("http"):
            assert ((ROOT / name).parent / target).exists(), target


@pytest.mark.parametrize("language", ["zh", "en"])
def test_every_guide_is_there_in_both_languages(language: str) -> None:
    names = {path.name for path in (ROOT / "docs").glob("??/*.md")}
    assert {path.name for path in (ROOT / "docs" / language).glob("*.md")} == names


@pytest.mark.parametrize("name", READMES)
def test_python_examples_parse_and_use_what_exists(name: str) -> None:
    from qwenkit import LLM

    examples = blocks(read(name), "python")
    assert examples
    for example in examples:
        for node in ast.walk(ast.parse(example)):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "llm":
                assert callable(getattr(LLM, node.attr)), node.attr


@pytest.mark.skipif(not TINY.exists(), reason="the embedded model is not in this checkout")
@pytest.mark.parametrize("name", READMES)
def test_python_examples_run(name: str) -> None:
    own = [block for block in blocks(read(name), "python") if "base_url" not in block]
    code = "\n".join(own)  # those of clients run in tests/server/test_guide.py
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, env=environment
    )
    assert run.returncode == 0, run.stderr
    assert "579" in run.stdout


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_help_of_every_verb(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    named = [known.words.split() for known in OVERVIEW if known.words.split()[-1] == verb]
    words = named[0] if named else []
    try:
        code: object = main([*words, "--help"])
    except SystemExit as stop:
        code = stop.code
    assert not code
    assert "usage: qwenkit" in capsys.readouterr().out


def tracked_texts() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
    )
    if listed.returncode:  # an archive without git: everything but what is built
        skip = {".venv", "build", "dist", "out", "runs"}
        found = [p for p in ROOT.rglob("*") if not skip & set(p.relative_to(ROOT).parts)]
    else:
        found = [ROOT / name for name in listed.stdout.decode().split("\0") if name]
    endings = {".py", ".md", ".toml", ".txt", ".yaml", ".cpp", ".h", ".inc", ".json", ".jinja", ""}
    return [path for path in found if path.is_file() and path.suffix in endings]


def test_no_text_names_one_machine() -> None:
    """Absolute paths of somebody's machine have no place in a repository."""
    home = re.compile(r"(?<![\w.~/])/(?:work|home/\w+|root|Users/\w+|opt/pypi)(?:/|\b)(?!\w*[=:])")
    allowed = {ROOT / "tests" / "test_readme.py"}
    hits = []
    for path in tracked_texts():
        if path in allowed or path.stat().st_size > 2_000_000:
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        hits += [f"{path.relative_to(ROOT)}: {found[0]}" for found in home.finditer(text)]
    assert hits == []
