"""Serve install.sh, install.ps1 and the package index that it installs from."""

import asyncio
import re
from collections.abc import AsyncIterator
from http import HTTPStatus
from pathlib import Path

import msgspec
from litestar import MediaType, Response, get
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery
from litestar.response import Stream

from services.web import install_script
from services.web.install_script import PackageIndex
from services.web.request_context import PageRequest
from shared import errors
from shared.api import membership

#: One part of a path: no hidden file, no parent folder.
_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,199}")
_PIECE_BYTES = 256 * 1024
_MAX_INDEX_BYTES = 1024 * 1024


@get(["/install.sh", "/install.ps1"])
async def script(page_request: NamedDependency[PageRequest]) -> Response[str]:
    settings = page_request.app.settings
    index = await asyncio.to_thread(_read_index, settings.package_index)
    ca = "" if settings.certificate_to_trust is None else await asyncio.to_thread(settings.certificate_to_trust.read_text, "ascii")
    text = install_script.render(index, page_request.address, ca=ca, name=page_request.request.scope["path"].removeprefix("/"))
    return Response(text, media_type=MediaType.TEXT)


@get("/install/want/{target:str}", media_type=MediaType.TEXT)
async def want(page_request: NamedDependency[PageRequest], target: FromPath[str], ticket: FromQuery[str] = "") -> str:
    """Fetch packages for a kind of machine, and say so. ``ticket`` is the id of one, which is no secret."""
    if ticket:
        try:
            await page_request.call(membership.check_ticket, membership.CheckTicket(ticket[:64]))
        except errors.BadTicket as error:
            return error.message
    said = page_request.app.package_fetcher.want(target, has_ticket=bool(ticket))
    if said is None:
        raise errors.NotFound("this mesh cannot fetch packages for such a machine")
    return said


@get("/install/{path:path}")
async def package(page_request: NamedDependency[PageRequest], path: FromPath[str]) -> Stream:
    parts = path.strip("/").split("/")
    if parts[0] == "simple":
        # pip asks for the page of a project by its folder.
        parts.append("index.html")
    if not all(map(_PART.fullmatch, parts)):
        raise errors.NotFound("file not found")
    file = page_request.app.settings.package_index.joinpath(*parts)
    size = await asyncio.to_thread(_size_of, file)
    kind = MediaType.HTML if file.suffix == ".html" else "application/octet-stream"
    return Stream(_pieces(file, size), media_type=kind, status_code=HTTPStatus.OK, headers={"Content-Length": str(size)})


def _read_index(folder: Path) -> PackageIndex | None:
    """Return None while it is being made."""
    try:
        with (folder / install_script.INDEX_FILE).open("rb") as file:
            return msgspec.json.decode(file.read(_MAX_INDEX_BYTES), type=PackageIndex)
    except FileNotFoundError:
        return None


def _size_of(file: Path) -> int:
    try:
        if file.is_file():
            return file.stat().st_size
    except OSError:
        pass
    raise errors.NotFound("file not found", hint="if the mesh has just started, try again in a minute: it is still fetching its packages")


async def _pieces(file: Path, size: int) -> AsyncIterator[bytes]:
    """Read in a thread, never more than one piece ahead of the client."""
    opened = await asyncio.to_thread(file.open, "rb")
    try:
        # As long as the header says, even if the file is replaced by a larger one meanwhile.
        while size and (piece := await asyncio.to_thread(opened.read, min(size, _PIECE_BYTES))):
            size -= len(piece)
            yield piece
    finally:
        await asyncio.to_thread(opened.close)
