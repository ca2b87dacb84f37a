import tracemalloc

import jinja2
import pytest

from services.inference.engine import template_sandbox
from services.inference.engine.prompt import ChatTemplate
from services.inference.engine.template_sandbox import Sandbox
from shared import errors
from shared.api.generation import ChatMessage

#: What a refused template may have built by then: a few of the largest texts, less than the smallest of these asks for.
MOST_BYTES = 96 * 1024 * 1024
GROWING = "{% set n = namespace(x='xx') %}{% for i in range(99) %}"


def render(source: str) -> str:
    return ChatTemplate(source, bos="", eos="").render((ChatMessage("user", "hello"),))


@pytest.mark.parametrize(
    "source",
    [
        pytest.param('{{ "x" * 10**9 }}', id="a text multiplied"),
        pytest.param("{% set a = 10**9 %}{{ a * 'x' }}", id="a number multiplied by a text"),
        pytest.param("{{ [1] * 10**9 }}", id="a list multiplied"),
        pytest.param("{{ 9 ** 9 ** 9 ** 9 }}", id="a power"),
        pytest.param("{{ (9 ** 300) * (9 ** 300) }}", id="large numbers multiplied"),
        pytest.param(GROWING + "{% set n.x = n.x + n.x %}{% endfor %}", id="a text doubled by adding"),
        pytest.param(GROWING + "{% set n.x = n.x ~ n.x %}{% endfor %}", id="a text doubled by joining"),
        pytest.param(GROWING + "{% set n.x %}{{ n.x }}{{ n.x }}{% endset %}{% endfor %}", id="a text doubled by a set block"),
        pytest.param(
            "{% macro f(x) %}{{ x }}{{ x }}{% endmacro %}" + GROWING + "{% set n.x = f(n.x) %}{% endfor %}", id="a text doubled by a macro"
        ),
        pytest.param(GROWING + "{% set n.x = '{}{}'.format(n.x, n.x) %}{% endfor %}", id="a text doubled by a format"),
        pytest.param(GROWING + "{% filter replace('x', n.x) %}xx{% endfilter %}{% set n.x = n.x * 2 %}{% endfor %}", id="a filter block"),
        pytest.param('{{ "%0999999999d" % 1 }}', id="a width for %"),
        pytest.param('{{ "{:>999999999}".format(1) }}', id="a width for format"),
        pytest.param('{{ "{0.real}".format(1) }}', id="an attribute for format"),
        pytest.param('{{ "{a}".format_map({"a": 1}) }}', id="the other format"),
        pytest.param("{{ 'x'.ljust(10**9) }}", id="a text filled up"),
        pytest.param("{{ '\t'.expandtabs(10**9) }}", id="tabs widened"),
        pytest.param("{{ 'x'.encode() }}", id="bytes"),
        pytest.param("{{ (1).to_bytes(10**9, 'big') }}", id="a number as bytes"),
        pytest.param("{% set a = 'x' * 12000 %}{{ a.replace('x', a) }}", id="each letter replaced by a long text"),
        pytest.param("{% set a = 'x' * 12000 %}{{ a.replace('', a) }}", id="nothing replaced by a long text"),
        pytest.param("{% set a = 'x' * 12000 %}{{ a | replace('x', a) }}", id="the same by a filter"),
        pytest.param("{% set a = 'x' * 12000 %}{{ a.join(a) }}", id="letters joined by a long text"),
        pytest.param("{% set a = 'x' * 12000 %}{{ a | join(a) }}", id="the same by the filter"),
        pytest.param("{{ ('x\n' * 99999) | indent(99999) }}", id="lines indented far"),
        pytest.param("{{ 'x' | indent(10**9, true) }}", id="one line indented far"),
        pytest.param("{{ messages | tojson(indent=10**9) }}", id="JSON indented far"),
        pytest.param("{% set a = 'x' * 999999 %}{{ range(9999) | list | tojson(separators=(a, a)) }}", id="JSON with long commas"),
        pytest.param(
            "{% set a = 'x' * 999999 %}{{ range(9) | map(attribute='b', default=a) | list }}", id="a long text in a list many times"
        ),
        pytest.param("{% set a = 'x' * 4000000 %}{{ a | list }}", id="each letter in a list"),
        pytest.param(
            "{% set a = 'x' * 4000000 %}{% set n = namespace(l=[]) %}{% for i in range(9) %}{% set n.l = n.l + [a[i:]] %}{% endfor %}",
            id="long texts kept",
        ),
        pytest.param(
            "{% set a = 'x' * 4000000 %}" + "".join(f"{{% set b{i} = a[1:] %}}" for i in range(99)), id="long slices kept by name"
        ),
        pytest.param("{% set a = 'x ' * 2000000 %}{% for i in range(99) %}{% set b = a.split() %}{% endfor %}", id="texts split and split"),
        pytest.param("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", id="a macro without end"),
        pytest.param("{% block a %}{{ self.a() }}{% endblock %}", id="a block inside itself"),
        pytest.param("{{ range(10**9) | list }}", id="a long range"),
        pytest.param("{{ strftime_now('%Y' * 1000) }}", id="a long date"),
        pytest.param("{{ lipsum(n=10**6) }}", id="Jinja's own filler text"),
    ],
)
def test_memory_bomb_is_refused_before_it_grows(source: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(errors.BadRequest, match="the model's chat template"):
            render(source)
        assert tracemalloc.get_traced_memory()[1] < MOST_BYTES
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "step",
    [
        pytest.param("[n.x, n.x]", id="lists"),
        pytest.param("(n.x, n.x)", id="tuples"),
        pytest.param("{'a': n.x, 'b': n.x}", id="mappings"),
        pytest.param("dict(a=n.x, b=n.x)", id="dict"),
        pytest.param("n.x + n.x", id="added lists"),
        pytest.param("[namespace(a=n.x), n.x]", id="namespaces in a list"),
        pytest.param("namespace(a=namespace(b=n.x))", id="namespaces in each other"),
        pytest.param("[n.x]", id="lists nested deep"),
    ],
)
@pytest.mark.parametrize("use", ["{{ n.x }}", "{{ n.x | tojson }}", "{{ n.x == n.y }}", "{{ {n.x: 1} }}", "{{ '' ~ n.x }}"])
def test_list_that_contains_itself_many_times_is_refused(monkeypatch: pytest.MonkeyPatch, step: str, use: str) -> None:
    monkeypatch.setattr(template_sandbox, "MAX_TREE_SIZE", 10_000)
    grow = f"{{% set n = namespace(x=['a'], y=['a']) %}}{{% for i in range(70) %}}{{% set n.x = {step} %}}{{% endfor %}}"
    with pytest.raises(errors.BadRequest, match=r"a list with more|a list nested deeper|a namespace inside a list"):
        render(grow + use)


