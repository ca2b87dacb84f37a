"""A home and its store in folders, without a database; and a store that can fail."""

from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from features.backup.settings import BackupSettings
from features.backup.stack import layout, sealing
from features.backup.stack.backup_place import BackupPlace
from features.backup.stack.layout import StoreMesh
from shared.identity import node_keys
from shared.identity.node_keys import NodeKey
from shared.stores import objects
from shared.stores.objects import ObjectStore, StoredObject, StoreUnavailable
from shared.types import MeshName
from stack import stack_home
from stack.stack_home import StackHome

MESH = MeshName("home")


class BrittleStore:
    """A store that fails while ``is_away`` is set."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self.is_away = False
        #: Names of written objects.
        self.written: list[str] = []

    def _check(self) -> None:
        if self.is_away:
            raise StoreUnavailable("the store is away")

    async def put(self, name: str, data: bytes) -> None:
        self._check()
        self.written.append(name)
        await self._store.put(name, data)

    async def put_stream(self, name: str, pieces: AsyncIterator[bytes], expected_bytes: int = 0) -> int:
        self._check()
        return await self._store.put_stream(name, pieces, expected_bytes)

    async def put_if_absent(self, name: str, data: bytes) -> bool:
        self._check()
        return await self._store.put_if_absent(name, data)

    async def get(self, name: str, start: int = 0, end: int | None = None) -> bytes:
        self._check()
        return await self._store.get(name, start, end)

    def read(self, name: str) -> AsyncIterator[bytes]:
        self._check()
        return self._store.read(name)

    async def head(self, name: str) -> StoredObject:
        self._check()
        return await self._store.head(name)

    async def list(self, prefix: str = "") -> AsyncIterator[StoredObject]:
        self._check()
        async for found in self._store.list(prefix):
            yield found

    async def delete(self, names: Sequence[str]) -> None:
        self._check()
        await self._store.delete(names)

    async def delete_unfinished(self, *, _older_than: object = None) -> None:
        self._check()


def make_home(root: Path) -> StackHome:
    home = StackHome(root, root / "run")
    stack_home.ensure_folders(home)
    return home


def make_place(folder: Path, *, name: str = "here", key: NodeKey | None = None, **settings: object) -> BackupPlace:
    """Make a site with this name. Sites in one ``folder`` share the store; with the same ``key``, they share the mesh."""
    key = key or NodeKey(node_keys.new_seed())
    own, operator = sealing.new_identity(), sealing.new_identity()
    recipients = (sealing.recipient_of(operator),)
    mesh = StoreMesh(
        format=layout.FORMAT, mesh=MESH, system="7", keys=(key.id,), recipients=recipients, own_recipient=sealing.recipient_of(own)
    )
    chosen = BackupSettings(backup_to=str(folder / "store"), backup_recipients=recipients, site_name=name, **settings)  # type: ignore[arg-type]
    store = BrittleStore(objects.open_store(str(folder / "store"), {}))
    return BackupPlace(make_home(folder / name), chosen, store, mesh, key, own)  # type: ignore[arg-type]


def brittle(place: BackupPlace) -> BrittleStore:
    assert isinstance(place.store, BrittleStore)
    return place.store


def open_object(place: BackupPlace, name: str, body: bytes) -> bytes:
    return sealing.open_bytes(name, body, [place.own_identity], place.mesh.keys, MESH)
