"""RPC methods about API keys."""

from datetime import UTC, datetime

from services.auth import api_keys, audit_records, name_rules, roles
from services.auth.dependencies import AuthHandlers
from services.auth.store import NewKey, tenant_of
from shared import errors
from shared.api import auth, events
from shared.rpc import RpcCall, serves
from shared.telemetry import logs
from shared.types import KeyId, TenantId, UserId, UserRole

#: Of searching for keys that a revoked key created.
_MAX_ROUNDS = 20
NO_SUCH_KEY = "you have no key with this id"
_LIST_HINT = "`aicli keys list` shows them"

_log = logs.get(part="auth")


class ApiKeyRpc(AuthHandlers):
    """A credential sees the keys of the tenant that it acts for; an administrator's credential sees all."""

    @serves(auth.generate_api_key)
    async def generate_api_key(self, request: auth.GenerateApiKey, call: RpcCall) -> auth.CreatedApiKey:
        caller = call.principal
        user_id = roles.subject_of(caller, request.user_id)
        name_rules.check_key_name(request.name)
        terms = roles.terms_of_new_key(caller, await self._role_of(caller, user_id), request, datetime.now(UTC))
        key = api_keys.generate(request.kind)
        mark = self._identities.mark(key)
        # A key that an administrator creates for someone else is that user's personal key.
        team_id = caller.team_id if user_id == caller.user_id else None
        tenant = TenantId(user_id) if team_id is None else team_id
        async with self._store.bound(tenant) as transaction:
            stored = await self._store.add_key(transaction, NewKey(user_id, team_id, request.name.strip(), mark, terms, caller.key_id))
            await self._trail.add(transaction, audit_records.done("key.create", caller, tenant=tenant, target=stored.id, kind=stored.kind))
        self._node.metrics.keys_created.inc()
        self._node.publish(events.KeyCreated(datetime.now(UTC), stored.id, user_id))
        _log.info("key created", key_id=stored.id, user_id=user_id, kind=stored.kind)
        return auth.CreatedApiKey(key, stored)

    @serves(auth.list_api_keys)
    async def list_api_keys(self, request: auth.ListApiKeys, call: RpcCall) -> auth.ApiKeys:
        caller = call.principal
        user_id = roles.subject_of(caller, request.user_id)
        if user_id == caller.user_id:
            return auth.ApiKeys(await self._store.list_keys(caller.tenant_id, user_id))
        return auth.ApiKeys(await self._store.list_keys_of_user(user_id))

    @serves(auth.find_ended_keys)
    async def find_ended_keys(self, request: auth.FindEndedKeys, call: RpcCall) -> auth.EndedKeys:
        return auth.EndedKeys(await self._store.list_ended_keys(request.keys))

    @serves(auth.revoke_api_key)
    async def revoke_api_key(self, request: auth.RevokeApiKey, call: RpcCall) -> auth.ApiKey:
        caller = call.principal
        key = await self._get_key(caller, request.key)
        revoked = await self._revoke(caller, key) or key
        # The key first, then those that it created, until none is left: a stolen key may create more meanwhile.
        for _ in range(_MAX_ROUNDS if request.with_made else 0):
            made = [
                each for each in await self._store.list_keys_made_by(key.id) if roles.is_admin(caller) or tenant_of(each) == tenant_of(key)
            ]
            if not made:
                break
            for each in made:
                await self._revoke(caller, each, made_by=str(key.id))
        return revoked

    async def _revoke(self, caller: auth.Principal, key: auth.ApiKey, **details: str) -> auth.ApiKey | None:
        async with self._store.bound(tenant_of(key)) as transaction:
            revoked = await self._store.revoke_key(transaction, key)
            if revoked is None:
                return None
            await self._trail.add(transaction, audit_records.done("key.revoke", caller, tenant=tenant_of(key), target=key.id, **details))
        self._node.publish(events.KeyRevoked(datetime.now(UTC), key.id, key.user_id))
        _log.info("key revoked", key_id=key.id, user_id=key.user_id, by=caller.user_id)
        return revoked

    @serves(auth.rename_api_key)
    async def rename_api_key(self, request: auth.RenameApiKey, call: RpcCall) -> auth.ApiKey:
        caller = call.principal
        name_rules.check_key_name(request.name)
        key = await self._get_key(caller, request.key)
        _check_own(caller, key, "renames")
        async with self._store.bound(tenant_of(key)) as transaction:
            renamed = await self._store.rename_key(transaction, key, request.name.strip())
            if renamed is None:
                raise _ended(key)
            await self._trail.add(transaction, audit_records.done("key.rename", caller, tenant=tenant_of(key), target=key.id))
        return renamed

    @serves(auth.rotate_api_key)
    async def rotate_api_key(self, request: auth.RotateApiKey, call: RpcCall) -> auth.CreatedApiKey:
        caller = call.principal
        key = await self._get_key(caller, request.key)
        _check_own(caller, key, "rotates")
        roles.check_may_rotate(caller, key, await self._role_of(caller, key.user_id))
        secret = api_keys.generate(key.kind)
        mark = self._identities.mark(secret)
        async with self._store.bound(tenant_of(key)) as transaction:
            rotated = await self._store.rotate_key(transaction, key, mark, request.overlap_seconds)
            if rotated is None:
                raise _ended(key)
            act = audit_records.done(
                "key.rotate", caller, tenant=tenant_of(key), target=key.id, overlap_seconds=str(request.overlap_seconds)
            )
            await self._trail.add(transaction, act)
        _log.info("key rotated", key_id=key.id, user_id=key.user_id, by=caller.user_id)
        return auth.CreatedApiKey(secret, rotated)

    async def _role_of(self, caller: auth.Principal, user_id: UserId) -> UserRole:
        if user_id == caller.user_id:
            return caller.role
        return (await self._store.get_user(user_id)).role

    async def _get_key(self, caller: auth.Principal, text: str) -> auth.ApiKey:
        """Find by id, or by a name that is unique among the caller's active keys. Raises NotFound, and BadRequest for several."""
        if (key_id := name_rules.find_uuid(text)) is not None:
            key = await self._find_key(caller, KeyId(key_id))
            if key is None:
                # Don't reveal whether another user has it.
                raise errors.NotFound(NO_SUCH_KEY, hint=_LIST_HINT)
            return key
        named = await self._store.list_keys_named(caller.tenant_id, caller.user_id, text) if name_rules.may_be_key_name(text) else ()
        if not named:
            raise errors.NotFound("you have no active key of this name", hint=_LIST_HINT)
        if len(named) > 1:
            raise errors.BadRequest(
                "several active keys have this name", hint="give the id of one: " + ", ".join(str(key.id) for key in named[:5])
            )
        return named[0]

    async def _find_key(self, caller: auth.Principal, key_id: KeyId) -> auth.ApiKey | None:
        if roles.is_admin(caller):
            return await self._store.find_any_key(key_id)
        return await self._store.find_key(caller.tenant_id, caller.user_id, key_id)


def _check_own(caller: auth.Principal, key: auth.ApiKey, what: str) -> None:
    """An organization's owner may revoke its members' keys. Rotating one would let the owner act as the member."""
    if key.user_id != caller.user_id and not roles.is_admin(caller):
        raise errors.NotAllowed(f"only its owner {what} a key", hint="you may revoke it")


def _ended(key: auth.ApiKey) -> errors.BadRequest:
    return errors.BadRequest(f"the key {key.name!r} was revoked or has expired", hint="create a new one")
