from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from qwenkit.errors import DataError, OptionError
from qwenkit.train.rows import Row
from qwenkit.train.sources import Source, is_endless, read_rows, source_files


def read(text: str, count: int | None = None) -> list[Row | DataError]:
    return list(itertools.islice(read_rows(Source.parse(text)), count))


def test_source_strings() -> None:
    assert Source.parse("a b.jsonl tokens=2M fim=0.5 seed=3") == Source(
        "a b.jsonl", tokens=2_000_000, fim=0.5, seed=3
    )
    assert Source.parse("stdlib rows=1.5k weight=2") == Source("stdlib", rows=1500, weight=2.0)
    assert is_endless(Source.parse("synth:identity")) and not is_endless(Source.parse("stdlib"))


@pytest.mark.parametrize(
    "text",
    ["", " tokens=1", "x tokens=abc", "x tokens=0", "x fim=2", "x weight=-1", "x rows=1 rows=2"],
)
def test_bad_source_strings(text: str) -> None:
    with pytest.raises(OptionError, match="data source"):
        Source.parse(text)


def test_jsonl_with_bom_crlf_blank_and_broken_lines(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    lines = [b'\xef\xbb\xbf{"text": "one"}', b"", b"{broken", b'{"text": "a\x00b"}', b"\xff", b"42"]
    file.write_bytes(b"\r\n".join([*lines, b'{"text": "last"}']))
    rows = read(str(file))
    assert [row.text for row in rows if isinstance(row, Row)] == ["one", "last"]
    problems = [row.message for row in rows if isinstance(row, DataError)]
    assert [text.split(" ")[0] for text in problems] == [f"{file}:{n}:" for n in (3, 4, 5, 6)]


def test_a_line_over_the_limit_is_one_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qwenkit.train.sources.MAX_LINE_BYTES", 64)
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "' + "x" * 500 + '"}\n{"text": "short"}\n')
    rows = read(str(file))
    assert isinstance(rows[0], DataError) and "rows.jsonl:1: line over 64" in rows[0].message
    assert isinstance(rows[1], Row) and rows[1].text == "short"


def test_deeply_nested_json_is_a_row_error(tmp_path: Path) -> None:
    file = tmp_path / "deep.jsonl"
    file.write_text("[" * 100_000 + "]" * 100_000 + "\n")
    assert isinstance(read(str(file))[0], DataError)


def test_folders_are_read_in_an_order_of_the_seed(tmp_path: Path) -> None:
    for name in "abcdefgh":
        (tmp_path / f"{name}.txt").write_text(name)
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__" / "x.py").write_text("no")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "empty.md").write_text(" \n")
    rows = read(str(tmp_path))
    texts = [row.text for row in rows if isinstance(row, Row)]
    assert sorted(filter(None, texts)) == list("abcdefgh") and texts != list("abcdefgh")
    assert sum(isinstance(row, DataError) for row in rows) == 2
    assert texts == [row.text for row in read(str(tmp_path)) if isinstance(row, Row)]
    assert texts != [row.text for row in read(f"{tmp_path} seed=1") if isinstance(row, Row)]
    assert len(source_files(Source.parse(str(tmp_path)))) == 10


def test_stdlib_is_python_without_tests() -> None:
    rows = read("stdlib", 20)
    assert all(isinstance(row, Row) and row.place.endswith(".py") and row.text for row in rows)
    names = {part for file in source_files(Source("stdlib")) for part in file.parts}
    assert not names & {"tests", "test", "idlelib"}
    assert len(source_files(Source("stdlib"))) > 300


def test_generators_alternate_languages_and_skip_the_held_out_split() -> None:
    rows = read("synth:arithmetic", 6)
    places = [row.place for row in rows if isinstance(row, Row)]
    assert places[:2] == ["synth:arithmetic/en:0", "synth:arithmetic/zh:0"]
    assert read("synth:arithmetic", 6) == rows != read("synth:arithmetic seed=1", 6)
    only = read("synth:python_fill/en", 3)
    assert all(isinstance(row, Row) and row.special and row.completion for row in only)


@pytest.mark.parametrize("text", ["/no/such/file.jsonl", "synth:nothing", "synth:identity/fr"])
def test_a_missing_source_is_an_error(text: str) -> None:
    with pytest.raises(DataError, match="no such"):
        read(text, 1)


def test_an_unknown_kind_of_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="unknown kind"):
        read(str(tmp_path / "x.parquet"))
