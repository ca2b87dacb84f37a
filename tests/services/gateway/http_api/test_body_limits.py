"""No route takes a longer body than proxies let through, and none that is listed takes less."""

from typing import Any

from services.gateway.http_api import http_call
from services.gateway.models.registry import MAX_PIECE_BYTES
from services.gateway.openai_api.file_routes import FileRoutes
from services.gateway.openai_api.message_batch_routes import MessageBatchRoutes
from shared import body_limits
from shared.api import files
from shared.protocol import wire
from tests.services.gateway import fakes


async def test_proxies_let_through_what_routes_take() -> None:
    longest: dict[str, int] = {}
    async with fakes.running_service() as service:
        routes = [route for by_verb in service.app()._routes.values() for route in by_verb.values()]
        nothing: Any = None
        more = (*FileRoutes(nothing, nothing).routes(), *MessageBatchRoutes(nothing, nothing, nothing, nothing).routes())
        for route in (*routes, *more):
            most = max(http_call.MAX_BODY_BYTES, route.max_raw_bytes, route.max_body_bytes)
            # A form has a file, which its handler reads.
            most = max(
                most, wire.MAX_REQUEST_BYTES * route.takes_prompts, (files.MAX_FILE_BYTES + body_limits.FORM_BYTES) * bool(route.form)
            )
            assert most <= body_limits.of_path(route.path), route.path
            longest[route.path] = max(most, longest.get(route.path, 0))
    for path in (body_limits.FILES, body_limits.MESSAGE_BATCHES):
        assert longest[path] == body_limits.LARGE_BYTES[path]
    assert body_limits.GENERAL_BYTES in longest.values()
    assert body_limits.of_path("/api/models/blobs/sha256:x") >= MAX_PIECE_BYTES


def test_a_limit_is_that_of_the_path_and_below() -> None:
    for path, most in body_limits.LARGE_BYTES.items():
        assert (body_limits.of_path(path), body_limits.of_path(f"{path}/x")) == (most, most)
        assert body_limits.of_path(f"{path}x") == body_limits.GENERAL_BYTES
