"""Hostile templates: each is stopped within its bounds, in any thread; the sandbox stays usable."""

from __future__ import annotations

import resource
import threading
import time

import pytest

from qwenkit.errors import RequestError, TemplateError
from qwenkit.prompt.sandbox import LIMIT_SOURCE, MessagesRefusedError, Sandbox


def render(source: str, **variables: object) -> str:
    program = Sandbox().program(source, lambda text: text)
    return program.run({"messages": [{"role": "user", "content": "x"}], **variables}, 100, 1)


def loop(times: int, body: str, before: str = "", after: str = "") -> str:
    """`before`, then `body` so many times, then `after`."""
    return f"{before}{{% for i in range({times}) %}}{body}{{% endfor %}}{after}"


def grow(first: str, step: str, after: str) -> str:
    """Sixty times `n.s = step`."""
    return loop(60, f"{{% set n.s = {step} %}}", f"{{% set n = namespace(s={first}) %}}", after)


LONG = "{% set a = 'a' * 2000000 %}{% set b = 'a' * 2000000 %}"
SSTI = {
    "mro": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "cycler": "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "lipsum": "{{ lipsum.__globals__['os'] }}",
    "joiner": "{{ joiner.__init__.__globals__ }}",
    "namespace": "{{ namespace.__init__.__globals__ }}",
    "function": "{{ raise_exception.__globals__ }}",
    "item": "{{ ''['__class__'] }}",
    "built name": "{% set c = '__cl' ~ 'ass__' %}{{ ''[c] }}",
    "attr filter": "{{ ''|attr('__class__') }}",
    "map attribute": "{{ (messages|map(attribute='__class__')|list)[0].x }}",
    "groupby": "{{ (messages|groupby('__class__'))[0][0].__mro__ }}",
    "self": "{{ self._TemplateReference__context }}",
    "format": "{{ '{0.__class__}'.format(1) }}",
    "format_map": "{{ '{x.__class__}'.format_map({'x': 1}) }}",
    "percent": "{{ '%s' % messages }}",
    "append": "{{ messages.append(1) }}",
    "update": "{{ messages[0].update({}) }}",
    "mro()": "{{ dict.mro() }}",
    "int method": "{{ (1).to_bytes(10**9, 'big') }}",
    "encode": "{{ 'x'.encode() }}",
    "bytes": "{{ b.decode() }}",
    "generator": "{{ (messages|map('string')).gi_frame }}",
    "namespace attribute": "{% set n = namespace() %}{% set n['_x'] = 1 %}",
    "strftime": "{{ strftime_now('%1000000000d') }}",
    "env function": "{{ emit('x') }}",
}
GROWTH = {
    "text times": "{{ 'a' * 10**9 }}",
    "times text": "{{ 10**9 * 'a' }}",
    "list times": "{{ ([0] * 10**9)|length }}",
    "doubling +": grow("'ab'", "n.s + n.s", "{{ n.s }}"),
    "doubling ~": grow("'ab'", "n.s ~ n.s", "{{ n.s }}"),
    "doubling list": grow("[1]", "n.s + n.s", ""),
    "nested list": grow("[1]", "[n.s, n.s]", "{{ n.s }}"),
    "nested tuple": grow("(1,)", "(n.s, n.s)", "{{ {n.s: 1} }}"),
    "nested dict": grow("{}", "{'a': n.s, 'b': n.s}", "{{ n.s|tojson }}"),
    "nested dict()": grow("{}", "dict(a=n.s, b=n.s)", "{{ n.s.values() }}"),
    "power": "{{ (9**9)**(9**9) }}",
    "power 2": "{{ 2**1000000000 }}",
    "product": grow("3", "n.s * n.s", ""),
    "join": "{% set b = 'a' * 1000000 %}{{ range(100000)|join(b) }}",
    "str.join": "{% set b = 'a' * 1000000 %}{{ b.join(range(1000)|map('string')) }}",
    "replace": "{% set b = 'a' * 1000000 %}{{ b.replace('a', b) }}",
    "replace filter": "{% set b = 'a' * 1000000 %}{{ b|replace('a', b) }}",
    "indent": "{% set b = '\\n' * 1000000 %}{{ b|indent(900) }}",
    "escape": "{{ ('<' * 4000000)|e }}",
    "split": "{% set b = 'a' * 4000000 %}{{ b.split('a')|length }}",
    "output": loop(100_000, "a" * 80),
    "output in set": "{% set x %}" + loop(100_000, "{{ 'a' * 4000000 }}") + "{% endset %}",
    "recursion with text": "{% macro m(s) %}{{ m('a' * 4000000) }}{% endmacro %}{{ m('') }}",
    "list kept": loop(
        100_000, "{% set n.s = ['a' * 1000000, n.s] %}", "{% set n = namespace(s=0) %}"
    ),
    "range": "{% for i in range(10**9) %}{% endfor %}",
}
ENDLESS = {
    "73-nested loops": loop(100_000, loop(100_000, "")),
    "73-loop condition": loop(100_000, "{% for b in range(100000) if false %}{% endfor %}"),
    "recursion": (
        "{% macro m(n) %}{% if n %}{{ m(n-1) }}{{ m(n-1) }}{% endif %}{% endmacro %}{{ m(60) }}"
    ),
    "sorting": loop(9999, "{% set x = range(100000)|sort(reverse=true) %}"),
    "comparing": loop(99_999, "{% if a == b %}{% endif %}", LONG),
    "searching": loop(99_999, "{% if 'b' in a %}{% endif %}", LONG),
    "slicing": loop(99_999, "{% set x = a[1:] %}", LONG),
    "counting": loop(99_999, "{% set x = a.count('a') %}", LONG),
    "titles": loop(9999, "{% set x = ('a b ' * 500000)|title %}"),
    "lazy filters": loop(9999, "{% set x = range(100000)|select|map('string')|last %}"),
    "characters": "{% for c in 'a' * 4000000 %}{% for d in 'ab' %}{% endfor %}{% endfor %}",
}
DEEP = {
    "74-parentheses": "{{ " + "(" * 6000 + "1" + ")" * 6000 + " }}",
    "lists": "{{ " + "[" * 95 + "]" * 95 + " }}",
    "ifs": "{% if a %}" * 3000 + "{% endif %}" * 3000,
    "fors": "{% for a in b %}" * 60 + "{% endfor %}" * 60,
    "sums": "{{ " + " + ".join(["a"] * 5000) + " }}",
    "nots": "{{ " + "not " * 5000 + "a }}",
    "filters": "{{ a" + "|upper" * 5000 + " }}",
    "attributes": "{{ a" + ".b" * 5000 + " }}",
    "choices": "{{ " + "1 if a else " * 3000 + "2 }}",
    "too long": "a" * (LIMIT_SOURCE + 1),
    "endless macro": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "nested values": loop(
        2000, "{% set n.s = [n.s] %}", "{% set n = namespace(s=[]) %}", "{{ n.s }}"
    ),
}


