import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any, cast

import httpx
import pytest
from litestar.types import HTTPScope, Receive, Scope, Send

from services.auth import api_keys
from services.web.http import front_app, passthrough
from shared.telemetry import Metrics
from shared.telemetry.tracing import Traces
from tests.services.web import servers
from tests.services.web.servers import Upstream, serving

#: Generous: a test that waits this long has failed.
SOON = 30


@pytest.fixture
def upstream() -> Upstream:
    return Upstream()


async def no_pages(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 418, "headers": []})
    await send({"type": "http.response.body", "body": b"a page", "more_body": False})


@pytest.fixture
async def client(upstream: Upstream) -> AsyncIterator[httpx.AsyncClient]:
    """A client that reaches web over a real socket; web reaches the upstream over another."""
    async with (
        serving(upstream) as gateway_url,
        passthrough.Passthrough.open(gateway_url) as gateway,
        serving(front_app.FrontApp(no_pages, gateway, Metrics("web"), Traces(ratio=0.0), always_over_tls=False)) as web_url,
        httpx.AsyncClient(base_url=web_url, trust_env=False) as client,
    ):
        yield client


@pytest.mark.parametrize(
    ("path", "theirs"),
    [
        ("/api/inference", True),
        ("/api", True),
        ("/v1/models", True),
        ("/docs", True),
        ("/openapi.json", True),
        ("/webhooks/stripe", True),
        ("/webhooks", False),
        ("/api-keys", False),
        ("/apis", False),
        ("/v1x", False),
        ("/", False),
        ("/metrics", False),
        ("/docsx", False),
        ("//api/x", False),
        ("/API/x", False),
    ],
)
def test_paths_of_web_and_gateway(path: str, theirs: bool) -> None:
    assert passthrough.accepts(cast("HTTPScope", {"path": path, "headers": [(b"authorization", b"Basic eDp5")]})) is theirs


async def test_a_client_with_a_wrong_base_url_reaches_the_gateway(client: httpx.AsyncClient, upstream: Upstream) -> None:
    key = api_keys.generate()
    for path in ("/chat/completions", "/messages", "/models", "//v1/responses", "/infill"):
        for headers in ({"Authorization": f"Bearer {key}"}, {"x-api-key": key}):
            await client.post(f"{client.base_url}{path}", headers=headers)
            assert upstream.seen[-1].raw_path == path.encode()
        for headers in ({"Authorization": "Bearer eyJhbGciOi"}, {"x-api-key": f"{key}x"}, {"Cookie": f"key={key}"}):
            assert (await client.get(f"{client.base_url}{path}", headers=headers)).text == "a page"


async def test_request_arrives_unchanged(client: httpx.AsyncClient, upstream: Upstream) -> None:
    answer = await client.post("/v1/some%2Fthing?a=1&b=%20&a=2", content=b"body \x00\xff", headers={"Authorization": "Bearer key"})
    seen = upstream.seen[0]
    assert (seen.method, seen.raw_path, seen.query, seen.body) == ("POST", b"/v1/some%2Fthing", b"a=1&b=%20&a=2", b"body \x00\xff")
    assert seen.values("authorization") == [b"Bearer key"]
    assert seen.values("content-length") == [b"7"]
    assert (answer.status_code, answer.content) == (201, b"body \x00\xff")
    assert answer.headers.get_list("x-twice") == ["1", "2"]


async def test_gateway_gets_no_cookie_and_no_forged_client_headers(client: httpx.AsyncClient, upstream: Upstream) -> None:
    headers = {
        "Cookie": "aimesh_session=secret; other=1",
        "X-Forwarded-Host": "evil.example",
        "X-Forwarded-Prefix": "/evil",
        "X-Real-IP": "203.0.113.9",
        "Forwarded": "for=203.0.113.9",
        "Connection": "x-private, keep-alive",
        "X-Private": "for this hop only",
        "TE": "trailers",
        "X-Aimesh-Web-Secret": "of a client",
    }
    await client.get("/v1/models", headers=headers)
    seen = upstream.seen[0]
    assert b"secret" not in b"".join(value for _, value in seen.headers)
    for name in ("cookie", "x-forwarded-prefix", "x-real-ip", "forwarded", "x-private", "te", "user-agent-of-web", "x-aimesh-web-secret"):
        assert seen.values(name) == [], name
    assert seen.values("x-forwarded-for") == [b"127.0.0.1"]
    assert seen.values("x-forwarded-host") == [client.base_url.netloc]
    assert seen.values("x-forwarded-proto") == [b"http"]
    assert len(seen.values("host")) == 1
    assert seen.values("host") != [client.base_url.netloc]


