"""Answer with a file that the browser saves."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from http import HTTPStatus

from litestar.response import Stream


def attachment(name: str) -> dict[str, str]:
    """Return the headers of a download."""
    return {"Content-Disposition": f'attachment; filename="{name}"'}


async def stream(pieces: AsyncGenerator[bytes], name: str, media_type: str) -> Stream:
    """Stream a file. Raises what the first piece raises, so that an error becomes a page and not a truncated file."""
    first = await anext(pieces, b"")
    return Stream(_chained(first, pieces), media_type=media_type, status_code=HTTPStatus.OK, headers=attachment(name))


async def _chained(first: bytes, rest: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    async with aclosing(rest):
        yield first
        async for piece in rest:
            # Most pieces of a ZIP are empty while zlib buffers.
            if piece:
                yield piece
