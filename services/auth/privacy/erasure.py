"""RPC methods to delete one's account, and the job that does it when it is due.

The last administrator cannot be deleted, nor the only owner of an organization with other members. A pseudonym remains, so that usage and
payments still add up.
"""

import secrets
from collections.abc import Iterable

from services.auth import audit_records, mail_texts
from services.auth.audit.audit_store import AuditStore
from services.auth.dependencies import AuthHandlers, Dependencies
from services.auth.privacy.privacy_store import PrivacyStore
from services.auth.session_opening import CompleteLogin
from shared import errors, features
from shared.api import accounts, gateway
from shared.api.auth import User
from shared.api.method import Nothing
from shared.background.item_kinds import ItemKind
from shared.background.items import BackgroundItems
from shared.mail.mailer import Mailer
from shared.node import lifecycle
from shared.rpc import RpcCall, serves
from shared.stores.transactions import Transaction
from shared.telemetry import logs
from shared.types import Role, TenantId, UserId, UserRole

_EVERY_SECONDS = 600
#: A feature may have many rows of a tenant.
_GATEWAY_SECONDS, _FEATURE_SECONDS = 5.0, 30.0

_log = logs.get(part="privacy")


class Erasures(AuthHandlers):
    """``run`` is the job. Any number of replicas may run it; each account is handled by one of them."""

    def __init__(self, parts: Dependencies, rows: PrivacyStore, audit: AuditStore, mailer: Mailer, items: BackgroundItems) -> None:
        super().__init__(parts)
        self._rows = rows
        self._mailer = mailer
        self._audit = audit
        self._items = items

    @serves(accounts.request_erasure)
    async def request_erasure(self, request: accounts.RequestErasure, call: RpcCall) -> accounts.Erasure:
        caller = call.principal
        user = await self._identities.active_user(await self._store.find_user(caller.user_id))
        async with self._store.transaction() as transaction:
            await self._check_not_needed(transaction, user.id, user.role)
            at = await self._rows.plan_erasure(transaction, user.id, self._settings.erasure_days)
            is_new = at is not None
            if is_new:
                await self._trail.add(
                    transaction, audit_records.done("account.ask_erasure", caller, tenant=TenantId(user.id), target=user.id)
                )
            else:
                at = await self._rows.find_erasure(transaction, user.id)
        if at is None:
            raise self._identities.session_over()
        if is_new:
            _log.info("erasure scheduled", user_id=user.id, at=at.isoformat())
            await self._mailer.send(user.email, *mail_texts.erasure_planned(user.username, at, self._settings.public_url))
        return accounts.Erasure(at)

    @serves(accounts.cancel_erasure)
    async def cancel_erasure(self, request: accounts.CancelErasure, call: RpcCall) -> Nothing:
        """Having nothing to cancel is no error: logging in has canceled it already."""
        caller = call.principal
        user = await self._identities.active_user(await self._store.find_user(caller.user_id))
        async with self._store.transaction() as transaction:
            was_planned = await self._rows.call_off(transaction, user.id)
            if was_planned:
                await self._trail.add(transaction, audit_records.done("account.keep", caller, tenant=TenantId(user.id), target=user.id))
        if was_planned:
            await self._notify_kept(user)
        return Nothing()

    async def call_off_at_login(self, transaction: Transaction, login: CompleteLogin) -> None:
        """Part of every complete login: a user who comes back stays."""
        user_id = login.session.user_id
        if await self._rows.call_off(transaction, user_id):
            await self._trail.add(transaction, audit_records.done_by("account.keep", user_id, target=user_id))
            if user := await self._store.find_user(user_id):
                await self._notify_kept(user)

    async def _notify_kept(self, user: User) -> None:
        _log.info("erasure canceled", user_id=user.id)
        await self._mailer.send(user.email, *mail_texts.erasure_called_off(user.username))

    async def run(self) -> None:
        """Run until canceled."""
        await lifecycle.every(_EVERY_SECONDS, self.erase_due, first=lifecycle.SOON_SECONDS)

    async def erase_due(self) -> None:
        """Erase every account that is due. Raises Unavailable; finished erasures stay done."""
        await self._items.each(ItemKind.ERASURE, await self._rows.due(), self._erase, str)

    async def _erase(self, user_id: UserId) -> None:
        async with self._rows.erasing() as transaction:
            role = await self._rows.take_due(transaction, user_id)
            if role is None:
                return
            # An account that is due doesn't count as remaining.
            if role is UserRole.ADMIN and not await self._rows.administrators(transaction):
                _log.error("the last administrator cannot be deleted: appoint another one, or cancel the deletion", user_id=user_id)
                return
            tenants = (TenantId(user_id), *await self._rows.list_sole_organisations(transaction, user_id))
            await self._rows.erase(transaction, user_id, secrets.token_hex(4))
            await self._audit.shred_of(transaction, user_id)
            # Before the commit, so that nothing is deleted while Valkey or the gateway is down; and again after it, for logins in between.
            await self._sessions.end_all(user_id)
            await self._erase_stored(tenants)
            await self._trail.add(transaction, audit_records.of_mesh("user.erased", None, target=user_id))
        await self._sessions.end_all(user_id)
        try:
            request = gateway.DropStoredItems(TenantId(user_id))
            await self._node.rpc.call(gateway.drop_stored_items, request, deadline_seconds=_GATEWAY_SECONDS)
        except errors.AimeshError as error:
            _log.warning("stored answers of an erased account stay until they expire", user_id=user_id, reason=error.message)
        _log.info("account erased", user_id=user_id)

    async def _erase_stored(self, tenants: Iterable[TenantId]) -> None:
        """Erase what each feature stores, such as jobs, which would write files, then files.

        Raises PeerError if no gateway does it; the next round tries again.
        """
        for tenant in tenants:
            await self._erase_of_features(tenant)

    async def _erase_of_features(self, tenant: TenantId) -> None:
        """Ask gateways to erase what each feature stores that any of them has, or this auth. One that fails doesn't hold up the others.

        Raises what says that one is not erased.
        """
        announced = self._node.directory.features_of(Role.GATEWAY)
        failed: list[errors.AimeshError] = []
        # Those that need others come first.
        for feature in dict.fromkeys((*reversed(features.having("gateway.part")), *announced)):
            request = gateway.EraseStored(tenant, feature)
            try:
                await self._node.rpc.call(gateway.erase_stored, request, to=announced.get(feature), deadline_seconds=_FEATURE_SECONDS)
            except errors.AimeshError as error:
                failed.append(error)
        if failed:
            raise failed[0]

    async def _check_not_needed(self, transaction: Transaction, user_id: UserId, role: UserRole) -> None:
        if role is UserRole.ADMIN and not await self._rows.administrators(transaction) - {user_id}:
            raise errors.NotAllowed("you are the last administrator of this mesh", hint="appoint another one first")
        if orphans := await self._rows.orphans_of(transaction, user_id):
            raise errors.NotAllowed(
                "an organization with other members has no other owner: " + ", ".join(orphans),
                hint="make one of its members an owner first",
            )
