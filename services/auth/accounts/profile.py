"""RPC methods about one's own account: profile and preferences."""

import time

from services.auth import audit_records, mail_texts, name_rules
from services.auth.accounts.account_store import AccountStore
from services.auth.dependencies import AuthHandlers, Dependencies
from services.auth.mfa.factors import Factors
from shared import access_table, errors
from shared.api import accounts, auth
from shared.mail.mailer import Mailer
from shared.rpc import RpcCall, serves
from shared.telemetry import logs
from shared.types import TenantId

_THEMES = ("light", "dark", "system")
_MAX_MODEL_NAME = 200

_log = logs.get(part="auth")


class ProfileRpc(AuthHandlers):
    def __init__(self, parts: Dependencies, account_rows: AccountStore, factors: Factors, mailer: Mailer) -> None:
        super().__init__(parts)
        self._rows = account_rows
        self._factors = factors
        self._mailer = mailer

    @serves(accounts.get_account)
    async def get_account(self, request: accounts.GetAccount, call: RpcCall) -> accounts.OwnAccount:
        user = await self._user(call)
        row = await self._rows.get(user.id)
        factor = await self._factors.find(user.id)
        return accounts.OwnAccount(
            user=user,
            preferences=row.preferences,
            has_password=row.has_password,
            mfa_enabled=factor.is_enabled,
            recovery_codes_left=factor.recovery_codes_left,
            erased_at=row.erase_at,
            oidc_name=self._settings.oidc_name if self._settings.oidc_issuer else None,
            is_verified=not self._settings.verifies_addresses or row.verified_at is not None,
        )

    @serves(accounts.change_profile)
    async def change_profile(self, request: accounts.ChangeProfile, call: RpcCall) -> auth.User:
        """A new address counts at once, and a mail goes to both. It requires what a password change requires, because a mail to it can
        reset the password."""
        user = await self._user(call)
        username = None if request.username in (None, user.username) else request.username
        email = None if request.email in (None, user.email) else request.email
        if username is None and email is None:
            return user
        if username is not None:
            name_rules.check_username(username)
        if email is not None:
            name_rules.check_email(email)
            # Requires a login: a leaked key must not outlive its revocation by changing the address.
            await self._identities.session_of(call.credential)
            access_table.check(access_table.of_method(accounts.change_password.name), call.principal, time.time())
        changed = ",".join(name for name, value in (("username", username), ("email", email)) if value is not None)
        async with self._rows.renaming() as transaction:
            await self._rows.change_profile(transaction, user.id, username, email)
            if email is not None:
                # It was mailed to the old address.
                await self._rows.drop_reset(transaction, user.id)
            act = audit_records.done("account.change", call.principal, tenant=TenantId(user.id), target=user.id, changed=changed)
            await self._trail.add(transaction, act)
        _log.info("profile changed", user_id=user.id, changed=changed)
        after = await self._user(call)
        if email is not None and email.lower() != user.email.lower():
            await self._mailer.send(user.email, *mail_texts.address_changed_from(after.username))
            await self._mailer.send(after.email, *mail_texts.address_changed_to(after.username))
        return after

    @serves(accounts.set_preferences)
    async def set_preferences(self, request: accounts.SetPreferences, call: RpcCall) -> accounts.Preferences:
        chosen = request.preferences
        if chosen.theme not in _THEMES:
            raise errors.BadRequest.of("theme", ", ".join(_THEMES), hint="system follows the setting of the device")
        model = chosen.default_model
        if model is not None and not (model.isprintable() and 0 < len(model) <= _MAX_MODEL_NAME):
            raise errors.BadRequest("defaultModel: must be the name of a model", hint="leave it out for the mesh's default")
        await self._rows.set_preferences(call.principal.user_id, chosen)
        return chosen

    async def _user(self, call: RpcCall) -> auth.User:
        return await self._identities.active_user(await self._store.find_user(call.principal.user_id))
