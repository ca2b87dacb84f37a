"""All APIs for asking the echo worker, each with the same result: the request's id, the text, and the usage."""

import json
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import httpx

from shared.api import gateway
from shared.api.gateway import InferenceRequest
from shared.node.client_node import ClientNode
from shared.types import Credential, ModelName, RequestId

ECHO = ModelName("echo")


@dataclass(frozen=True, slots=True)
class Answered:
    request_id: RequestId
    text: str
    prompt_tokens: int
    completion_tokens: int


async def rpc(mesh: ClientNode, key: Credential, prompt: str, *, deadline_seconds: float = 60) -> Answered:
    request = gateway.ProcessInferenceRequest(InferenceRequest(prompt=prompt, model=ECHO))
    async with mesh.rpc.stream(gateway.process_inference_request, request, credential=key, deadline_seconds=deadline_seconds) as answer:
        text = "".join([chunk.text async for chunk in answer])
        end = answer.end
    return Answered(end.request_id, text, end.usage.prompt_tokens, end.usage.completion_tokens)


async def chat(http: httpx.AsyncClient, prompt: str) -> Answered:
    answer = await http.post("/v1/chat/completions", json=chat_body(prompt))
    body = _good(answer)
    return _answered(answer, body["choices"][0]["message"]["content"], body["usage"])


async def chat_stream(http: httpx.AsyncClient, prompt: str) -> Answered:
    answer = await http.post("/v1/chat/completions", json=chat_body(prompt, stream=True, stream_options={"include_usage": True}))
    *chunks, last = events(answer)
    return _answered(answer, "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks), last["usage"])


async def inference(http: httpx.AsyncClient, prompt: str) -> Answered:
    answer = await http.post("/api/inference", json={"model": ECHO, "prompt": prompt, "maxTokens": 500})
    body = _good(answer)
    return _answered(answer, body["response"], body["usage"])


async def inference_stream(http: httpx.AsyncClient, prompt: str) -> Answered:
    answer = await http.post("/api/inference", json={"model": ECHO, "prompt": prompt, "stream": True})
    *chunks, last = events(answer)
    return _answered(answer, "".join(chunk["text"] for chunk in chunks), last["usage"])


async def infer(http: httpx.AsyncClient, prompt: str) -> Answered:
    answer = await http.post("/api/infer", json={"model": ECHO, "payload": {"prompt": prompt}})
    body = _good(answer)
    return _answered(answer, body["response"], body["usage"])


async def infer_stream(http: httpx.AsyncClient, prompt: str) -> Answered:
    payload = {"messages": [{"role": "user", "content": prompt}], "stream": True}
    answer = await http.post("/api/infer", json={"model": ECHO, "payload": payload})
    *chunks, last = events(answer)
    return _answered(answer, "".join(chunk["text"] for chunk in chunks), last["usage"])


OVER_HTTP: Mapping[str, Callable[[httpx.AsyncClient, str], Coroutine[None, None, Answered]]] = {
    "chat": chat,
    "chat, streamed": chat_stream,
    "/api/inference": inference,
    "/api/inference, streamed": inference_stream,
    "/api/infer": infer,
    "/api/infer, streamed": infer_stream,
}


def chat_body(prompt: str, **more: object) -> dict[str, object]:
    return {"model": ECHO, "messages": [{"role": "user", "content": prompt}], **more}


def events(answer: httpx.Response) -> list[Any]:
    """Return the events of a complete stream, which must end with [DONE] as OpenAI's do."""
    assert answer.status_code == 200, answer.text
    *found, done = [line.removeprefix("data: ") for line in answer.text.split("\n") if line.startswith("data: ")]
    assert done == "[DONE]"
    return [json.loads(line) for line in found]


def problem(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """Check what all error responses have in common, and return the error object."""
    error: dict[str, Any] = answer.json()["error"]
    assert (answer.status_code, error.get("aimesh_code", error["code"])) == (status, code), f"{answer.status_code} {answer.text[:500]}"
    assert error["message"]
    assert error["type"]
    assert error["request_id"] == answer.headers["x-request-id"]
    return error


def _good(answer: httpx.Response) -> dict[str, Any]:
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def _answered(answer: httpx.Response, text: str, usage: Mapping[str, int]) -> Answered:
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    return Answered(RequestId(UUID(answer.headers["x-request-id"])), text, usage["prompt_tokens"], usage["completion_tokens"])
