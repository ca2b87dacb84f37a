"""Reads and writes the tables of the configuration. No other module does."""

import asyncio
import math
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, fields
from datetime import datetime
from uuid import UUID

import msgspec

from services.gateway.facts.config_snapshot import DocumentKey, PlanVersions, StoredDocument
from services.gateway.facts.model_names import NamedVersion, VersionedNames
from services.gateway.facts.model_routes import OpenRollout
from services.gateway.facts.unreadable import Unreadable
from shared import config_releases, errors
from shared.api.configuration import RolloutPlan
from shared.config_documents import BODIES, RESTRICTING, ConfigKind, Document, PlanDocument, PolicyDocument
from shared.stores import database
from shared.stores.database import DatabaseRow, Transaction
from shared.telemetry import logs
from shared.types import KeyId, TenantId, UserId

#: The channel of the query ``write_config``.
_CHANGES = "gateway_config"
#: Versions kept of each document that an administrator wrote last, and of each that a tenant's people did.
MAX_VERSIONS, MAX_TENANT_VERSIONS = 1_000, 50
#: Changes a minute of one user, over all gateways. Administrators have no limit.
MAX_CHANGES = 20
#: Versions of a document that are tried if the current one can't be read.
_MAX_OLDER = 100
#: Read before others may run; the 2,500 that there may be take 20 ms.
_DOCUMENTS_AT_ONCE = 250

_log = logs.get(part="configuration")


@dataclass(frozen=True, slots=True)
class StoredVersion:
    kind: ConfigKind
    name: str
    version: int
    revision: int
    #: JSON; None if the version removed the document.
    body: str | None
    origin: str
    author: UserId | None
    note: str
    created_at: datetime
    is_current: bool
    #: Null in rows of release 0.3.
    needs_release: str | None


@dataclass(frozen=True, slots=True)
class ConfigChanges:
    """The current documents that have changed since a revision, and the newest revision."""

    revision: int
    documents: Mapping[DocumentKey, StoredDocument]
    #: Those of kinds that only a newer release knows, by kind and name; None for a removed one, and for one that doesn't restrict.
    unknown: Mapping[tuple[str, str], Unreadable | None]


class ConfigReader:
    """Reads the current configuration, in a transaction or without one."""

    def __init__(self, source: database.Database | Transaction) -> None:
        self._source = source

    async def changes_since(self, revision: int) -> ConfigChanges:
        documents: dict[DocumentKey, StoredDocument] = {}
        unknown: dict[tuple[str, str], Unreadable | None] = {}
        rows = await self._source.rows("list_config_changes", revision)
        for number, row in enumerate(rows):
            if row["kind"] in set(ConfigKind):
                kind = ConfigKind(row["kind"])
                documents[kind, row["name"]] = await self._stored(kind, row)
            else:
                unknown[row["kind"], row["name"]] = _unknown(row)
            if number % _DOCUMENTS_AT_ONCE == 0:
                await asyncio.sleep(0)
        return ConfigChanges(max((row["revision"] for row in rows), default=revision), documents, unknown)

    async def _stored(self, kind: ConfigKind, row: DatabaseRow) -> StoredDocument:
        needed: str | None = row["needs_release"]
        body: Document | Unreadable | None = None
        size = 0
        if row["body"] is not None:
            try:
                body = msgspec.json.decode(row["body"], type=BODIES[kind])
            except msgspec.DecodeError as error:
                _log_unreadable(row, str(error))
                instead = None if kind in RESTRICTING else await self._find_older(kind, row["name"])
                body, size = Unreadable(kind, row["name"], row["version"], needed or "", instead), len(row["body"])
            else:
                size = len(msgspec.json.encode(body))
        if needed is None:
            needed = config_releases.OLDEST if isinstance(body, Unreadable) else config_releases.find_needed(kind, row["name"], body)
        return StoredDocument(row["version"], row["revision"], row["origin"], body, row["tenant"], size, needed)

    async def _find_older(self, kind: ConfigKind, name: str) -> Document | None:
        """Return the newest version of a document that this release can read; None if it removed the document, or if there is none."""
        for row in await self._source.rows("list_config_versions", kind.value, name, None, False, _MAX_OLDER):
            try:
                return None if row["body"] is None else msgspec.json.decode(row["body"], type=BODIES[kind])
            except msgspec.DecodeError:
                continue  # an older one may do: this kind doesn't restrict
        return None

    async def plan_versions(self) -> PlanVersions:
        """Return all versions of plans: subscriptions keep theirs."""
        found: dict[tuple[str, int], PlanDocument | Unreadable] = {}
        for row in await self._source.rows("list_plan_versions"):
            name, version = row["name"], row["version"]
            try:
                found[name, version] = msgspec.json.decode(row["body"], type=PlanDocument)
            except msgspec.DecodeError:
                found[name, version] = Unreadable(ConfigKind.PLAN, name, version, row["needs_release"] or "")
        return found

    async def models_revision(self) -> int:
        """Return a number that changes with each change of a version or channel of a model."""
        revision: int = await self._source.value("read_models_revision")
        return revision

    async def versioned_names(self) -> VersionedNames:
        rows = await self._source.rows("list_model_names")
        return VersionedNames.of(NamedVersion(*(row[field.name] for field in fields(NamedVersion))) for row in rows)

    async def open_rollouts(self) -> dict[str, OpenRollout]:
        """Return the open rollouts by route. No other starts while the configuration is locked."""
        return {
            row["route"]: OpenRollout(
                row["id"], msgspec.json.decode(row["plan"], type=RolloutPlan), row["step"], row["first_token_limit_ms"]
            )
            for row in await self._source.rows("list_open_rollouts")
        }


