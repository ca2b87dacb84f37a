import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from features.remote_servers.worker import openai, remote_models, remote_server, upstreams
from features.remote_servers.worker.remote_backend import RemoteBackend
from features.remote_servers.worker.upstreams import Dialect, Key, Upstream
from services.inference.engine.sampling import Parameters
from shared import errors
from shared.api.generation import FormatKind, GenerationEnd, OutputFormat, Tool, ToolCall, Usage
from shared.api.inference import ModelState, ModelStatus
from shared.types import FinishReason
from tests.services.inference import asked
from tests.services.inference.fake_http import Answer, FakeServer, serving
from tests.services.inference.standins import Reader, Watch, calls_of, job, until

KEY = "sk-very-secret-0123456789"
MODELS = Answer(['{"object": "list", "data": [{"id": "gpt-x", "object": "model"}]}'])
BAD_NAMES = Answer([json.dumps({"data": [{"id": ""}, {"id": "a\a"}, {"id": "x" * 300}]})])
CHAT = Answer(
    [
        'data: {"choices": [{"delta": {"role": "assistant", "content": ""}, "finish_reason": null}]}\n\n',
        'data: {"choices": [{"delta": {"content": "Hel"}}]}\n\ndata: {"choices": [{"del',
        'ta": {"content": "lo"}}]}\r\n\r\n: a comment\n\n',
        'data: {"choices": [{"delta": {}, "finish_reason": "stop"}]}\n\n',
        'data: {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}}\n\ndata: [DONE]\n\n',
    ]
)


def events(*bodies: Any, mark: bool = True) -> list[str]:
    return [f"data: {json.dumps(body)}\n\n" for body in bodies] + (["data: [DONE]\n\n"] if mark else [])


def one(url: str, **more: Any) -> Upstream:
    return Upstream(**{"name": "rack", "url": url, "dialect": Dialect.VLLM, "key": Key(KEY), "key_setting": "key_file of rack", **more})


@asynccontextmanager
async def asking(chat: Answer | list[Answer], *, models: Answer = MODELS, **more: Any) -> AsyncIterator[tuple[FakeServer, RemoteBackend]]:
    """Yield an upstream, and a backend that has listed its models."""
    async with (
        serving({"/v1/models": models, "/v1/chat/completions": chat}) as server,
        openai.opened_all((one(f"{server.url}/v1", **more),), 4, 32, Watch()) as backend,
    ):
        await until(lambda: backend.models()[0].state is ModelState.READY)
        yield server, backend


async def test_it_serves_what_the_server_has_and_streams_an_answer() -> None:
    reader = Reader()
    async with (
        serving({"/v1/models": MODELS, "/v1/chat/completions": CHAT}) as server,
        openai.opened_all((upstreams.single(server.url + "/v1", KEY),), 4, 32, Watch()) as backend,
    ):
        await until(lambda: backend.models()[0].state is ModelState.READY)
        end = await backend.generate(asked.job("hi", model="gpt-x", max_tokens=5, seed=3), reader)
    assert (reader.accepted, reader.prompt_tokens, reader.text, reader.token_ids) == (True, None, "Hello", [])
    assert end == GenerationEnd(FinishReason.STOP, Usage(7, 2))
    assert server.asked == [
        {
            "model": "gpt-x",
            "messages": [{"role": "user", "content": "hi"}],
            "stream": True,
            "stream_options": {"include_usage": True},
            "seed": 3,
            "max_tokens": 5,
        }
    ]
    assert all(f"authorization: bearer {KEY}" in head for head in server.headers)


