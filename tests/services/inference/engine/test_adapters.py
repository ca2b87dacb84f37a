"""LoRA adapters of one model take turns: each answer has the same tokens as when it runs alone."""

import random
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import httpx
import pytest

from bench import rivals
from services.inference.engine import llama_model
from services.inference.engine.engine_loop import EngineLoop
from services.inference.engine.engine_messages import (
    AnswerProgress,
    GenerationAccepted,
    GenerationRefused,
    KvMode,
    KvType,
    KvTypes,
    LoadCommand,
    LoadedAdapter,
    PreparedPrompt,
    StartGeneration,
)
from services.inference.engine.llama_model import LlamaModel
from services.inference.engine.sampling import Parameters
from shared.api.inference import TokenLogprob
from tests import gguf_files, tiers
from tests.gguf_files import LlamaShape
from tests.services.inference.engine.commands import handle
from tests.testnet import free_port

SLOTS, CONTEXT = 6, 512
SHAPE = LlamaShape(layers=3, embedding=64, heads=4, kv_heads=2, feed_forward=96, vocabulary=300, context=CONTEXT)
#: A difference of natural logarithms of probabilities.
NEARLY_EQUAL = 0.02
PAGE = "A page that the questions to all of them begin with, so that it could be shared. "
SERVER = rivals.programs_folder() / rivals.PROGRAMS[0]
numbers = count(1)


def write_files(folder: Path, adapters: int = 2, weights: gguf_files.AdapterWeights = "q8_0") -> tuple[str, tuple[LoadedAdapter, ...]]:
    gguf_files.write_llama(folder / "base.gguf", SHAPE, weights="q8_0", seed=1)
    files = [folder / f"adapter{number}.gguf" for number in range(1, adapters + 1)]
    for seed, file in enumerate(files, start=2):
        gguf_files.write_adapter(file, SHAPE, weights=weights, seed=seed)
    return str(folder / "base.gguf"), tuple(LoadedAdapter(str(file), 0.5 + seed / 10) for seed, file in enumerate(files))


@pytest.fixture(scope="module", params=list(KvMode))
def mode(request: pytest.FixtureRequest) -> KvMode:
    return KvMode(request.param)


@pytest.fixture(scope="module")
def model(mode: KvMode, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaModel]:
    base, adapters = write_files(tmp_path_factory.mktemp("models"))
    with llama_model.opened(LoadCommand(base, SLOTS, CONTEXT, 1, 0, mode, adapters=adapters), lambda _: None) as opened:
        yield opened


def fresh(model: LlamaModel, cache_bytes: int = 0) -> EngineLoop:
    for slot in range(SLOTS):
        model.clear(slot)
    return EngineLoop(model, slots=SLOTS, cache_bytes=cache_bytes)


def command(prompt: str, adapter: int = 0, *, salt: str = "", delivered: tuple[int, ...] = (), tokens: int = 16) -> StartGeneration:
    parameters = Parameters(0, 1, 0, 1, max_tokens=tokens, ignore_eos=True, top_logprobs=2)
    return StartGeneration(next(numbers), PreparedPrompt(prompt), parameters, salt, delivered, adapter)


def run(loop: EngineLoop, *commands: StartGeneration) -> list[tuple[int, ...]]:
    """Return the tokens of each answer."""
    return [tuple(token.drawn.token_id for token in answer) for answer in answers(loop, *commands)]


def answers(loop: EngineLoop, *commands: StartGeneration) -> list[list[TokenLogprob]]:
    for one in commands:
        assert isinstance(handle(loop, one), GenerationAccepted)
    answered: list[AnswerProgress] = []
    while not loop.idle:
        step = loop.step()
        assert step is not None
        answered += step.progress
    return [[token for one in answered if one.id == wanted.id for token in one.logprobs] for wanted in commands]


def is_same(mode: KvMode, alone: list[TokenLogprob], tokens: tuple[int, ...]) -> bool:
    """Return whether the answer is the same. Without flash attention, last bits depend on the batch, so equally likely tokens may swap."""
    for expected, token in zip(alone, tokens, strict=True):
        if token != expected.drawn.token_id:
            chances = {chance.token_id: chance.logprob for chance in expected.top}
            return mode is KvMode.SHARED and abs(chances.get(token, -9.0) - expected.drawn.logprob) < NEARLY_EQUAL
    return True


def prompts(number: int) -> list[tuple[str, int]]:
    """Return prompts of different lengths, some with a common beginning, each with an adapter or none."""
    rng = random.Random(number)
    return [(PAGE * rng.randrange(3) + rng.randbytes(rng.randrange(4, 40)).hex(), rng.randrange(3)) for _ in range(number)]


