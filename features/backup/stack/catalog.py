"""Reads what a store has."""

import asyncio
from collections.abc import Callable, Collection
from dataclasses import dataclass

import msgspec

from features.backup.stack import layout
from features.backup.stack.layout import BackupManifest, RestoreRefused, RestoreTests, Segment, StoreMesh, StoreState
from features.backup.stack.sealing import DamagedObject
from shared.identity.node_keys import NodeKey
from shared.stores.objects import ObjectMissing, ObjectStore
from shared.types import NodeId

_MAX_MANIFESTS = 1000


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
    """Return whose store it is; None if it is empty. ``keys`` None trusts the key that it names itself. The newest backup has a copy of a
    lost ``mesh.json``. Raises DamagedObject, and RestoreRefused if there is no copy."""
    try:
        body = await store.get(layout.MESH)
    except ObjectMissing:
        manifests = layout.list_manifests([found.name async for found in store.list(layout.BASE)])
        return await _copied_mesh(store, manifests[-1], keys) if manifests else None
    mesh = layout.read_signed(layout.MESH, body, StoreMesh, keys)
    return layout.read_signed(layout.MESH, body, StoreMesh, mesh.keys)


async def _copied_mesh(store: ObjectStore, name: str, keys: Collection[NodeId] | None) -> StoreMesh:
    body = await store.get(name)
    mesh = layout.read_signed(name, body, BackupManifest, keys).store
    if mesh is None:
        raise RestoreRefused(
            f"{layout.MESH} is lost, and the newest backup has no copy of it", hint="the next backup writes it again: aicli stack backup"
        )
    layout.read_signed(name, body, BackupManifest, mesh.keys)
    return mesh


async def get_signed(store: ObjectStore, mesh: StoreMesh, name: str, kind: type[layout.S]) -> layout.S:
    """Return an object that this mesh has signed. Raises ObjectMissing and DamagedObject."""
    return layout.read_signed(name, await store.get(name), kind, mesh.keys)


async def find_signed(store: ObjectStore, mesh: StoreMesh, name: str, kind: type[layout.S]) -> layout.S | None:
    """Return an object that this mesh has signed; None if there is none. Raises DamagedObject."""
    try:
        return await get_signed(store, mesh, name, kind)
    except ObjectMissing:
        return None


async def read(store: ObjectStore, mesh: StoreMesh, on_damage: Callable[[DamagedObject], None] | None = None) -> StoreCatalog:
    """Raises DamagedObject for a manifest that was changed; with ``on_damage``, that is called, and the rest is returned."""
    backups = await read_backups(store, mesh, on_damage)
    state = await _find(store, mesh, layout.STATE, StoreState, on_damage)
    tests = await _find(store, mesh, layout.TESTS, RestoreTests, on_damage)
    segments, histories = await list_log(store, backups[-1].segment_size if backups else 16 << 20)
    return StoreCatalog(backups, segments, histories, state, tests)


async def read_backups(
    store: ObjectStore, mesh: StoreMesh, on_damage: Callable[[DamagedObject], None] | None = None
) -> tuple[BackupManifest, ...]:
    """Return the manifests, oldest first. Raises what ``read`` raises."""
    names = [found.name async for found in store.list(layout.BASE)]
    limit = asyncio.Semaphore(8)

    async def find(name: str) -> BackupManifest | None:
        async with limit:
            return await _find(store, mesh, name, BackupManifest, on_damage)

    found = await asyncio.gather(*(find(name) for name in layout.list_manifests(names)[-_MAX_MANIFESTS:]))
    return tuple(manifest for manifest in found if manifest is not None)  # perhaps pruned meanwhile


async def _find(
    store: ObjectStore, mesh: StoreMesh, name: str, kind: type[layout.S], on_damage: Callable[[DamagedObject], None] | None
) -> layout.S | None:
    try:
        return await find_signed(store, mesh, name, kind)
    except DamagedObject as error:
        if on_damage is None:
            raise
        on_damage(error)
        return None


async def list_log(store: ObjectStore, segment_size: int) -> tuple[tuple[Segment, ...], frozenset[int]]:
    """Return the segments of the write-ahead log, sorted, and the timelines whose history is here."""
    names = [found.name async for found in store.list(layout.WAL)]
    # In a thread: 50,000 names take 0.2 s.
    return await asyncio.to_thread(_parse_logs, names, segment_size)


async def record_test(store: ObjectStore, key: NodeKey, found: StoreCatalog, test: RestoreTests) -> None:
    """Keep the result of a restore test, and which other backups have passed theirs. Raises StoreUnavailable."""
    listed = {backup.name for backup in found.backups}
    earlier = {name: at for name, at in (found.tests.passed if found.tests else {}).items() if name in listed}
    kept = msgspec.structs.replace(test, passed=earlier | ({test.backup: test.at} if test.ok else {}))
    await store.put(layout.TESTS, layout.sign(layout.TESTS, kept, key))


def _parse_logs(names: Collection[str], segment_size: int) -> tuple[tuple[Segment, ...], frozenset[int]]:
    segments = sorted(segment for name in names if (segment := layout.parse_segment(name, segment_size)) is not None)
    return tuple(segments), frozenset(timeline for name in names if (timeline := layout.parse_history(name)) is not None)
