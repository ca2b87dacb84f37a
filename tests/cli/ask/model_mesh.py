"""A fake mesh that keeps the versions of models, for tests of `aicli models push` and `export`."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from uuid import UUID

import msgspec
import pytest

from cli.ask import blob_transfers
from shared import errors
from shared.api import gateway, models
from shared.api.gateway import HttpPart, HttpRequest
from shared.api.method import Nothing
from shared.api.models import BlobUpload, BlobUploads, ModelVersion, ModelVersions, VersionState
from shared.models import manifest
from shared.timing.backoff import Backoff
from shared.types import ModelName, UserId
from tests.cli.fake_mesh import Shell

VERSION = ModelVersion(
    ModelName("tiny"), 1, "sha256:" + "0" * 64, VersionState.READY, 5, datetime(2026, 1, 2, tzinfo=UTC), UserId(UUID(int=1)),
    channels=("stable",),
)  # fmt: skip


class ModelMesh:
    """Keeps what is uploaded; ``broken`` and ``lost`` say how many pieces and other calls are lost with their connection."""

    def __init__(self, shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(blob_transfers, "PIECE_BYTES", 1000)
        monkeypatch.setattr(blob_transfers, "CHECK_SECONDS", 0.0)
        monkeypatch.setattr(blob_transfers, "BACKOFF", Backoff(first_seconds=0.0, longest_seconds=0.0))
        self.uploads: dict[str, bytearray] = {}
        self.stored: dict[str, bytes] = {}
        self.broken = self.lost = 0
        self.offsets: list[int] = []
        self.manifest = b""
        self.states = [VersionState.CHECKING, VersionState.READY]
        shell.mesh.answer(models.find_model_blobs, self.find)
        shell.mesh.answer(models.complete_model_version, self.complete)
        shell.mesh.answer(models.list_model_versions, lambda _request: ModelVersions((self.version(),)))
        shell.mesh.stream_script(gateway.serve_http, self.serve, Nothing())

    def find(self, request: models.FindModelBlobs) -> BlobUploads:
        self.lose(request.digests)
        return BlobUploads(tuple(BlobUpload(each, each in self.stored, len(self.uploads.get(each, b""))) for each in request.digests))

    def lose(self, is_important: object = True) -> None:
        if is_important and self.lost:
            self.lost -= 1
            raise errors.LinkLost("the gateway was restarted")

    async def serve(self, request: HttpRequest) -> AsyncIterator[HttpPart]:
        digest = request.path.rpartition("/")[2]
        if request.verb == "GET":
            async for part in self.send(self.stored[digest], request):
                yield part
            return
        upload = self.uploads.setdefault(digest, bytearray())
        (_, given), *_ = request.headers
        start, last, size = (int(text) for text in given.removeprefix(b"bytes ").replace(b"/", b"-").split(b"-"))
        self.offsets.append(start)
        assert (start, last + 1 - start) == (len(upload), len(request.body))
        if self.broken:
            self.broken -= 1
            raise errors.LinkLost("the connection broke")
        upload += request.body
        if len(upload) == size:
            assert manifest.digest_of(bytes(upload)) == digest
            self.stored[digest] = bytes(upload)
        yield HttpPart(b"", 200 if digest in self.stored else 202)

    async def send(self, data: bytes, request: HttpRequest) -> AsyncIterator[HttpPart]:
        ((name, given),) = request.headers
        assert name == b"range"
        start, last = (int(text) for text in given.removeprefix(b"bytes=").split(b"-"))
        self.offsets.append(start)
        if self.broken:
            self.broken -= 1
            raise errors.LinkLost("the connection broke")
        found = data[start : last + 1]
        headers = ((b"content-range", b"bytes %d-%d/%d" % (start, start + len(found) - 1, len(data))),)
        yield HttpPart(found[:10], 206, headers)
        yield HttpPart(found[10:])

    def complete(self, request: models.CompleteModelVersion) -> ModelVersion:
        self.lose()
        version = manifest.read(request.manifest)
        assert set(version.blobs) <= self.stored.keys()
        self.manifest = request.manifest
        self.stored[version.digest] = request.manifest
        return self.version()

    def version(self) -> ModelVersion:
        state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        digest = manifest.digest_of(self.manifest)
        return msgspec.structs.replace(
            VERSION, digest=digest, state=state, reason="it is no model" if state is VersionState.REFUSED else ""
        )
