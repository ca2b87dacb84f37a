"""The gateway's methods for workers that get a version of a model."""

from typing import Annotated

from msgspec import Meta

from shared.api.method import Body, Nothing, StreamMethod
from shared.models.manifest import MAX_BYTES, Digest
from shared.types import Role

#: Of one call, and of one part of its answer: messages have 1 MiB.
MAX_RANGE_BYTES, PART_BYTES = 16 << 20, 256 << 10
#: How an order names a version in place of a source; its manifest's digest follows.
VERSION_SOURCE = "mesh:"


class ReadBlob(Body, frozen=True):
    """Read a file of a version, or what describes it, from the mesh's store."""

    digest: Digest
    start: Annotated[int, Meta(ge=0, le=MAX_BYTES)]
    #: The blob may end before it.
    length: Annotated[int, Meta(ge=1, le=MAX_RANGE_BYTES)]


class BlobPart(Body, frozen=True):
    data: bytes


read_blob = StreamMethod("gateway.readBlob", ReadBlob, item=BlobPart, end=Nothing, callers={Role.WORKER})