async def test_web_authenticates_to_the_gateway_and_clients_cannot_forge_it(upstream: Upstream) -> None:
    metrics = Metrics("web")
    async with (
        serving(upstream) as gateway_url,
        passthrough.Passthrough.open(gateway_url, hop_secret="s" * 32) as gateway,
        serving(front_app.FrontApp(no_pages, gateway, metrics, Traces(ratio=0.0), always_over_tls=False)) as web_url,
        httpx.AsyncClient(base_url=web_url) as client,
    ):
        await client.get("/v1/models", headers={"X-Aimesh-Web-Secret": "of a client"})
    assert upstream.seen[0].values("x-aimesh-web-secret") == [b"s" * 32]


async def test_trace_context_is_passed_on_or_replaced_if_invalid(client: httpx.AsyncClient, upstream: Upstream) -> None:
    trace = "00-" + "ab" * 16 + "-" + "cd" * 8 + "-01"
    await client.get("/v1/models", headers={"traceparent": trace})
    await client.get("/v1/models", headers={"traceparent": "nonsense"})
    [passed] = upstream.seen[0].values("traceparent")
    assert passed.startswith(trace[:36].encode())
    assert passed.endswith(b"-01")
    assert passed != trace.encode(), "the span that asks is ours"
    made = upstream.seen[1].values("traceparent")
    assert len(made) == 1
    assert made[0].startswith(b"00-")


async def test_response_has_our_headers_and_no_hop_by_hop_ones(client: httpx.AsyncClient) -> None:
    answer = await client.get("/v1/models")
    assert "set-cookie" not in answer.headers
    assert "keep-alive" not in answer.headers
    assert answer.headers["x-request-id"] == "of-the-gateway"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-store"
    assert len(answer.headers.get_list("date")) == 1


async def test_encodings_and_policies_of_the_gateway_pass_unchanged(client: httpx.AsyncClient) -> None:
    async with client.stream("GET", "/docs") as answer:
        content = b"".join([chunk async for chunk in answer.aiter_raw()])
    assert content == b"\x1f\x8b not really gzip"
    assert answer.headers["content-encoding"] == "gzip"
    assert answer.headers.get_list("content-security-policy") == ["default-src 'self'"]


async def test_chunks_are_passed_on_immediately(client: httpx.AsyncClient, upstream: Upstream) -> None:
    async with asyncio.timeout(SOON), client.stream("GET", "/v1/stream") as answer:
        chunks = answer.aiter_raw()
        for number in range(4):
            # The gate for the next chunk is still closed, so only this one can have arrived.
            assert await anext(chunks) == b"data: %d\n\n" % number
            assert not upstream.gate.is_set()
            upstream.gate.set()
        assert [chunk async for chunk in chunks] == []


async def test_body_is_streamed_to_the_gateway(client: httpx.AsyncClient, upstream: Upstream) -> None:
    async def body() -> AsyncIterator[bytes]:
        yield b"first "
        await upstream.body_began.wait()
        yield b"second"

    async with asyncio.timeout(SOON):
        answer = await client.post("/v1/x", content=body())
    assert answer.content == b"first second"
    assert upstream.seen[0].values("transfer-encoding") == [b"chunked"]


async def test_disconnected_client_cancels_its_request(client: httpx.AsyncClient, upstream: Upstream) -> None:
    async with asyncio.timeout(SOON):
        async with client.stream("GET", "/v1/stream") as answer:
            assert await anext(answer.aiter_raw()) == b"data: 0\n\n"
        await upstream.client_gone.wait()


async def test_client_that_disconnects_during_its_body_cancels_the_request(client: httpx.AsyncClient, upstream: Upstream) -> None:
    async with asyncio.timeout(SOON):
        reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
        writer.write(b"POST /v1/x HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nonly this")
        await upstream.body_began.wait()
        writer.close()
        await writer.wait_closed()
        await upstream.client_gone.wait()
    del reader


