"""A model with a sliding window: its tokens are the same with a cached prefix and without."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import msgspec
import pytest

from services.inference.engine import llama_model, model_loading, prompt_cache
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
from tests import gguf_files, tiers
from tests.gguf_files import LlamaShape
from tests.services.inference.engine.commands import handle

SLOTS, WINDOW = 4, 32
SHAPE = LlamaShape(layers=4, embedding=64, heads=4, kv_heads=2, feed_forward=96, vocabulary=300, context=2048, window=WINDOW)
CHUNK = 8192
CHUNKED = LlamaShape(layers=4, embedding=32, heads=2, kv_heads=1, feed_forward=32, vocabulary=300, context=CHUNK + 256, chunked=True)
PAGE = "A page that several questions share, and that is longer than the window is. "
#: At a temperature, rounding would soon change the tokens, except in `exact`.
GREEDY = Parameters(0, 1, 0, 1, max_tokens=12, ignore_eos=True)
#: How cells are used, and whether layers with a window keep all of them.
KINDS = [(mode, keeps_all) for mode in KvMode for keeps_all in (True, False)]
BY_DAY = [(KvMode.SHARED, True), (KvMode.EXACT, False)]
numbers = count(1)


@contextmanager
def opened(folder: Path, shape: LlamaShape, context: int, mode: KvMode, *, keeps_all: bool) -> Iterator[LlamaModel]:
    file = folder / "model.gguf"
    gguf_files.write_llama(file, shape, weights="q8_0", seed=1)
    with pytest.MonkeyPatch.context() as patch:
        # As on a GPU, but computed on the CPU.
        patch.setattr(model_loading, "on_gpu", lambda _: not keeps_all)
        patch.setattr(model_loading, "GPU_STEP_TOKENS", 64)
        with llama_model.opened(LoadCommand(str(file), SLOTS, context, 1, 0, mode), lambda _: None) as model:
            yield model


@pytest.fixture(scope="module", params=tiers.by_day(KINDS, *BY_DAY, group="long"), ids=str)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaModel]:
    mode, keeps_all = request.param
    with opened(tmp_path_factory.mktemp("models"), SHAPE, 1024, mode, keeps_all=keeps_all) as model:
        yield model


@pytest.fixture(scope="module", params=tiers.by_day(BY_DAY, BY_DAY[0], group="long"), ids=str)
def chunked(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaModel]:
    mode, keeps_all = request.param
    with opened(tmp_path_factory.mktemp("models"), CHUNKED, CHUNKED.context, mode, keeps_all=keeps_all) as model:
        yield model


def ask(loop: EngineLoop, question: str, *, salt: str = "", delivered: tuple[int, ...] = (), most: int = 12) -> tuple[list[int], int]:
    """Return the answer's tokens, and how many tokens of the prompt were cached."""
    identity = next(numbers)
    command = StartGeneration(identity, PreparedPrompt(question), msgspec.structs.replace(GREEDY, max_tokens=most), salt, delivered)
    assert isinstance(handle(loop, command), GenerationAccepted)
    answered: list[AnswerProgress] = []
    while not loop.idle:
        step = loop.step()
        answered += step.progress if step is not None else ()
    return [token for progress in answered for token in progress.token_ids], max(progress.cached_tokens for progress in answered)


def fresh(model: LlamaModel, cache_bytes: int = 0) -> EngineLoop:
    for slot in range(SLOTS):
        model.clear(slot)
    return EngineLoop(model, slots=SLOTS, cache_bytes=cache_bytes)


def test_tokens_are_the_same_after_a_cached_prefix(model: LlamaModel, request: pytest.FixtureRequest) -> None:
    questions = (PAGE * 10, PAGE + "What?", PAGE * 10 + "Who?", PAGE * 5 + "When?", PAGE + "Where?")
    alone = {question: ask(fresh(model), question)[0] for question in questions}
    loop = fresh(model)
    cached = {}
    for question, tokens in alone.items():
        # Another tenant's text needs cells. Layers with a window free those that have left their window.
        ask(loop, "x" * 700, salt="b")
        found, cached[question] = ask(loop, question, salt="a")
        assert found == tokens
    if request.node.callspec.params["model"][1]:
        assert min(cached[question] for question in questions[1:]) >= len(PAGE)
    else:
        assert cached[PAGE + "What?"] == 0, "its window is gone"


def test_resumed_answer_is_the_same(model: LlamaModel) -> None:
    whole, _ = ask(fresh(model), PAGE * 3)
    loop = fresh(model)
    ask(loop, PAGE * 3, salt="a")
    assert ask(loop, PAGE * 3, salt="a", delivered=tuple(whole[:6]))[0] == whole[6:]


def test_prompts_come_back_from_the_prompt_cache(model: LlamaModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt_cache, "WORTH_SAVING_TOKENS", 16)
    monkeypatch.setattr(prompt_cache, "COPY_SECONDS", 10.0)
    page = PAGE * 3
    whole = ask(fresh(model), page, most=20)[0]
    others, cached = count(), []
    for question, delivered in ((page, ()), (page + "Who?", ()), (page, tuple(whole[:6])), (page, tuple(whole[:12]))):
        tokens = ask(fresh(model), question, delivered=delivered, most=20)[0]
        loop = fresh(model, 2**26)
        ask(loop, page, salt="a")
        for _ in range(SLOTS):
            ask(loop, f"{next(others)}" + "x" * 300, salt=f"{next(others)}")
        found, kept = ask(loop, question, salt="a", delivered=delivered, most=20)
        assert found == tokens
        cached.append(kept)
    assert cached == [len(page) - 1] * 4


def test_prompts_that_are_longer_than_a_chunk_come_back_too(chunked: LlamaModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt_cache, "COPY_SECONDS", 10.0)
    prompt = PAGE * (CHUNK // len(PAGE) + 2)
    loop = fresh(chunked, 2**28)
    whole = ask(loop, prompt, salt="a")
    for number in range(SLOTS):
        ask(loop, f"{number}" + "x" * 300, salt=f"{number}")
    assert ask(loop, prompt, salt="a") == (whole[0], len(prompt) - 1)


def test_shared_prefix_leaves_room_for_others(model: LlamaModel) -> None:
    """llama.cpp doesn't reuse cells that several sequences share, even when their windows have passed them."""
    questions = (PAGE * 3, PAGE * 3, "x" * 600)
    alone = [ask(fresh(model), question, most=30)[0] for question in questions]
    loop = fresh(model)
    assert [ask(loop, question, salt=question[0], most=30)[0] for question in questions] == alone
