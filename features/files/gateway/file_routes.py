"""Serves /v1/files, compatible with OpenAI's clients: uploads as they arrive, downloads by ranges."""

import re
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Annotated, Literal
from urllib.parse import quote

import msgspec
from msgspec import Meta

from features.files import contract as api
from features.files.contract import UPLOADED, FileFacts, FilePurpose
from features.files.feature import FORM_BYTES, MAX_FILE_BYTES, PATH
from features.files.gateway.file_storage import FileStorage
from features.files.gateway.rules.upload_form import UploadForm
from features.files.gateway.store import FileOwner, NewFile
from services.gateway.facts.bad_field import BadField
from services.gateway.http_api import http_app, request_bodies
from services.gateway.http_api.http_app import HttpRoute
from services.gateway.http_api.http_call import HttpCall
from shared import errors
from shared.api.auth import Principal

#: 512 MB at 1.2 Mbit/s.
_UPLOAD_SECONDS = 3600.0
#: OpenAI's: input of batches is kept for 30 days, other files until they are deleted.
_BATCH_SECONDS = 30 * 24 * 3600
_ANCHOR, _SECONDS = "expires_after[anchor]", "expires_after[seconds]"
_SECONDS_DIGITS = 10
_RANGE = re.compile(rb"bytes=(\d{0,15})-(\d{0,15})")


class UploadFields(msgspec.Struct, frozen=True):
    """The fields of an upload, in any order, beside the part `file` with a file name."""

    purpose: str
    #: Always `created_at`.
    anchor: str = msgspec.field(default="created_at", name=_ANCHOR)
    #: From an hour to 30 days. By default input of batches expires after 30 days, and other files don't.
    seconds: Annotated[int, Meta(ge=3600, le=2_592_000)] | None = msgspec.field(default=None, name=_SECONDS)


class FilesQuery(msgspec.Struct, frozen=True):
    purpose: FilePurpose | None = None
    #: The id of the last file of the page before.
    after: api.FileId | None = None
    limit: Annotated[int, Meta(ge=1, le=api.MAX_LISTED)] = api.MAX_LISTED
    order: Literal["asc", "desc"] = "desc"


class File(msgspec.Struct, frozen=True):
    id: str
    bytes: int
    created_at: int
    filename: str
    purpose: str
    expires_at: int | None
    object: str = "file"
    status: str = "processed"
    status_details: str | None = None


class FileList(msgspec.Struct, frozen=True):
    data: tuple[File, ...]
    has_more: bool
    first_id: str | None
    last_id: str | None
    object: str = "list"


class DeletedFile(msgspec.Struct, frozen=True):
    id: str
    object: str = "file"
    deleted: bool = True