@pytest.mark.parametrize(
    ("told", "shown"),
    [
        ({"stop_reason": "END"}, "END"),
        ({"matched_stop": "END"}, "END"),
        ({"stop_reason": 151645}, None),
        ({"stop_reason": "<|im_end|>"}, None),
        ({}, None),
    ],
    ids=["vLLM", "SGLang", "a token", "the model's own end", "nothing said"],
)
async def test_the_stop_sequence_that_ended_an_answer(told: dict[str, Any], shown: str | None) -> None:
    choices = [{"delta": {"content": "a"}}, {"delta": {}, "finish_reason": "stop", **told}]
    answer = Answer(events(*({"choices": [choice]} for choice in choices), {"choices": [], "usage": {"completion_tokens": 1}}))
    async with asking(answer) as (_, backend):
        end = await backend.generate(asked.job("hi", model="gpt-x", stop=("x", "END")), Reader())
    assert (end.finish_reason, end.stop_sequence) == (FinishReason.STOP, shown)


@pytest.mark.parametrize("fields", [{"open_ended": True}, {"parameters": Parameters(0.7, 0.95, 40, 1)}])
async def test_a_server_is_not_told_a_bound_that_the_caller_has_not_named(fields: dict[str, Any]) -> None:
    """vLLM refuses max_tokens that exceed the context together with the prompt; OpenAI refuses more than the model's own limit."""
    async with asking(CHAT) as (server, backend):
        await until(lambda: backend.models()[0].state is ModelState.READY)
        end = await backend.generate(replace(asked.job("hi", model="gpt-x", max_tokens=32_768), **fields), Reader())
        assert "max_tokens" not in server.asked[0]
        assert end == GenerationEnd(FinishReason.STOP, Usage(7, 2))


async def test_the_models_of_an_external_server_name_their_provider() -> None:
    async with asking(CHAT) as (_, backend):
        assert [model.provider for model in backend.models()] == [""], "this machine is not a provider"
    async with asking(CHAT, external=True, provider="acme", region="eu") as (_, backend):
        assert [(model.provider, model.region) for model in backend.models()] == [("acme", "eu")]


async def test_a_refused_key_is_said_without_showing_it() -> None:
    refused = Answer([json.dumps({"error": {"message": f"wrong key {KEY}"}})], status=401)
    with asked.logged() as logged:
        async with (
            serving({"/models": refused}) as server,
            openai.opened_all((upstreams.single(server.url, KEY),), 4, 32, Watch()) as backend,
        ):
            await until(lambda: "key" in backend.models()[0].detail)
            assert backend.models()[0].state is ModelState.LOADING
            assert KEY not in repr(backend.models())
    assert KEY not in repr(logged)


@pytest.mark.parametrize(
    ("chat", "kind", "said"),
    [
        pytest.param(Answer(CHAT.parts[:2]), errors.Unavailable, "before its end", id="cut off in an event"),
        pytest.param(Answer(CHAT.parts[:3]), errors.Unavailable, "before its end", id="cut off between two"),
        pytest.param(Answer(["data: [DONE]\n\n"]), errors.Unavailable, "before its end", id="a mark and no end"),
        pytest.param(Answer([]), errors.Unavailable, "before its end", id="nothing"),
        pytest.param(Answer(["data: garbage\n\n"]), errors.Unavailable, "protocol", id="garbage"),
        pytest.param(Answer(['data: {"x": ' + "[" * 100_000 + "\n\n"]), errors.Unavailable, "protocol", id="brackets"),
        pytest.param(Answer(events({"error": {"message": "out of memory"}})), errors.Unavailable, "out of memory", id="an error event"),
        pytest.param(
            Answer(['event: error\ndata: {"error": "too long", "error_type": "x"}\n\n']), errors.Unavailable, "too long", id="TGI's way"
        ),
        pytest.param(Answer(events({"error": {"message": "no", "code": 400}})), errors.BadRequest, "no", id="vLLM's way"),
        pytest.param(Answer(events({"choices": [{"finish_reason": "abort"}]})), errors.Unavailable, "aborted the answer", id="given up"),
        pytest.param(Answer(["{}"], status=404), errors.Unavailable, "does not know this path", id="a wrong path"),
        pytest.param(Answer(['{"error": "no model"}'], status=404), errors.UnknownModel, "no model", id="a model that is gone"),
        pytest.param(Answer(["slow down"], status=429), errors.Overloaded, "slow down", id="too many requests"),
        pytest.param(Answer(["<p>"], headers={"content-type": "text/html"}), errors.Unavailable, "text/html", id="a web page"),
    ],
)
async def test_whatever_the_server_does_is_one_clear_error(chat: Answer, kind: type[errors.AimeshError], said: str) -> None:
    async with asking(chat) as (_, backend):
        with pytest.raises(kind, match=said) as failed:
            await backend.generate(job("hi", model="gpt-x"), Reader())
        assert failed.value.message.startswith("upstream rack ")
        assert backend.models()[0].running == 0


