from dataclasses import replace

import pytest

from features.remote_servers.worker.rules import token_counts
from features.remote_servers.worker.rules.token_counts import ReportedUsage
from shared.api.generation import ChatMessage, Sampling, Usage
from tests.services.inference.standins import job

PROMPT, COMPLETION, BOTH = ("prompt_tokens",), ("completion_tokens",), ("prompt_tokens", "completion_tokens")


def reported(prompt: object, completion: object, cached: object = None) -> ReportedUsage:
    return ReportedUsage(prompt, completion, {"cached_tokens": cached})


def settle(
    usage: ReportedUsage, pieces: int = 3, thoughts: int = 0, *, sent_bytes: int = 40_000 - token_counts.HIDDEN_PROMPT_TOKENS
) -> tuple[Usage, tuple[str, ...]]:
    """Settle the counts of a four-word prompt and an answer of at most ten tokens."""
    asked = replace(job(), messages=(ChatMessage("user", "one two three four"),))
    return token_counts.settle(usage, asked, pieces=pieces, thoughts=thoughts, sent_bytes=sent_bytes, max_tokens=10)


@pytest.mark.parametrize(
    ("prompt", "completion", "cached", "expected"),
    [
        pytest.param(7, 5, None, (Usage(7, 5), ()), id="a server's counts are taken"),
        pytest.param(7, 5, 5, (Usage(7, 5, 5), ()), id="and what it had in its memory"),
        pytest.param(7, 5, 8, (Usage(7, 5), ()), id="more cached than there was is nothing cached"),
        pytest.param(7, 5, -1, (Usage(7, 5), ()), id="less than nothing cached is nothing cached"),
        pytest.param(7, 2, None, (Usage(7, 3), COMPLETION), id="fewer tokens than pieces are too few"),
        pytest.param(None, None, None, (Usage(4, 3), BOTH), id="absent counts are made up for"),
        pytest.param(-1, -1, None, (Usage(4, 3), BOTH), id="negative counts are not believed"),
        pytest.param(7, 0, None, (Usage(7, 3), COMPLETION), id="text without tokens is not believed"),
        pytest.param(7, 12, None, (Usage(7, 3), COMPLETION), id="nobody pays for more than was asked for"),
        pytest.param(40_001, 5, None, (Usage(4, 5), PROMPT), id="more tokens than bytes are not believed"),
        pytest.param(0, 5, None, (Usage(4, 5), PROMPT), id="a prompt has at least one"),
        pytest.param(10**400, True, "5", (Usage(4, 3), BOTH), id="nor what is no count at all"),
        pytest.param(7.0, 2.5, None, (Usage(4, 3), BOTH), id="nor fractions"),
    ],
)
def test_settle(prompt: object, completion: object, cached: object, expected: tuple[Usage, tuple[str, ...]]) -> None:
    assert settle(reported(prompt, completion, cached)) == expected


def test_pieces_are_not_paid_for_beyond_what_was_asked_for() -> None:
    assert settle(reported(7, None), 500) == (Usage(7, 11), COMPLETION)


def test_an_empty_answer_may_have_no_tokens() -> None:
    assert settle(reported(7, 0), 0) == (Usage(7, 0), ())


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
    assert settle(usage, thoughts=pieces) == (Usage(7, 5, 0, expected), ())


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
    asked = replace(job(), messages=messages, requested=Sampling(n=2))

    def least(max_tokens: int, prompt: int = 0) -> tuple[Usage, tuple[str, ...]]:
        return token_counts.settle(ReportedUsage(prompt), asked, pieces=10**9, thoughts=0, sent_bytes=200, max_tokens=max_tokens)

    assert least(10) == (Usage(5, 22), BOTH)
    hidden = token_counts.HIDDEN_PROMPT_TOKENS
    assert least(10, 200 + hidden) == (Usage(200 + hidden, 22), COMPLETION)
    assert least(10, 201 + hidden) == (Usage(5, 22), BOTH)
    assert least(2**63 - 1)[0].completion_tokens == 2 * (token_counts.MAX_ANSWER_TOKENS + 1)
