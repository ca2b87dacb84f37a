from contextlib import suppress

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from services.inference.structured_output import gbnf
from services.inference.structured_output.lark import FormatRefused
from tests.services.inference.structured_output.byte_answers import BYTES, fits


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
        pytest.param('root ::= root "a" | "b"', id="recursion on the left"),
        pytest.param('root ::= ("a"*)*', id="stars of stars"),
        pytest.param('root ::= start "x"\nstart ::= mark-0\nmark-0 ::= T0 | RUN1\nT0 ::= "a"\nRUN1 ::= "b"', id="names that Lark has"),
    ],
)
def test_accepted_grammars(grammar: str) -> None:
    BYTES.compile(gbnf.to_lark(grammar))


@pytest.mark.parametrize(
    ("grammar", "taken", "refused"),
    [
        pytest.param('root ::= [a-z]+ "b"', ["ab", "zzb", "bb"], ["b", "a"], id="parts that overlap"),
        pytest.param('root ::= word "b"\nword ::= [a-z]+', ["ab", "zzb"], ["b", "a"], id="a rule that overlaps with what follows it"),
        pytest.param('root ::= ("a" | "ab") "bc"', ["abc", "abbc"], ["ac"], id="a text that begins another one"),
        pytest.param('root ::= Foo foo 1\nFoo ::= "a"\nfoo ::= "b"\n1 ::= "c"', ["abc"], ["aac"], id="names in any case, and a number"),
        pytest.param("root ::= [a&&b] [a~~b]", ["&~", "ab"], ["c~"], id="signs that mean something in Lark's classes"),
        pytest.param('root ::= ("yes" | "no") "!"{2,3}', ["yes!!", "no!!!"], ["yes", "no!!!!"], id="repeats"),
        pytest.param('root ::= "a"{2} | "b"{3,}', ["aa", "bbb", "bbbb"], ["a", "aaa", "bb"], id="repeats without an end"),
        pytest.param(r'root ::= "\x41\u00e4\U0001F98A\n\"\\\[\]\-"', ['Aä🦊\n"\\[]-'], ["A"], id="escapes in quotes"),
        pytest.param(r"root ::= [\]\\\n/\u00e4-\u00e6^-]+", ["]\\\n/å^-"], ["a", "["], id="escapes in classes"),
        pytest.param("root ::= [^a-y\\n]", ["z", "ä", "🦊"], ["a", "\n", ""], id="a negated class"),
        pytest.param("root ::= . .", ["a\n", "ä🦊"], ["a"], id="any character, also a line break"),
        pytest.param('root ::= "(" root ")" | [a-z]+', ["a", "((ab))"], ["(a", ""], id="recursion"),
        pytest.param('root ::= "x" | "-" root | root "+" root', ["x", "-x+x", "x+x+-x"], ["x+", "+x"], id="recursion on both sides"),
        pytest.param('root ::= item*\nitem ::= "a" ("," item)? ";"', ["", "a;", "a,a;;a;"], ["a", "a,;"], id="repeats of recursion"),
        pytest.param('root ::= "a"? | "b" "" | ', ["", "a", "b"], ["ab"], id="empty texts"),
        pytest.param("root ::= (" * 1 + "(" * 63 + '"a"' + ")*" * 64, ["", "aaa"], ["b"], id="64 stars"),
        pytest.param(
            'root ::= ws "{" ws (pair ("," ws pair)*)? "}" ws\npair ::= key ":" ws (key | root)\n'
            'key ::= "\\"" [^"]* "\\"" ws\nws ::= [ \\n]*',
            ["{}", '{"a": "b" , "c":{ }}', ' { "a": {"b": "c"} } '],
            ['{"a"}', '{"a":"b",}'],
            id="optional space between everything",
        ),
    ],
)
def test_a_grammar_accepts_the_texts_that_it_does_in_llama_cpp(grammar: str, taken: list[str], refused: list[str]) -> None:
    written = gbnf.to_lark(grammar)
    assert [text for text in taken if not fits(written, text)] == []
    assert [text for text in refused if fits(written, text)] == []


CHAIN = "root ::= r0\n" + "".join(f"r{n} ::= r{n + 1}\n" for n in range(5000)) + 'r5000 ::= "a"'


