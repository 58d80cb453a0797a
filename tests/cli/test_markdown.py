"""Markdown that grows: what is finished is printed once, and the outcome is that of the whole."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from qwenkit.cli.markdown import MarkdownStream, as_written, split_finished

TEXT = """# Title

One *paragraph*
of two lines.

- a
- b

```python
def f():

    return 1
```

~~~
```

still code
~~~

The end."""


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ("one", "one"),
        ("one\n\ntwo", "two"),
        ("one\n\n", ""),
        ("one\n \ntwo\n", "two\n"),
        ("```\na\n\nb", "```\na\n\nb"),
        ("```\na\n\nb\n```\n\nc", "c"),
        ("````\n```\n\nb", "````\n```\n\nb"),
        ("~~~\n```\n\nb\n~~~\n\nc", "c"),
        ("a\n\n```py\nx\n\n", "```py\nx\n\n"),
        ("```a\n``` b\n\nc", "```a\n``` b\n\nc"),
    ],
)
def test_where_the_open_block_begins(text: str, rest: str) -> None:
    assert text[split_finished(text) :] == rest


def screen(height: int = 24) -> tuple[Console, io.StringIO]:
    file = io.StringIO()
    console = Console(
        file=file,
        force_terminal=True,
        width=60,
        height=height,
        color_system=None,
        legacy_windows=False,
    )
    return console, file


def visible(text: str) -> str:
    """What stays on a terminal: erased lines dropped, control sequences obeyed."""
    lines: list[str] = [""]
    row = 0
    at = 0
    while at < len(text):
        if text.startswith("\x1b[", at):
            end = next(i for i in range(at + 2, len(text)) if text[i].isalpha())
            number = text[at + 2 : end]
            if text[end] == "A":
                row = max(row - int(number or 1), 0)
            elif text[end] == "K":
                lines[row] = ""
            at = end + 1
            continue
        if text[at] == "\n":
            row += 1
            if row == len(lines):
                lines.append("")
        elif text[at] == "\r":
            lines[row] = lines[row] if text[at + 1 : at + 2] in ("", "\x1b", "\n") else ""
        else:
            lines[row] += text[at]
        at += 1
    return "\n".join(line.rstrip() for line in lines if line.strip())


@pytest.mark.parametrize("step", [1, 3, 7, 1000])
@pytest.mark.parametrize("height", [5, 24])
def test_the_outcome_does_not_depend_on_the_pieces(step: int, height: int) -> None:
    console, file = screen(height)
    with MarkdownStream(console) as stream:
        for at in range(0, len(TEXT), step):
            stream.push(TEXT[at : at + step])
    whole, expected = screen(height)
    whole.print(as_written(TEXT))
    assert visible(file.getvalue()) == visible(expected.getvalue())


def test_line_breaks_stay() -> None:
    """The steps of a sum stand on lines of their own, as `qwenkit run` prints them."""
    console, file = screen()
    with MarkdownStream(console) as stream:
        stream.push("12×4: 48\n12×30: 360\nAnswer: **408**")
    assert visible(file.getvalue()) == "12×4: 48\n12×30: 360\nAnswer: 408"


def test_an_interrupted_answer_stays(capsys: pytest.CaptureFixture[str]) -> None:
    console, file = screen()
    with pytest.raises(KeyboardInterrupt), MarkdownStream(console) as stream:
        stream.push("half an ans")
        raise KeyboardInterrupt
    assert visible(file.getvalue()) == "half an ans"
    console, file = screen()
    with MarkdownStream(console):
        pass
    assert visible(file.getvalue()) == ""
