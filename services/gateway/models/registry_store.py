"""Reads and writes the tables of models. Every method may raise Unavailable."""

from collections.abc import AsyncIterator, Collection, Iterable, Sequence
from contextlib import asynccontextmanager
from uuid import UUID

import msgspec

from shared.api.model_trust import VersionTrust
from shared.api.models import MAX_VERSIONS, BlobUpload, ModelVersion, VersionState
from shared.models.manifest import MAX_SIGNATURE_BYTES, ModelKind, Version, VersionConfig, VersionFacts
from shared.stores import database
from shared.stores.database import DatabaseRow, Transaction
from shared.types import ModelName, NodeId, TenantId, UserId

#: After the last piece.
_UPLOAD_SECONDS = 24 * 3600.0
#: A job is another gateway's after so long without a sign of life.
_BUSY_SECONDS = 60.0
#: PostgreSQL's integers have no more.
_NUMBER_DIGITS = 10


class StoredUpload(msgspec.Struct, frozen=True):
    """A row of the table."""

    id: UUID
    digest: str
    size: int
    piece_bytes: int
    next_offset: int


class UncheckedVersion(msgspec.Struct, frozen=True):
    model: ModelName
    version: int
    digest: str
    blobs: tuple[str, ...]


class ModelReader(msgspec.Struct, frozen=True):
    """A machine that reads versions of the mesh, of tenants, and those that the mesh has ordered there."""

    node: NodeId
    #: None: of all.
    tenants: tuple[TenantId, ...] | None = ()


#: For people, whose rights were checked.
EVERY_VERSION = ModelReader(NodeId(""), None)


class KnownModel(msgspec.Struct, frozen=True):
    #: None: the mesh's.
    organization: TenantId | None


class ServingChannel(msgspec.Struct, frozen=True):
    #: None: it is empty.
    version: int | None
    previous_version: int | None
    #: It is loaded where the channel is deployed, and then served.
    next_version: int | None