async def test_a_server_that_thinks_for_ever_is_given_up() -> None:
    role = json.dumps({"choices": [{"delta": {"role": "assistant", "content": ""}}]})
    async with asking(Answer([f"data: {role}\n\n"], endless=True), first_token_seconds=0.3) as (server, backend):
        with pytest.raises(errors.Unavailable, match="did not"):
            await backend.generate(job("hi", model="gpt-x"), Reader())
        async with asyncio.timeout(30):
            await server.left.wait()


async def test_a_cancelled_job_closes_the_connection_which_stops_the_server() -> None:
    async with asking(Answer(CHAT.parts[:3], hang=True)) as (server, backend):
        reader = Reader()
        task = asyncio.create_task(backend.generate(job("hi", model="gpt-x"), reader))
        await until(lambda: reader.text == "Hello")
        task.cancel()
        async with asyncio.timeout(30):
            await server.left.wait()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert backend.models()[0].running == 0


async def test_a_busy_server_is_asked_again_and_the_answer_comes_once() -> None:
    async with asking([Answer(["{}"], status=503), Answer([], silent=True), CHAT]) as (server, backend):
        reader = Reader()
        await backend.generate(job("hi", model="gpt-x"), reader)
    assert (reader.text, server.times_asked("/v1/chat/completions")) == ("Hello", 3)


async def test_a_server_that_asks_for_a_pause_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    refusals = [Answer(["{}"], status=429, headers={"retry-after": "40"}), Answer(["{}"], status=429, headers={"retry-after": "400"}), CHAT]
    async with asking(refusals) as (server, backend):

        async def ask() -> float | None:
            try:
                await backend.generate(job("hi", model="gpt-x"), Reader())
            except errors.Overloaded as error:
                return error.retry_after_seconds
            return 0.0

        now = time.monotonic()
        monkeypatch.setattr(remote_models.time, "monotonic", lambda: now)
        assert await ask() == 40
        now += 39
        assert await ask() == 1
        assert server.times_asked("/v1/chat/completions") == 1, "it was not asked again"
        now += 2
        assert await ask() == 400
        now += remote_models.MAX_REST_SECONDS - 1
        assert await ask() == 1, "a longer pause is tried after a minute"
        now += 2
        assert await ask() == 0
        assert server.times_asked("/v1/chat/completions") == 3


async def test_a_pause_is_announced_and_so_is_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_models, "MAX_REST_SECONDS", 1.0)
    watch = Watch()
    async with (
        serving({"/v1/models": MODELS, "/v1/chat/completions": [Answer(["{}"], status=503, headers={"retry-after": "40"})]}) as server,
        openai.opened_all((one(f"{server.url}/v1"),), 4, 32, watch) as backend,
    ):
        await until(lambda: backend.models()[0].state is ModelState.READY)
        assert not backend.models()[0].rests
        announced: list[ModelStatus] = []
        watch.changed = lambda: announced.append(backend.models()[0])  # type: ignore[method-assign]
        with pytest.raises(errors.Overloaded, match="is not ready"):
            await backend.generate(job("hi", model="gpt-x"), Reader())
        resting = [(status.state, status.detail) for status in announced if status.rests]
        assert resting[:1] == [(ModelState.READY, "rack has asked for a pause")]
        await until(lambda: not announced[-1].rests)
        assert announced[-1].detail == ""


