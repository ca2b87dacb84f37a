"""RPC methods to log in a program that has no browser: it shows a code, and a person approves it on a page (RFC 8628)."""

from datetime import UTC, datetime
from urllib.parse import quote

from services.auth import audit_records
from services.auth.accounts import request_limits
from services.auth.accounts.request_limits import HourlyLimits
from services.auth.dependencies import AuthHandlers, Dependencies
from services.auth.logins import LoginRpc
from services.auth.sessions import device_logins
from services.auth.sessions.device_logins import DeviceLogins
from services.auth.sessions.identities import client_address
from services.auth.sessions.session_store import StoredLoginLink
from shared import addresses, errors
from shared.api import auth
from shared.api.auth import SessionKind
from shared.api.method import Nothing
from shared.rpc import RpcCall, serves
from shared.stores.cache import Cache
from shared.types import UserId


class DeviceLoginRpc(AuthHandlers):
    """Like a password login, it opens a program's session for the user alone, never for an organization."""

    def __init__(self, parts: Dependencies, logins: LoginRpc, cache: Cache) -> None:
        super().__init__(parts)
        self._logins = logins
        self._devices = DeviceLogins(parts.sessions)
        self._begun = HourlyLimits(cache, "device_logins")
        self._typed = HourlyLimits(cache, "device_codes")

    @serves(auth.begin_device_login)
    async def begin_device_login(self, request: auth.BeginDeviceLogin, call: RpcCall) -> auth.DeviceLogin:
        seen = client_address(request.client, call)
        address = str(call.caller.node) if seen is None else seen
        await self._charge_begin(address, call)
        device_code, user_code = await self._devices.begin(request.machine, address, datetime.now(UTC))
        page = self._settings.page(auth.DEVICE_PAGE)
        return auth.DeviceLogin(
            device_code, user_code, page, page and f"{page}/{quote(user_code)}", device_logins.LIFE_SECONDS, device_logins.INTERVAL_SECONDS
        )

    async def _charge_begin(self, address: str, call: RpcCall) -> None:
        """Raises Limited. No count is of all people together, which a single one could use up."""
        if addresses.is_loopback(address):
            counted = {"loopback": request_limits.MAX_DEVICE_LOGINS_OF_LOOPBACK}
        else:
            counted = {request_limits.requester_of(address, call.caller.node): request_limits.MAX_DEVICE_LOGINS}
            if site := addresses.site_network(address):
                counted[site] = request_limits.MAX_DEVICE_LOGINS_OF_SITE
        hint = "wait, or log in with your name and password"
        for subject, most in counted.items():
            await self._begun.charge(subject, most, "too many logins were begun from your address", hint=hint)

    @serves(auth.poll_device_login)
    async def poll_device_login(self, request: auth.PollDeviceLogin, call: RpcCall) -> auth.LoginSession:
        if await self._sessions.find_link(request.device_code) is None:
            raise await self._devices.why_not_open(request.device_code)
        try:
            return await self._logins.open_by_link(request.device_code, SessionKind.PROGRAM, request.client, call)
        except errors.NotAuthenticated as error:
            # Used by another poll at the same moment, or ended with the browser's session or with the account.
            raise device_logins.expired() from error

    @serves(auth.find_device_login)
    async def find_device_login(self, request: auth.FindDeviceLogin, call: RpcCall) -> auth.WaitingDeviceLogin:
        await self._charge_code(call.principal.user_id)
        return await self._devices.find(request.user_code)

    @serves(auth.decide_device_login)
    async def decide_device_login(self, request: auth.DecideDeviceLogin, call: RpcCall) -> Nothing:
        caller = call.principal
        await self._charge_code(caller.user_id)
        session = await self._identities.session_of(call.credential)
        account = await self._identities.active_account(await self._store.find_account_of(caller.user_id))
        link = StoredLoginLink(
            user_id=caller.user_id, password_version=account.password_version, session_id=session.id, kind=SessionKind.PROGRAM
        )
        async with self._store.transaction() as transaction:
            approve, code = request.approve, request.user_code
            facts = await (self._devices.approve(code, link) if approve else self._devices.deny(code))
            act = audit_records.done("session.approve" if approve else "session.deny", caller, target=facts.machine, address=facts.address)
            await self._trail.add(transaction, act)
        return Nothing()

    async def _charge_code(self, user_id: UserId) -> None:
        """Count right codes too: a wrong one is not known before. Raises Limited."""
        hint = "wait; a code that you approve must be one that your own terminal shows"
        await self._typed.charge(str(user_id), request_limits.MAX_DEVICE_CODES, "too many codes of logins were entered", hint=hint)
