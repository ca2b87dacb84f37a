"""Reads files that the gateway keeps for the user."""

from collections.abc import AsyncGenerator
from http import HTTPStatus

from features.files.contract import FileFacts
from services.web.request_context import PageRequest
from shared import errors, http_refusals
from shared.api import gateway
from shared.api.gateway import HttpRequest

_SECONDS = 3600.0


async def read(page_request: PageRequest, facts: FileFacts) -> AsyncGenerator[bytes]:
    """Yield a file. Raises the gateway's error, and LinkLost if the file ends early."""
    request = HttpRequest("GET", f"/v1/files/{facts.id}/content")
    token, status, size, refusal = page_request.person.access_token, 0, 0, b""
    async with page_request.app.caller.stream(gateway.serve_http, request, deadline_seconds=_SECONDS, credential=token) as parts:
        async for part in parts:
            status = status or part.status
            if status != HTTPStatus.OK:
                refusal += part.body
                continue
            size += len(part.body)
            yield part.body
    if status != HTTPStatus.OK:
        raise http_refusals.read(status, refusal)
    if size != facts.size:
        raise errors.LinkLost(f"{size} of {facts.size} bytes arrived", hint="try again; if that fails, the file is damaged")