async def test_what_was_cut_off_after_its_first_text_is_not_asked_again() -> None:
    async with asking([Answer(CHAT.parts[:3]), CHAT]) as (server, backend):
        with pytest.raises(errors.Unavailable):
            await backend.generate(job("hi", model="gpt-x"), Reader())
    assert server.times_asked("/v1/chat/completions") == 1


@pytest.mark.parametrize(
    ("usage", "expected", "recounted"),
    [
        pytest.param({"prompt_tokens": 7, "completion_tokens": 2}, Usage(7, 2), [], id="believed"),
        pytest.param({"prompt_tokens": -7, "completion_tokens": 2}, Usage(3, 2), [("prompt_tokens",)], id="negative"),
        pytest.param({"prompt_tokens": 7, "completion_tokens": 10**30}, Usage(7, 2), [("completion_tokens",)], id="absurd"),
        pytest.param({}, Usage(3, 2), [("prompt_tokens", "completion_tokens")], id="empty"),
        pytest.param(None, Usage(3, 2), [("prompt_tokens", "completion_tokens")], id="absent"),
    ],
)
@pytest.mark.parametrize("mark", [True, False])
async def test_usage_is_believed_or_recounted(usage: object, expected: Usage, recounted: list[tuple[str, ...]], mark: bool) -> None:
    bodies: list[Any] = [{"choices": [{"delta": {"content": text}}]} for text in ("a", "b")]
    bodies.append({"choices": [{"delta": {}, "finish_reason": "length"}], "usage": usage})
    with asked.logged() as logged:
        async with asking(Answer(events(*bodies, mark=mark))) as (_, backend):
            end = await backend.generate(job("three small words", model="gpt-x", max_tokens=5), Reader())
    assert end == GenerationEnd(FinishReason.LENGTH, expected)
    assert [fields["fields"] for event, fields in logged if event == "usage_recounted"] == recounted


async def test_a_complete_answer_does_not_wait_for_a_server_that_keeps_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_server, "TRAILER_SECONDS", 0.05)
    finished = events({"choices": [{"delta": {"content": "a"}, "finish_reason": "stop"}]}, mark=False)
    async with asking(Answer(finished, hang=True)) as (_, backend):
        end = await backend.generate(job("hi", model="gpt-x"), Reader())
    assert end == GenerationEnd(FinishReason.STOP, Usage(1, 1))


async def test_tools_formats_log_probabilities_and_several_answers() -> None:
    call = {"index": 0, "id": "c1", "function": {"name": "weather", "arguments": '{"city":'}}
    rest = {"index": 0, "function": {"arguments": '"Bern"}'}}
    bodies = (
        {"choices": [{"index": 1, "delta": {"content": "b"}, "logprobs": {"content": [{"token": "b", "logprob": -1.5}]}}]},
        {"choices": [{"index": 0, "delta": {"tool_calls": [call]}}]},
        {"choices": [{"index": 0, "delta": {"tool_calls": [rest]}}]},
        {"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}, {"index": 1, "finish_reason": "length"}]},
        {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 5}},
    )
    wanted = asked.job(model="gpt-x", n=2, top_logprobs=0, tools=(Tool("weather"),), top_k=5, format=OutputFormat(FormatKind.JSON, ""))
    reader = Reader()
    async with asking(Answer(events(*bodies))) as (server, backend):
        end = await backend.generate(wanted, reader)
    assert [(chunk.answer, chunk.text) for chunk in reader.chunks] == [(1, "b"), (0, ""), (0, "")]
    assert calls_of(reader.chunks) == (ToolCall("c1", "weather", '{"city":"Bern"}'),)
    assert [logprob.drawn.piece for logprob in reader.chunks[0].logprobs] == [b"b"]
    assert end == GenerationEnd(FinishReason.STOP, Usage(7, 5), (FinishReason.STOP, FinishReason.LENGTH))
    sent = server.asked[0]
    assert (sent["n"], sent["logprobs"], sent["top_k"], sent["response_format"]) == (2, True, 5, {"type": "json_object"})


