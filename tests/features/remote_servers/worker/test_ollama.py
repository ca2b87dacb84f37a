import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest

from features.remote_servers.worker import ollama
from features.remote_servers.worker.remote_backend import RemoteBackend
from features.remote_servers.worker.upstreams import Upstream
from shared import errors
from shared.api.generation import GenerationEnd, Tool, ToolCallPart, Usage
from shared.api.inference import ModelState
from shared.types import FinishReason
from tests.services.inference import asked
from tests.services.inference.fake_http import Answer, FakeServer, serving
from tests.services.inference.standins import Reader, Watch, job, until

DIGEST = "ab" * 32
LISTED = [{"name": "smollm2:latest", "digest": DIGEST}, {"name": "qwen3:8b", "digest": f"sha256:{DIGEST}"}, {"name": "x"}]
TAGS = Answer([json.dumps({"models": LISTED})])
END = '{"message": {"content": ""}, "done": true, "done_reason": "length", "prompt_eval_count": 12, "eval_count": 2}\n'
CHAT = Answer(
    [
        '{"message": {"role": "assistant", "content": "Hel"}, "done": false}\n{"message"',
        ': {"role": "assistant", "content": "lo"}, "done": false}\r\n\n',
        END,
    ]
)


@asynccontextmanager
async def asking(chat: Answer | list[Answer], **more: Any) -> AsyncIterator[tuple[FakeServer, RemoteBackend]]:
    """Yield a server, and a backend that has listed its models."""
    async with (
        serving({"/api/tags": TAGS, "/api/chat": chat}) as server,
        ollama.opened(server.url, 4, 32, Watch(), **more) as backend,
    ):
        await until(lambda: backend.models()[0].state is ModelState.READY)
        yield server, backend


async def test_it_serves_what_the_server_has_and_streams_an_answer() -> None:
    reader = Reader()
    async with asking(CHAT, keep_alive="10m") as (server, backend):
        statuses = backend.models()
        end = await backend.generate(asked.job("hi", model="smollm2", max_tokens=5, temperature=0.0, stop=("x",), seed=2**31 + 9), reader)
    assert [(status.model_id, status.digest) for status in statuses] == [("smollm2", DIGEST), ("qwen3:8b", DIGEST), ("x", "")]
    assert reader.text == "Hello"
    assert end == GenerationEnd(FinishReason.LENGTH, Usage(12, 2))
    assert server.asked == [
        {
            "model": "smollm2:latest",
            "messages": [{"role": "user", "content": "hi"}],
            "stream": True,
            "truncate": False,
            "shift": False,
            "options": {"temperature": 0, "seed": 9, "num_predict": 5, "stop": ["x"]},
            "keep_alive": "10m",
        }
    ]


@pytest.mark.parametrize(
    ("details", "only_embeds"),
    [
        ({"family": "nomic-bert", "families": ["nomic-bert"]}, True),
        ({"family": "bert"}, True),
        ({"family": "llama"}, False),
        ({}, False),
        (None, False),
        ({"family": None}, False),
        ("bert", False),
    ],
)
async def test_which_models_only_embed_is_read_from_their_family(details: object, only_embeds: bool) -> None:
    tags = Answer([json.dumps({"models": [{"name": "m", "details": details}]})])
    async with serving({"/api/tags": tags}) as server, ollama.opened(server.url, 4, 32, Watch()) as backend:
        await until(lambda: backend.models()[0].state is ModelState.READY)
        assert backend.models()[0].only_embeds == only_embeds


