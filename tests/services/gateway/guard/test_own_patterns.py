"""A policy's own patterns."""

import random

import pytest

from services.gateway.guard.detectors import Detector
from services.gateway.guard.own_patterns import BLOCK_CHARACTERS, InvalidPattern, OwnPatterns, check_bounds, compile_pattern
from services.gateway.guard.text_filter import Found, TextFilter
from shared.config_documents import GuardPattern
from tests import tiers


def found(text: str, *patterns: tuple[str, str, int]) -> list[tuple[str, str]]:
    own = OwnPatterns([GuardPattern(name=name, pattern=pattern, max_length=most) for name, pattern, most in patterns])
    return [(match.name, text[match.start : match.end]) for match in own.find(text, 0, is_whole=True)[0]]


def test_a_match_is_at_most_as_long_as_its_pattern_says() -> None:
    assert found("xxxxxxx", ("x", "x+", 3)) == [("x", "xxx"), ("x", "xxx"), ("x", "x")]
    assert found("PRJ-123456789 PRJ-1234", ("project", r"PRJ-\d{4,8}\b", 12)) == [("project", "PRJ-1234")]
    assert found("aaaaaa", ("long", "a{6}", 5)) == []


def test_the_first_pattern_wins_at_the_same_place() -> None:
    assert found("ab b", ("one", "ab?", 9), ("two", "(?i)AB|B", 9)) == [("one", "ab"), ("two", "b")]


def test_the_end_of_a_text_may_still_change() -> None:
    own = OwnPatterns([GuardPattern(name="x", pattern="x+", max_length=4)])
    assert own.find("abcdefxx", 0, is_whole=False) == ([], 4)
    assert own.find("abcdefxx", 4, is_whole=True)[1] == 8


def test_patterns_and_texts_are_normalized_alike() -> None:
    assert compile_pattern("PRJ\u2013\\d+ \u00adx\u00a0[\u2010\uff01]").pattern == r"PRJ\-\d+ x [\-\!]"
    text_filter = TextFilter(
        Detector(frozenset()), OwnPatterns([GuardPattern(name="x", pattern="PRJ\u2013\\d{3} M\u00fcller", max_length=20)])
    )
    parts = [*text_filter.feed("PRJ\u2011123\u00a0Mu\u0308l\u00adler \u00fcber"), *text_filter.end()]
    assert [part.text if isinstance(part, Found) else part for part in parts] == ["PRJ\u2011123\u00a0Mu\u0308l\u00adler", " \u00fcber"]


def test_borders_are_those_of_the_text() -> None:
    assert found("cab ab abc", ("word", r"\bab\b", 2)) == [("word", "ab")]
    assert found("xab ab", ("end", "ab$", 2)) == [("end", "ab")]
    assert found("ab ab", ("start", "^ab", 2)) == [("start", "ab")]


def test_matches_are_the_leftmost_ones_of_the_first_pattern_that_fit() -> None:
    patterns = [("a", "a.*b", 5), ("b", "a(?:.*b)?", 9), ("c", "[ab]{3,9}c|ab", 8), ("d", r"a.{5,40}c", 30), ("e", "é.?b", 4)]
    for number in range(tiers.volume(100)):
        draw = random.Random(number)
        text = "".join(draw.choices(draw.choice(["ab", "abc ", "aaaaaaab", "abéc"]), k=draw.choice([10, 50, 300])))
        chosen = draw.sample(patterns, draw.randint(1, 4))
        assert found(text, *chosen) == one_by_one(text, *chosen)


def one_by_one(text: str, *patterns: tuple[str, str, int]) -> list[tuple[str, str]]:
    """Try each pattern at each place."""
    at, matches = 0, []
    while at < len(text):
        tried = ((name, compile_pattern(pattern).match(text, at, min(len(text), at + most))) for name, pattern, most in patterns)
        name, end = next(((name, match.end()) for name, match in tried if match is not None), ("", at))
        if end > at:
            matches.append((name, text[at:end]))
        at = max(end, at + 1)
    return matches


def test_beyond_its_budget_the_rest_of_a_block_is_one_match() -> None:
    matches = found("ab" * BLOCK_CHARACTERS, ("digits", ".{1,3}|x", 1))
    one, other = (text for name, text in matches if not name)
    assert one == other, "each block has its own budget"
    assert 1_000 < len(one) < BLOCK_CHARACTERS
    assert "".join(text for _, text in matches) == "ab" * BLOCK_CHARACTERS
    assert found("ab" * 1_500, ("a", "a", 1)) == [("a", "a")] * 1_500, "a simple pattern may match often"


def test_what_a_policy_of_a_user_may_have() -> None:
    def check(*patterns: tuple[str, int]) -> str:
        return check_bounds([GuardPattern(name="x", pattern=pattern, max_length=most) for pattern, most in patterns])

    assert check(*[(r"\w{3,20}@acme\.example", 60)] * 5, ("x", 1)) == " may have at most 5 entries"
    assert check(*[(r"\w{3,20}@acme\.example", 60)] * 5) == ""
    assert check((r"\pL+ \d{4}", 60)) == ""
    assert check(("x", 1), (r"\pL{1,20}", 1)) == ".1.pattern can't be used: pattern too large - compile failed"
    assert "use a lower max_length" in check((r"a(?:.?){190}c", 256))


@pytest.mark.parametrize("pattern", ["(a", r"(a)\1", "(?=a)", "a*", "(?:a{1000}){1000}", "a{1001}", "x|"])
def test_patterns_that_are_refused(pattern: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InvalidPattern, match=r"\w"):
        compile_pattern(pattern)
    assert capfd.readouterr().err == "", "RE2 prints nothing, as it would print the pattern"
