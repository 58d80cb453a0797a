"""Which of a template's own texts carry the mark, and what is refused when parsing."""

from __future__ import annotations

import pytest

from qwenkit.errors import TemplateError
from qwenkit.prompt.rewrite import GENERATION_END, GENERATION_START, MAX_BRACKETS
from qwenkit.prompt.sandbox import Sandbox


def render(source: str, **variables: object) -> str:
    program = Sandbox().program(source, lambda text: text.replace("TOK", "[TOK]"))
    return program.run({"x": "TOK", "yes": True, **variables}, 0, 0)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("TOK{{ x }}", "[TOK]TOK"),
        ("{{ 'TOK' }}", "[TOK]"),
        ("{{ 'TOK' + x + 'TOK' }}", "[TOK]TOK[TOK]"),
        ("{{ 'TOK' ~ x ~ 'TOK' }}", "[TOK]TOK[TOK]"),
        ("{{ 'TOK' if yes else x }}{{ 'a' if not yes else 'TOK' }}", "[TOK][TOK]"),
        ("{{ none or 'TOK' }}{{ yes and 'TOK' }}", "[TOK][TOK]"),
        ("{{ 'TOK' * 2 }}", "[TOK][TOK]"),
        ("{% set t = 'TOK' ~ x %}{{ t }}", "[TOK]TOK"),
        ("{% set t %}TOK{{ x }}{% endset %}{{ t }}", "[TOK]TOK"),
        ("{% set n = namespace(t='TOK') %}{{ n.t }}", "[TOK]"),
        ("{% set n = namespace() %}{% set n.t = 'TOK' %}{{ n.t }}", "[TOK]"),
        ("{% set a, b = 'TOK', x %}{{ a }}{{ b }}", "[TOK]TOK"),
        (
            "{% macro m(t, d='TOK') %}{{ t }}{{ d }}{% endmacro %}{{ m('TOK') }}{{ m(t=x) }}",
            "[TOK][TOK]TOK[TOK]",
        ),
        ("{% for t in ['TOK', x] %}{{ t }}{% endfor %}", "[TOK]TOK"),
        ("{% with t = 'TOK' %}{{ t }}{% endwith %}", "[TOK]"),
        ("{{ {'k': 'TOK'}.k }}{{ {'k': 'TOK'}['k'] }}", "[TOK][TOK]"),
        ("{{ nothing | default('TOK') }}", "[TOK]"),
        ("{{ 'TOK' | trim }}", "[TOK]"),
        ("{{ [x, x] | join('TOK') }}", "TOK[TOK]TOK"),
        ("{% filter lower %}TOK{% endfilter %}", "[tok]"),
        ("{% macro m() %}{{ caller() }}{% endmacro %}{% call m() %}TOK{% endcall %}", "[TOK]"),
        ("{% if x == 'TOK' and 'TOK' in x %}equal{% endif %}", "equal"),
        ("{{ (x ~ 'a' ~ x).split('TOK') | join('-') }}", "-a-"),
        ("{% raw %}{{ TOK }}{% endraw %}", "{{ [TOK] }}"),
    ],
)
def test_marks(source: str, expected: str) -> None:
    assert render(source) == expected


def test_generation_tag() -> None:
    source = "a{% generation %}b{% set y = 1 %}{{ x }}{% endgeneration %}c{{ y is defined }}"
    assert render(source) == f"a{GENERATION_START}bTOK{GENERATION_END}cFalse"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{% include '/etc/passwd' %}", "include"),
        ("{% import 'os' as o %}", "import"),
        ("{% from 'os' import path %}", "fromimport"),
        ("{% extends 'x' %}", "extends"),
        ("{% block b %}{% endblock %}", "block"),
        ("{{ x.__class__ }}", "__class__"),
        ("{{ x['__class__'] }}", "__class__"),
        ("{{ x._private }}", "_private"),
        ("{{ self }}", "self"),
        ("{% macro m() %}{{ varargs }}{% endmacro %}", "varargs"),
        ("{{ " + "(" * 6000 + "1" + ")" * 6000 + " }}", str(MAX_BRACKETS)),
        ("\ufdd0", "noncharacters"),
        ("{{ '\ufdd1' }}", "noncharacters"),
        ("{% if x %}", "line 1"),
        ("{{ x | nonsense }}", "nonsense"),
        ("{% generation %}", "line 1"),
    ],
)
def test_refused_when_compiling(source: str, message: str) -> None:
    with pytest.raises(TemplateError, match=message) as caught:
        render(source)
    assert "\n" not in str(caught.value)
