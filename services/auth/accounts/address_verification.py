"""RPC methods to verify an email address with a mailed code.

Codes are in Valkey: a user whose code is lost asks for another one.
"""

from uuid import UUID

from services.auth import api_keys, audit_records, mail_texts, store
from services.auth.accounts.request_limits import MailLimits
from services.auth.dependencies import AuthHandlers, Dependencies
from shared import errors
from shared.api import accounts, auth
from shared.api.method import Nothing
from shared.mail.mailer import Mailer
from shared.rpc import RpcCall, serves
from shared.stores.cache import Cache
from shared.types import UserId

VERIFY_HOURS = 24


class AddressVerification(AuthHandlers):
    def __init__(self, parts: Dependencies, cache: Cache, limits: MailLimits, mailer: Mailer) -> None:
        super().__init__(parts)
        self._cache = cache
        self._limits = limits
        self._mailer = mailer

    async def mail(self, user: auth.User) -> None:
        """Mail a code, if this mesh asks for verified addresses. Raises Unavailable."""
        if not self._settings.verifies_addresses:
            return
        token = api_keys.random_text()
        await self._cache.set(_key(token), f"{user.id} {_digest(user)}", ttl_seconds=VERIFY_HOURS * 3600)
        await self._mailer.send(user.email, *mail_texts.verify_address(user.username, self._settings.page("/verify"), token, VERIFY_HOURS))

    @serves(accounts.send_verification)
    async def send_verification(self, request: accounts.SendVerification, call: RpcCall) -> Nothing:
        user = await self._identities.active_user(await self._store.find_user(call.principal.user_id))
        if not self._settings.verifies_addresses:
            raise errors.NotFound("this mesh doesn't ask for verified addresses", hint="there is nothing to do")
        await self._limits.charge_account(user.id)
        await self.mail(user)
        return Nothing()

    @serves(accounts.verify_address)
    async def verify_address(self, request: accounts.VerifyAddress, call: RpcCall) -> accounts.VerifiedAddress:
        found = await self._cache.take(_key(request.token))
        user_id, _, digest = (found or b"").decode().partition(" ")
        user = await self._store.find_user(UserId(UUID(user_id))) if user_id else None
        # The code was mailed to the address that the account had then.
        if user is None or not user.is_active or digest != _digest(user):
            raise errors.NotAuthenticated(
                "this code is wrong, was used, or has expired", hint="request another one in the settings or with `aicli billing verify`"
            )
        async with self._store.transaction() as transaction:
            await store.verify_address(transaction, user.id, user.email)
            await self._trail.add(transaction, audit_records.done_by("account.verify", user.id, target=user.id))
        return accounts.VerifiedAddress((await self._store.get_user(user.id)).has_free_tokens)


def _key(token: str) -> str:
    return f"auth:verification:{api_keys.hash_token(token.strip())}"


def _digest(user: auth.User) -> str:
    """Hashed, because an address is personal data."""
    return api_keys.hash_token(user.email.lower())