class RegistryRows:
    """What one transaction sees and changes: the mesh's models and those of a tenant; None: all."""

    def __init__(self, transaction: Transaction, tenant: TenantId | None) -> None:
        self._transaction = transaction
        self._tenant = tenant

    # --- uploads

    async def find_blobs(self, owner: TenantId, digests: Sequence[str]) -> tuple[BlobUpload, ...]:
        rows = await self._transaction.rows("find_model_blobs", owner, list(digests), self._tenant)
        return tuple(BlobUpload(row["digest"], row["is_stored"], row["next_offset"], row["actual_digest"]) for row in rows)

    async def hold_blobs(self) -> None:
        """Keep blobs from being deleted until the end of the transaction."""
        await self._transaction.run("lock_model_blobs")

    async def measure(self, owner: TenantId) -> tuple[int, int]:
        """Return how many uploads are open, and the bytes of all uploads and versions."""
        row = await self._transaction.row("measure_model_storage", owner)
        assert row is not None  # an aggregate
        return row["open_uploads"], row["stored_bytes"]

    async def begin_upload(self, owner: TenantId, digest: str, size: int, piece_bytes: int) -> StoredUpload | None:
        """Return None if it has begun before."""
        return _upload(await self._transaction.row("begin_upload", owner, digest, size, piece_bytes, _UPLOAD_SECONDS))

    async def find_upload(self, owner: TenantId, digest: str) -> StoredUpload | None:
        return _upload(await self._transaction.row("find_upload", owner, digest))

    async def adopt(self, owner: TenantId, digests: Collection[str]) -> None:
        """End the uploads of blobs that a version has from now on."""
        await self._transaction.run("adopt_uploads", owner, list(digests))

    async def take_expired(self) -> tuple[UUID, str] | None:
        row = await self._transaction.row("take_expired_upload")
        return None if row is None else (row["id"], row["digest"])

    async def lock_unused(self, digests: Collection[str]) -> list[str]:
        """Return those that nothing needs, and keep them so until the end of the transaction."""
        await self._transaction.run("lock_unused_blobs")
        return [row["digest"] for row in await self._transaction.rows("list_unused_blobs", list(digests))]

    # --- versions

    async def lock_model(
        self, name: ModelName, config: VersionConfig, organization: TenantId | None, author: UserId
    ) -> tuple[TenantId | None, int] | None:
        """Lock the model, which is new if there is none. Return whose it is and its last version; None if it is hidden."""
        await self._transaction.run("ensure_model", name, organization, config.kind.value, config.statement.description, author)
        row = await self._transaction.row("lock_model", name, self._tenant)
        return None if row is None else (row["organization"], row["last_version"])

    async def find_model(self, name: ModelName) -> KnownModel | None:
        """Return None if it has no version yet, or is hidden."""
        row = await self._transaction.row("find_model", name, self._tenant)
        return None if row is None else KnownModel(row["organization"])

    async def add_version(
        self, model: ModelName, version: Version, manifest_bytes: int, config: VersionConfig, author: UserId, *, channel: str | None
    ) -> None:
        said, blobs = config.statement, [version.digest, *version.blobs]
        await self._transaction.run(
            "add_model_version", model, version.digest, manifest_bytes, version.size, said.license, said.source, blobs, author, channel
        )

    async def check_again(self, model: ModelName, digest: str, channel: str | None) -> None:
        await self._transaction.run("check_version_again", model, digest, channel)

    async def versions(self, model: ModelName | None, *, version: int | None = None, digest: str | None = None) -> tuple[ModelVersion, ...]:
        rows = await self._transaction.rows("list_model_versions", model, version, digest, self._tenant, MAX_VERSIONS)
        return tuple(map(_version, rows))

    async def set_state(self, version: ModelVersion, state: VersionState, reason: str, *before: VersionState) -> bool:
        """Return False unless the version was in one of these states before."""
        return await self._change("set_version_state", version.model, version.version, state, reason, list(before))

    async def delete_files(self, version: ModelVersion) -> list[str]:
        """Return the blobs that the version had."""
        await self.announce(version.model)
        blobs: list[str] = await self._transaction.value("delete_version", version.model, version.version)
        return blobs

    async def find_channel(self, model: ModelName, channel: str) -> ServingChannel | None:
        row = await self._transaction.row("find_channel", model, channel)
        return None if row is None else ServingChannel(row["version"], row["previous_version"], row["next_version"])

    async def switch(
        self, model: ModelName, channel: str, number: int, serving: ServingChannel | None, author: UserId, *, is_deployed: bool
    ) -> bool:
        """Let a channel serve a version; if it is deployed and not empty, once that is loaded. Return False if it isn't as ``serving`` any
        more, or the version isn't ready."""
        if serving is None or serving.version is None:
            return await self.set_channel(model, channel, number, None, author)
        if serving.version == number:
            return await self.drop_next(model, channel, number)
        if is_deployed:
            return await self.set_next(model, channel, number, serving, author)
        return await self.set_channel(model, channel, number, serving.version, author)

    async def set_channel(self, model: ModelName, channel: str, version: int, expected: int | None, author: UserId) -> bool:
        """``expected``: None if it is new or empty. Return False if it serves something else by now, or the version isn't ready."""
        return await self._change("set_channel", model, channel, version, expected, author)

    async def set_next(self, model: ModelName, channel: str, version: int, expected: ServingChannel, author: UserId) -> bool:
        """Return False if it is not as ``expected`` by now, or the version isn't ready. An empty channel never is."""
        return await self._change("set_next_version", model, channel, version, expected.version, author, expected.next_version)

    async def serve_next(self, model: ModelName, channel: str, version: int) -> None:
        await self._change("serve_next_version", model, channel, version)

    async def drop_next(self, model: ModelName, channel: str, version: int) -> bool:
        """Return False if it serves something else by now."""
        return await self._change("drop_next_version", model, channel, version)

    async def withdraw(self, model: ModelName, channel: str, expected: int, author: UserId) -> bool:
        """Return False if it serves something else than ``expected`` by now."""
        return await self._change("withdraw_channel", model, channel, expected, author)

    async def drop_revoked(self, version: ModelVersion) -> None:
        await self._transaction.run("drop_revoked", version.model, version.version)

    async def _change(self, query: str, model: ModelName, *values: object) -> bool:
        """Return whether it has changed a row."""
        changed = await self._transaction.run(query, model, *values)
        await self.announce(model)
        return changed == 1

    async def announce(self, model: ModelName) -> None:
        """Notify all gateways when the transaction ends."""
        await self._transaction.value("announce_model", model)

    async def end_check(self, found: UncheckedVersion, facts: VersionFacts, refusal: str) -> None:
        state = VersionState.REFUSED if refusal else VersionState.READY
        encoded = msgspec.json.encode(facts).decode()
        await self._change("end_check", found.model, found.version, state, refusal[:1000], encoded)

    async def find_first_channel(self, found: UncheckedVersion) -> tuple[str, UserId] | None:
        """Return the channel that a version is for that has passed its check, and who pushed it; None if it's for none."""
        row = await self._transaction.row("find_first_channel", found.model, found.version)
        return None if row is None or row["channel"] is None else (row["channel"], UserId(row["created_by"]))


