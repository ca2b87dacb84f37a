"""Registries of several gateways on one database and one store, and what people push to them."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

from services.gateway import store
from services.gateway.models.model_origin import ModelOrigin
from services.gateway.models.model_readers import ModelReaders
from services.gateway.models.name_uses import NameUse
from services.gateway.models.registry import ModelRegistry
from services.gateway.models.registry_store import RegistryStore
from shared.api import membership
from shared.api import models as api
from shared.api.auth import Principal
from shared.api.models import ModelVersion
from shared.background.deferred_rows import DeferredRows
from shared.background.items import BackgroundItems
from shared.models import block_list, manifest
from shared.models.manifest import Statement, VersionConfig, VersionFile
from shared.stores.objects import ObjectStore
from shared.telemetry import Metrics
from shared.types import ModelName, TenantId, Tier, UserId, UserRole
from tests import gguf_files
from tests.gguf_files import LlamaShape
from tests.services.gateway.fakes import FakeDirectory, FakeRpc, rpc_call

ADMIN = Principal(UserId(UUID(int=7)), "root", UserRole.ADMIN, Tier.FREE)
DEVELOPER = Principal(UserId(UUID(int=8)), "dev", UserRole.DEVELOPER, Tier.FREE, team_id=TenantId(UUID(int=80)))
STRANGER = Principal(UserId(UUID(int=9)), "eve", UserRole.DEVELOPER, Tier.FREE, team_id=TenantId(UUID(int=90)))
PIECE = 8 << 20
LLAMA = ModelName("llama3")


class Acts:
    def __init__(self) -> None:
        self.reported: list[tuple[str, str, dict[str, str]]] = []

    def report_action(self, action: str, by: Principal, *, tenant: TenantId | None, target: str, **details: str) -> None:
        self.reported.append((action, target, details))


@dataclass(frozen=True)
class Push:
    """All blobs of a version and its manifest."""

    manifest: bytes
    #: In the order of an upload.
    blobs: dict[str, bytes]

    @property
    def digest(self) -> str:
        return manifest.digest_of(self.manifest)


def push_of(files: dict[str, bytes], **said: str) -> Push:
    described = []
    blobs: dict[str, bytes] = {}
    for path, data in files.items():
        blocks = b"".join(block_list.compute([data]))
        described.append(VersionFile(path, manifest.digest_of(data), len(data), manifest.digest_of(blocks)))
        blobs |= {manifest.digest_of(data): data, manifest.digest_of(blocks): blocks}
    config = manifest.encode_config(VersionConfig(statement=Statement(**said)), described)
    blobs[manifest.digest_of(config)] = config
    return Push(manifest.build(config, described), blobs)


def gguf(folder: Path, seed: int = 1, *, layers: int = 2) -> bytes:
    """Return a model, of three pieces if it has two layers."""
    file = folder / f"{seed}-{layers}.gguf"
    shape = LlamaShape(layers=layers, embedding=512, heads=8, kv_heads=4, feed_forward=2048, vocabulary=1024, context=4096)
    gguf_files.write_llama(file, shape, weights="f16", seed=seed)
    return file.read_bytes()


def small(seed: int = 1) -> bytes:
    """Return a file of another kind, of one piece."""
    return b"%d" % seed * 1000


@dataclass
class Gateway:
    registry: ModelRegistry
    store: RegistryStore
    acts: Acts
    nodes: FakeDirectory

    async def send(self, by: Principal, data: bytes, *, digest: str | None = None, start: int = 0, until: int | None = None) -> Any:
        """Upload a blob from a byte on; stop before the piece at ``until``."""
        digest, found = digest or manifest.digest_of(data), None
        for at in range(start, len(data), PIECE):
            if until is not None and at >= until:
                break
            found = await self.registry.upload(by, digest, at, len(data), data[at : at + PIECE])
        return found

    async def find(self, by: Principal, data: bytes) -> api.BlobUpload:
        request = api.FindModelBlobs((manifest.digest_of(data),))
        (found,) = (await self.registry.find_blobs(request, rpc_call(by))).blobs
        return found

    async def complete(self, by: Principal, push: Push, model: ModelName = LLAMA, **more: Any) -> ModelVersion:
        return await self.registry.complete(api.CompleteModelVersion(model, push.manifest, **more), rpc_call(by))

    async def push(self, by: Principal, push: Push, model: ModelName = LLAMA, **more: Any) -> ModelVersion:
        """Upload, complete and check."""
        for data in push.blobs.values():
            await self.send(by, data)
        await self.registry.work()
        made = await self.complete(by, push, model, **more)
        await self.registry.work()
        return await self.get(by, model, made.version)

    async def versions(self, by: Principal, model: ModelName = LLAMA) -> list[ModelVersion]:
        return list((await self.registry.list(api.ListModelVersions(model), rpc_call(by))).versions)

    async def get(self, by: Principal, model: ModelName, version: int) -> ModelVersion:
        (found,) = (await self.registry.list(api.ListModelVersions(model, version), rpc_call(by))).versions
        return found

    async def promote(self, by: Principal, version: int | None = None, channel: str = "stable", model: ModelName = LLAMA) -> ModelVersion:
        return await self.registry.promote(api.PromoteModel(model, version, channel), rpc_call(by))

    async def rollback(self, by: Principal, channel: str = "stable", model: ModelName = LLAMA) -> ModelVersion:
        return await self.registry.rollback(api.RollbackModel(model, channel), rpc_call(by))


async def _at_once() -> None:
    """There is no other gateway."""


@asynccontextmanager
async def running(
    url: str,
    objects: ObjectStore,
    *,
    gibibytes: int = 1,
    nodes: FakeDirectory | None = None,
    wait_until_used: Callable[[], Awaitable[None]] = _at_once,
) -> AsyncIterator[Gateway]:
    async with store.opened(url) as database:
        tables, acts = RegistryStore(database), Acts()
        nodes = nodes or FakeDirectory()
        audit: Any = acts
        rpc: Any = FakeRpc()
        rpc.answers[membership.describe_machine.name] = _describe
        readers = ModelReaders(tables, rpc)
        registry = ModelRegistry(
            tables,
            ModelOrigin(objects),
            nodes,
            readers,
            audit,
            items=BackgroundItems(DeferredRows(database, "gateway"), Metrics("gateway")),
            gibibytes=gibibytes,
            is_deployed=_is_deployed,
            find_use=_find_use,
            wait_until_used=wait_until_used,
        )
        yield Gateway(registry, tables, acts, nodes)


async def _describe(_request: membership.DescribeMachine) -> membership.Machine:
    return membership.Machine(reads_all=True)


async def _find_use(_model: ModelName) -> NameUse:
    return NameUse()


async def _is_deployed(_channel: str) -> bool:
    return False
