import pytest

from services.inference.engine.engine_messages import ThoughtBudget
from services.inference.engine.sequence import ThoughtLimit

CLOSING = [7, 8]


def written(budget: int, start: str, pieces: list[str]) -> list[str | int]:
    """The answer of a model that would write these pieces."""
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
