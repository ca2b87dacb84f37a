"""Serves the /api routes for models: uploads in pieces, versions, channels and signatures."""

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import TypeVar

import msgspec

from services.gateway.facts.bad_field import BadField
from services.gateway.http_api import request_bodies
from services.gateway.http_api.http_app import HttpRoute
from services.gateway.http_api.http_call import HttpCall
from services.gateway.models import model_origin
from services.gateway.models.registry import MAX_PIECE_BYTES, ModelRegistry
from services.gateway.rpc_api.model_trust_rpc import ModelTrustRpc
from shared import errors
from shared.api import model_trust
from shared.api import models as api
from shared.api.method import Method
from shared.api.models import BlobUpload, Channel, ModelVersion, VersionNumber
from shared.models import manifest
from shared.models.version_names import DIGEST_PATTERN
from shared.rpc import RpcCall
from shared.types import ModelName, NodeId, TenantId

R = TypeVar("R", bound=msgspec.Struct)

_SECONDS = 120.0
#: Of downloads: each keeps a piece in memory until the client has it.
_DOWNLOADS = 16
_RANGE = re.compile(rb"bytes (\d{1,15})-(\d{1,15})/(\d{1,15})")
_WANTED = re.compile(rb"bytes=(\d{1,15})-(\d{1,15})")


class TrustQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    #: The newest if there is none.
    version: VersionNumber | None = None


class PushQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    #: For administrators: whose model it is; none: the mesh's.
    organization: TenantId | None = None
    #: The channel that serves it once it is checked; none: stable for the first version of a model that passes, and else no channel.
    channel: Channel | None = None


