"""Answers with token ids: their counts are exact, and another server can continue them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from features.remote_servers.worker import openai, server_watch, token_ids
from features.remote_servers.worker.remote_backend import RemoteBackend
from features.remote_servers.worker.remote_server import RemoteServer
from features.remote_servers.worker.rules.openai_answer import WrongIds
from features.remote_servers.worker.upstreams import Upstream
from shared import errors
from shared.api.generation import FormatKind, GenerationEnd, OutputFormat, ReasoningEffort, Tool, Usage
from shared.api.inference import Chunk
from shared.types import FinishReason, ModelName
from tests import tiers
from tests.features.remote_servers.worker.fake_token_servers import CONTEXT, MODEL, TokenServer, ids_of
from tests.features.remote_servers.worker.test_upstream_failover import FirstOfTie
from tests.services.inference.fake_http import serving
from tests.services.inference.standins import Reader, Watch, job, until

KINDS = ("vllm", "llama_cpp")
ANSWER = "Grüezi 🙃, hm"
IDS = ids_of(ANSWER)
#: The whole rendered prompt; a token is a byte.
PROMPT_TOKENS = len("<user>hi<assistant>")
WHOLE = GenerationEnd(FinishReason.STOP, Usage(PROMPT_TOKENS, len(IDS)))
DIGEST = "ab" * 32


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_watch, "LOOK_SECONDS", 0.02)


@asynccontextmanager
async def worker(*servers: TokenServer, digest: str = DIGEST, proved: bool = True) -> AsyncIterator[RemoteBackend]:
    async with AsyncExitStack() as stack:
        upstreams = []
        for number, server in enumerate(servers):
            fake = await stack.enter_async_context(serving(server.pages()))
            upstreams.append(Upstream(name=f"u{number}", url=f"{fake.url}/v1", only_models=(MODEL,), digest=digest, slots=4))
        backend = await stack.enter_async_context(openai.opened_all(tuple(upstreams), 4, 32, Watch(), rng=FirstOfTie()))
        await until(lambda: all(tokens(backend, number).proved(MODEL) for number in range(len(servers) if proved else 0)))
        await until(lambda: all(server.models.listing(ModelName(MODEL)) for server in backend.servers))
        yield backend


def tokens(backend: RemoteBackend, number: int = 0) -> Any:
    server = backend.servers[number]
    assert isinstance(server, RemoteServer)
    return server.tokens


def asked(**sampling: Any) -> Any:
    return job("hi", model=MODEL, **{"max_tokens": 100, **sampling})


def test_llama_servers_completion_names_the_stop_sequence() -> None:
    answers = token_ids.CompletionAssembly(1, str, has_ids=True)
    answers.push(b'{"content": "a", "tokens": [1], "tokens_predicted": 1}')
    answers.push(b'{"stop": true, "stop_type": "word", "stopping_word": "END", "tokens_predicted": 2}')
    assert (answers.stopped_by, answers.reasons()) == ("END", (FinishReason.STOP,))


@pytest.mark.parametrize("kind", KINDS)
async def test_counts_are_exact(kind: str) -> None:
    async with worker(TokenServer(kind, ANSWER)) as backend:
        reader = Reader()
        assert await backend.generate(asked(), reader) == WHOLE
        assert (reader.text, reader.token_ids, reader.prompt_tokens) == (ANSWER, IDS, PROMPT_TOKENS)
        short = Reader()
        assert await backend.generate(asked(max_tokens=3), short) == GenerationEnd(
            FinishReason.LENGTH, Usage(PROMPT_TOKENS, 2 if kind == "llama_cpp" else 3)
        )
        assert short.text == "Gr"


@pytest.mark.parametrize("kinds", [(one, other) for one in KINDS for other in KINDS])
@pytest.mark.parametrize("after", tiers.by_day(range(1, len(IDS) + 1), *range(1, len(IDS), 4), len(IDS), group="long"))
async def test_an_answer_continues_on_another_server(kinds: tuple[str, str], after: int) -> None:
    dying, other = TokenServer(kinds[0], ANSWER, dies_after=after), TokenServer(kinds[1], ANSWER)
    async with worker(dying, other) as backend:
        reader = Reader()
        assert await backend.generate(asked(), reader) == WHOLE
        assert (reader.text, reader.token_ids, len(dying.asked), len(other.asked)) == (ANSWER, IDS, 1, 1)
        ((_, request),) = other.asked
        assert request["max_tokens"] == 100 - len(request["prompt"]) + PROMPT_TOKENS


@pytest.mark.parametrize("kind", KINDS)
async def test_an_open_ended_answer_gets_what_the_context_has_left(kind: str) -> None:
    server = TokenServer(kind, ANSWER)
    async with worker(server) as backend:
        for delivered in (), tuple(IDS[:2]):
            open_ended = replace(asked(max_tokens=32_768), open_ended=True, delivered=delivered)
            end = await backend.generate(open_ended, Reader())
            assert end.usage == Usage(PROMPT_TOKENS, len(IDS) - len(delivered))
        assert [request["max_tokens"] for _, request in server.asked] == [CONTEXT - PROMPT_TOKENS, CONTEXT - PROMPT_TOKENS - 2]
        with pytest.raises(
            errors.ContextExceeded, match=f"{CONTEXT} tokens > {CONTEXT - 1} maximum; this model's maximum context length is {CONTEXT}"
        ):
            await backend.generate(job("a" * (CONTEXT - PROMPT_TOKENS + 2), model=MODEL, max_tokens=5), Reader())
        assert len(server.asked) == 2, "before any work"


@pytest.mark.parametrize("kind", KINDS)
async def test_a_server_is_not_asked_for_more_than_fits(kind: str) -> None:
    """vLLM answers 400 if max_tokens and the prompt together exceed the context."""
    server = TokenServer(kind, ANSWER)
    async with worker(server) as backend:
        assert await backend.generate(asked(max_tokens=CONTEXT), Reader()) == WHOLE
        assert [request["max_tokens"] for _, request in server.asked] == [CONTEXT - PROMPT_TOKENS]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_server_that_dies_behind_the_last_token_leaves_nothing_to_write(kind: str) -> None:
    limit = 5
    async with worker(TokenServer(kind, "abcdefg", dies_after=limit), TokenServer(kind, "abcdefg")) as backend:
        reader = Reader()
        end = await backend.generate(asked(max_tokens=limit), reader)
        assert (reader.text, end) == ("abcde", GenerationEnd(FinishReason.LENGTH, Usage(PROMPT_TOKENS, limit)))


@pytest.mark.parametrize("kind", KINDS)
async def test_what_another_worker_began_is_continued(kind: str) -> None:
    async with worker(TokenServer(kind, ANSWER)) as backend:
        for delivered in (1, 2, 4, len(IDS) - 1):
            reader = Reader()
            end = await backend.generate(replace(asked(), delivered=tuple(IDS[:delivered])), reader)
            assert (reader.token_ids, end.usage) == (IDS[delivered:], Usage(PROMPT_TOKENS, len(IDS) - delivered))
        with pytest.raises(errors.Unavailable, match="middle of a character"):
            await backend.generate(replace(asked(), delivered=tuple(IDS[:3])), Reader())
    async with worker(TokenServer("llama_cpp", ANSWER)) as backend:
        with pytest.raises(errors.Unavailable, match="stop sequence"):
            await backend.generate(replace(asked(stop=("rX",)), delivered=tuple(IDS[:2])), Reader())


@pytest.mark.parametrize(
    "sampling",
    [
        {"tools": (Tool("f"),)},
        {"format": OutputFormat(FormatKind.JSON)},
        {"n": 2},
        {"reasoning_effort": ReasoningEffort.LOW},
        {"chat_template_kwargs": '{"a": 1}'},
    ],
)
@pytest.mark.parametrize("kind", KINDS)
async def test_an_answer_that_is_not_plain_text_is_a_chat_without_ids(kind: str, sampling: dict[str, Any]) -> None:
    server = TokenServer(kind, ANSWER, dies_after=5)
    async with worker(server, TokenServer(kind, ANSWER)) as backend:
        reader = Reader()
        with pytest.raises(errors.Unavailable, match="before its end"):
            await backend.generate(asked(**sampling), reader)
        assert reader.text
        assert not reader.token_ids
        assert [path for path, _ in server.asked] == ["/v1/chat/completions"]
        with pytest.raises(errors.Unavailable, match="cannot continue"):
            await backend.generate(replace(asked(**sampling), delivered=(1,)), Reader())


@pytest.mark.parametrize("kind", KINDS)
async def test_without_the_same_digest_nothing_is_continued(kind: str) -> None:
    async with worker(TokenServer(kind, ANSWER, dies_after=5), TokenServer(kind, ANSWER), digest="") as backend:
        with pytest.raises(errors.Unavailable, match="before its end"):
            await backend.generate(asked(), Reader())


async def test_thoughts_are_not_continued_but_the_text_behind_them_is() -> None:
    thoughts = "Let me see"
    for after in (3, len(thoughts) + 4):
        dying = TokenServer("vllm", ANSWER, thoughts, dies_after=after)
        async with worker(dying, TokenServer("vllm", ANSWER, thoughts)) as backend:
            reader = Reader()
            if after < len(thoughts):
                with pytest.raises(errors.Unavailable, match="before its end"):
                    await backend.generate(asked(), reader)
                continue
            end = await backend.generate(asked(), reader)
            assert (reader.text, "".join(chunk.reasoning for chunk in reader.chunks)) == (ANSWER, thoughts)
            assert reader.token_ids == ids_of(thoughts + ANSWER)
            assert end.usage == Usage(PROMPT_TOKENS, len(thoughts) + len(IDS), 0, len(thoughts))
    async with worker(TokenServer("llama_cpp", ANSWER, thoughts)) as backend:
        reader = Reader()
        await backend.generate(asked(), reader)
        assert (reader.token_ids, reader.prompt_tokens) == ([], PROMPT_TOKENS), "only its chat tells them apart"


@pytest.mark.parametrize("kind", KINDS)
async def test_ids_that_a_probe_did_not_prove_are_not_used(kind: str) -> None:
    server = TokenServer(kind, ANSWER, wrong_prompt=1)
    async with worker(server, proved=False) as backend:
        await until(lambda: tokens(backend).failures[MODEL] == 3)
        reader = Reader()
        await backend.generate(asked(), reader)
        assert (reader.text, reader.token_ids, reader.prompt_tokens) == (ANSWER, [], None)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("wrong", ["wrong_ids", "wrong_count", "wrong_prompt"])
async def test_after_three_strikes_the_ids_are_off(kind: str, wrong: str) -> None:
    server = TokenServer(kind, ANSWER)
    async with worker(server) as backend:
        setattr(server, wrong, -1000)
        for _ in range(3):
            assert tokens(backend).proved(MODEL)
            if wrong == "wrong_ids":
                with pytest.raises(errors.Unavailable, match="out of range"):
                    await backend.generate(asked(), Reader())
            else:
                await backend.generate(asked(), Reader())
        assert not tokens(backend).proved(MODEL)
        reader = Reader()
        await backend.generate(asked(), reader)
        assert (reader.text, reader.token_ids) == (ANSWER, [])


async def test_wrong_ids_are_continued_by_a_server_with_right_ones() -> None:
    wrong, right = TokenServer("vllm", ANSWER), TokenServer("vllm", ANSWER)
    async with worker(wrong, right) as backend:
        wrong.wrong_ids = -1000
        reader = Reader()
        assert await backend.generate(asked(), reader) == WHOLE
        assert (reader.text, reader.token_ids) == (ANSWER, IDS)


@pytest.mark.parametrize(
    ("text", "pieces", "ids"),
    [
        pytest.param("\u00e9!", [" ", [195], [169], "!"], [1, 2, 3], id="a space before it is not its own"),
        pytest.param("ab", ["ab"], [0], id="one token"),
        pytest.param("ab", ["xb"], None, id="another text"),
        pytest.param("ab", ["a", "x", "b"], None, id="a token too many"),
        pytest.param("ab", [[97, 999], "b"], None, id="no bytes"),
    ],
)
async def test_the_tokens_of_a_text(text: str, pieces: list[Any], ids: list[int] | None) -> None:
    async def ask(path: str, body: Any, kind: Any) -> Any:
        return msgspec.convert({"tokens": [{"id": number, "piece": piece} for number, piece in enumerate(pieces)]}, kind)

    if ids is not None:
        assert list(await token_ids.tokens_of(ask, text)) == ids
        return
    with pytest.raises((WrongIds, msgspec.ValidationError), match=r"another text|<= 255"):
        await token_ids.tokens_of(ask, text)


class LeavingReader(Reader):
    """Disconnects in mid-answer."""

    async def send(self, item: Chunk) -> None:
        await super().send(item)
        if len(self.chunks) == 3:
            raise errors.LinkLost("the reader is gone")


async def test_nothing_is_continued_for_a_reader_that_left() -> None:
    other = TokenServer("vllm", ANSWER)
    async with worker(TokenServer("vllm", ANSWER), other) as backend:
        with pytest.raises(errors.LinkLost, match="the reader is gone"):
            await backend.generate(asked(), LeavingReader())
        assert not other.asked


async def test_an_older_server_that_does_not_know_the_limit_is_not_proved() -> None:
    server = TokenServer("llama_cpp", ANSWER, least_tokens=5)
    async with worker(server, proved=False) as backend:
        await until(lambda: tokens(backend).failures[MODEL] == 3)


async def test_a_server_that_hangs_in_mid_answer_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_watch, "HEALTH_SECONDS", 0.3)
    hanging, other = TokenServer("vllm", ANSWER, dies_after=5, hangs=True), TokenServer("vllm", ANSWER)
    async with worker(hanging, other) as backend:
        reader = Reader()
        answer = asyncio.create_task(backend.generate(asked(), reader))
        await until(lambda: reader.chunks)
        hanging.is_up = False
        async with asyncio.timeout(30):
            assert await answer == WHOLE
        assert (reader.text, reader.token_ids) == (ANSWER, IDS)


async def test_each_tenant_has_a_salt() -> None:
    server = TokenServer("vllm", ANSWER)
    async with worker(server) as backend:
        for salt in ("a", "b", "", ""):
            await backend.generate(replace(asked(), salt=salt), Reader())
    salts = [request["cache_salt"] for _, request in server.asked]
    assert salts[:2] == ["a", "b"]
    assert len(set(salts)) == 4, "nothing is shared without one"
