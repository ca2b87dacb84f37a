"""A policy's own patterns."""

import pytest

from services.gateway.guard.own_patterns import InvalidPattern, OwnPatterns, compile_pattern
from shared.config_documents import GuardPattern


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


@pytest.mark.parametrize("pattern", ["(a", r"(a)\1", "(?=a)", "a*", "(?:a{1000}){1000}", "a{1001}", "x|"])
def test_patterns_that_are_refused(pattern: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InvalidPattern, match=r"\w"):
        compile_pattern(pattern)
    assert capfd.readouterr().err == "", "RE2 prints nothing, as it would print the pattern"
