"""Adds a person's files to the archive of their data."""

from collections.abc import AsyncGenerator

import msgspec

from features.files import contract as files_api
from features.files.contract import FileFacts
from features.files.web import stored_files
from services.web.request_context import PageRequest


async def read_own(page_request: PageRequest) -> AsyncGenerator[tuple[str, AsyncGenerator[bytes]]]:
    """Yield the list of files, and then each."""
    stored: list[FileFacts] = []

    async def listed() -> AsyncGenerator[bytes]:
        stored.extend(await _list_files(page_request))
        yield msgspec.json.format(msgspec.json.encode(stored), indent=2)

    yield "files.json", listed()
    for facts in stored:
        yield f"files/{facts.id}-{facts.name}", stored_files.read(page_request, facts)


async def _list_files(page_request: PageRequest) -> tuple[FileFacts, ...]:
    found = await page_request.call(files_api.list_files, files_api.ListFiles())
    listed = found.files
    while found.has_more:
        found = await page_request.call(files_api.list_files, files_api.ListFiles(after=listed[-1].id))
        listed += found.files
    return listed