class LockedConfig(ConfigReader):
    """The configuration in a transaction in which nobody else can change it; created by ``ConfigStore.lock``."""

    def __init__(self, transaction: Transaction, revision: int) -> None:
        super().__init__(transaction)
        self.transaction = transaction
        self.revision = revision

    @classmethod
    async def lock(cls, transaction: Transaction) -> "LockedConfig":
        """Lock the configuration in a transaction that may have locked a rollout before."""
        return cls(transaction, await transaction.value("lock_config"))

    async def check_rate(self, author: UserId) -> None:
        """Raise Limited if the user has made as many changes of a tenant's documents within a minute as they may."""
        wait_seconds = await self.transaction.value("read_config_wait", author, MAX_CHANGES)
        if wait_seconds is not None:
            raise errors.Limited(
                f"you may change policies {MAX_CHANGES} times a minute",
                hint=f"retry in {math.ceil(wait_seconds)} s",
                retry_after_seconds=wait_seconds,
            )

    async def write(
        self,
        bodies: Mapping[DocumentKey, Document | None],
        *,
        origin: str,
        author: UserId | None = None,
        note: str = "",
        tenant: TenantId | None = None,
    ) -> dict[DocumentKey, StoredDocument]:
        """Write the bodies as new versions of the next revision. ``tenant``: whose people do, see ``StoredDocument``."""
        kinds, names = [kind.value for kind, _ in bodies], [name for _, name in bodies]
        texts = [None if body is None else msgspec.json.encode(body).decode() for body in bodies.values()]
        needed = [config_releases.find_needed(kind, name, body) for (kind, name), body in bodies.items()]
        rows = await self.transaction.rows("write_config", kinds, names, texts, origin, author, note, tenant, needed)
        await self.transaction.run("trim_config", kinds, names, MAX_VERSIONS if tenant is None else MAX_TENANT_VERSIONS)
        written = zip(bodies.items(), rows, needed, strict=True)
        return {
            key: StoredDocument(row["version"], row["revision"], origin, body, tenant, needs_release=release)
            for (key, body), row, release in written
        }

    async def delete_removed(self, names: Sequence[str]) -> None:
        """Delete policies that were removed more than a day ago, with their history. Their names must never be used again."""
        await self.transaction.run("delete_removed_policies", names)


class ConfigStore(ConfigReader):
    """Every method may raise Unavailable."""

    def __init__(self, opened: database.Database) -> None:
        super().__init__(opened)
        self._database = opened

    async def policies_of_keys(self) -> list[KeyId]:
        """Return the keys that have or had policies."""
        return [KeyId(UUID(row["key"])) for row in await self._database.rows("list_key_policies")]

    async def policies_at(self, revision: int, names: Sequence[str]) -> dict[str, PolicyDocument] | None:
        """Return policies as they were at a revision; None if a version of then is deleted. Raises ConfigUnreadable."""
        found: dict[str, PolicyDocument] = {}
        for row in await self._database.rows("list_policies_at", list(names), revision):
            if row["version"] is None:
                return None
            if row["body"] is not None:
                try:
                    found[row["name"]] = msgspec.json.decode(row["body"], type=PolicyDocument)
                except msgspec.DecodeError as error:
                    raise Unreadable(ConfigKind.POLICY, row["name"], row["version"]).problem() from error
        return found

    @asynccontextmanager
    async def lock(self) -> AsyncIterator[LockedConfig]:
        """Commit what the block writes, at its end."""
        async with self._database.transaction() as transaction:
            yield await LockedConfig.lock(transaction)

    async def versions(
        self, kind: ConfigKind | None, name: str | None, version: int | None = None, *, only_current: bool = False, limit: int
    ) -> Sequence[StoredVersion]:
        """Return versions, newest first, without those of kinds that only a newer release knows; None stands for all."""
        rows = await self._database.rows("list_config_versions", None if kind is None else kind.value, name, version, only_current, limit)
        fields = StoredVersion.__dataclass_fields__
        known = [row for row in rows if row["kind"] in set(ConfigKind)]
        return [StoredVersion(**{field: row[field] for field in fields} | {"kind": ConfigKind(row["kind"])}) for row in known]

    async def watch(self) -> AsyncGenerator[None]:
        """Yield whenever the configuration may have changed, forever. Close it with ``aclosing``."""
        async with aclosing(self._database.listen(_CHANGES)) as payloads:
            async for _ in payloads:
                yield


def _unknown(row: DatabaseRow) -> Unreadable | None:
    """Return None for a document that was removed, and for one that doesn't restrict: its row says that this release may ignore it."""
    release: str | None = row["needs_release"]
    if row["body"] is None or (release is not None and not config_releases.is_older(config_releases.READS, release)):
        return None
    _log_unreadable(row, "unknown kind")
    return Unreadable(row["kind"], row["name"], row["version"], release or "")


def _log_unreadable(row: DatabaseRow, reason: str) -> None:
    _log.error("a document can't be read", kind=row["kind"], name=row["name"], version=row["version"], reason=reason)
