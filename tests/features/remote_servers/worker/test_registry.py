"""The `http` backend: services in a registry, each with one model and its own answer format."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from features.remote_servers.worker import registry, remote_models
from features.remote_servers.worker.remote_backend import RemoteBackend
from features.remote_servers.worker.rules.event_stream import BadStream
from services.inference.models.catalog import RemoteModel
from shared import errors
from shared.api.generation import ChatMessage, FormatKind, GenerationEnd, OutputFormat, Tool, Usage
from shared.api.inference import ModelState
from shared.types import FinishReason, ModelName
from tests.services.inference import asked
from tests.services.inference.fake_http import Answer, FakeServer, serving
from tests.services.inference.standins import Reader, Watch, until
from tests.services.inference.vector_reader import VectorReader, texts_for

HEALTHY = Answer(["ok"], headers={"content-type": "text/plain"})
NAME = ModelName("llm-gptq")


@asynccontextmanager
async def asking(
    answer: Answer | list[Answer], *, health: Answer | list[Answer] = HEALTHY, **more: Any
) -> AsyncIterator[tuple[FakeServer, RemoteBackend]]:
    async with serving({"/infer": answer, "/healthz": health}) as server:
        entry = RemoteModel(NAME, server.url.removeprefix("http://"), "/infer", **more)
        async with registry.opened((entry,), 4, 32, Watch()) as backend:
            await until(lambda: backend.models()[0].state is ModelState.READY)
            yield server, backend


def job(prompt: str | tuple[ChatMessage, ...] = "hi there", **sampling: Any) -> Any:
    return asked.job(prompt, model=NAME, **{"max_tokens": 9, **sampling})


def whole(body: object) -> Answer:
    return Answer([json.dumps(body)])


async def test_a_prompt_and_its_answer() -> None:
    reader = Reader()
    usage = {"prompt_tokens": 5, "completion_tokens": 3}
    async with asking(whole({"text": "Hello you", "usage": usage, "finish_reason": "length"})) as (server, backend):
        end = await backend.generate(job(seed=3, stop=("x",), temperature=0.5), reader)
        sent = {"max_tokens": 9, "temperature": 0.5, "seed": 3, "prompt": "hi there", "stop": ["x"]}
        assert server.asked == [{"model": NAME, "payload": sent}]
        talk = (ChatMessage("system", "be kind"), ChatMessage("user", "hi"))
        await backend.generate(job(talk), Reader())
        assert server.asked[1]["payload"]["messages"] == [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hi"}]
    assert (reader.accepted, reader.text, reader.token_ids) == (True, "Hello you", [])
    assert end == GenerationEnd(FinishReason.LENGTH, Usage(5, 3))


async def test_an_open_ended_answer_has_no_limit() -> None:
    async with asking(whole({"text": "Hello you"})) as (server, backend):
        await backend.generate(replace(job(max_tokens=32_768), open_ended=True), Reader())
        assert server.asked[0]["payload"] == {"prompt": "hi there"}


async def test_a_service_may_have_a_port_and_require_a_token(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret-one\n", encoding="utf-8")
    async with serving({"/infer": whole({"text": "Hello"}), "/healthz": HEALTHY}) as server:
        host, _, port = server.url.removeprefix("http://").rpartition(":")
        entry = RemoteModel(NAME, host, "/infer", port=int(port), token_file=tmp_path / "token")
        async with registry.opened((entry,), 4, 32, Watch()) as backend:
            await until(lambda: backend.models()[0].state is ModelState.READY)
            await backend.generate(job(), Reader())
        assert all("authorization: bearer secret-one" in head for head in server.headers)
        (tmp_path / "two").write_text("secret-one\r\nx-evil: 1", encoding="utf-8")
        with pytest.raises(errors.BadSettings, match="service of llm-gptq in MODELS_YAML: a key has") as refused:
            async with registry.opened((replace(entry, token_file=tmp_path / "two"),), 4, 32, Watch()):
                pass
        assert "secret-one" not in str(refused.value)
        missing = replace(entry, token_file=tmp_path / "none")
        with pytest.raises(errors.BadSettings, match="token_file of llm-gptq in MODELS_YAML cannot be read"):
            async with registry.opened((missing,), 4, 32, Watch()):
                pass


async def test_a_service_without_counts_is_counted_by_bytes() -> None:
    async with asking(whole({"text": "x" * 21})) as (_, backend):
        end = await backend.generate(job("four words are here"), Reader())
        assert end == GenerationEnd(FinishReason.STOP, Usage(4, 6))
        short = await backend.generate(job(max_tokens=2), Reader())
        assert short.usage.completion_tokens == 2, "no more than was asked for"
    async with asking(whole({"text": "x" * 21, "usage": {"prompt_tokens": -1, "completion_tokens": 99}})) as (_, backend):
        assert (await backend.generate(job(), Reader())).usage == Usage(2, 1), "impossible counts are replaced"


async def test_vectors_come_one_by_one() -> None:
    reader = VectorReader()
    async with asking([whole({"embedding": [3.0, 4.0]}), whole({"embedding": [0.0, 2.0]})]) as (server, backend):
        end = await backend.embed(texts_for(NAME, ("a b", "c")), reader)
        assert [one["payload"] for one in server.asked] == [{"input": "a b"}, {"input": "c"}]
    assert [pytest.approx(vector) for vector in reader.vectors] == [(0.6, 0.8), (0.0, 1.0)]
    assert (end.dimensions, end.prompt_tokens, reader.accepted) == (2, 3, True)


@pytest.mark.parametrize(
    ("body", "pointer", "text"),
    [
        ({"text": "a", "output": "b"}, None, "a"),
        ({"output": "b", "text": 7}, None, "b"),
        ({"response": "c"}, None, "c"),
        ({"generated_text": "d"}, None, "d"),
        ([{"generated_text": "e"}], None, "e"),
        ({"choices": [{"message": {"content": "f"}}]}, None, "f"),
        ({"choices": [{"text": "g"}]}, None, "g"),
        ({"text": ""}, None, ""),
        ({"text": "no", "a/b": [0, {"~": "yes"}]}, "/a~1b/1/~0", "yes"),
        ("whole", "", "whole"),
    ],
)
def test_where_the_text_is(body: object, pointer: str | None, text: str) -> None:
    assert registry.read_text(json.dumps(body).encode(), pointer).text == text


@pytest.mark.parametrize(
    ("body", "pointer", "vector"),
    [
        ({"embedding": [1, 2.5]}, None, (1.0, 2.5)),
        ({"embeddings": [[1]]}, None, (1.0,)),
        ({"data": [{"embedding": [2]}]}, None, (2.0,)),
        ({"output": [3]}, None, (3.0,)),
        ({"v": {"x": [4]}}, "/v/x", (4.0,)),
    ],
)
def test_where_the_vector_is(body: object, pointer: str | None, vector: tuple[float, ...]) -> None:
    assert registry.read_vector(json.dumps(body).encode(), pointer).vectors == (vector,)


def test_answers_without_what_was_asked_for() -> None:
    with pytest.raises(BadStream, match="no text in its answer; set `answer`"):
        registry.read_text(b'{"embedding": [1]}', None)
    with pytest.raises(BadStream, match="no text at '/a/7'"):
        registry.read_text(b'{"a": ["x"]}', "/a/7")
    for wrong in (b'{"embedding": []}', b'{"embedding": ["1"]}', b'{"text": "x"}', b"[]", b"null"):
        with pytest.raises(BadStream, match="no vector in its answer"):
            registry.read_vector(wrong, None)


@pytest.mark.parametrize(
    ("answer", "kind", "said"),
    [
        pytest.param(Answer(["{"]), errors.Unavailable, "broke its protocol", id="no JSON"),
        pytest.param(Answer(["[" * 100_000]), errors.Unavailable, "broke its protocol", id="brackets"),
        pytest.param(whole({"x": 1}), errors.Unavailable, "no text in its answer", id="no text"),
        pytest.param(Answer([json.dumps("x" * (4 * 1024 * 1024))]), errors.Unavailable, "more than", id="too long"),
        pytest.param(Answer([""], headers={"content-type": "text/html"}), errors.Unavailable, "text/html", id="a page"),
        pytest.param(Answer(['{"error": "bad field"}'], status=400), errors.BadRequest, "bad field", id="refused"),
        pytest.param(Answer(["{}"], status=500), errors.Unavailable, "status 500", id="failed"),
        pytest.param(Answer(["{}"], status=429, headers={"retry-after": "9"}), errors.Overloaded, "no more requests", id="busy"),
    ],
)
async def test_what_a_failure_means(answer: Answer, kind: type[errors.AimeshError], said: str) -> None:
    async with asking(answer) as (_, backend):
        with pytest.raises(kind, match=said):
            await backend.generate(job(), Reader())


@pytest.mark.parametrize(
    "asked_for",
    [
        {"tools": (Tool("f", "", "{}"),)}, {"format": OutputFormat(FormatKind.JSON)}, {"top_logprobs": 1}, {"n": 2}, {"min_p": 0.1},
        {"raw": True},
    ],
)  # fmt: skip
async def test_what_it_cannot_pass_on_is_refused(asked_for: dict[str, Any]) -> None:
    async with asking(whole({"text": "x"})) as (server, backend):
        with pytest.raises(errors.BadRequest, match="cannot be passed on"):
            await backend.generate(job(**asked_for), Reader())
        assert server.asked == []


async def test_an_answer_is_never_continued() -> None:
    async with asking(whole({"text": "x"})) as (_, backend):
        with pytest.raises(errors.Unavailable, match="cannot continue"):
            await backend.generate(replace(job(), delivered=(1,)), Reader())


async def test_a_service_is_ready_while_it_is_healthy() -> None:
    async with serving({"/healthz": Answer(["down"], status=503)}) as server:
        entry = RemoteModel(NAME, server.url, "/infer", aliases=(ModelName("gptq"),), context_tokens=512)
        async with registry.opened((entry,), 4, 32, Watch()) as backend:
            await until(lambda: "503" in backend.models()[0].detail)
            assert backend.models()[0].state is ModelState.LOADING
    async with asking(whole({}), aliases=(ModelName("gptq"),), context_tokens=512, slots=2) as (_, backend):
        assert [(one.model_id, one.context_tokens, one.slots, one.provider) for one in backend.models()] == [
            (NAME, 512, 2, ""), ("gptq", 512, 2, "")
        ]  # fmt: skip


async def test_a_public_address_is_a_provider() -> None:
    async with registry.opened((RemoteModel(NAME, "https://8.8.8.8", "/infer"),), 4, 32, Watch()) as backend:
        assert [await remote_models.find_provider(one.models._upstream) for one in backend.servers] == ["8.8.8.8"]


async def test_registries_that_cannot_work() -> None:
    with pytest.raises(errors.BadSettings, match="no entry with `service`"):
        async with registry.opened((), 4, 32, Watch()):
            pass
    with pytest.raises(errors.BadSettings, match="service of llm-gptq in MODELS_YAML: the URL must be"):
        async with registry.opened((RemoteModel(NAME, "ftp://x", "/infer"),), 4, 32, Watch()):
            pass