class RegistryStore:
    def __init__(self, opened: database.Database) -> None:
        self._database = opened

    @asynccontextmanager
    async def transaction(self, tenant: TenantId | None = None, *, seconds: float = 10) -> AsyncIterator[RegistryRows]:
        """With a tenant, it sees only the mesh's models and the tenant's, and changes only these."""
        begun = (
            self._database.transaction(deadline_seconds=seconds)
            if tenant is None
            else self._database.bound(tenant, deadline_seconds=seconds)
        )
        async with begun as transaction:
            yield RegistryRows(transaction, tenant)

    async def advance(self, upload: StoredUpload, next_offset: int) -> bool:
        """Count a piece; return False if another call has counted one at its place."""
        return await self._database.run("advance_upload", upload.id, upload.next_offset, next_offset, _UPLOAD_SECONDS) == 1

    async def take_upload(self) -> StoredUpload | None:
        return _upload(await self._database.row("take_upload", _BUSY_SECONDS))

    async def keep_upload(self, upload: StoredUpload) -> None:
        await self._database.run("keep_upload", upload.id, _BUSY_SECONDS)

    async def end_upload(self, upload: StoredUpload, actual: str) -> None:
        """``actual``: the digest of what was uploaded."""
        await self._database.run("end_upload", upload.id, None if actual == upload.digest else actual)

    async def take_version(self) -> UncheckedVersion | None:
        row = await self._database.row("take_version", _BUSY_SECONDS)
        return None if row is None else UncheckedVersion(row["model"], row["version"], row["digest"], tuple(row["blobs"]))

    async def keep_version(self, found: UncheckedVersion) -> None:
        await self._database.run("keep_version", found.model, found.version, _BUSY_SECONDS)

    async def serve_next(self, model: str, channel: str, version: int) -> None:
        """Let a channel serve what it was to serve next, unless that has changed."""
        async with self.transaction() as rows:
            await rows.serve_next(ModelName(model), channel, version)

    async def is_loadable(self, digest: str, tenant: TenantId | None = None) -> bool:
        """Return whether a version of the mesh or the tenant has this blob that may be loaded; None: any version."""
        begun = self._database.transaction() if tenant is None else self._database.bound(tenant)
        async with begun as transaction:
            return bool(await transaction.value("find_loadable_blob", digest, tenant))

    async def find_version_of(self, digest: str) -> str | None:
        """Return the digest of a version that may be loaded and has this blob."""
        async with self._database.transaction() as transaction:
            found: str | None = await transaction.value("find_version_of_blob", digest)
            return found

    async def may_read(self, reader: ModelReader, digest: str) -> bool | None:
        """Return whether a machine may read this blob of a version that may be loaded; None: no version has it."""
        found: bool | None = await self._database.value("find_readable_blob", digest, reader.node, reader.tenants)
        return found

    async def list_signatures(self, reader: ModelReader, names: Iterable[str]) -> dict[ModelName, VersionTrust]:
        """Return what is known of versions that a machine may read, by names such as `llama3@7`."""
        found = [each.rpartition("@") for each in names]
        numbered = [(model, int(number)) for model, _, number in found if number.isdecimal() and len(number) < _NUMBER_DIGITS]
        models, numbers = [model for model, _ in numbered], [number for _, number in numbered]
        rows = await self._database.rows("list_signatures", models, numbers, reader.node, reader.tenants)
        return {row["name"]: VersionTrust(row["digest"], tuple(row["signatures"]), row["revoked"]) for row in rows}

    async def add_signature(self, version: ModelVersion, key: str, signature: bytes) -> bool:
        """Return False if the version has no room for it."""
        added = await self._database.run("add_signature", version.model, version.version, key, signature, MAX_SIGNATURE_BYTES)
        return added == 1

    async def list_index(self) -> list[tuple[str, str, int]]:
        """Return the versions with their digests and the sizes of their manifests."""
        rows = await self._database.rows("list_index")
        return [(f"{row['model']}@{row['version']}", row["digest"], row["manifest_bytes"]) for row in rows]


def _upload(row: DatabaseRow | None) -> StoredUpload | None:
    return None if row is None else StoredUpload(*(row[name] for name in StoredUpload.__struct_fields__))


def _version(row: DatabaseRow) -> ModelVersion:
    fields = {name: row[name] for name in ModelVersion.__struct_fields__}
    facts = VersionFacts() if row["facts"] is None else msgspec.json.decode(row["facts"], type=VersionFacts)
    fields |= {"facts": facts, "state": VersionState(row["state"]), "kind": ModelKind(row["kind"])}
    return ModelVersion(**fields | {name: tuple(row[name]) for name in ("channels", "previous_of", "next_of", "signed_by")})