async def test_a_server_that_is_not_there_is_said_and_nothing_is_ready() -> None:
    async with serving({}) as server:
        url = server.url
    async with ollama.opened(url, 4, 32, Watch()) as backend:
        await until(lambda: "does not answer" in backend.models()[0].detail)
        assert backend.models()[0].state is ModelState.LOADING
        with pytest.raises(errors.Unavailable):
            await backend.generate(job(), Reader())


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        pytest.param(Answer(['{"error": "out of memory"}\n']), errors.Unavailable, "out of memory", id="an error in the stream"),
        pytest.param(Answer(['{"message": {"content": "a"}}\n']), errors.Unavailable, "before its end", id="an answer without an end"),
        pytest.param(Answer(['{"message": {"content": "a"}']), errors.Unavailable, "before its end", id="half a line"),
        pytest.param(Answer([]), errors.Unavailable, "before its end", id="nothing"),
        pytest.param(Answer(["no json\n"]), errors.Unavailable, "protocol", id="no JSON"),
        pytest.param(Answer([b'{"message": {"content": "\xff"}}\n']), errors.Unavailable, "protocol", id="no UTF-8"),
        pytest.param(Answer(['{"x": ' + "[" * 100_000 + "\n"]), errors.Unavailable, "protocol", id="brackets"),
        pytest.param(Answer(["x" * 65536], endless=True), errors.Unavailable, "more than 1048576 bytes", id="a line without an end"),
        pytest.param(Answer(["<p>"], headers={"content-type": "text/html"}), errors.Unavailable, "text/html", id="a web page"),
        pytest.param(Answer(['{"error": "model \\"x\\" not found"}'], status=404), errors.UnknownModel, "not found", id="no such model"),
        pytest.param(Answer(['{"error": "bad options"}'], status=400), errors.BadRequest, "bad options", id="a refusal"),
        pytest.param(Answer(["oops"], status=500), errors.Unavailable, "status 500", id="a failure"),
        pytest.param(Answer(['{"error": "server busy"}'], status=503), errors.Unavailable, "server busy", id="a full queue"),
    ],
)
async def test_whatever_the_server_does_is_one_clear_error(answer: Answer, kind: type[errors.AimeshError], words: str) -> None:
    async with asking(answer) as (_, backend):
        with pytest.raises(kind, match=words):
            await backend.generate(job("hi"), Reader())
        assert backend.models()[0].running == 0


async def test_a_server_that_says_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ollama, "Upstream", partial(Upstream, first_token_seconds=0.3))
    quiet = Answer(['{"message": {"content": ""}, "done": false}\n'], endless=True)
    async with asking(quiet) as (server, backend):
        with pytest.raises(errors.Unavailable, match="did not"):
            await backend.generate(job("hi"), Reader())
        async with asyncio.timeout(30):
            await server.left.wait()


async def test_a_cancelled_job_closes_the_connection_which_stops_the_server() -> None:
    async with asking(Answer(['{"message": {"content": "a"}}\n'], hang=True)) as (server, backend):
        reader = Reader()
        task = asyncio.create_task(backend.generate(job("hi"), reader))
        await until(lambda: reader.chunks)
        task.cancel()
        async with asyncio.timeout(30):
            await server.left.wait()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert backend.models()[0].running == 0


async def test_a_busy_server_is_asked_again() -> None:
    async with asking([Answer(["{}"], status=503), CHAT]) as (server, backend):
        reader = Reader()
        await backend.generate(job("hi"), reader)
    assert (reader.text, server.times_asked("/api/chat")) == ("Hello", 2)


async def test_tool_calls_come_whole() -> None:
    thinks = {"message": {"thinking": "hm"}}
    calls = {"message": {"tool_calls": [{"function": {"name": "weather", "arguments": {"city": "Bern"}}}]}}
    reader = Reader()
    async with asking(Answer([json.dumps(thinks) + "\n", json.dumps(calls) + "\n", END])) as (server, backend):
        await backend.generate(asked.job(model="smollm2", tools=(Tool("weather"),)), reader)
    thought, chunk = reader.chunks
    assert thought.reasoning == "hm"
    (part,) = chunk.call_parts
    assert part == ToolCallPart(0, '{"city":"Bern"}', part.id, "weather")
    assert part.id.startswith("call_")
    assert server.asked[0]["tools"][0]["function"]["name"] == "weather"


@pytest.mark.parametrize(
    ("counts", "expected", "recounted"),
    [
        pytest.param({"prompt_eval_count": 5, "eval_count": 1}, Usage(5, 1), [], id="believed"),
        pytest.param({"eval_count": 1}, Usage(3, 1), [("prompt_tokens",)], id="a prompt from its memory is not counted by older ones"),
        pytest.param({"prompt_eval_count": -5, "eval_count": "x"}, Usage(3, 1), [("prompt_tokens", "completion_tokens")], id="nonsense"),
    ],
)
async def test_usage_is_believed_or_recounted(counts: dict[str, Any], expected: Usage, recounted: list[tuple[str, ...]]) -> None:
    answer = Answer([json.dumps({"message": {"content": "a"}}) + "\n", json.dumps({"done": True, **counts}) + "\n"])
    with asked.logged() as logged:
        async with asking(answer) as (_, backend):
            end = await backend.generate(job("three small words"), Reader())
    assert end == GenerationEnd(FinishReason.STOP, expected)
    assert [fields["fields"] for event, fields in logged if event == "usage_recounted"] == recounted


@pytest.mark.parametrize(("url", "keep"), [("localhost:11434", None), ("http://me:word@h", None), ("http://h", "a while")])
async def test_settings_that_cannot_work_are_said_at_once(url: str, keep: str | None) -> None:
    with pytest.raises(errors.BadSettings, match="OLLAMA_"):
        async with ollama.opened(url, 4, 32, Watch(), keep_alive=keep):
            pass
