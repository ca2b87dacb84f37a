"""Keeps the configuration of this gateway current, with PostgreSQL's notifications and a poll for lost ones."""

import asyncio
import time
from collections.abc import Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import TypeVar
from uuid import UUID

from services.gateway.configuration import config_checks, config_file, environment
from services.gateway.configuration.config_store import ConfigChanges, ConfigStore, LockedConfig
from services.gateway.facts import config_snapshot, policies
from services.gateway.facts.config_snapshot import ConfigSnapshot, DocumentKey, PlanVersions, StoredDocument
from services.gateway.facts.guardrails import Guardrails
from services.gateway.facts.model_routes import OpenRollout
from services.gateway.facts.policies import Policies
from services.gateway.facts.unreadable import Unreadable
from services.gateway.settings import GatewaySettings
from shared import errors
from shared.api.auth import Principal
from shared.api.model_trust import NOTHING_TRUSTED
from shared.config_documents import KEY_POLICY, ConfigKind, Document, RouteDocument, TrustDocument
from shared.telemetry import logs
from shared.timing.bounded_waits import wait_until_set
from shared.types import TenantId, UserId

Body = TypeVar("Body")

_POLL_SECONDS = 5.0

Bodies = Mapping[DocumentKey, Document | None]
#: Called with the revision and the current documents, while nobody else can change them; None removes a document.
FindChanges = Callable[[int, Mapping[DocumentKey, StoredDocument]], Bodies]


@dataclass(frozen=True, slots=True)
class ConfigOutcome:
    #: The new one, or the current one if nothing was written.
    revision: int
    before: Mapping[DocumentKey, Document | Unreadable | None]
    #: What differs.
    changed: Bodies
    #: Empty after a dry run.
    written: Mapping[DocumentKey, StoredDocument]


_log = logs.get(part="configuration")