def test_namespace_cannot_be_printed() -> None:
    with pytest.raises(errors.BadRequest, match="a namespace printed as a text"):
        render("{% set n = namespace() %}{% set n.a = n %}{{ n }}")


@pytest.mark.parametrize(
    "source",
    [
        pytest.param("{% macro f() %}{{ varargs }}{% endmacro %}", id="varargs"),
        pytest.param("{% macro f() %}{{ kwargs }}{% endmacro %}", id="kwargs"),
        pytest.param("{% autoescape true %}{% endautoescape %}", id="autoescape"),
        pytest.param("{% autoescape 'x' * 10**9 %}{% endautoescape %}", id="a bomb for the compiler"),
        pytest.param("{{ 'x' | center(10**9) }}", id="the filter center"),
        pytest.param("{{ '' | attr('__class__') }}", id="the filter attr"),
        pytest.param("{{ 1.5 | round(10**9, 'ceil') }}", id="the filter round"),
    ],
)
def test_features_that_no_chat_template_needs_are_missing(source: str) -> None:
    with pytest.raises(jinja2.TemplateError):
        ChatTemplate(source, bos="", eos="")


def test_compiling_computes_nothing() -> None:
    Sandbox().from_string("{{ 'x' * 10**9 }}{{ 'x' | indent(10**9, true) }}{% if 9 ** 9 ** 9 ** 9 %}{% endif %}")


