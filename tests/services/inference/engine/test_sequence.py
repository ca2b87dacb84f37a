import pytest

from services.inference.engine import sequence
from services.inference.engine.sampling import Parameters
from services.inference.engine.sequence import Taken
from shared import errors
from shared.types import FinishReason


def start(prompt: int = 4, context: int = 16, max_tokens: int | None = None, stop: tuple[str, ...] = ()) -> sequence.Sequence:
    parameters = Parameters(temperature=0, top_p=1, top_k=0, seed=0, max_tokens=max_tokens, stop=stop)
    return sequence.start(1, list(range(prompt)), parameters, context_tokens=context)


def test_tokens_go_on_until_the_model_ends() -> None:
    running = start()
    assert running.take(7, b"Hi") == Taken((7,), "Hi")
    assert running.take(8, b" you") == Taken((8,), " you")
    assert running.take(2, None) == Taken((), "", FinishReason.STOP)
    assert running.tokens == [0, 1, 2, 3, 7, 8]


def test_max_tokens_ends_it_and_shows_what_was_held_back() -> None:
    running = start(max_tokens=2, stop=("END",))
    assert running.take(7, b"x") == Taken((7,), "x")
    assert running.take(8, b" EN") == Taken((8,), " EN", FinishReason.LENGTH)


def test_a_stop_sequence_ends_it_and_its_last_token_counts() -> None:
    running = start(stop=("END",))
    assert running.take(7, b"x E") == Taken((7,), "x ")
    assert running.take(8, b"ND and more") == Taken((8,), "", FinishReason.STOP)


def test_a_stop_sequence_in_the_last_token_allowed_is_a_stop() -> None:
    assert start(max_tokens=1, stop=("x",)).take(7, b"ax") == Taken((7,), "a", FinishReason.STOP)


@pytest.mark.parametrize(
    ("prompt", "context", "asked", "limit"),
    [
        pytest.param(4, 16, None, 12, id="what fits, without a wish"),
        pytest.param(4, 4096, None, 512, id="the default, when more fits"),
        pytest.param(4, 16, 3, 3, id="the wish"),
        pytest.param(4, 16, 16, 12, id="what fits, of a larger wish"),
        pytest.param(15, 16, None, 1, id="one token behind the longest prompt"),
    ],
)
def test_how_many_tokens_there_may_be(prompt: int, context: int, asked: int | None, limit: int) -> None:
    assert start(prompt, context, asked).limit == limit


def test_a_prompt_that_fills_the_context_is_refused_with_both_numbers() -> None:
    with pytest.raises(errors.BadRequest, match=r"16 tokens.*holds 16"):
        start(prompt=16)


def test_a_prompt_without_tokens_is_refused() -> None:
    with pytest.raises(errors.BadRequest, match="empty"):
        start(prompt=0)
