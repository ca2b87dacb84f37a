"""A model with recurrent states: its tokens are the same with a checkpoint and without."""

from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from services.inference.engine import llama_model, prompt_cache
from services.inference.engine.engine_loop import EngineLoop
from services.inference.engine.engine_messages import (
    AnswerProgress,
    GenerationAccepted,
    KvMode,
    LoadCommand,
    PreparedPrompt,
    StartGeneration,
)
from services.inference.engine.llama_model import LlamaModel
from services.inference.engine.sampling import Parameters
from services.inference.engine.sequence import LAST_TOKENS
from tests import gguf_files
from tests.gguf_files import LlamaShape
from tests.services.inference.engine.commands import handle

#: Enough for `shared` to use a pool.
SLOTS = 8
SHAPE = LlamaShape(layers=4, embedding=64, heads=2, kv_heads=2, feed_forward=96, vocabulary=300, context=4096, hybrid=True)
PAGE = "A page that several questions share. " * 10
#: How much of the page other prompts can reuse.
LEFT = len(PAGE) - LAST_TOKENS
WILD = Parameters(1.0, 1.0, 0, 7, max_tokens=12)
numbers = count(1)


@pytest.fixture(scope="module", params=list(KvMode))
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaModel]:
    file: Path = tmp_path_factory.mktemp("models") / "hybrid.gguf"
    # In `exact`, tokens of Q8_0 have the same bits in pieces of any size, even of one token. `shared` doesn't guarantee that, but with F16
    # the differences are so small that the same tokens are drawn.
    gguf_files.write_llama(file, SHAPE, weights="q8_0" if request.param is KvMode.EXACT else "f16", seed=1)
    with llama_model.opened(LoadCommand(str(file), SLOTS, 2048, 1, 0, request.param), lambda _: None) as opened:
        yield opened


def ask(loop: EngineLoop, *questions: str, salt: str = "", delivered: tuple[int, ...] = ()) -> list[tuple[list[int], int]]:
    """Return each answer's tokens, and how many tokens of its prompt were cached. The answers run at the same time."""
    answered: dict[int, list[AnswerProgress]] = {}
    for question in questions:
        identity = next(numbers)
        answered[identity] = []
        command = StartGeneration(identity, PreparedPrompt(question), WILD, salt, delivered)
        assert isinstance(handle(loop, command), GenerationAccepted)
    while not loop.idle:
        step = loop.step()
        for progress in step.progress if step is not None else ():
            answered[progress.id].append(progress)
    return [
        ([token for progress in each for token in progress.token_ids], max(progress.cached_tokens for progress in each))
        for each in answered.values()
    ]


def fresh(model: LlamaModel, cache_bytes: int = 0) -> EngineLoop:
    for slot in range(SLOTS):
        model.clear(slot)
    return EngineLoop(model, slots=SLOTS, cache_bytes=cache_bytes)


def test_same_prompt_and_next_turn_go_back_to_near_the_end_of_the_last_prompt(model: LlamaModel) -> None:
    # In the next turn of a chat, the tokens at the start of the answer may differ.
    turns = [PAGE, PAGE, PAGE[:-7] + "next", PAGE + "What?", PAGE + "What? And who?", PAGE + "What?", PAGE + "Where?"]
    alone = [ask(fresh(model), turn)[0][0] for turn in turns]
    loop = fresh(model)
    found = [ask(loop, turn, salt="a")[0] for turn in turns]
    assert [tokens for tokens, _ in found] == alone
    assert [cached for _, cached in found] == [0, LEFT, LEFT, LEFT, LEFT + 5, LEFT + 5, LEFT + 5]


def test_long_prompt_has_checkpoints_inside(model: LlamaModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama_model, "CHECKPOINT_TOKENS", 128)
    alone = ask(fresh(model), PAGE * 2 + "Who?")[0][0]
    loop = fresh(model)
    ask(loop, PAGE * 3, salt="a")
    ((tokens, cached),) = ask(loop, PAGE * 2 + "Who?", salt="a")
    assert (tokens, 2 * len(PAGE) - 160 < cached <= 2 * len(PAGE)) == (alone, True)
    assert model._checkpoints is not None
    assert all(len(saved) <= llama_model.MAX_CHECKPOINTS for saved in model._checkpoints._saved.values())
    monkeypatch.setattr(llama_model, "MAX_CHECKPOINT_BYTES", 1)
    ask(loop, PAGE * 3 + "Where?", salt="a")
    assert min(len(saved) for saved in model._checkpoints._saved.values()) == 1


def test_prefix_of_a_running_answer_is_copied_with_its_states(model: LlamaModel) -> None:
    questions = [PAGE + word for word in ("one", "two", "three")]
    alone = [ask(fresh(model), question)[0][0] for question in questions]
    loop = fresh(model)
    ask(loop, PAGE, salt="a")
    found = ask(loop, *questions, salt="a")
    assert [tokens for tokens, _ in found] == alone
    assert [cached for _, cached in found] == [LEFT] * 3


def test_same_prompts_at_the_same_time_are_read_once(model: LlamaModel) -> None:
    questions = [PAGE, PAGE, PAGE + "What?"]
    alone = [ask(fresh(model), question)[0][0] for question in questions]
    found = ask(fresh(model), *questions, salt="a")
    assert [tokens for tokens, _ in found] == alone
    assert [cached for _, cached in found] == [0, LEFT, LEFT]


def test_resumed_answer_is_the_same(model: LlamaModel) -> None:
    whole = ask(fresh(model), PAGE)[0][0]
    loop = fresh(model)
    ask(loop, PAGE, salt="a")
    ((rest, cached),) = ask(loop, PAGE, salt="a", delivered=tuple(whole[:6]))
    assert (rest, cached) == (whole[6:], LEFT)


def test_prompts_come_back_from_the_prompt_cache(model: LlamaModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt_cache, "WORTH_SAVING_TOKENS", 16)
    monkeypatch.setattr(prompt_cache, "COPY_SECONDS", 10.0)
    whole = tuple(ask(fresh(model), PAGE)[0][0])
    asked = [(PAGE, ()), (PAGE + "What?", ()), (PAGE, whole[:6]), (PAGE[:-9] + "Who?", ()), (PAGE + "What? And who?", ())]
    alone = [ask(fresh(model), question, delivered=delivered)[0][0] for question, delivered in asked]
    loop, others, cached = fresh(model, 2**26), count(), []
    for (question, delivered), tokens in zip(asked, alone, strict=True):
        ask(loop, PAGE, salt="a")
        for _ in range(2 * SLOTS):
            ask(loop, f"{next(others)} is another text, which needs a slot of its own", salt=f"{next(others)}")
        ((found, kept),) = ask(loop, question, salt="a", delivered=delivered)
        assert found == tokens
        cached.append(kept)
    assert cached == [LEFT, LEFT, LEFT, 0, LEFT]


def test_other_tenant_gets_nothing(model: LlamaModel) -> None:
    loop = fresh(model)
    ask(loop, PAGE, salt="a")
    assert ask(loop, PAGE + "What?", salt="b")[0][1] == 0
