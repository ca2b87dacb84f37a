import re
from uuid import UUID

import httpx
import pytest
from litestar import Litestar
from litestar.types import ASGIApp

from services.web import application
from services.web.http import front_app, passthrough
from shared.telemetry import Metrics
from shared.telemetry.tracing import Traces
from tests.services.web import servers


@pytest.mark.parametrize("path", ["/", "/login", "/nope", "/dashboard", "/static/style.css", "/static/nope", "/v1/models", "/api/../x"])
async def test_every_response_has_the_security_headers(app: ASGIApp, path: str) -> None:
    async with httpx.AsyncClient(transport=servers.in_process(app), base_url="https://ai.example.org") as client:
        answer = await client.get(path)
    for name in (
        "content-security-policy",
        "x-content-type-options",
        "referrer-policy",
        "cross-origin-opener-policy",
        "cross-origin-resource-policy",
        "permissions-policy",
        "cache-control",
        "strict-transport-security",
        "x-request-id",
    ):
        assert len(answer.headers.get_list(name)) == 1, name


async def test_no_strict_transport_on_plain_http(app: ASGIApp) -> None:
    async with httpx.AsyncClient(transport=servers.in_process(app), base_url="http://localhost:3000") as client:
        assert "strict-transport-security" not in (await client.get("/")).headers


async def test_requests_are_counted_with_few_labels(pages: Litestar) -> None:
    metrics = Metrics("web")
    async with passthrough.Passthrough.open("http://127.0.0.1:1") as gateway:
        app = front_app.FrontApp(pages, gateway, metrics, Traces(ratio=0.0), always_over_tls=False)
        async with httpx.AsyncClient(transport=servers.in_process(app), base_url="http://localhost:3000") as client:
            for path in ("/", "/", "/login", "/made-up-1", "/made-up-2", "/api-keys/1/revoke", "/v1/models"):
                await client.get(path)
            await client.request("BREW", "/login")
    counted = {
        (sample.labels["method"], sample.labels["status"]): sample.value
        for family in metrics.requests.collect()
        for sample in family.samples
        if sample.name == "ai_platform_requests_total"
    }
    assert counted == {
        ("GET /", "success"): 2,
        ("GET /login", "success"): 1,
        ("GET other", "not_found"): 3,
        ("passthrough", "peer_failed"): 1,
        ("OTHER other", "method_not_allowed"): 1,
    }


async def test_every_page_is_counted_by_its_route(pages: Litestar) -> None:
    metrics = Metrics("web")
    patterns = {(verb, path) for handler in application.ROUTES for verb in handler.http_methods for path in handler.paths}
    assert len(patterns) > 50
    async with passthrough.Passthrough.open("http://127.0.0.1:1") as gateway:
        app = front_app.FrontApp(pages, gateway, metrics, Traces(ratio=0.0), always_over_tls=False)
        async with httpx.AsyncClient(transport=servers.in_process(app), base_url="http://localhost:3000") as client:
            for verb, path in patterns:
                await client.request(verb, re.sub(r"{[^}]*:uuid}", str(UUID(int=1)), re.sub(r"{[^}]*:(str|path)}", "x", path)))
    counted = {sample.labels["method"] for family in metrics.requests.collect() for sample in family.samples}
    assert {f"{verb} {re.sub(':[a-z]+}', '}', path)}" for verb, path in patterns} <= counted


async def test_kept_trace_becomes_an_exemplar(pages: Litestar) -> None:
    metrics = Metrics("web")
    async with passthrough.Passthrough.open("http://127.0.0.1:1") as gateway:
        app = front_app.FrontApp(pages, gateway, metrics, Traces(ratio=1.0), always_over_tls=False)
        async with httpx.AsyncClient(transport=servers.in_process(app), base_url="http://localhost:3000") as client:
            await client.get("/login")
    (head,) = metrics.read().exemplars
    assert head.startswith("ai_platform_request_duration_seconds_bucket{")


def test_every_security_header_is_added() -> None:
    added = dict(front_app.with_security_headers([], over_tls=False))
    assert added[b"x-content-type-options"] == b"nosniff"
    assert added[b"cache-control"] == b"no-store"
    assert b"default-src 'none'" in added[b"content-security-policy"]
    assert b"unsafe" not in added[b"content-security-policy"]


@pytest.mark.parametrize("over_tls", [True, False])
def test_strict_transport_only_over_tls(over_tls: bool) -> None:
    assert (b"strict-transport-security" in dict(front_app.with_security_headers([], over_tls=over_tls))) is over_tls


def test_headers_of_the_response_are_kept() -> None:
    headers = [(b"Cache-Control", b"public, max-age=60"), (b"content-type", b"text/css")]
    result = front_app.with_security_headers(headers, over_tls=True)
    assert result[:2] == headers
    assert [name for name, _ in result if name.lower() == b"cache-control"] == [b"Cache-Control"]
