"""Keeps versions of models: uploads of their blobs, checks, channels, and who may see and change them."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence

from msgspec.structs import replace

from services.gateway import background_jobs
from services.gateway.background_jobs import UpkeepJob
from services.gateway.models import header_check, model_origin, model_readers
from services.gateway.models.model_origin import ModelOrigin
from services.gateway.models.model_readers import ModelReaders
from services.gateway.models.name_uses import NameUse
from services.gateway.models.registry_store import KnownModel, RegistryRows, RegistryStore, ServingChannel, StoredUpload, UncheckedVersion
from shared import access_table, errors, model_folder
from shared.amounts import show_bytes
from shared.api import inference, model_copies
from shared.api import models as api
from shared.api.auth import Principal
from shared.api.method import Nothing
from shared.api.models import BlobUpload, ModelVersion, VersionState
from shared.background.item_kinds import ItemKind
from shared.background.items import BackgroundItems, TakenItem
from shared.models import manifest, version_names
from shared.models.manifest import VersionFacts, VersionFile
from shared.protocol.directory import Directory
from shared.rpc import RpcCall, StreamCall, serves
from shared.rpc.audit_reporting import AuditReporting
from shared.stores.objects import ObjectMissing
from shared.timing.bounded_waits import wait_until_set
from shared.types import ModelName, Permission, Role, TenantId

#: Of a piece: an object on the store, and kept in memory.
MIN_PIECE_BYTES, MAX_PIECE_BYTES = 8 << 20, 16 << 20
#: Of one owner; a version has at most 514 blobs, one after the other.
MAX_OPEN_UPLOADS = 64
#: How many jobs a gateway does at once.
JOBS = 3
_LOOK_SECONDS, _KEEP_SECONDS = 5.0, 15.0
#: While nobody may use or delete blobs, objects are written or deleted.
_BLOB_SECONDS = 120.0
_GIB = 1 << 30


class WrongOffset(errors.AlreadyExists):
    """The upload continues elsewhere."""


class ModelRegistry:
    """``run`` joins uploads and checks versions; several gateways may share the work."""

    def __init__(
        self,
        store: RegistryStore,
        origin: ModelOrigin | None,
        nodes: Directory,
        readers: ModelReaders,
        audit_reporting: AuditReporting,
        *,
        items: BackgroundItems,
        gibibytes: int,
        is_deployed: Callable[[str], Awaitable[bool]],
        find_use: Callable[[ModelName], Awaitable[NameUse]],
        wait_until_used: Callable[[], Awaitable[None]],
    ) -> None:
        """Without an ``origin``, nothing can be pushed. ``gibibytes``: what one account or organization may store. ``is_deployed``: whether
        the mesh puts a channel such as ``llama3@stable`` on machines. ``find_use``: what has the name of a model already.
        ``wait_until_used``: see ``UsedEverywhere``."""
        self._items = items
        self._is_deployed, self._find_use, self._wait_until_used = is_deployed, find_use, wait_until_used
        self._store, self._origin, self._nodes, self.readers = store, origin, nodes, readers
        self._audit, self._gibibytes = audit_reporting, gibibytes
        self._wake = asyncio.Event()

    # --- uploads

    @serves(api.find_model_blobs)
    async def find_blobs(self, request: api.FindModelBlobs, call: RpcCall) -> api.BlobUploads:
        origin, by = self._get_origin(), call.principal
        use = None if request.model is None else await self._find_use(version_names.check_model(request.model))
        async with self._store.transaction(_scope(by)) as rows:
            if request.model is not None and use is not None:
                known = await rows.find_model(request.model)
                _ensure_name(by, request.model, use, _owner_of(by, request.organization), known)
            found = await rows.find_blobs(by.tenant_id, request.digests)
        # The store may have lost it since, or be another one.
        there = [each.is_stored and await origin.has(each.digest) for each in found]
        return api.BlobUploads(tuple(replace(each, is_stored=is_there) for each, is_there in zip(found, there, strict=True)))

    async def upload(self, by: Principal, digest: str, start: int, size: int, data: bytes) -> BlobUpload:
        """Store the piece of a blob at ``start``. Raises WrongOffset, NotFound for an upload that has not begun, and BadRequest."""
        origin, owner = self._get_origin(), by.tenant_id
        async with self._store.transaction(_scope(by)) as rows:
            await rows.hold_blobs()
            (found,) = await rows.find_blobs(owner, [digest])
            if found.is_stored and await origin.has(digest):
                return found
            upload = await self._begin(rows, by, digest, size, len(data)) if start == 0 else await rows.find_upload(owner, digest)
        if upload is None:
            raise errors.NotFound(f"no upload of {digest} has begun, or it has expired", hint="begin at byte 0")
        if (start, size) != (upload.next_offset, upload.size):
            raise WrongOffset(f"the upload of {digest} continues at byte {upload.next_offset} of {upload.size}, not at {start} of {size}")
        end = start + len(data)
        if len(data) != min(upload.piece_bytes, size - start):
            raise errors.BadRequest(f"this piece must have {min(upload.piece_bytes, size - start)} bytes, not {len(data)}")
        if (start, end) == (0, size):
            actual = await asyncio.to_thread(manifest.digest_of, data)
            if actual == digest:
                await origin.put(digest, data)
            await self._store.end_upload(upload, actual)
            if actual != digest:
                raise model_origin.damaged(digest, actual)
            return BlobUpload(digest, is_stored=True)
        await origin.put_piece(upload.id, start // upload.piece_bytes, data)
        if not await self._store.advance(upload, end):
            raise WrongOffset(f"another call has stored this piece of {digest}", hint="ask where the upload continues")
        if end == size:
            self._wake.set()
        return BlobUpload(digest, next_offset=end)

    async def _begin(self, rows: RegistryRows, by: Principal, digest: str, size: int, piece_bytes: int) -> StoredUpload | None:
        if size > manifest.MAX_BYTES or (piece_bytes < size and not MIN_PIECE_BYTES <= piece_bytes <= MAX_PIECE_BYTES):
            pieces = f"pieces of {MIN_PIECE_BYTES} to {MAX_PIECE_BYTES} bytes, and {manifest.MAX_BYTES} bytes in all"
            raise errors.BadRequest(f"{piece_bytes} bytes of {size} can't be the first piece of an upload", hint=pieces)
        begun = await rows.begin_upload(by.tenant_id, digest, size, piece_bytes)
        if begun is None:
            return await rows.find_upload(by.tenant_id, digest)
        count, stored_bytes = await rows.measure(by.tenant_id)
        if count > MAX_OPEN_UPLOADS:
            raise errors.Limited(f"you have {MAX_OPEN_UPLOADS} unfinished uploads; each expires after a day", retry_after_seconds=60)
        if not access_table.may(by, Permission.EVERYTHING) and stored_bytes > self._gibibytes * _GIB:
            raise errors.InsufficientStorage(
                f"with this upload, your models need {show_bytes(stored_bytes)}; the limit is {self._gibibytes} GiB",
                hint="delete versions that you don't need, or ask an administrator for a higher MODEL_ORIGIN_QUOTA",
            )
        await self._get_origin().ensure_room(size)
        return begun

    # --- versions

    @serves(api.complete_model_version)
    async def complete(self, request: api.CompleteModelVersion, call: RpcCall) -> ModelVersion:
        origin, by, version = self._get_origin(), call.principal, manifest.read(request.manifest)
        model = version_names.check_model(request.model)
        organization, use = _owner_of(by, request.organization), await self._find_use(model)
        async with self._store.transaction(_scope(by), seconds=_BLOB_SECONDS) as rows:
            await rows.hold_blobs()
            blobs = tuple(version.blobs)
            if missing := [each.digest for each in await rows.find_blobs(by.tenant_id, blobs) if not each.is_stored]:
                raise errors.BadRequest(f"{len(missing)} blobs of the manifest are missing, such as {missing[0]}", hint="upload them first")
            config = manifest.read_config(await origin.read(version.config.digest, manifest.MAX_CONFIG_BYTES))
            locked = await rows.lock_model(model, config, organization, by.user_id)
            if locked is None:
                raise errors.AlreadyExists(f"the name {model} is taken", hint="push the model under another name")
            owner, last = locked
            _ensure_name(by, model, use, organization, KnownModel(owner) if last else None)
            known = await rows.versions(model, digest=version.digest)
            number = known[0].version if known else last + 1
            if request.version not in {None, number}:
                present = await rows.versions(model, version=request.version)
                is_digest = f"has the digest {present[0].digest}" if present else f"isn't the next one, {last + 1}"
                raise errors.AlreadyExists(f"{model}@{request.version} {is_digest}, and this manifest has {version.digest}")
            await origin.put(version.digest, request.manifest)
            if known:
                await rows.check_again(model, version.digest, request.channel)
            else:
                await rows.add_version(model, version, len(request.manifest), config, by.user_id, channel=request.channel)
            await rows.adopt(by.tenant_id, blobs)
            (made,) = await rows.versions(model, version=number)
            serving = None if request.channel is None else await rows.find_channel(model, request.channel)
        self._wake.set()
        self._report_action("model.push", by, made, digest=made.digest)
        if request.channel is not None and made.state is VersionState.READY:
            # It was pushed before, so no check lets the channel serve it.
            return await self._switch(by, made, request.channel, serving)
        return made

    @serves(api.list_model_versions)
    async def list(self, request: api.ListModelVersions, call: RpcCall) -> api.ModelVersions:
        async with self._store.transaction(_scope(call.principal)) as rows:
            found = await rows.versions(request.model, version=request.version)
        if request.model is not None and not found:
            raise _missing(request.model, request.version)
        return api.ModelVersions(found)

    async def get_changeable(self, by: Principal, model: ModelName, version: int) -> ModelVersion:
        """Raises NotFound and NotAllowed."""
        async with self._store.transaction(_scope(by)) as rows:
            return await _get(rows, by, model, version)

    async def read_manifest(self, digest: str) -> bytes:
        """Raises BadRequest if it is damaged, and ObjectMissing."""
        return await self._get_origin().read(digest, manifest.MAX_MANIFEST_BYTES)

    async def find_size(self, digest: str) -> int | None:
        """Return the size of a blob as the manifest of a version that may be loaded has it. Raises BadRequest and ObjectMissing."""
        version = await self._store.find_version_of(digest)
        return None if version is None else manifest.read(await self.read_manifest(version)).blobs.get(digest)

    async def find_facts(self, digest: str) -> inference.ModelFacts | None:
        """Return what decides how much memory a version needs; None if the store doesn't say."""
        try:
            version = manifest.read(await self.read_manifest(digest))
            files = sorted((file for file in version.files if model_folder.is_model(file.path)), key=lambda file: file.path)
            header, _ = await self._get_origin().read_range(files[0].digest, 0, inference.MAX_HEADER_BYTES) if files else (b"", 0)
        except (errors.AimeshError, ObjectMissing):
            return None
        return inference.ModelFacts(file_bytes=version.size, header=header) if header else None

    @serves(model_copies.read_blob)
    async def read_blob(self, request: model_copies.ReadBlob, stream: StreamCall[model_copies.BlobPart]) -> Nothing:
        """Raises NotFound for what no version has that the machine may read."""
        if not await self.readers.is_readable(stream.caller.node, request.digest):
            raise model_readers.unreadable(request.digest)
        data, _ = await self._get_origin().read_range(request.digest, request.start, request.length)
        for at in range(0, len(data), model_copies.PART_BYTES):
            await stream.send(model_copies.BlobPart(data[at : at + model_copies.PART_BYTES]))
        return Nothing()

    async def download(self, by: Principal, digest: str, start: int, length: int) -> tuple[bytes, int]:
        """Return bytes of a blob and its size. Raises NotFound for what no version has that somebody sees and that may be loaded."""
        if not await self._store.is_loadable(digest, _scope(by)):
            raise model_readers.unreadable(digest)
        return await self._get_origin().read_range(digest, start, length)

    @serves(api.retire_model_version)
    async def retire(self, request: api.RetireModelVersion, call: RpcCall) -> ModelVersion:
        async with self._store.transaction(_scope(call.principal)) as rows:
            version = await _get(rows, call.principal, request.model, request.version)
            await _change(rows, version, VersionState.RETIRED, "", VersionState.READY)
            # By now no channel can begin to serve it.
            version = await _get(rows, call.principal, request.model, request.version)
            _ensure_unused(version, [f"the channel {channel}" for channel in (*version.channels, *version.next_of)])
        self._report_action("model.retire", call.principal, version)
        return version

    @serves(api.revoke_model_version)
    async def revoke(self, request: api.RevokeModelVersion, call: RpcCall) -> ModelVersion:
        async with self._store.transaction(_scope(call.principal)) as rows:
            version = await _get(rows, call.principal, request.model, request.version)
            before = (VersionState.CHECKING, VersionState.READY, VersionState.REFUSED, VersionState.RETIRED)
            await _change(rows, version, VersionState.REVOKED, request.reason, *before)
            await rows.drop_revoked(version)
            emptied = ", ".join(version.channels)
            version = await _get(rows, call.principal, request.model, request.version)
        self._report_action("model.revoke", call.principal, version, reason=request.reason, channels=emptied)
        # From then on, no gateway begins an answer of it.
        await self._wait_until_used()
        return version

    @serves(api.delete_model_version)
    async def delete(self, request: api.DeleteModelVersion, call: RpcCall) -> ModelVersion:
        """Raises AlreadyExists with the users of the version."""
        async with self._store.transaction(_scope(call.principal)) as rows:
            version = await _get(rows, call.principal, request.model, request.version)
            blobs = await rows.delete_files(version)
            version = await _get(rows, call.principal, request.model, request.version)
            workers = self._nodes.entries(Role.WORKER)
            running = [
                each.node for each in workers if each.alive and any(offer.name == version.name for offer in each.announcement.models)
            ]
            channels = dict.fromkeys((*version.channels, *version.previous_of, *version.next_of))
            # Nothing can use a revoked one again, and workers that run it still are about to end it.
            if version.state is not VersionState.REVOKED:
                _ensure_unused(version, [*(f"the channel {name}" for name in channels), *(f"the worker {node}" for node in running)])
        self._report_action("model.delete", call.principal, version)
        await self._delete_unused(blobs)
        await self._write_index()
        return version

    # --- channels

    @serves(api.promote_model)
    async def promote(self, request: api.PromoteModel, call: RpcCall) -> ModelVersion:
        async with self._store.transaction(_scope(call.principal)) as rows:
            found = await rows.versions(request.model, version=request.version)
            ready = [each for each in found if each.state is VersionState.READY and not each.is_deleted]
            version = ready[0] if ready else await _get(rows, call.principal, request.model, request.version)
            serving = await rows.find_channel(request.model, request.channel)
        return await self._switch(call.principal, version, request.channel, serving)

    @serves(api.rollback_model)
    async def rollback(self, request: api.RollbackModel, call: RpcCall) -> ModelVersion:
        async with self._store.transaction(_scope(call.principal)) as rows:
            serving = await rows.find_channel(request.model, request.channel)
            # A version that isn't loaded yet is taken back first.
            is_taken_back = serving is not None and serving.next_version is not None and serving.version is not None
            before = None if serving is None else serving.version if is_taken_back else serving.previous_version
            version = await _get(rows, call.principal, request.model, before)
        if before is None:
            raise errors.AlreadyExists(f"{request.model}@{request.channel} has no version before", hint="promote a version")
        return await self._switch(call.principal, version, request.channel, serving, rolls_back=True)

    @serves(api.withdraw_model)
    async def withdraw(self, request: api.WithdrawModel, call: RpcCall) -> ModelVersion:
        by = call.principal
        async with self._store.transaction(_scope(by)) as rows:
            serving = await rows.find_channel(request.model, request.channel)
            version = await _get(rows, by, request.model, None if serving is None else serving.version)
            if serving is None or serving.version is None:
                raise errors.AlreadyExists(f"{request.model}@{request.channel} serves nothing")
            if not await rows.withdraw(request.model, request.channel, serving.version, by.user_id):
                raise _changed_meanwhile(request.model, request.channel)
            version = await _get(rows, by, request.model, serving.version)
        self._report_action("model.withdraw", by, version, channel=request.channel)
        return version

    async def _switch(
        self, by: Principal, version: ModelVersion, channel: str, serving: ServingChannel | None, *, rolls_back: bool = False
    ) -> ModelVersion:
        """Let a channel serve the version, if it is still as ``serving``; one that is deployed, once the version is loaded."""
        _ensure_may_change(by, version.model, version.organization)
        if version.state is not VersionState.READY or version.is_deleted:
            raise _not_possible(version, VersionState.READY)
        model, number = version.model, version.version
        if serving is not None and number == (serving.next_version or serving.version):
            return version
        is_deployed = await self._is_deployed(f"{model}@{channel}")
        async with self._store.transaction(_scope(by)) as rows:
            if not await rows.switch(model, channel, number, serving, by.user_id, is_deployed=is_deployed):
                raise _changed_meanwhile(model, channel)
            version = await _get(rows, by, model, number)
        before = "" if serving is None else str(serving.version)
        self._report_action("model.rollback" if rolls_back else "model.promote", by, version, channel=channel, before=before)
        return version

    # --- jobs

    async def run(self) -> None:
        """Join uploads, check versions and delete what has expired, forever."""
        while True:
            await wait_until_set(self._wake, _LOOK_SECONDS)
            self._wake.clear()
            await background_jobs.attempt(UpkeepJob.MODELS, self.work)

    async def work(self) -> None:
        """Do all that is to be done now. Raises Unavailable; another round does the rest."""
        await self._items.drain(ItemKind.MODEL_UPLOAD, self._join_one)
        await self._items.drain(ItemKind.MODEL_VERSION, self._check_one)
        await self._items.drain(ItemKind.MODEL_UPLOAD, self._expire_one)

    async def _join_one(self, taken: TakenItem) -> bool:
        upload = await self._store.take_upload()
        if upload is None:
            return False
        taken.id = str(upload.id)
        origin, keep = self._get_origin(), _keeping(lambda: self._store.keep_upload(upload))
        actual = await origin.join(upload.id, upload.digest, upload.size, upload.piece_bytes, keep)
        await self._store.end_upload(upload, actual)
        await origin.forget(upload.id)
        return True

    async def _check_one(self, taken: TakenItem) -> bool:
        found = await self._store.take_version()
        if found is None:
            return False
        taken.id = f"{found.model}@{found.version}"
        facts, refusal = VersionFacts(), ""
        try:
            facts = await self._check(found)
        except (errors.BadRequest, ObjectMissing) as error:
            refusal = error.message
        async with self._store.transaction() as rows:
            await rows.end_check(found, facts, refusal)
            served = None if refusal else await self._serve_checked(rows, found)
        if served is not None:
            self._report_action("model.promote", None, served, channel=", ".join(served.channels or served.next_of), before="")
        if refusal:
            await self._delete_unused(found.blobs)
        await self._write_index()
        return True

    async def _serve_checked(self, rows: RegistryRows, found: UncheckedVersion) -> ModelVersion | None:
        """Let the channel that a version is for serve it; return None if it is for none, or somebody has changed the channel just now."""
        if (first := await rows.find_first_channel(found)) is None:
            return None
        channel, author = first
        serving, is_deployed = await rows.find_channel(found.model, channel), await self._is_deployed(f"{found.model}@{channel}")
        if not await rows.switch(found.model, channel, found.version, serving, author, is_deployed=is_deployed):
            return None
        (version,) = await rows.versions(found.model, version=found.version)
        return version

    async def _check(self, found: UncheckedVersion) -> VersionFacts:
        """Return what the files say. Raises BadRequest if anything is damaged or no model, and ObjectMissing."""
        origin, keep = self._get_origin(), _keeping(lambda: self._store.keep_version(found))
        version = manifest.read(await self.read_manifest(found.digest))
        manifest.read_config(await origin.read(version.config.digest, manifest.MAX_CONFIG_BYTES))
        facts = VersionFacts()
        for file in version.files:
            said = await self._check_file(origin, file, keep)
            if said is not None and (not facts.architecture or not said.sees_images):
                facts = said
        return facts

    async def _check_file(self, origin: ModelOrigin, file: VersionFile, keep: model_origin.OnBytes) -> VersionFacts | None:
        """Return what the header says, of the first part of a model."""
        if not file.path.endswith(".gguf"):
            blocks, report = await origin.hash(file.digest, file.size, keep), None
        else:
            async with header_check.opened(file.size) as header:

                async def pass_by(data: bytes) -> None:
                    await keep(data)
                    await header.feed(data)

                blocks = await origin.hash(file.digest, file.size, pass_by)
                report = await header.read()
        if (actual := manifest.digest_of(blocks)) != file.blocks:
            raise errors.BadRequest(f"the blocks of {file.path} have the list {actual}, not {file.blocks}")
        return report.facts if report is not None and report.is_first else None

    async def _expire_one(self, taken: TakenItem) -> bool:
        async with self._store.transaction(seconds=_BLOB_SECONDS) as rows:
            expired = await rows.take_expired()
            if expired is None:
                return False
            upload, digest = expired
            taken.id = str(upload)
            await self._get_origin().forget(upload)
            await self._get_origin().delete(await rows.lock_unused([digest]))
        return True

    async def _delete_unused(self, digests: Sequence[str]) -> None:
        async with self._store.transaction(seconds=_BLOB_SECONDS) as rows:
            await self._get_origin().delete(await rows.lock_unused(digests))

    async def _write_index(self) -> None:
        async with self._store.transaction(seconds=_BLOB_SECONDS) as rows:
            await rows.lock_unused(())
            await self._get_origin().write_index(await self._store.list_index())

    def _get_origin(self) -> ModelOrigin:
        if self._origin is None:
            raise errors.Unavailable("this mesh has no store for models", hint="set OBJECT_STORE or MODEL_ORIGIN for the gateway")
        return self._origin

    def _report_action(self, action: str, by: Principal | None, version: ModelVersion, **details: str) -> None:
        self._audit.report_action(action, by, tenant=version.organization, target=version.name, **details)