async def test_content_length_beside_a_transfer_encoding_is_dropped(client: httpx.AsyncClient, upstream: Upstream) -> None:
    reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
    writer.write(b"POST /v1/x HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n")
    writer.write(b"5\r\nhello\r\n0\r\n\r\n")
    await asyncio.wait_for(reader.read(), SOON)
    writer.close()
    assert [(seen.body, seen.values("content-length")) for seen in upstream.seen] in ([], [(b"hello", [])])


async def test_stream_broken_between_events_ends_with_one_error_event(client: httpx.AsyncClient) -> None:
    answer = await client.get("/v1/break-events")
    first, second, rest = answer.text.split("\n\n")
    assert (first, rest) == ("data: 1", "")
    assert json.loads(second.removeprefix("data: "))["error"]["code"] == "link_lost"


async def test_broken_response_is_cut_off_not_completed(client: httpx.AsyncClient) -> None:
    with pytest.raises(httpx.RemoteProtocolError):
        await client.get("/v1/break-json")


@pytest.mark.parametrize("path", ["/api/../metrics", "/v1/%2e%2e/metrics", "/api/..", "/v1/./models", "/api/x/%2E%2e/%2e./healthz"])
async def test_no_path_escapes_the_api(client: httpx.AsyncClient, upstream: Upstream, path: str) -> None:
    reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    answer = await asyncio.wait_for(reader.read(), SOON)
    writer.close()
    assert answer.startswith(b"HTTP/1.1 404 ")
    assert b'"code":"not_found"' in answer
    assert upstream.seen == []


async def test_unavailable_gateway_gives_503_with_a_hint() -> None:
    async with passthrough.Passthrough.open("http://127.0.0.1:1") as gateway:
        app = front_app.FrontApp(no_pages, gateway, Metrics("web"), Traces(ratio=0.0), always_over_tls=False)
        async with httpx.AsyncClient(transport=servers.in_process(app), base_url="http://localhost") as client:
            answer = await client.post("/v1/chat/completions", json={})
    assert answer.status_code == 503
    error = answer.json()["error"]
    assert (error["code"], error["type"]) == ("not_reachable", "service_unavailable_error")
    assert "aicli stack status" in error["hint"]
    assert answer.headers["retry-after"] == "1"


async def test_web_times_out_later_than_the_gateway(upstream: Upstream, monkeypatch: pytest.MonkeyPatch) -> None:
    """Web used to cut off non-streamed answers after 120 s, although their callers paid for them."""
    monkeypatch.setattr(passthrough, "SLACK_SECONDS", 0.25)
    async with serving(upstream) as url, passthrough.Passthrough.open(url, request_seconds=0.25) as gateway:
        app = front_app.FrontApp(no_pages, gateway, Metrics("web"), Traces(ratio=0.0), always_over_tls=False)
        async with httpx.AsyncClient(transport=servers.in_process(app), base_url="http://localhost", timeout=SOON) as client:
            began = asyncio.get_running_loop().time()
            answer = await client.post("/v1/silent", json={})
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "deadline_exceeded")
    assert asyncio.get_running_loop().time() - began >= 0.5


async def test_health_of_the_gateway_is_described(upstream: Upstream) -> None:
    async with serving(upstream) as url, passthrough.Passthrough.open(url) as gateway:
        assert "returned 201" in await gateway.healthy()
    async with passthrough.Passthrough.open("http://127.0.0.1:1") as gateway:
        assert "is not responding (ConnectError)" in await gateway.healthy()


async def test_many_requests_at_once(client: httpx.AsyncClient, upstream: Upstream) -> None:
    bodies = [str(number).encode() * 1000 for number in range(50)]
    answers = await asyncio.gather(*(client.post("/v1/x", content=body) for body in bodies))
    assert [answer.content for answer in answers] == bodies
    assert len(upstream.seen) == 50


async def test_failed_connection_is_retried_once(upstream: Upstream, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    connect, failures = loop.create_connection, [OSError("out of luck")]

    async def failing_once(*args: Any, **options: Any) -> Any:
        if failures:
            raise failures.pop()
        return await connect(*args, **options)

    async with serving(upstream) as url, passthrough.Passthrough.open(url) as gateway:
        monkeypatch.setattr(loop, "create_connection", failing_once)
        assert await gateway.healthy() == f"{url}/healthz returned 201"
    assert failures == []
