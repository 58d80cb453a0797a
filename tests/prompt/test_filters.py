"""Filters under measure give Jinja's results."""

from __future__ import annotations

import json
from typing import Any

import jinja2
import pytest

from qwenkit.errors import TemplateError
from qwenkit.prompt.filters import FILTERS
from qwenkit.prompt.sandbox import Sandbox

DATA: dict[str, Any] = {
    "text": "  The <b>quick</b> brown\nfox  ",
    "numbers": [3, 1, 2, 3],
    "rows": [{"k": "b", "n": 1}, {"k": "a", "n": 2}, {"k": "b", "n": 3}],
    "table": {"z": 1, "y": [2]},
    "half": 2.345,
}
SAME = [
    "text|trim",
    "text|upper",
    "text|lower",
    "text|title",
    "text|capitalize",
    "text|escape",
    "text|e|safe",
    "text|wordcount",
    "text|length",
    "text|count",
    "text|replace('o', '00')",
    "text|replace('o', '00', 1)",
    "text|indent",
    "text|indent(2, true)",
    "text|list|first",
    "text|reverse",
    "text|string",
    "text|last",
    "numbers|sort",
    "numbers|sort(reverse=true)|join('-')",
    "numbers|unique|list",
    "numbers|sum",
    "numbers|min",
    "numbers|max",
    "numbers|first",
    "numbers|last",
    "numbers|reverse|list",
    "numbers|map('string')|join",
    "numbers|select('odd')|list",
    "numbers|reject('odd')|list",
    "numbers|batch(3, 0)|list",
    "numbers|slice(3)|list",
    "numbers|join(', ')",
    "numbers|list|length",
    "rows|map(attribute='k')|join(',')",
    "rows|join('+', attribute='n')",
    "rows|sum(attribute='n')",
    "rows|sum('n', 10)",
    "rows|selectattr('k', 'equalto', 'b')|list|length",
    "rows|rejectattr('n', 'odd')|list",
    "rows|groupby('k')|list|length",
    "rows|sort(attribute='k')|map(attribute='n')|list",
    "rows|max(attribute='n')",
    "table|dictsort",
    "table|items|list",
    "table|length",
    "half|round",
    "half|round(1, 'floor')",
    "half|int",
    "'7'|int",
    "'x'|int(5)",
    "'1.5'|float",
    "-3|abs",
    "nothing|default('d')",
    "nothing|d('d')",
    "''|default('d', true)",
]


@pytest.mark.parametrize("expression", SAME)
def test_equals_jinja(expression: str) -> None:
    source = f"{{{{ {expression} }}}}"
    ours = Sandbox().program(source, lambda text: text).run(DATA, 0, 0)
    assert ours == jinja2.Environment().from_string(source).render(DATA)


@pytest.mark.parametrize(
    "options", ["", "indent=2", "sort_keys=true", "ensure_ascii=true", "separators=(',',':')"]
)
def test_tojson_is_that_of_transformers(options: str) -> None:
    value = {"b": "<&'\">你\u2028", "a": [1.5, None, True, {}]}
    ours = (
        Sandbox()
        .program(f"{{{{ v|tojson({options}) }}}}", lambda text: text)
        .run({"v": value}, 0, 0)
    )
    keywords: dict[str, Any] = {"ensure_ascii": False}
    if options:
        keywords |= eval(f"dict({options.replace('true', 'True')})")
    assert ours == json.dumps(value, **keywords)


@pytest.mark.parametrize(
    "expression",
    [
        "numbers|batch(10**6)|list",
        "numbers|slice(0)|list",
        "text|indent(10**6)",
        "half|round(10**6)",
        "rows|sum",
        "[[1], [2]]|sum(start=[])",
        "numbers|tojson(indent=10**6)",
        "numbers|tojson(separators=(text * 2, ':'))",
    ],
)
def test_extremes_are_refused(expression: str) -> None:
    program = Sandbox().program(f"{{{{ {expression} }}}}", lambda text: text)
    with pytest.raises(TemplateError, match="is refused|fails"):
        program.run(DATA, 0, 0)


def test_the_list_is_closed() -> None:
    assert (
        not {"attr", "format", "pprint", "xmlattr", "urlize", "center", "random"} & FILTERS.keys()
    )