async def test_an_answer_that_another_worker_began_is_left_to_others() -> None:
    async with asking(CHAT) as (server, backend):
        with pytest.raises(errors.Unavailable, match="another worker began"):
            await backend.generate(replace(job("hi", model="gpt-x"), delivered=(1, 2)), Reader())
    assert not server.asked


async def test_what_the_dialect_lacks_is_refused_before_the_server_is_asked() -> None:
    async with asking(CHAT, dialect=Dialect.OPENAI) as (server, backend):
        with pytest.raises(errors.BadRequest, match="top_k cannot be passed on: upstream rack"):
            await backend.generate(asked.job(model="gpt-x", top_k=5), Reader())
    assert server.times_asked("/v1/chat/completions") == 0


# --- models ---------------------------------------------------------------------------------------------------------


def by_name(backend: RemoteBackend) -> Mapping[str, ModelStatus]:
    return {status.model_id: status for status in backend.models()}


async def test_several_upstreams_and_whose_a_model_is() -> None:
    both = Answer(['{"data": [{"id": "m", "max_model_len": 4096}, {"id": "whisper"}]}'])
    chat = "/chat/completions"
    async with (
        serving({"/models": both, chat: CHAT}) as first,
        serving({"/models": both, chat: CHAT}) as second,
        openai.opened_all(
            (
                one(first.url, name="first", slots=2, only_models=("m",)),
                one(second.url, name="second", key=None, aliases={"fast": "m"}, prefix="second/"),
            ),
            4, 32, Watch(),
        ) as backend,
    ):  # fmt: skip
        await until(lambda: set(by_name(backend)) == {"m", "fast", "second/whisper"})
        models = by_name(backend)
        assert (models["m"].slots, models["m"].context_tokens, models["fast"].slots) == (2, 4096, 4)
        assert {name: model.upstream_model for name, model in models.items()} == {"m": "", "fast": "m", "second/whisper": ""}
        await backend.generate(job("hi", model="fast"), Reader())
        await backend.generate(job("hi", model="m"), Reader())
    assert ([body["model"] for body in first.asked], [body["model"] for body in second.asked]) == (["m"], ["m"])
    assert all("authorization" not in head for head in second.headers)


async def test_one_upstream_that_is_down_does_not_hide_the_others() -> None:
    async with serving({}) as gone:
        url = gone.url
    async with (
        serving({"/models": MODELS, "/chat/completions": CHAT}) as server,
        openai.opened_all((one(url, name="gone"), one(server.url, name="here")), 4, 32, Watch()) as backend,
    ):
        await until(lambda: "gpt-x" in by_name(backend) and "does not answer" in by_name(backend)["gone"].detail)
        assert by_name(backend)["gpt-x"].state is ModelState.READY
        await backend.generate(job("hi", model="gpt-x"), Reader())


@pytest.mark.parametrize(
    ("models", "said"),
    [
        pytest.param(Answer(['{"data": []}']), "it has no models", id="no models"),
        pytest.param(BAD_NAMES, "it has no models", id="bad names"),
        pytest.param(Answer(["[]"]), "protocol", id="another form"),
        pytest.param(Answer(["<html>"], headers={"content-type": "text/html"}), "text/html", id="a web page"),
        pytest.param(Answer(['{"detail": "Not Found"}'], status=404), "does not know this path", id="a wrong path"),
    ],
)
async def test_a_list_of_models_that_is_none_is_said(models: Answer, said: str) -> None:
    async with serving({"/models": models}) as server, openai.opened_all((one(server.url),), 4, 32, Watch()) as backend:
        await until(lambda: said in backend.models()[0].detail)
        assert backend.models()[0].state is ModelState.LOADING
        with pytest.raises(errors.Unavailable):
            await backend.generate(job("hi", model="gpt-x"), Reader())


def test_no_upstream_at_all_is_a_mistake() -> None:
    with pytest.raises(errors.BadSettings):
        upstreams.single("nowhere", None)
