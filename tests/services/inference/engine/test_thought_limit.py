import pytest

from services.inference.engine.engine_messages import ThoughtBudget
from services.inference.engine.sequence import ThoughtLimit

CLOSING = [7, 8]


def written(budget: int, start: str, pieces: list[str]) -> list[str | int]:
    """Return the answer of a model that would write these pieces."""
    limit, answer = ThoughtLimit(ThoughtBudget(budget, start, ("</think>", "<end>")), CLOSING), []
    waiting: list[str] = list(pieces)
    while waiting or limit.next_token is not None:
        forced = limit.next_token
        token: str | int = waiting.pop(0) if forced is None else forced
        answer.append(token)
        limit.accept(str(token).encode())
    return answer


@pytest.mark.parametrize(
    ("budget", "start", "pieces", "expected"),
    [
        pytest.param(2, "", ["a", "b", "c"], ["a", "b", 7, 8, "c"], id="the prompt began the thoughts"),
        pytest.param(0, "", ["a"], [7, 8, "a"], id="none at all"),
        pytest.param(3, "", ["a", "</th", "ink>", "b", "c"], ["a", "</th", "ink>", "b", "c"], id="they end before"),
        pytest.param(2, "", ["a", "<end>", "b"], ["a", "<end>", "b"], id="with another mark, by the last token"),
        pytest.param(2, "<think>", ["<th", "ink>", "a", "b"], ["<th", "ink>", 7, 8, "a", "b"], id="the answer begins them"),
        pytest.param(0, "<think>", ["\n", "<think>", "a"], ["\n", "<think>", 7, 8, "a"], id="the answer begins what is not wanted"),
        pytest.param(0, "<think>", ["Hi", "<think>", "a"], ["Hi", "<think>", "a"], id="an answer without thoughts"),
    ],
)
def test_thoughts_are_closed(budget: int, start: str, pieces: list[str], expected: list[str | int]) -> None:
    assert written(budget, start, pieces) == expected


def test_the_end_of_an_answer_that_must_continue_only_ends_its_thoughts() -> None:
    limit = ThoughtLimit(ThoughtBudget(None, "", ("</think>",), must_continue=True), CLOSING)
    limit.accept(b"a")
    assert limit.next_token is None
    for token in CLOSING:
        assert (limit.end(), limit.next_token) == (token, token)
        limit.accept(b"")
    assert (limit.end(), limit.next_token) == (None, None)


@pytest.mark.parametrize("budget", [ThoughtBudget(9, "", ("</think>",)), ThoughtBudget(9, "<think>", ("</think>",), must_continue=True)])
def test_an_answer_that_need_not_continue_or_has_no_thoughts_ends(budget: ThoughtBudget) -> None:
    limit = ThoughtLimit(budget, CLOSING)
    limit.accept(b"a")
    assert limit.end() is None
