"""Reads what a store has."""

import asyncio
import contextlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from shared.stores.objects import ObjectMissing, ObjectStore
from shared.types import NodeId
from stack.recovery import layout
from stack.recovery.layout import BackupManifest, RestoreTests, Segment, StoreMesh, StoreState

_MOST_MANIFESTS = 1000


@dataclass(frozen=True, slots=True)
class StoreCatalog:
    #: Oldest first; only signed and whole ones.
    backups: tuple[BackupManifest, ...]
    #: Sorted.
    segments: tuple[Segment, ...]
    #: The timelines whose history is here.
    histories: frozenset[int]
    state: StoreState | None
    #: None before the first restore test.
    tests: RestoreTests | None = None


async def read_mesh(store: ObjectStore, keys: Collection[NodeId] | None) -> StoreMesh | None:
    """Return whose store it is; None if it is empty. ``keys`` None trusts the key that it names itself."""
    with contextlib.suppress(ObjectMissing):
        mesh = layout.read_signed(layout.MESH, await store.get(layout.MESH), StoreMesh, keys)
        return layout.read_signed(layout.MESH, await store.get(layout.MESH), StoreMesh, mesh.keys)
    return None


async def read(store: ObjectStore, mesh: StoreMesh) -> StoreCatalog:
    """Raises DamagedObject for a manifest that was changed."""
    names = [found.name async for found in store.list(layout.BASE)]
    wanted = sorted(name for name in names if (parsed := layout.parse_backup(name)) is not None and parsed[1] == "manifest.json")
    limit = asyncio.Semaphore(8)

    async def manifest(name: str) -> BackupManifest:
        async with limit:
            return layout.read_signed(name, await store.get(name), BackupManifest, mesh.keys)

    backups: Sequence[BackupManifest] = await asyncio.gather(*map(manifest, wanted[-_MOST_MANIFESTS:]))
    state = None
    with contextlib.suppress(ObjectMissing):
        state = layout.read_signed(layout.STATE, await store.get(layout.STATE), StoreState, mesh.keys)
    tests = None
    with contextlib.suppress(ObjectMissing):
        tests = layout.read_signed(layout.TESTS, await store.get(layout.TESTS), RestoreTests, mesh.keys)
    size = backups[-1].segment_size if backups else 16 << 20
    logs = [found.name async for found in store.list(layout.WAL)]
    segments = sorted(segment for name in logs if (segment := layout.parse_segment(name, size)) is not None)
    histories = frozenset(timeline for name in logs if (timeline := layout.parse_history(name)) is not None)
    return StoreCatalog(tuple(backups), tuple(segments), histories, state, tests)