@pytest.mark.parametrize("asked", tiers.by_day([14, 210], 14, group="long"))
def test_tokens_in_turn_are_those_alone(model: LlamaModel, mode: KvMode, asked: int) -> None:
    wanted = prompts(asked)
    alone = [answers(fresh(model), command(prompt, adapter))[0] for prompt, adapter in wanted]
    loop = fresh(model, cache_bytes=2**26)
    together: list[tuple[int, ...]] = []
    for at in range(0, asked, 7):
        together += run(loop, *(command(prompt, adapter, salt="a") for prompt, adapter in wanted[at : at + 7]))
    assert all(is_same(mode, one, tokens) for one, tokens in zip(alone, together, strict=True))
    resumed = [
        command(prompt, adapter, salt="a", delivered=tuple(token.drawn.token_id for token in one[:7]))
        for (prompt, adapter), one in zip(wanted, alone, strict=True)
    ]
    assert all(is_same(mode, one[7:], tokens) for one, tokens in zip(alone, run(loop, *resumed), strict=True))


def test_each_adapter_has_its_own_answers_and_the_model_keeps_its_own(model: LlamaModel, mode: KvMode, tmp_path: Path) -> None:
    questions = [prompt for prompt, _ in prompts(4)]
    answers = {adapter: run(fresh(model), *(command(prompt, adapter) for prompt in questions)) for adapter in range(3)}
    assert all(len({answers[adapter][at] for adapter in range(3)}) == 3 for at in range(4))
    base, _ = write_files(tmp_path, adapters=0)
    with llama_model.opened(LoadCommand(base, SLOTS, CONTEXT, 1, 0, mode), lambda _: None) as plain:
        assert run(fresh(plain), *(command(prompt) for prompt in questions)) == answers[0]


def test_a_prefix_is_shared_with_no_other_adapter(model: LlamaModel) -> None:
    loop = fresh(model, cache_bytes=2**26)

    def cached(adapter: int) -> int:
        one = command(PAGE * 2 + "What?", adapter, salt="a", tokens=1)
        assert isinstance(handle(loop, one), GenerationAccepted)
        found = 0
        while not loop.idle:
            step = loop.step()
            assert step is not None
            found = max([found, *(progress.cached_tokens for progress in step.progress)])
        return found

    assert [cached(adapter) for adapter in (1, 2, 0)] == [0, 0, 0]
    assert min(cached(adapter) for adapter in (1, 2, 0)) >= len(PAGE)


@pytest.mark.skipif(not SERVER.exists(), reason="needs llama-server, which `python -m bench.rivals` builds in 10 minutes")
async def test_tokens_are_those_of_llama_server(tmp_path: Path) -> None:
    base, adapters = write_files(tmp_path)
    wanted, port, tokens = prompts(21), free_port(), []
    words = (
        SERVER,
        "--model",
        base,
        "--port",
        port,
        "-np",
        1,
        "-c",
        CONTEXT,
        "-t",
        1,
        "--no-warmup",
        "-fa",
        "off",
        "--lora-init-without-apply",
    )
    loras = ("--lora", ",".join(adapter.path for adapter in adapters))
    async with rivals.program((*words, *loras), port, "/health", 60), httpx.AsyncClient(trust_env=False, timeout=60) as http:
        for prompt, adapter in wanted:
            scales = [{"id": at, "scale": one.scale if at == adapter - 1 else 0.0} for at, one in enumerate(adapters)]
            body = {"prompt": prompt, "n_predict": 16, "temperature": 0, "ignore_eos": True, "return_tokens": True, "lora": scales}
            answer = await http.post(f"http://127.0.0.1:{port}/completion", json=body)
            tokens.append(tuple(answer.json()["tokens"]))
    # Compute attention like llama-server.
    load = LoadCommand(base, SLOTS, CONTEXT, 1, 0, KvMode.SHARED, KvTypes(KvType.F16, KvType.F16), adapters=adapters)
    with llama_model.opened(load, lambda _: None) as opened:
        assert run(fresh(opened), *(command(prompt, adapter) for prompt, adapter in wanted)) == tokens


def test_unusable_adapters_are_refused_and_the_others_answer(tmp_path: Path) -> None:
    base, (good, *_) = write_files(tmp_path, adapters=1)
    other = LlamaShape(layers=3, embedding=128, heads=4, kv_heads=2, feed_forward=96, vocabulary=300, context=CONTEXT)
    gguf_files.write_adapter(tmp_path / "other.gguf", other, seed=9)
    bad = (LoadedAdapter(str(tmp_path / "other.gguf"), 1.0), LoadedAdapter(str(tmp_path / "missing.gguf"), 1.0))
    with llama_model.opened(LoadCommand(base, 2, CONTEXT, 1, 0, adapters=(*bad, good)), lambda _: None) as opened:
        problems = opened.describe().adapter_problems
        assert "the shapes (128, 32) and (32, 128), but the model's tensor has (64, 64); it is for another model" in problems[0]
        assert problems[1].endswith("there is no such file")
        assert problems[2] == ""
        loop = EngineLoop(opened, slots=2)
        refused = handle(loop, command("What?", 1))
        assert isinstance(refused, GenerationRefused)
        assert (refused.problem.code, refused.problem.message) == ("unavailable", f"the adapter cannot be used here: {problems[0]}")
        assert isinstance(handle(loop, command("What?", 4)), GenerationRefused)
        assert all(run(loop, command("What?", 3), command("What?")))
