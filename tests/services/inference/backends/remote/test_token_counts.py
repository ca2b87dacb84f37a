import pytest

from services.inference.backends.remote import token_counts
from services.inference.backends.remote.token_counts import CheckedCounts, CountBounds, ReportedUsage
from shared.api.generation import ChatMessage, Sampling, Usage


def reported(prompt: object, completion: object, cached: object = None) -> ReportedUsage:
    return ReportedUsage(prompt, completion, {"cached_tokens": cached})


KNOWN = CountBounds(least_prompt=4, most_prompt=40_000, most_completion=11)


@pytest.mark.parametrize(
    ("prompt", "completion", "cached", "expected"),
    [
        pytest.param(7, 5, None, CheckedCounts(Usage(7, 5)), id="a server's counts are taken"),
        pytest.param(7, 5, 5, CheckedCounts(Usage(7, 5, 5)), id="and what it had in its memory"),
        pytest.param(7, 5, 8, CheckedCounts(Usage(7, 5)), id="more cached than there was is nothing cached"),
        pytest.param(7, 5, -1, CheckedCounts(Usage(7, 5)), id="less than nothing cached is nothing cached"),
        pytest.param(7, 2, None, CheckedCounts(Usage(7, 3), ("completion_tokens",)), id="fewer tokens than pieces are too few"),
        pytest.param(
            None, None, None, CheckedCounts(Usage(4, 3), ("prompt_tokens", "completion_tokens")), id="absent counts are made up for"
        ),
        pytest.param(
            -1, -1, None, CheckedCounts(Usage(4, 3), ("prompt_tokens", "completion_tokens")), id="negative counts are not believed"
        ),
        pytest.param(7, 0, None, CheckedCounts(Usage(7, 3), ("completion_tokens",)), id="text without tokens is not believed"),
        pytest.param(7, 12, None, CheckedCounts(Usage(7, 3), ("completion_tokens",)), id="nobody pays for more than was asked for"),
        pytest.param(40_001, 5, None, CheckedCounts(Usage(4, 5), ("prompt_tokens",)), id="more tokens than bytes are not believed"),
        pytest.param(0, 5, None, CheckedCounts(Usage(4, 5), ("prompt_tokens",)), id="a prompt has at least one"),
        pytest.param(
            10**400, True, "5", CheckedCounts(Usage(4, 3), ("prompt_tokens", "completion_tokens")), id="nor what is no count at all"
        ),
        pytest.param(7.0, 2.5, None, CheckedCounts(Usage(4, 3), ("prompt_tokens", "completion_tokens")), id="nor fractions"),
    ],
)
def test_settle(prompt: object, completion: object, cached: object, expected: CheckedCounts) -> None:
    assert token_counts.settle(reported(prompt, completion, cached), 3, 0, KNOWN) == expected


def test_pieces_are_not_paid_for_beyond_what_was_asked_for() -> None:
    assert token_counts.settle(reported(7, None), 500, 0, KNOWN) == CheckedCounts(Usage(7, 11), ("completion_tokens",))


def test_an_empty_answer_may_have_no_tokens() -> None:
    assert token_counts.settle(reported(7, 0), 0, 0, KNOWN) == CheckedCounts(Usage(7, 0))


@pytest.mark.parametrize(
    ("said", "pieces", "expected"),
    [
        pytest.param(4, 2, 4, id="the server's count"),
        pytest.param(None, 2, 2, id="else the pieces with thoughts"),
        pytest.param(6, 2, 2, id="more than the whole answer is not believed"),
        pytest.param(-1, 9, 5, id="nor are more pieces"),
    ],
)
def test_thoughts_are_a_part_of_the_answer(said: object, pieces: int, expected: int) -> None:
    usage = ReportedUsage(7, 5, None, {"reasoning_tokens": said})
    assert token_counts.settle(usage, 3, pieces, KNOWN) == CheckedCounts(Usage(7, 5, 0, expected))


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        pytest.param(5, (5, False), id="a server's count is taken"),
        pytest.param(2, (2, False), id="a token for each text"),
        pytest.param(24, (24, False), id="all bytes, and what a model adds"),
        pytest.param(25, (4, True), id="more than there can be"),
        pytest.param(1, (4, True), id="fewer than texts"),
        pytest.param(True, (4, True), id="no number"),
        pytest.param(5.0, (4, True), id="a fraction"),
    ],
)
def test_the_tokens_of_texts_that_become_vectors(said: object, expected: tuple[int, bool]) -> None:
    assert token_counts.settle_texts(said, ("one two three", "é ")) == expected


def test_token_ids_are_tokens() -> None:
    assert token_counts.settle_texts(None, ((1, 2, 3), "one two")) == (5, True)
    assert token_counts.settle_texts(4, ((1, 2, 3), "one")) == (4, False)


def test_a_text_of_blanks_has_a_token_too() -> None:
    assert token_counts.settle_texts(None, ("one two", " ")) == (3, True)


def test_bounds_are_what_is_known_without_a_tokenizer() -> None:
    messages = (ChatMessage("system", "be brief"), ChatMessage("user", " three  small\nwords "), ChatMessage("assistant", ""))
    known = token_counts.bounds(messages, Sampling(n=2), 200, 10)
    assert known == CountBounds(least_prompt=5, most_prompt=200 + token_counts.HIDDEN_PROMPT_TOKENS, most_completion=22)
    endless = token_counts.bounds((), Sampling(), 0, 2**63 - 1)
    assert (endless.least_prompt, endless.most_completion) == (1, token_counts.LONGEST_ANSWER_TOKENS + 1)