class FileRoutes:
    def __init__(self, storage: FileStorage, limit_of: Callable[[Principal], int | None]) -> None:
        """``limit_of``: how many bytes the files of a caller may have."""
        self._storage, self._limit_of = storage, limit_of

    def routes(self) -> tuple[HttpRoute, ...]:
        file = "/v1/files/{file}"
        return (
            HttpRoute("POST", PATH, self._upload, "uploadFile", "Upload a file", form=UploadFields, answer=File),
            HttpRoute("GET", "/v1/files", self._list, "listFiles", "List your files", query=FilesQuery, answer=FileList),
            HttpRoute("GET", file, self._get, "getFile", "Describe a file", answer=File),
            HttpRoute("GET", f"{file}/content", self._read, "readFile", "Download a file, or a range of it"),
            HttpRoute("DELETE", file, self._delete, "deleteFile", "Delete a file", answer=DeletedFile),
            *(HttpRoute("POST", path, self._refuse_parts, "uploadFile", "Refused: POST /v1/files takes whole files")
              for path in ("/v1/uploads", "/v1/uploads/{upload}")),
        )  # fmt: skip

    async def _upload(self, call: HttpCall) -> None:
        form, by = UploadForm(call.header(b"content-type") or b"", UploadFields.__struct_encode_fields__), call.caller

        async def pieces() -> AsyncIterator[bytes]:
            async for data in call.read_pieces(MAX_FILE_BYTES + FORM_BYTES, _UPLOAD_SECONDS):
                for piece in form.feed(data):
                    yield piece
            form.close()

        owner = FileOwner(by.tenant_id, by.user_id, self._limit_of(by))
        announced = max(0, call.announced_bytes - FORM_BYTES)
        await call.answer(_file(await self._storage.store(owner, pieces(), lambda: _describe(form), announced=announced)))

    async def _list(self, call: HttpCall) -> None:
        query = request_bodies.read_query(call.query, FilesQuery)
        found = await self._storage.list_of(call.caller.tenant_id, api.ListFiles(**msgspec.structs.asdict(query)))
        data = tuple(map(_file, found.files))
        first, last = (data[0].id, data[-1].id) if data else (None, None)
        await call.answer(FileList(data, found.has_more, first, last))

    async def _get(self, call: HttpCall) -> None:
        await call.answer(_file((await self._storage.find(call.caller.tenant_id, call.rest_of_path)).facts))

    async def _read(self, call: HttpCall) -> None:
        file = await self._storage.find(call.caller.tenant_id, call.rest_of_path)
        size = file.facts.size
        wanted = read_range(call.header(b"range"), size)
        start, end = wanted or (0, size)
        name = quote(file.facts.name, safe="")
        call.add_headers([(b"accept-ranges", b"bytes"), (b"content-disposition", f"attachment; filename*=UTF-8''{name}".encode())])
        if wanted:
            call.add_headers([(b"content-range", b"bytes %d-%d/%d" % (start, end - 1, size))])
        async with aclosing(self._storage.read(file, start, end)) as pieces:
            answering = call.answer_pieces(end - start, pieces, b"application/octet-stream", status=206 if wanted else 200)
            await http_app.until_disconnect(call, answering)

    async def _delete(self, call: HttpCall) -> None:
        await self._storage.delete_of(call.caller, call.rest_of_path)
        await call.answer(DeletedFile(call.rest_of_path))

    async def _refuse_parts(self, call: HttpCall) -> None:
        what = f"uploads in parts don't exist here: POST /v1/files takes whole files of up to {MAX_FILE_BYTES} bytes"
        raise errors.NotFound(what, hint="with OpenAI's client: client.files.create(file=…, purpose=…)")


def read_range(header: bytes | None, size: int) -> tuple[int, int] | None:
    """Return the first byte and the one behind the last; None for the whole file, as for what RFC 9110 lets a server ignore: several
    ranges, and what is none. Raises RangeNotSatisfiable."""
    found = _RANGE.fullmatch(header or b"")
    if found is None or found[0] == b"bytes=-":
        return None
    first, last = (int(number) if number else None for number in found.groups())
    if first is None:
        start, end = max(0, size - (last or 0)), size
    else:
        start, end = first, size if last is None else min(last + 1, size)
        if last is not None and last < first:
            return None
    if start >= end:
        raise errors.RangeNotSatisfiable(f"the file has {size} bytes, and none of them is in the range")
    return start, end


def _describe(form: UploadForm) -> NewFile:
    """Raises BadField."""
    fields, name = form.fields, form.file_name
    assert name is not None  # the form was closed
    if fields.get("purpose") not in UPLOADED:
        raise BadField("purpose", f"must be one of {', '.join(UPLOADED)}")
    if fields.get(_ANCHOR, "created_at") != "created_at":
        raise BadField(_ANCHOR, "must be created_at")
    purpose, said = FilePurpose(fields["purpose"]), fields.get(_SECONDS)
    if said is None:
        return NewFile(name, purpose, _BATCH_SECONDS if purpose is FilePurpose.BATCH else None)
    if not (said.isascii() and said.isdigit() and len(said) < _SECONDS_DIGITS and 3600 <= int(said) <= _BATCH_SECONDS):
        raise BadField(_SECONDS, f"must be a whole number from 3600 to {_BATCH_SECONDS}")
    return NewFile(name, purpose, int(said))


def _file(facts: FileFacts) -> File:
    expires_at = None if facts.expires_at is None else int(facts.expires_at.timestamp())
    return File(facts.id, facts.size, int(facts.created_at.timestamp()), facts.name, facts.purpose, expires_at)