@pytest.mark.parametrize(
    "source",
    [
        "{{ ().__class__.__base__.__subclasses__() }}",
        "{{ raise_exception.__globals__['os'] }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(role='system') }}",
        "{{ messages[0].pop('role') }}",
        "{{ (messages | map('upper')).throw('x') }}",
        "{% set g = messages | map(attribute='role') %}{{ g.gi_frame.f_globals }}",
        "{{ dict.fromkeys([1]).x }}",
        "{{ ''['__class__'].mro() }}",
        "{{ cycler.__init__.__globals__ }}",
        "{% include 'x' %}",
        "{% import 'x' as y %}",
        "{% extends 'x' %}",
        "{{ 'a'.join(7) }}",
        "{{ 'a'.replace('a') }}",
    ],
)
def test_sandbox_escapes_are_blocked(source: str) -> None:
    with pytest.raises(errors.BadRequest, match="the model's chat template refuses"):
        render(source)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{{ {'a': '<&\\'>', 'b': [1, true, none]} | tojson }}", """{"a": "<&'>", "b": [1, true, null]}"""),
        ("{{ {'b': 'ü', 'a': {}} | tojson(indent=2, sort_keys=true) }}", '{\n  "a": {},\n  "b": "ü"\n}'),
        ("{{ [1, 2] | tojson(ensure_ascii=False, separators=(',', ':')) }}", "[1,2]"),
        ("{{ 'ä' | tojson(ensure_ascii=true) }}", '"ä"'),
        ("{% for i in range(9) %}{% if i == 3 %}{% break %}{% elif i == 1 %}{% continue %}{% endif %}{{ i }}{% endfor %}", "02"),
        ("{% generation %}{% set a = 1 %}{{ a }}{% endgeneration %}", "1"),
        ("{% set n = namespace(a=1) %}{% for i in [2, 3] %}{% set n.a = n.a + i %}{% endfor %}{{ n.a }}", "6"),
        ("{{ '{} {1}{a}{{'.format('x', 2, a=none) }}", "x 2None{"),
        ("{{ 'a-b'.split('-') | join('+') }}{{ '-'.join(['c', 'd']) }}", "a+bc-d"),
        ("{{ [{'n': 'a'}, {'n': 'b'}] | map(attribute='n') | join(', ') }}{{ [{'n': 1}] | join(',', 'n') }}", "a, b1"),
        ("{{ 'aXbXc'.replace('X', '--', 1) }}{{ 'aa' | replace('a', 'b', 1) }}{{ 'x'.replace('x', 'y') }}", "a--bXcbay"),
        ("{{ 'a\nb' | indent(2) }}{{ 'a' | indent('> ', true) }}", "a\n  b> a"),
        ("{{ ' a ' | trim | upper }}{{ 'b' | safe }}{{ 1 | string ~ 2 }}{{ [3, 1] | sort | first }}", "Ab121"),
        ("{{ messages[0].get('nothing', 'd') }}{{ messages[0].items() | list | length }}{{ (1, 2)[0] }}{{ 'abc'[::-1] }}", "d21cba"),
        ("{% for k, v in {'b': 1, 'a': 2} | dictsort %}{{ k }}{{ v }}{% endfor %}{{ {'x': 1} | items | list }}", "a2b1[('x', 1)]"),
        ("{{ nothing }}{{ nothing is defined }}{{ dict(a=1) }}{{ 7 % 4 }}{{ 2 ** 3 }}{{ 3 * 4 }}{{ '=' * 3 }}", "False{'a': 1}3812==="),
        ("{% macro f(a, b=2) %}{{ a }}{{ b }}{{ caller() if caller }}{% endmacro %}{{ f(1) }}{% call f(3) %}!{% endcall %}", "1232!"),
    ],
)
def test_features_of_published_templates_work(source: str, expected: str) -> None:
    assert render(source) == expected


def test_each_rendering_starts_with_fresh_counters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_sandbox, "MAX_MADE_CHARACTERS", 100)
    template = ChatTemplate("{{ messages[0].content ~ '' }}", bos="", eos="")
    for _ in range(5):
        assert len(template.render((ChatMessage("user", "x" * 60),))) == 60
    with pytest.raises(errors.BadRequest, match="texts of more than 100 characters in total"):
        template.render((ChatMessage("user", "x" * 101),))
