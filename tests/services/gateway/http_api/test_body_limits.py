"""No route takes a longer body than proxies let through."""

import pytest

from services.gateway.http_api import http_call
from services.gateway.models.registry import MAX_PIECE_BYTES
from shared import body_limits
from shared.protocol import wire
from tests.services.gateway import fakes


async def test_proxies_let_through_what_routes_take() -> None:
    longest: dict[str, int] = {}
    async with fakes.running_service() as service:
        for route in (route for by_verb in service.app()._routes.values() for route in by_verb.values()):
            most = max(http_call.MAX_BODY_BYTES, route.max_raw_bytes, route.max_body_bytes, wire.MAX_REQUEST_BYTES * route.takes_prompts)
            assert most <= body_limits.of_path(route.path), route.path
            longest[route.path] = max(most, longest.get(route.path, 0))
    assert body_limits.GENERAL_BYTES in longest.values()
    assert body_limits.of_path("/api/models/blobs/sha256:x") >= MAX_PIECE_BYTES


def test_a_limit_is_that_of_the_path_and_below(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body_limits, "LARGE_BYTES", {"/acme/files": 1 << 30})
    assert (body_limits.of_path("/acme/files"), body_limits.of_path("/acme/files/x")) == (1 << 30, 1 << 30)
    assert body_limits.of_path("/acme/filesx") == body_limits.GENERAL_BYTES
