"""What the HTTP API tests send, and how they read the answers."""

import json
from typing import Any

import httpx

from tests.services.gateway.fakes import KEY, RunningService

BEARER = {"authorization": f"Bearer {KEY}"}
CHAT = {"messages": [{"role": "user", "content": "hi"}]}


def connected(running_service: RunningService) -> httpx.AsyncClient:
    """Return a client with a key, which calls the HTTP API without sockets."""
    return httpx.AsyncClient(transport=httpx.ASGITransport(running_service.app()), base_url="http://gateway", headers=BEARER)


def problem(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """Check the status and our own ``code``, and return the error object."""
    error = answer.json()["error"]
    if isinstance(error, str):
        error = {**answer.json(), "message": error, "type": "errors of this API have none"}
    is_openai = answer.request.url.path.startswith("/v1/")
    assert (answer.status_code, error["aimesh_code" if is_openai else "code"]) == (status, code), answer.text
    assert ("aimesh_code" in error) is is_openai
    assert error["request_id"] == answer.headers["x-request-id"]
    assert error["message"]
    assert error["type"]
    return dict(error)


def events(answer: httpx.Response) -> list[Any]:
    assert answer.headers["content-type"].startswith("text/event-stream")
    lines = [line.removeprefix("data: ") for line in answer.text.split("\n") if line.startswith("data: ")]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]