class RestVersions:
    def __init__(self, registry: ModelRegistry, trust: ModelTrustRpc, node: NodeId) -> None:
        self._registry = registry
        self._trust = trust
        self._downloads = asyncio.Semaphore(_DOWNLOADS)
        self._node = node

    def routes(self) -> tuple[HttpRoute, ...]:
        registry, blob, of_model = self._registry, "/api/models/blobs/{digest}", "/api/models/{model}"
        return (
            HttpRoute("HEAD", blob, self._find, "findModelBlobs", "Find where the upload of a file continues"),
            HttpRoute("GET", blob, self._read, "listModelVersions", "Download a part of a file of a version", status=206),
            HttpRoute("PATCH", blob, self._patch, "findModelBlobs", "Upload the next piece of a file", max_raw_bytes=MAX_PIECE_BYTES,
                      status=202),
            HttpRoute("GET", f"{of_model}/versions", self._list, "listModelVersions", "List the versions of a model",
                      answer=api.ModelVersions),
            HttpRoute("POST", f"{of_model}/versions", self._complete, "completeModelVersion", "Make a version of uploaded files",
                      query=PushQuery, max_raw_bytes=manifest.MAX_MANIFEST_BYTES, answer=ModelVersion),
            self._post(api.promote_model, "Let a channel serve a version", registry.promote),
            self._post(api.rollback_model, "Let a channel serve the version before", registry.rollback),
            self._post(api.withdraw_model, "Let a channel serve nothing", registry.withdraw),
            self._post(api.retire_model_version, "Keep a version out of channels", registry.retire),
            self._post(api.revoke_model_version, "Keep a version from being loaded, forever", registry.revoke),
            self._post(model_trust.sign_model_version, "Keep a signature of a version", self._trust.sign),
            HttpRoute("GET", f"{of_model}/trust", self._read_trust, "readModelTrust",
                      "Show a version's manifest and signatures, and the rules about whose count", query=TrustQuery,
                      answer=model_trust.ModelTrust),
        )  # fmt: skip

    def _post(
        self,
        method: Method[R, ModelVersion],
        summary: str,
        handler: Callable[[R, RpcCall], Awaitable[ModelVersion]],
    ) -> HttpRoute:
        body = _without_model(method.request)

        async def handle(call: HttpCall) -> None:
            given = msgspec.structs.asdict(await call.read_fields(body))
            await call.answer(await handler(method.request(model=call.rest_of_path, **given), call.as_rpc(self._node, _SECONDS)))

        name = method.name.partition(".")[2]
        path = f"/api/models/{{model}}/{name.partition('Model')[0]}"
        return HttpRoute("POST", path, handle, name, summary, body=body, answer=ModelVersion)

    async def _find(self, call: HttpCall) -> None:
        request = api.FindModelBlobs((_digest(call),))
        (found,) = (await self._registry.find_blobs(request, call.as_rpc(self._node, _SECONDS))).blobs
        if found.actual_digest is not None:
            raise model_origin.damaged(found.digest, found.actual_digest)
        if not found.is_stored and not found.next_offset:
            raise errors.NotFound(f"no upload of {found.digest} has begun")
        await _answer(call, found)

    async def _read(self, call: HttpCall) -> None:
        given = _WANTED.fullmatch(call.header(b"range") or b"")
        start, end = (0, 0) if given is None else (int(given[1]), int(given[2]) + 1)
        if not 0 < end - start <= MAX_PIECE_BYTES:
            raise BadField("Range", f"must be such as bytes=0-8388607, with at most {MAX_PIECE_BYTES} bytes")
        async with self._downloads:
            data, size = await self._registry.download(call.caller, _digest(call), start, end - start)
            if not data:
                raise BadField("Range", f"begins after the file's {size} bytes")
            call.add_headers([(b"content-range", b"bytes %d-%d/%d" % (start, start + len(data) - 1, size))])
            await call.answer_bytes(data, b"application/octet-stream", status=206)

    async def _patch(self, call: HttpCall) -> None:
        given = _RANGE.fullmatch(call.header(b"content-range") or b"")
        if given is None:
            raise BadField("Content-Range", "must be such as bytes 0-8388607/50000000")
        start, last, size = map(int, given.groups())
        if not start <= last < size or last - start + 1 != len(call.body):
            raise BadField("Content-Range", f"doesn't fit the {len(call.body)} bytes of the body")
        await _answer(call, await self._registry.upload(call.caller, _digest(call), start, size, call.body))

    async def _list(self, call: HttpCall) -> None:
        await call.answer(await self._registry.list(api.ListModelVersions(ModelName(call.rest_of_path)), call.as_rpc(self._node, _SECONDS)))

    async def _read_trust(self, call: HttpCall) -> None:
        query = request_bodies.read_query(call.query, TrustQuery)
        request = model_trust.ReadModelTrust(ModelName(call.rest_of_path), query.version)
        await call.answer(await self._trust.read(request, call.as_rpc(self._node, _SECONDS)))

    async def _complete(self, call: HttpCall) -> None:
        query = request_bodies.read_query(call.query, PushQuery)
        request = api.CompleteModelVersion(ModelName(call.rest_of_path), call.body, organization=query.organization, channel=query.channel)
        await call.answer(await self._registry.complete(request, call.as_rpc(self._node, _SECONDS)))


def _without_model(request: type[msgspec.Struct]) -> type[msgspec.Struct]:
    """Return a body with the fields of a request, but for the model, which is in the path."""
    fields = [(each.name, each.type, each.default) for each in msgspec.structs.fields(request) if each.name != "model"]
    return msgspec.defstruct(f"{request.__name__}Body", fields, frozen=True, forbid_unknown_fields=True)


async def _answer(call: HttpCall, found: BlobUpload) -> None:
    """200: the mesh has it. 202: it continues at Upload-Offset, or is being checked if that is its size."""
    if not found.is_stored:
        call.add_headers([(b"upload-offset", b"%d" % found.next_offset)])
    await call.answer_bytes(b"", b"application/octet-stream", status=200 if found.is_stored else 202)


def _digest(call: HttpCall) -> str:
    if not re.fullmatch(DIGEST_PATTERN, call.rest_of_path):
        raise BadField("digest", "must be sha256: and 64 digits in hex")
    return call.rest_of_path
