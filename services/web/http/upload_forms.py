"""Reads the beginning of a form with a file, which is passed on as it arrives."""

import re
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

from shared import errors

#: A browser sends the fields of a form in its order.
_TOKEN = re.compile(rb'--[^\r\n]{1,100}\r\nContent-Disposition: form-data; name="token"\r\n\r\n([0-9a-f.]{1,200})\r\n(?=--)')
_BEGIN_BYTES = 16 * 1024


@dataclass(frozen=True, slots=True)
class UploadForm:
    #: The value of the first field, which is not in the form any more.
    token: str
    content_type: str
    size: int
    begin: bytes
    rest: AsyncGenerator[bytes]

    async def pieces(self) -> AsyncGenerator[bytes]:
        yield self.begin
        async with aclosing(self.rest):
            async for piece in self.rest:
                yield piece


async def begin(pieces: AsyncGenerator[bytes], content_type: str, content_length: str) -> UploadForm:
    """Raises BadRequest unless the form begins with a token."""
    head = bytearray()
    async for piece in pieces:
        head += piece
        if len(head) >= _BEGIN_BYTES:
            break
    found = _TOKEN.match(head)
    if found is None or not content_length.isdecimal():
        raise errors.BadRequest("the form is invalid", hint="reload the page and submit the form again")
    return UploadForm(found[1].decode(), content_type, int(content_length) - found.end(), bytes(head[found.end() :]), pieces)
