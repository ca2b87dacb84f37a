"""The gateway's methods for workers that get a version of a model."""

from typing import Annotated

from msgspec import Meta

from shared.api.method import Body, Method, Nothing, StreamMethod
from shared.models.copy_plan import MAX_ORPHANS
from shared.models.manifest import MAX_BYTES, Digest
from shared.types import ModelName, NodeId, Role

#: Of one call, and of one part of its answer: messages have 1 MiB.
MAX_RANGE_BYTES, PART_BYTES = 16 << 20, 256 << 10
#: Of one answer, and of one worker.
MAX_INTRODUCED, MAX_LEASED_BLOCKS = 8, 16
#: Digests in one message.
MAX_RUNNING_BLOCKS = 8192
_Block = Annotated[int, Meta(ge=0, lt=MAX_BYTES >> 20)]
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


class FindModelPeers(Body, frozen=True):
    """Ask for other workers that have a file of a version, or are copying it."""

    digest: Digest
    #: What workers call the version that the file is a part of.
    model: Annotated[ModelName, Meta(max_length=200)] = ModelName("")


class ModelPeer(Body, frozen=True):
    node: NodeId
    #: See ``copy_grants``.
    grant: bytes


class ModelPeers(Body, frozen=True):
    #: Those in the caller's network first.
    peers: tuple[ModelPeer, ...]


class LeaseBlocks(Body, frozen=True):
    """Ask which blocks of a file to read from the mesh's store. The caller offers what it has to other workers."""

    digest: Digest
    size: Annotated[int, Meta(ge=1, le=MAX_BYTES)]
    #: Leased blocks that it has now.
    done: Annotated[tuple[_Block, ...], Meta(max_length=1024)] = ()
    #: Blocks that no other worker offers it.
    orphans: Annotated[tuple[_Block, ...], Meta(max_length=MAX_ORPHANS)] = ()
    #: How many blocks in a row it reads in a short time.
    most: Annotated[int, Meta(ge=1, le=MAX_LEASED_BLOCKS)] = 1
    #: What it had before: bits, the first byte has those of the lowest blocks. None unless the gateway has asked.
    had: Annotated[bytes, Meta(max_length=512 << 10)] | None = None
    #: Workers that sent it something wrong, or nothing.
    faulty: Annotated[tuple[NodeId, ...], Meta(max_length=16)] = ()
    #: As in ``FindModelPeers``.
    model: Annotated[ModelName, Meta(max_length=200)] = ModelName("")


class LeasedBlocks(Body, frozen=True):
    #: None while others read them.
    blocks: tuple[int, ...] = ()
    #: The gateway does not know the caller yet: ask again with ``had``.
    is_new: bool = False


class PulledFile(Body, frozen=True):
    """A file that a worker has pulled from a public source and checked."""

    digest: Digest
    size: Annotated[int, Meta(ge=1, le=MAX_BYTES)]
    #: Of the list of its blocks, which workers copy like a file.
    list_digest: Digest
    #: The SHA-256 of the blocks of that list.
    list_blocks: Annotated[bytes, Meta(max_length=(MAX_BYTES >> 35) << 6)]


class RunningPull(Body, frozen=True):
    """A file that a worker pulls from a public source now. The source lists its digest; nobody has checked it, or those of its blocks."""

    digest: Digest
    size: Annotated[int, Meta(ge=1, le=MAX_BYTES)]
    #: The SHA-256 of its blocks from this one on, as far as they have arrived.
    start: Annotated[int, Meta(ge=0)] = 0
    blocks: Annotated[bytes, Meta(max_length=MAX_RUNNING_BLOCKS << 5)] = b""
    #: Said by the gateway. From another one, all blocks have to be read again.
    puller: NodeId | None = None


class AdvisePull(Body, frozen=True):
    """Ask whether to pull a deployed model from its public source, or say that it is here, or on its way."""

    model: Annotated[ModelName, Meta(max_length=200)]
    source: Annotated[str, Meta(max_length=2000)]
    pulled: PulledFile | None = None
    #: It is here, but others can't copy it from us.
    is_kept: bool = False
    #: We pull it. The answer says from which block on the gateway wants to hear digests.
    running: RunningPull | None = None
    #: The caller copies what others pull, and knows the digests of so many blocks.
    known: Annotated[int, Meta(ge=0)] | None = None


class PullAdvice(Body, frozen=True):
    """With neither, the worker pulls it."""

    #: To copy from other workers.
    file: PulledFile | None = None
    #: Another worker pulls it. Ask again a little later.
    waits: bool = False
    #: What can be copied from it meanwhile.
    running: RunningPull | None = None


advise_pull = Method("gateway.advisePull", AdvisePull, PullAdvice, callers={Role.WORKER})
find_model_peers = Method("gateway.findModelPeers", FindModelPeers, ModelPeers, callers={Role.WORKER})
lease_blocks = Method("gateway.leaseBlocks", LeaseBlocks, LeasedBlocks, callers={Role.WORKER})
