import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.inference.engine import sequence
from services.inference.engine.engine_messages import AnswerProgress
from services.inference.engine.prompt_cache import HashedTokens
from services.inference.engine.sampling import Parameters
from services.inference.engine.sequence import DrawnToken, ImagePrompt
from services.inference.images.prompt_images import ImageSpan
from shared import errors
from shared.types import FinishReason

STOP, LENGTH = FinishReason.STOP, FinishReason.LENGTH


def start(prompt: int = 4, context: int = 16, max_tokens: int | None = None) -> sequence.Sequence:
    parameters = Parameters(temperature=0, top_p=1, top_k=0, seed=0, max_tokens=max_tokens)
    return sequence.start(1, 0, ImagePrompt(HashedTokens(list(range(prompt)))), parameters, context_tokens=context)


def replayed(pieces: list[bytes], **start_with: int | None) -> sequence.Sequence:
    running = start(**start_with)  # type: ignore[arg-type]  # the parameters of `start`
    for token, piece in enumerate(pieces):
        running.replay(token, piece)
    return running


def test_tokens_continue_until_the_model_ends() -> None:
    running = start()
    assert running.append(DrawnToken(7), b"Hi") == AnswerProgress(1, (7,), "Hi")
    assert running.append(DrawnToken(8), b" you") == AnswerProgress(1, (8,), " you")
    assert running.append(DrawnToken(2), None) == AnswerProgress(1, (), "", STOP)
    assert running.tokens == [0, 1, 2, 3, 7, 8]


@pytest.mark.parametrize(
    ("tokens", "image", "pause"),
    [
        pytest.param(20, None, 12, id="before its last tokens"),
        pytest.param(20, ImageSpan(10, 12, 2), 12, id="behind an image"),
        pytest.param(20, ImageSpan(10, 14, 4), 14, id="not in an image"),
        pytest.param(8, None, 0, id="a short prompt"),
    ],
)
def test_reading_pauses_near_the_end(tokens: int, image: ImageSpan | None, pause: int) -> None:
    prompt = ImagePrompt(HashedTokens(list(range(tokens)), () if image is None else (image,)))
    running = sequence.start(1, 0, prompt, Parameters(temperature=0, top_p=1, top_k=0, seed=0), context_tokens=64)
    for pauses in (True, False):
        running.begin(0, pauses=pauses)
        assert running.pause == pauses * pause


# --- finish reasons ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("max_tokens", "pieces", "text", "finish"),
    [
        pytest.param(3, [b"\xf0", b"\x9f", b"\x98"], "", LENGTH, id="a character that is never complete is no text"),
        pytest.param(4, [b"\xf0", b"\x9f", b"\x98", b"\x80"], "😀", LENGTH, id="a character over four tokens"),
        pytest.param(2, [b"\xff", b"a"], "�a", LENGTH, id="what is no character at all"),
        pytest.param(2, [b"", b"a"], "a", LENGTH, id="a token without bytes counts"),
    ],
)
def test_finish_reason_and_visible_text(max_tokens: int | None, pieces: list[bytes | None], text: str, finish: FinishReason) -> None:
    running = start(max_tokens=max_tokens)
    taken = [running.append(DrawnToken(token), piece) for token, piece in enumerate(pieces)]
    assert "".join(one.text for one in taken) == text
    assert [one.finish for one in taken] == [None] * (len(pieces) - 1) + [finish]
    assert [one.token_ids for one in taken] == [() if piece is None else (token,) for token, piece in enumerate(pieces)]


@given(st.text(max_size=30), st.integers(1, 4))
def test_text_does_not_depend_on_token_boundaries(text: str, size: int) -> None:
    raw = text.encode("utf-8", "surrogatepass")
    pieces = [raw[at : at + size] for at in range(0, len(raw), size)]
    running = start(context=4096)
    shown = "".join(running.append(DrawnToken(1), piece).text for piece in pieces) + running.append(DrawnToken(2), None).text
    assert shown == raw.decode("utf-8", "replace")


# --- limits -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "context", "requested", "limit"),
    [
        pytest.param(4, 16, None, 12, id="what fits, without a wish"),
        pytest.param(4, 65_536, None, 65_532, id="all of it"),
        pytest.param(4, 16, 3, 3, id="the wish"),
        pytest.param(4, 16, 16, 12, id="what fits, of a larger wish"),
        pytest.param(4, 16, 2**63 - 1, 12, id="what fits, of the largest wish"),
        pytest.param(15, 16, None, 1, id="one token behind the longest prompt"),
    ],
)
def test_token_limit(prompt: int, context: int, requested: int | None, limit: int) -> None:
    assert start(prompt, context, requested).limit == limit


def test_prompt_that_fills_the_context_is_refused_with_both_numbers() -> None:
    with pytest.raises(errors.ContextExceeded, match=r"16 tokens > 15 maximum; this model's maximum context length is 16"):
        start(prompt=16)


def test_prompt_without_tokens_is_refused() -> None:
    with pytest.raises(errors.BadRequest, match="empty"):
        start(prompt=0)


# --- another worker's tokens ---------------------------------------------------------------------------------------------------------


def test_delivered_tokens_count_toward_the_limit() -> None:
    running = replayed([b"a", b"b"], max_tokens=3)
    assert running.append(DrawnToken(7), b"c") == AnswerProgress(1, (7,), "c", LENGTH)
    assert running.tokens == [0, 1, 2, 3, 0, 1, 7]


def test_character_may_start_in_delivered_tokens() -> None:
    assert replayed([b"h\xc3"]).append(DrawnToken(7), b"\xa4") == AnswerProgress(1, (7,), "ä")


@pytest.mark.parametrize(
    ("pieces", "over"),
    [
        pytest.param([b"a", b"b"], b"c", id="at its limit"),
        pytest.param([b"a"], None, id="with the model's end"),
    ],
)
def test_complete_answer_is_refused(pieces: list[bytes], over: bytes | None) -> None:
    running = replayed(pieces, max_tokens=3)
    with pytest.raises(errors.BadRequest, match=r"^delivered: ") as refused:
        running.replay(9, over)
    assert refused.value.hint


@given(
    st.text("abEND\näß😀", min_size=1, max_size=20),
    st.integers(1, 3),
    st.integers(1, 25),
    st.data(),
)
def test_replayed_tokens_give_the_same_state(text: str, size: int, limit: int, data: st.DataObject) -> None:
    raw = text.encode()
    pieces = [raw[at : at + size] for at in range(0, len(raw), size)]
    whole = start(context=4096, max_tokens=limit)
    taken: list[AnswerProgress] = []
    for token, piece in enumerate([*pieces, None]):
        taken.append(whole.append(DrawnToken(token), piece))
        if taken[-1].finish is not None:
            break
    split = data.draw(st.integers(0, len(taken) - 1))
    resumed = replayed(pieces[:split], context=4096, max_tokens=limit)
    assert [resumed.append(DrawnToken(token), ([*pieces, None])[token]) for token in range(split, len(taken))] == taken[split:]
    assert resumed.tokens == whole.tokens


# --- reading -------------------------------------------------------------------------------------------------------------------------


def test_existing_tokens_may_be_read_in_bulk() -> None:
    running = replayed([b"a", b"b"])
    running.begin(2)
    assert (running.fed, running.bulk, running.cached, running.reading) == (2, 6, 2, True)


def test_only_prompt_tokens_count_as_cached() -> None:
    running = replayed([b"a", b"b"])
    running.begin(5)
    assert running.cached == 4