class LiveConfiguration:
    """Call ``start`` first, and run ``watch`` while it is used. While PostgreSQL is down, the last snapshot stays in use."""

    def __init__(self, store: ConfigStore, *, poll_seconds: float = _POLL_SECONDS) -> None:
        self._store = store
        self._poll_seconds = poll_seconds
        #: The documents of the current snapshot, removed ones included. Never changed in place.
        self.documents: Mapping[DocumentKey, StoredDocument] = {}
        #: The open rollouts by route, also those that this gateway has stopped.
        self.rollouts: Mapping[str, OpenRollout] = {}
        #: See ``ConfigChanges``.
        self._unknown: Mapping[tuple[str, str], Unreadable | None] = {}
        self._plan_versions: PlanVersions = {}
        self._models, self._models_revision = config_snapshot.NO_MODELS, 0
        #: Rollouts that this gateway has stopped: see ``RolloutBrake``.
        self._stopped: set[UUID] = set()
        self.config = ConfigSnapshot()
        #: Called with each new ``models_revision``.
        self.on_models: Callable[[int], object] = lambda revision: None
        #: Set with each snapshot, for the deployments.
        self.changed = asyncio.Event()
        #: Called with each snapshot.
        self.on_snapshot: Callable[[ConfigSnapshot], None] = lambda config: None
        self._reloading = asyncio.Lock()
        #: When the snapshot was last known to be current.
        self._read_at = time.monotonic()

    def bodies_of(self, kind: type[Body]) -> dict[str, Body]:
        """Return the present documents of a kind that this gateway can read, by their names."""
        return {name: body for (_, name), stored in self.documents.items() if isinstance(body := stored.usable, kind)}

    def trust_rules(self) -> dict[str, TrustDocument]:
        """Return the rules for workers: where this gateway can't read one, nothing may be loaded."""
        refused = (
            name for (kind, name), stored in self.documents.items() if kind is ConfigKind.TRUST and isinstance(stored.body, Unreadable)
        )
        return {**self.bodies_of(TrustDocument), **dict.fromkeys(refused, NOTHING_TRUSTED)}

    @property
    def models_revision(self) -> int:
        """Return a number that has grown with each change of a version or channel of a model that is in use here."""
        return self._models_revision

    def age_seconds(self) -> float:
        """Return how long ago the snapshot was known to be current."""
        return time.monotonic() - self._read_at

    async def start(self, settings: GatewaySettings) -> None:
        """Load the configuration, after writing what the environment changes. Raises Unavailable."""
        async with self._store.lock() as locked:
            current = (await locked.changes_since(0)).documents
            if changes := environment.find_changes(environment.read_documents(settings), current):
                await locked.write(changes, origin=environment.ENVIRONMENT)
        await self.reload()
        for line in environment.ignored_settings(settings, self.documents):
            _log.warning(line)

    async def reload(self) -> None:
        """Read what has changed. Raises Unavailable."""
        # One at a time, so that a slow read does not overwrite a newer one.
        async with self._reloading:
            began = time.monotonic()
            # Before the documents: those of a rollout that has just been promoted, with its last share, mean the same.
            rollouts = await self._store.open_rollouts()
            changes = await self._store.changes_since(self.config.revision)
            models_revision = await self._store.models_revision()
            if models_revision != self._models_revision:
                self._models = await self._store.versioned_names()
            if (changes.revision, rollouts, models_revision) != (self.config.revision, self.rollouts, self._models_revision):
                if changes.revision != self.config.revision:
                    _log.info("configuration in use", revision=changes.revision)
                    self._plan_versions = await self._store.plan_versions()
                self.documents, self._unknown = self._merge(changes), {**self._unknown, **changes.unknown}
                self.rollouts, self._models_revision = rollouts, models_revision
                self._stopped.intersection_update(rollout.id for rollout in rollouts.values())
                self._build(changes.revision)
                self.on_models(models_revision)
            self._read_at = began

    def stop_rollout(self, rollout: UUID) -> None:
        """Send no request of this gateway to its candidate until the rollout has ended."""
        self._stopped.add(rollout)
        self._build(self.config.revision)

    def _build(self, revision: int) -> None:
        moving = {route: rollout for route, rollout in self.rollouts.items() if rollout.id not in self._stopped}
        unknown = tuple(found for found in self._unknown.values() if found is not None)
        self.config = config_snapshot.build(revision, self.documents, moving, self._plan_versions, self._models, unknown=unknown)
        self.changed.set()
        self.on_snapshot(self.config)

    async def guardrails_at(self, revision: int, caller: Principal) -> Guardrails:
        """Return the caller's guardrails at a revision, which may be newer than this gateway's; the current ones if the versions of then
        are deleted. Raises Unavailable, and ConfigUnreadable."""
        documents = await self._store.policies_at(revision, policies.names_of(caller.tenant_id, caller.key_id))
        return (self.config.policies if documents is None else Policies(documents)).of(caller).guard

    async def change(
        self,
        find_changes: FindChanges,
        *,
        origin: str,
        author: UserId | None,
        note: str = "",
        is_dry: bool = False,
        tenant: TenantId | None = None,
    ) -> ConfigOutcome:
        """Write what differs as one revision, and use it here. ``tenant``: see ``StoredDocument``.

        Raises what ``find_changes`` raises, BadRequest with all mistakes, AlreadyExists if an open rollout would lose a target, Limited
        after too many changes for tenants, and Unavailable."""
        async with self._store.lock() as locked:
            if tenant is not None and author is not None:
                await locked.check_rate(author)
            current = await self.read_locked(locked)
            before = {key: stored.body for key, stored in current.items()}
            changed = {key: body for key, body in find_changes(locked.revision, current).items() if body != before.get(key)}
            if mistakes := tuple(config_checks.check_change(current, changed, tenant)):
                raise config_file.bad_config(mistakes)
            _check_rollouts(changed, await locked.open_rollouts())
            written: Mapping[DocumentKey, StoredDocument] = {}
            if changed and not is_dry:
                written = await locked.write(changed, origin=origin, author=author, note=note, tenant=tenant)
        if written:
            await self.reload()
        revision = max((stored.revision for stored in written.values()), default=locked.revision)
        return ConfigOutcome(revision, before, changed, written)

    async def read_locked(self, locked: LockedConfig) -> dict[DocumentKey, StoredDocument]:
        """Return the documents as the lock's holder must see them."""
        return self._merge(await locked.changes_since(self.config.revision))

    def _merge(self, changes: ConfigChanges) -> dict[DocumentKey, StoredDocument]:
        """Removed policies of keys are left out: there would be more with each key."""
        merged = {**self.documents, **changes.documents}
        for key, stored in changes.documents.items():
            if stored.body is None and key[1].startswith(KEY_POLICY):
                del merged[key]
        return merged

    async def watch(self) -> None:
        """Follow changes forever."""
        wake = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._listen(wake))
            while True:
                await wait_until_set(wake, self._poll_seconds)
                wake.clear()
                try:
                    await self.reload()
                except errors.Unavailable as error:
                    _log.warning("the configuration can't be read; the last one stays in use", reason=error.message)

    async def _listen(self, wake: asyncio.Event) -> None:
        async with aclosing(self._store.watch()) as changes:
            async for _ in changes:
                wake.set()


def _check_rollouts(changed: Bodies, rollouts: Mapping[str, OpenRollout]) -> None:
    """Raise AlreadyExists if an open rollout would lose its route or a target."""
    for (kind, name), body in changed.items():
        rollout = rollouts.get(name) if kind is ConfigKind.ROUTE else None
        if rollout is None:
            continue
        targets = {target.name for target in body.targets} if isinstance(body, RouteDocument) else set()
        if missing := {rollout.plan.candidate, rollout.plan.baseline} - targets:
            raise errors.AlreadyExists(
                f"the route {name!r} has an open rollout, which needs {' and '.join(sorted(missing))}",
                hint=f"end it with `aicli admin rollouts abort {name}`",
            )