def _scope(by: Principal) -> TenantId | None:
    """Return whose models somebody sees besides the mesh's; None: all."""
    return None if access_table.may(by, Permission.EVERYTHING) else by.tenant_id


def _owner_of(by: Principal, organization: TenantId | None) -> TenantId | None:
    """Return whose a model is that somebody pushes; None: the mesh's."""
    return organization if access_table.may(by, Permission.EVERYTHING) else by.tenant_id


def _ensure_name(by: Principal, model: ModelName, use: NameUse, organization: TenantId | None, known: KnownModel | None) -> None:
    """Raise AlreadyExists or NotAllowed if somebody can't push a model of this name. ``known``: None for a new one."""
    other = "push the model under another name"
    if use.hidden_by:
        raise errors.AlreadyExists(
            f"requests for {model} would not get what you push: {use.hidden_by}", hint=f"{other}, or remove that alias or route"
        )
    if known is None:
        if use.used_by and not access_table.may(by, Permission.EVERYTHING):
            raise errors.AlreadyExists(f"the name {model} is taken: {use.used_by}", hint=other)
        return
    _ensure_may_change(by, model, known.organization)
    if known.organization != organization:
        whose = f"of the organization or account {known.organization}" if known.organization else "of the mesh"
        way = f"add --organization {known.organization}" if known.organization else "leave --organization out"
        raise errors.AlreadyExists(f"{model} is a model {whose}", hint=f"{other}; to push a version of that model, {way}")