@pytest.mark.parametrize(
    ("grammar", "words"),
    [
        pytest.param("", "no rule `root`", id="nothing"),
        pytest.param('start ::= "a"', "no rule `root`", id="no root"),
        pytest.param("root ::= a", "the rule a is used but not defined", id="a rule that is not there"),
        pytest.param('root ::= "a"\nroot ::= "b"', "line 2, character 1: the rule root is defined a second time", id="a rule twice"),
        pytest.param('root = "a"', "`::=` is missing", id="another arrow"),
        pytest.param('::= "a"', "name of a rule is missing", id="no name"),
        pytest.param('root ::= "a"\n | "b"', "line 2, character 2: the name", id="an alternative on a line of its own"),
        pytest.param('root ::= "a', "no end", id="an open text"),
        pytest.param(r'root ::= "\q"', "escape", id="an escape that is none"),
        pytest.param(r'root ::= "\U00110000"', "escape", id="beyond the last character"),
        pytest.param("root ::= [a", "no end", id="an open class"),
        pytest.param("root ::= [z-a]", "end is before its beginning", id="a range backwards"),
        pytest.param("root ::= []", "is empty", id="an empty class"),
        pytest.param("root ::= [^]", "is empty", id="an empty negated class"),
        pytest.param('root ::= ("a"', "`\\(` without", id="an open group"),
        pytest.param('root ::= "a")', "`\\)` without", id="a closed group"),
        pytest.param("root ::= *", "one thing before it", id="a repeat of nothing"),
        pytest.param('root ::= "a"**', "one thing before it", id="a repeat of a repeat"),
        pytest.param('root ::= ""*', "one thing before it", id="a repeat of the empty text"),
        pytest.param('root ::= "a"{}', "a repeat is written", id="a repeat without a number"),
        pytest.param('root ::= "a"{,5}', "a repeat is written", id="a repeat without a beginning"),
        pytest.param('root ::= "a"{2,1}', "maximum is below its minimum", id="a repeat backwards"),
        pytest.param('root ::= "a"{1001}', "more than 1000", id="1,001 repeats"),
        pytest.param('root ::= "a"{0,999999999}', "more than 1000", id="a billion repeats"),
        pytest.param("root ::= <think>", "references to tokens", id="a token"),
        pytest.param('root ::= "a" !<[5]>', "references to tokens", id="all tokens but one"),
        pytest.param(CHAIN, "at most 32768", id="5,000 rules"),
        pytest.param("\n".join(f'r{n} ::= "a"' for n in range(501)), "more than 500 rules", id="501 rules"),
        pytest.param("root ::= " + "(" * 65 + '"a"' + ")" * 65, "nested deeper than 64", id="65 parentheses"),
        pytest.param("(" * 60_000, "at most 32768", id="60,000 parentheses"),
        pytest.param('"' * 1_000_000, "at most 32768", id="a million quotes"),
        pytest.param('root ::= "a\0"', "not text", id="a null character"),
        pytest.param('root ::= "\ud800"', "not text", id="half a character"),
        pytest.param("root ::= a$b", "'\\$' is not expected", id="a sign that is none"),
    ],
)
def test_refused_grammars(grammar: str, words: str) -> None:
    with pytest.raises(FormatRefused, match=words):
        gbnf.to_lark(grammar)


@pytest.mark.parametrize("sign", ["(", "[", '"', "\\", "|", "{", "#", "\n", " ", "a ", "()", '""', "(|", ".?", "r ::= r\n"])
def test_grammar_at_the_limits_is_checked_in_time(sign: str) -> None:
    """A backtracking reader would take minutes for these, and exceed the test's time limit."""
    text = "root ::= " + sign * ((gbnf.MAX_BYTES - 9) // len(sign))
    with suppress(FormatRefused):
        gbnf.to_lark(text)


@given(st.text('rot :=ab"()[]{}*+?|.\\-^,12\n<>!#', max_size=60))
@example('r ::= "a"\nroot ::= r{2}')
def test_any_text_is_accepted_or_refused(text: str) -> None:
    with suppress(FormatRefused):
        gbnf.to_lark(f"root ::= {text}")
