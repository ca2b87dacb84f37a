"""Where backups of a stack go, and the keys that sign and encrypt them."""

import asyncio
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from features.backup.settings import BackupSettings
from features.backup.stack import catalog, layout, sealing
from features.backup.stack.layout import StoreMesh
from features.backup.stack.store_retries import retry
from shared import errors
from shared.identity import node_keys, private_file
from shared.identity.node_keys import NodeKey
from shared.stores import objects
from shared.stores.objects import ObjectStore
from shared.types import MeshName
from stack import secret_files
from stack.stack_home import StackHome


@dataclass(frozen=True, slots=True)
class BackupPlace:
    home: StackHome
    settings: BackupSettings
    store: ObjectStore
    #: As in the store.
    mesh: StoreMesh
    key: NodeKey
    #: Opens everything but the secrets.
    own_identity: str

    @property
    def recipients(self) -> tuple[str, ...]:
        """Return the recipients of everything but the secrets, which only those of the mesh can open."""
        return (*self.mesh.recipients, self.mesh.own_recipient)

    async def with_system(self, system: str) -> "BackupPlace":
        """Return the place, after writing down which database cluster it has. Raises BadSettings if it has another one: segments of two
        clusters have the same names."""
        if system == self.mesh.system:
            return self
        if self.mesh.system:
            raise errors.BadSettings(
                f"BACKUP_TO has the backups of another database cluster ({self.mesh.system}), and this one is {system}",
                hint="restore them (aicli stack restore latest --replace), or set BACKUP_TO to an empty folder or prefix",
            )
        mesh = msgspec.structs.replace(self.mesh, system=system)
        await retry(lambda: self.store.put(layout.MESH, layout.sign(layout.MESH, mesh, self.key)))
        return replace(self, mesh=mesh)

    async def keep_mesh(self) -> None:
        """Write ``mesh.json`` again if it was lost. Raises StoreUnavailable."""
        await retry(lambda: self.store.put_if_absent(layout.MESH, layout.sign(layout.MESH, self.mesh, self.key)))


async def open_place(home: StackHome, settings: BackupSettings, mesh: MeshName) -> BackupPlace:
    """Open the store of BACKUP_TO, and make it ours if it is empty. Raises BadSettings if it is unset, another mesh's, or in the home, and
    StoreUnavailable."""
    address = settings.backup_to
    if address is None:
        raise errors.BadSettings("backups are off", hint="BACKUP_TO=… BACKUP_RECIPIENTS=… make up")
    key, identity = await asyncio.to_thread(_read_keys, home, address)
    store = await asyncio.to_thread(objects.open_store, address, settings.credentials)
    place = BackupPlace(home, settings, store, await _ensure_mesh(store, settings, mesh, key, identity), key, identity)
    await place.keep_mesh()
    return place


def _read_keys(home: StackHome, address: str) -> tuple[NodeKey, str]:
    if address.startswith("/") and Path(address).resolve().is_relative_to(home.root.resolve()):
        raise errors.BadSettings(f"BACKUP_TO is in {home.root}, and would be lost with it", hint="choose a folder on another disk")
    private_file.create(home.secrets / secret_files.BACKUP_IDENTITY, lambda: sealing.new_identity().encode())
    return node_keys.load(home.secrets / secret_files.RECOVERY_KEY), secret_files.read(home, secret_files.BACKUP_IDENTITY)


async def _ensure_mesh(store: ObjectStore, settings: BackupSettings, mesh: MeshName, key: NodeKey, identity: str) -> StoreMesh:
    wanted = StoreMesh(
        format=layout.FORMAT, mesh=mesh, system="", keys=(key.id,),
        recipients=settings.backup_recipients, own_recipient=sealing.recipient_of(identity),
    )  # fmt: skip
    present = await retry(lambda: catalog.read_mesh(store, None))
    if present is None:
        body = layout.sign(layout.MESH, wanted, key)
        if await retry(lambda: store.put_if_absent(layout.MESH, body)):
            return wanted
        present = await retry(lambda: catalog.read_mesh(store, None))
    if present is None or key.id not in present.keys or present.mesh != mesh:
        name = "another stack" if present is None else f"another stack, of the mesh {present.mesh}"
        raise errors.BadSettings(f"BACKUP_TO has the backups of {name}", hint="choose an empty folder or prefix")
    wanted = msgspec.structs.replace(wanted, system=present.system, keys=present.keys)
    if wanted != present:
        await retry(lambda: store.put(layout.MESH, layout.sign(layout.MESH, wanted, key)))
    return wanted


def is_first_use(home: StackHome) -> bool:
    """Return True the first time only, for a message that must not be repeated. Blocks."""
    folder = home.root / "backup"
    folder.mkdir(mode=0o700, exist_ok=True)
    try:
        (folder / "signer_was_shown").touch(mode=0o600, exist_ok=False)
    except FileExistsError:
        return False
    return True
