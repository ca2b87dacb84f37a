"""CORS, over the whole application with a fake mesh and store."""

import httpx
import pytest

from services.gateway.http_api.cors import CorsPolicy
from tests.services.gateway.fakes import RunningService
from tests.services.gateway.http_answers import BEARER, CHAT

PAGE, STRANGER = "https://app.example.org", "https://evil.example.org"
ASKS = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,content-type,x-stainless-lang"}
ALLOWED = "access-control-allow-origin"


def browser(running_service: RunningService, *origins: str, page: str = PAGE) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(running_service.app(cors=CorsPolicy(frozenset(origins))))
    return httpx.AsyncClient(transport=transport, base_url="http://gateway", headers={"origin": page})


@pytest.mark.parametrize("origin", [PAGE, "*"])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/api/inference"])
async def test_a_page_may_send_requests_with_a_key(running_service: RunningService, origin: str, path: str) -> None:
    async with browser(running_service, origin) as http:
        asked = await http.options(path, headers=ASKS)
        assert (asked.status_code, asked.headers[ALLOWED], asked.content) == (200, origin, b"")
        assert asked.headers["access-control-allow-methods"] == "POST"
        assert asked.headers["access-control-allow-headers"] == ASKS["access-control-request-headers"]
        assert "access-control-allow-credentials" not in asked.headers
        answer = await http.post(path, json={**CHAT, "max_tokens": 5}, headers=BEARER)
        assert (answer.status_code, answer.headers[ALLOWED]) == (200, origin)
        assert answer.headers.get("vary") == (None if origin == "*" else "origin")
        exposed = answer.headers["access-control-expose-headers"].split(", ")
        assert {"x-request-id", "retry-after", "x-ratelimit-remaining-requests"} <= set(exposed)
        refused = await http.post(path, json=CHAT, headers={"authorization": "Bearer nothing"})
        assert (refused.status_code, refused.headers[ALLOWED]) == (401, origin), "the page can read the error"


async def test_a_stream_has_the_headers_too(running_service: RunningService) -> None:
    async with browser(running_service, PAGE) as http:
        answer = await http.post("/v1/chat/completions", json={**CHAT, "stream": True}, headers=BEARER)
    assert (answer.headers["content-type"][:17], answer.headers[ALLOWED]) == ("text/event-stream", PAGE)


@pytest.mark.parametrize(
    ("origins", "page"),
    [([PAGE], STRANGER), ([PAGE], PAGE + ".evil.org"), ([PAGE], "null"), ([PAGE], "http://app.example.org"), ([PAGE], PAGE + ":8443")],
)
async def test_another_page_may_not(running_service: RunningService, origins: list[str], page: str) -> None:
    async with browser(running_service, *origins, page=page) as http:
        asks = {**ASKS, "access-control-request-method": "GET"}
        for answer in (await http.options("/v1/models", headers=asks), await http.get("/v1/models", headers=BEARER)):
            assert ALLOWED not in answer.headers
            assert answer.headers["vary"] == "origin"


async def test_it_is_off_by_default(running_service: RunningService) -> None:
    async with browser(running_service) as http:
        assert (await http.options("/v1/chat/completions", headers=ASKS)).status_code == 405
        answer = await http.get("/v1/models", headers=BEARER)
        assert not [name for name in answer.headers if name.startswith("access-control") or name == "vary"]


@pytest.mark.parametrize(
    ("path", "verb"), [("/api/auth/login", "POST"), ("/v1/chat/completions", "DELETE"), ("/v1/nothing", "POST"), ("/docs", "GET")]
)
async def test_only_routes_with_a_key_are_open(running_service: RunningService, path: str, verb: str) -> None:
    async with browser(running_service, "*") as http:
        assert ALLOWED not in (await http.options(path, headers={**ASKS, "access-control-request-method": verb})).headers
        assert ALLOWED not in (await http.request("GET", path)).headers


async def test_header_names_that_are_none_are_not_returned(running_service: RunningService) -> None:
    async with browser(running_service, "*") as http:
        for names in ("a\x01b", "a" * 65, "a;b", ",".join("a" * 65)):
            asked = await http.options("/v1/chat/completions", headers={**ASKS, "access-control-request-headers": names})
            assert "access-control-allow-headers" not in asked.headers
