from contextlib import suppress

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from services.inference.structured_output import grammar_limits
from services.inference.structured_output.gbnf import SchemaRefused


@pytest.mark.parametrize(
    "grammar",
    [
        pytest.param('root ::= "a"', id="one rule"),
        pytest.param('root ::= a\r\na ::= "x" # y\n\n', id="line ends and comments"),
        pytest.param('# first\nroot ::=\n  ( "a" |\n "b"\n )+ [^x-z\\]] . c? c{2} c{1,} c{1,3}\nc ::= "c" | "cc"', id="all that GBNF has"),
        pytest.param('root ::= "(" root ")" | "x"', id="recursion in the middle"),
        pytest.param('root ::= "a" root | "a"', id="recursion on the right"),
        pytest.param("root ::= " + "(" * 64 + '"a"' + ")" * 64, id="64 parentheses"),
        pytest.param("root ::= r1\n" + "".join(f'r{n} ::= "a"\n' for n in range(1, 500)), id="500 rules"),
        pytest.param(r'root ::= "\x41\u00e4\U0001F98A\n\t\r\"\\\[\]\-"', id="every escape"),
        pytest.param('root ::= [a-] [-a] [^"] ["]', id="signs in classes"),
        pytest.param('root ::= "" | ("" "a")', id="an empty text"),
        pytest.param('root ::= "a"{1000}', id="1,000 repeats"),
    ],
)
def test_accepted_grammars(grammar: str) -> None:
    grammar_limits.check(grammar)


CHAIN = "root ::= r0\n" + "".join(f"r{n} ::= r{n + 1}\n" for n in range(5000)) + 'r5000 ::= "a"'
DOUBLING = "root ::= r0\n" + "".join(f"r{n} ::= r{n + 1} | r{n + 1}\n" for n in range(40)) + 'r40 ::= "a"'


@pytest.mark.parametrize(
    ("grammar", "words"),
    [
        pytest.param("", "no rule `root`", id="nothing"),
        pytest.param('start ::= "a"', "no rule `root`", id="no root"),
        pytest.param("root ::= a", "the rule a is used but not defined", id="a rule that is not there"),
        pytest.param('root ::= "a"\nroot ::= "b"', "line 2, character 5: the rule root is defined a second time", id="a rule twice"),
        pytest.param('root = "a"', "`::=` is missing", id="another arrow"),
        pytest.param('::= "a"', "name of a rule is missing", id="no name"),
        pytest.param('root ::= "a"\n | "b"', "line 2, character 2: the name", id="an alternative on a line of its own"),
        pytest.param('root ::= "a', "no end", id="an open text"),
        pytest.param(r'root ::= "\q"', "escape", id="an escape that is none"),
        pytest.param(r'root ::= "\U00110000"', "escape", id="beyond the last character"),
        pytest.param("root ::= [a", "no end", id="an open class"),
        pytest.param("root ::= []", "is empty", id="an empty class"),
        pytest.param("root ::= [^]", "is empty", id="an empty negated class"),
        pytest.param('root ::= ("a"', "`\\(` without", id="an open group"),
        pytest.param('root ::= "a")', "`\\)` without", id="a closed group"),
        pytest.param("root ::= *", "one thing before it", id="a repeat of nothing"),
        pytest.param('root ::= "a"**', "one thing before it", id="a repeat of a repeat"),
        pytest.param('root ::= ""*', "one thing before it", id="a repeat of the empty text"),
        pytest.param('root ::= "a"{}', "a repeat is written", id="a repeat without a number"),
        pytest.param('root ::= "a"{,5}', "a repeat is written", id="a repeat without a beginning"),
        pytest.param('root ::= "a"{2,1}', "maximum is below its minimum", id="a repeat backwards, with which llama.cpp fills the memory"),
        pytest.param('root ::= "a"{1001}', "more than 1000", id="1,001 repeats"),
        pytest.param('root ::= "a"{0,999999999}', "more than 1000", id="a billion repeats"),
        pytest.param(f'root ::= "{"a" * 200}"{{1000}}', "more than 100000 elements", id="a long text a thousand times"),
        pytest.param("root ::= <think>", "references to tokens", id="a token"),
        pytest.param('root ::= "a" !<[5]>', "references to tokens", id="all tokens but one"),
        pytest.param('root ::= root "a" | "b"', "starts with itself", id="left recursion"),
        pytest.param('root ::= a\na ::= "x"? b\nb ::= c\nc ::= ("y" | a)', "starts with itself", id="left recursion around corners"),
        pytest.param('root ::= e e root\ne ::= "x" |', "starts with itself", id="left recursion behind what may be empty"),
        pytest.param('root ::= ("a"*)*', "unbounded repeat of something that may be empty", id="stars of stars"),
        pytest.param(
            'root ::= a+\na ::= b b\nb ::= "x" |', "unbounded repeat of something that may be empty", id="a repeat of what turns out empty"
        ),
        pytest.param(DOUBLING, "in more than 100000 ways", id="rules that llama.cpp would walk for ever"),
        pytest.param(CHAIN, "at most 32768", id="5,000 rules"),
        pytest.param("\n".join(f'r{n} ::= "a"' for n in range(501)), "more than 500 rules", id="501 rules"),
        pytest.param("root ::= " + "(" * 65 + '"a"' + ")" * 65, "nested deeper than 64", id="65 parentheses"),
        pytest.param("(" * 60_000, "at most 32768", id="60,000 parentheses"),
        pytest.param('"' * 1_000_000, "at most 32768", id="a million quotes"),
        pytest.param('root ::= "a\0"', "not text", id="a null character, behind which llama.cpp reads nothing"),
        pytest.param('root ::= "\ud800"', "not text", id="half a character"),
        pytest.param("root ::= a$b", "'\\$' is not expected", id="a sign that is none"),
    ],
)
def test_refused_grammars(grammar: str, words: str) -> None:
    with pytest.raises(SchemaRefused, match=words):
        grammar_limits.check(grammar)


@pytest.mark.parametrize("sign", ["(", "[", '"', "\\", "|", "{", "#", "\n", " ", "a ", "()", '""', "(|", ".?", "r ::= r\n"])
def test_grammar_at_the_limits_is_checked_in_time(sign: str) -> None:
    """A reader that goes back would take minutes for these, and the test's time limit ends it."""
    text = "root ::= " + sign * ((grammar_limits.MOST_BYTES - 9) // len(sign))
    with suppress(SchemaRefused):
        grammar_limits.check(text)


@given(st.text('rot :=ab"()[]{}*+?|.\\-^,12\n<>!#', max_size=60))
@example('r ::= "a"\nroot ::= r{2}')
def test_any_text_is_accepted_or_refused(text: str) -> None:
    with suppress(SchemaRefused):
        grammar_limits.check(f"root ::= {text}")
