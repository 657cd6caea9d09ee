"""A base's chat template is a program of its supplier: it reaches nothing, ends, and stays small."""

import tracemalloc

import pytest

from cloister.errors import Malformed
from cloister.workload.text import ChatTemplate, Message

TALK = (Message("user", "secret words"), Message("assistant", "yes"))
REPEAT = "{% set ns = namespace(x='aaaa', y=[1]) %}{% for i in range(60) %}@{% endfor %}{{ ns.x }}{{ ns.y }}"

REACHES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}", "{{ messages.append.__globals__ }}",
    "{{ self.__init__.__globals__ }}", "{{ raise_exception.__globals__['x'] }}", "{{ namespace.__init__.__globals__ }}",
    "{{ dict.__subclasses__() }}", "{{ range.__self__.__class__.__base__ }}",
    "{{ '{0.__class__.__mro__}'.format('') }}",
    "{{ ''|attr('__class__')|list }}", "{% include '/etc/passwd' %}", "{% import 'os' as os %}{{ os.environ }}",
    "{% extends 'x' %}", "{{ strftime_now('%Y') }}", "{{ lipsum(n=9) }}", "{{ cycler.__init__.__globals__.os }}",
    "{{ messages.append(1) }}", "{{ messages[0].update({'role': 'x'}) }}",
    "{% set ns = namespace() %}{% set ns.__class__ = 1 %}{{ ns.__class__.__init__ }}",
]  # fmt: skip
LOOPS = [
    "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}{% endfor %}{% endfor %}"
    "{% endfor %}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "{% for x in [1, 1] recursive %}{{ loop([1, 1]) }}{% endfor %}",
    "{{ range(10 ** 10) | list }}", "{{ range(99999999999) | list }}", "{{ 10 | round(999999999, 'floor') }}",
]  # fmt: skip
GROWS = [
    REPEAT.replace("@", "{% set ns.x = ns.x ~ ns.x %}"), REPEAT.replace("@", "{% set ns.x = ns.x + ns.x %}"),
    REPEAT.replace("@", "{% set ns.y = [ns.y, ns.y] %}"), REPEAT.replace("@", "{% set ns.y = (ns.y, ns.y) %}"),
    REPEAT.replace("@", "{% set ns.y = {1: ns.y, 2: ns.y} %}"),
    REPEAT.replace("@", "{% set ns.y = dict(a=ns.y, b=ns.y) %}"),
    REPEAT.replace("@", "{% set ns.x = ns.x.replace('a', 'aaaa') %}"),
    REPEAT.replace("@", "{% set ns.x = ns.x | replace('a', 'aaaa') %}"),
    REPEAT.replace("@", "{% set ns.x = ns.x.join([ns.x, ns.x]) %}"),
    REPEAT.replace("@", "{% set ns.x %}{{ ns.x }}{{ ns.x }}{% endset %}"),
    "{{ 'a' * 9999999999 }}", "{{ 9999999999 * [1] }}", "{{ '%9999999999d' % 1 }}", "{{ '%*d' % (999999999, 1) }}",
    "{{ '{:>999999999}'.format(1) }}", "{{ '{:>{}}'.format(1, 999999999) }}", "{{ 'a'.ljust(9999999999) }}",
    "{{ '{a:>999999999}'.format_map({'a': 1}) }}", "{{ [1] | batch(999999999, 1) | list }}",
    "{{ messages | tojson(indent=999999999) }}", "{{ (range(9999) | list) | join('x' * 99999) }}",
    "{% for i in range(9999) %}{{ 'x' * 99999 }}{% endfor %}", "{{ 'a' | center(999999999) }}",
]  # fmt: skip
SYNTAX = ["{% if %}", "{{ " + "(" * 9999 + "1" + ")" * 9999 + " }}", "{% if 1 %}" * 999 + "{% endif %}" * 999,
          "{{ " + "-" * 99999 + "1 }}", "{{ " + "not " * 20000 + "1 }}", "{{ " + "1 + " * 20000 + "1 }}",
          "{{ 1" + "|abs" * 20000 + " }}", "x" * 300_000]  # fmt: skip


@pytest.mark.parametrize("source", REACHES)
def test_a_template_that_reaches_for_pythons_insides_gets_nothing(source):
    try:
        text = ChatTemplate("base", source, {}).text(TALK)
    except Malformed as error:
        text, code = error.message, error.code
    else:
        code = "template.failed"
    assert code in ("template.failed", "template.syntax")
    assert not any(word in text for word in ("class", "object", "function", "root:", "secret"))


@pytest.mark.parametrize("source", LOOPS, ids=range(len(LOOPS)))
def test_a_template_that_never_ends_is_stopped(source):
    with pytest.raises(Malformed) as caught:
        ChatTemplate("base", source, {}).text(TALK)
    assert caught.value.code in ("template.limit", "template.failed")


@pytest.mark.parametrize("source", GROWS, ids=range(len(GROWS)))
def test_a_template_that_never_stops_growing_is_stopped(source):
    tracemalloc.start()
    try:
        with pytest.raises(Malformed) as caught:
            ChatTemplate("base", source, {}).text(TALK)
        assert tracemalloc.get_traced_memory()[1] < 200 << 20
    finally:
        tracemalloc.stop()
    assert caught.value.code in ("template.limit", "template.syntax")


@pytest.mark.parametrize("source", SYNTAX, ids=range(len(SYNTAX)))
def test_a_template_that_would_break_the_compiler_is_refused(source):
    with pytest.raises(Malformed) as caught:
        ChatTemplate("base", source, {})
    assert caught.value.code == "template.syntax"


def test_a_templates_own_complaint_stays_inside():
    with pytest.raises(Malformed) as caught:
        ChatTemplate("base", "{{ raise_exception('bad: ' + messages[0].content) }}", {}).text(TALK)
    assert caught.value.code == "template.refused"
    assert "secret" not in caught.value.message


def test_one_rendering_leaves_nothing_for_the_next():
    source = "{% set ns = namespace(n=0) %}{% for i in range(900) %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}"
    template = ChatTemplate("base", source, {})
    assert [template.text(TALK) for _ in range(50)] == ["900"] * 50
