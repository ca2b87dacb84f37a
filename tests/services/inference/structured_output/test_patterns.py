import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.inference.structured_output import gbnf, patterns
from services.inference.structured_output.gbnf import SchemaRefused
from tests.services.inference.structured_output.gbnf_texts import fits

ALPHABET = 'ab01_- .,|"\\/(){}[]äÄ中🦊\t\n'


def grammar_of(pattern: str) -> str:
    rules = gbnf.GbnfRules()
    return rules.render(rf'"\"" {patterns.content_of(pattern, rules)} "\""')


@pytest.mark.parametrize(
    "pattern",
    [
        "^$",
        "",
        "a",
        "^a",
        "a$",
        "^a|b$",
        "^(a|b)+$",
        "^(?:ab|ba){2}$",
        "^[ab_-]{2,3}$",
        "^[^ab]$",
        "^[^a-zab0-1]$",
        '^["\\\\]+$',
        r"^\d{1,2}\.\w\s$",
        r"^\D\W\S$",
        r"^[\d\-.]*$",
        r"^a?b*0+1{0,2}$",
        r"^a+?b*?$",
        r"^[\u00e4\xc4]$",
        r"^\t\n$",
        "^.$",
        "^(a|)b$",
        "^(|a(b|0)){2}$",
        "^中🦊$",
        "^a{0}b$",
        "^a{b}$",
    ],
)
def test_pattern_matches_like_re(pattern: str) -> None:
    grammar = grammar_of(pattern)
    # JSON schema's `$` is the end of the text; Python's also stands before a last line break.
    expected = re.compile(re.sub(r"(?<!\\)\$(?=$|\|)", r"\\Z", pattern), re.ASCII)

    @given(st.one_of(st.from_regex(expected, alphabet=ALPHABET), st.text(ALPHABET, max_size=5)))
    def compare(text: str) -> None:
        assert fits(grammar, json.dumps(text, ensure_ascii=False)) == bool(expected.search(text))

    compare()


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        pytest.param("(?=a)b", "a lookahead", id="a lookahead"),
        pytest.param("(?!a)b", "a lookahead", id="a negative lookahead"),
        pytest.param("(?<=a)b", "a lookbehind", id="a lookbehind"),
        pytest.param("(?<!a)b", "a lookbehind", id="a negative lookbehind"),
        pytest.param("(?P<n>a)(?P=n)", "a named group", id="a named group"),
        pytest.param("(?i)a", "a flag", id="a flag"),
        pytest.param(r"(a)\1", "a backreference", id="a backreference"),
        pytest.param(r"\bword\b", "a word boundary", id="a word boundary"),
        pytest.param(r"^\p{L}+$", "a Unicode class", id="a Unicode class"),
        pytest.param(r"a\q", r"the escape `\\q`", id="an escape that is none"),
        pytest.param(r"\xg1", "hexadecimal", id="an escape without its digits"),
        pytest.param("(a", r"`\(` without", id="an open group"),
        pytest.param("a)", r"`\)` without", id="a closed group"),
        pytest.param("[a", r"`\[` without", id="an open class"),
        pytest.param("[b-a]", "range", id="a range backwards"),
        pytest.param(r"[\d-x]", "range", id="a range of a class"),
        pytest.param("*a", "nothing to repeat", id="a repeat of nothing"),
        pytest.param("a**", "a repeat of a repeat", id="a repeat of a repeat"),
        pytest.param("a{2}{3}", "a repeat of a repeat", id="counts of counts"),
        pytest.param("(a*)*", "an unbounded repeat of something that may be empty", id="an endless repeat of what may be empty"),
        pytest.param("(a{1000}){1001,}", "more than 1000 repeats", id="too many repeats"),
        pytest.param("a{3,2}", "maximum is below its minimum", id="a count backwards"),
        pytest.param("a^b", "in the middle", id="an anchor in the middle"),
        pytest.param("(^a$)", "in the middle", id="an anchor in a group"),
        pytest.param(r"^\x00$", "without any character of a JSON string", id="a character that JSON text cannot hold"),
        pytest.param("a\\", "a backslash at the end", id="a backslash at the end"),
        pytest.param("(" * 17 + ")" * 17, "nested deeper than 16", id="groups in groups"),
        pytest.param("a" * 257, "257 characters, at most 256", id="too long"),
    ],
)
def test_refused_patterns(pattern: str, words: str) -> None:
    with pytest.raises(SchemaRefused, match=words):
        grammar_of(pattern)


@given(st.text(r"ab(|)[]^$*+?{}12,\dwsb.-x:=!<P", max_size=30))
def test_any_pattern_is_accepted_or_refused(pattern: str) -> None:
    try:
        grammar = grammar_of(pattern)
    except SchemaRefused:
        return
    assert fits(grammar, '"') is False