def _ensure_may_change(by: Principal, model: ModelName, owner: TenantId | None) -> None:
    if owner is None and not access_table.may(by, Permission.EVERYTHING):
        raise errors.NotAllowed(f"{model} is the mesh's; only an administrator can change it", hint="push it under another name")


async def _get(rows: RegistryRows, by: Principal, model: ModelName, number: int | None) -> ModelVersion:
    """Return a version that somebody may change. Raises NotFound and NotAllowed."""
    found = await rows.versions(model, version=number)
    if not found:
        raise _missing(model, number)
    _ensure_may_change(by, model, found[0].organization)
    return found[0]


async def _change(rows: RegistryRows, version: ModelVersion, state: VersionState, reason: str, *before: VersionState) -> None:
    if not await rows.set_state(version, state, reason, *before):
        raise _not_possible(version, *before)


def _changed_meanwhile(model: ModelName, channel: str) -> errors.AlreadyExists:
    return errors.AlreadyExists(f"{model}@{channel} was changed meanwhile", hint="see `aicli models versions`, and decide again")


def _ensure_unused(version: ModelVersion, users: Sequence[str]) -> None:
    if users:
        raise errors.AlreadyExists(f"{version.name} is used by {', '.join(users)}", hint="promote another version first")


def _missing(model: ModelName, number: int | None) -> errors.NotFound:
    name = model[:100] if number is None else f"{model[:100]}@{number}"
    return errors.NotFound(f"there is no model {name}", hint="see `aicli models versions`")


def _not_possible(version: ModelVersion, *needed: VersionState) -> errors.AlreadyExists:
    state = "deleted" if version.is_deleted else version.state
    return errors.AlreadyExists(f"{version.name} is {state}; it must be {' or '.join(needed)}")


def _keeping(keep: Callable[[], Awaitable[None]]) -> model_origin.OnBytes:
    """Return what keeps a job as long as bytes are read."""
    kept_at = time.monotonic()

    async def on_bytes(_data: bytes) -> None:
        nonlocal kept_at
        if time.monotonic() - kept_at > _KEEP_SECONDS:
            kept_at = time.monotonic()
            await keep()

    return on_bytes