@pytest.mark.parametrize("row", SSTI)
def test_no_way_out(row: str) -> None:
    with pytest.raises(TemplateError) as caught:
        render(SSTI[row], b=b"x")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("row", GROWTH)
def test_nothing_grows_without_bound(row: str) -> None:
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.thread_time()
    with pytest.raises(TemplateError):
        render(GROWTH[row])
    assert time.thread_time() - start < 1.5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 600 * 1024  # KiB


@pytest.mark.parametrize("row", ENDLESS)
def test_time_is_bounded(row: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qwenkit.prompt.budget.LIMIT_SECONDS", 0.2)
    start = time.thread_time()
    with pytest.raises(TemplateError, match=r"ran longer than 0.2 s|copies too much"):
        render(ENDLESS[row])
    assert time.thread_time() - start < 0.7


@pytest.mark.parametrize("row", DEEP)
def test_nesting_is_an_error(row: str) -> None:
    with pytest.raises(TemplateError):
        render(DEEP[row], a=1, b=[])


def test_it_works_in_a_thread_and_leaves_others_alone() -> None:
    program = Sandbox().program(ENDLESS["73-nested loops"], lambda text: text)
    results: list[object] = []

    def work() -> None:
        try:
            program.run({}, 0, 0)
        except TemplateError as error:
            results.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    assert render("{{ messages[0].content }}") == "x"
    thread.join(120)
    assert not thread.is_alive() and len(results) == 1
    assert render("{{ messages[0].content }}") == "x"


def test_undefined_may_be_tested_but_not_printed() -> None:
    source = (
        "{% if a %}{% endif %}{% if not a.b is defined %}ok{% endif %}{% for x in a %}{% endfor %}"
    )
    with pytest.raises(TemplateError, match="'a' is undefined"):
        render(source)
    assert (
        render("{% if a %}1{% endif %}{{ a is defined }}{% for x in a %}{% endfor %}{{ a or 'd' }}")
        == "Falsed"
    )
    for bad in (
        "{{ a }}",
        "{{ 'x' ~ a }}",
        "{{ 'x' + a }}",
        "{{ a.b }}",
        "{{ messages[0].nope }}",
        "{{ a|string }}",
    ):
        with pytest.raises(TemplateError, match="undefined|has no"):
            render(bad)


def test_raise_exception_gives_the_templates_own_words() -> None:
    with pytest.raises(MessagesRefusedError, match="Roles must alternate") as caught:
        render("{{ raise_exception('Roles must ' ~ 'alternate!') }}")
    assert isinstance(caught.value, TemplateError) and isinstance(caught.value, RequestError)


def test_what_templates_use_works() -> None:
    assert (
        render("{% for i in range(3) %}{% if i == 1 %}{% continue %}{% endif %}{{ i }}{% endfor %}")
        == "02"
    )
    assert (
        render(loop(3, "{% set n.c = n.c + i %}", "{% set n = namespace(c=0) %}", "{{ n.c }}"))
        == "3"
    )
    assert (
        render(
            "{{ 'a,b'.split(',')[-1].strip().upper() }}{{ 'abc'[::-1] }}{{ 'x'.startswith('x') }}"
        )
        == "BcbaTrue"
    )
    assert (
        render("{{ messages[0].items()|list }}{{ messages[0].get('z', 1) }}")
        == "[('role', 'user'), ('content', 'x')]1"
    )
    assert (
        render("{{ 7 // 2 + 2 ** 3 - 1 % 2 }}{{ 6 / 4 }}{{ 'a' * 3 }}{{ (1,) + (2,) }}")
        == "101.5aaa(1, 2)"
    )
    assert len(render("{{ strftime_now('%Y-%m-%d') }}")) == 10
    assert render("{{ dict(a=1).a }}{% set j = joiner('|') %}{{ j() }}{{ j() }}") == "1|"
    assert render("{{ 1 ~ 2 }}{{ [1, 'a'] }}{{ 'é' | tojson }}") == "12[1, 'a']\"é\""
    assert render("  {% if true %}\nx\n  {% endif %}\ny\n") == "x\ny"


def test_errors_are_one_line() -> None:
    for source in (
        "{{ 1 // 0 }}",
        "{{ [][5].x }}",
        "{{ 'a' - 1 }}",
        "{{ messages|tojson(indent='x') }}",
    ):
        with pytest.raises(TemplateError) as caught:
            render(source)
        assert "\n" not in str(caught.value) and "published" in str(caught.value)
