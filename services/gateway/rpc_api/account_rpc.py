"""Serves accounts to their owners, and the administration of accounts and prices."""

from dataclasses import dataclass
from uuid import UUID, uuid4

import msgspec

from services.gateway.billing import prices
from services.gateway.billing.ledger import Ledger
from services.gateway.billing.ledger_store import AlreadyReverted, LedgerStore
from services.gateway.billing.reservations import Spending
from services.gateway.facts.config_snapshot import ConfigSource
from shared import access_table, errors
from shared.api import auth, organizations
from shared.api import ledger as ledgers
from shared.api.auth import Principal
from shared.api.gateway import KeyBudget
from shared.api.ledger import (
    MICRO,
    Account,
    AccountFor03,
    LedgerReport,
    ListPrices,
    ModelPrices,
    ReadAccount,
    RevertRequest,
    SetPrice,
    TopUp,
    VerifyLedger,
)
from shared.rpc import RpcCall, RpcClient, serves
from shared.rpc.audit_reporting import AuditReporting
from shared.telemetry import logs
from shared.types import Credential, Permission, RequestId, TenantId, UserId

#: 10 billion credits: within 64 bits, and more than any real transfer.
MAX_TOP_UP = 10_000_000_000 * MICRO
MAX_NOTE_CHARACTERS = 500

_log = logs.get(part="accounts")


@dataclass(frozen=True, slots=True)
class AccountRpc:
    """Implements the account methods. The authorizer has already checked administrator permissions."""

    store: LedgerStore
    ledger: Ledger
    source: ConfigSource
    rpc: RpcClient
    audit_reporting: AuditReporting

    async def account_of(self, caller: Principal) -> Account:
        return AccountFor03.of(await self.store.read_account(caller.tenant_id, self.ledger.spending_of(caller)))

    def _spending(self, of: auth.User | organizations.Organization) -> Spending:
        shares_limits = isinstance(of, organizations.Organization) and of.shares_limits
        has_free_tokens = isinstance(of, organizations.Organization) or of.has_free_tokens
        plan = self.source.config.limits.plan_of(of.tier, shares_limits=shares_limits, has_free_tokens=has_free_tokens)
        return msgspec.structs.replace(self.ledger.terms_of(plan), owner_budget=of.budget)

    async def find_key_budget(self, caller: Principal) -> KeyBudget | None:
        """Return the remaining budget of the caller's key; None if it has none."""
        if caller.key_id is None or caller.key_limits.budget_micro is None:
            return None
        spent, reserved = await self.store.read_key_spending(caller.tenant_id, caller.key_id)
        return KeyBudget(caller.key_limits.budget_micro, spent, reserved, caller.key_limits.budget_every)

    @serves(ledgers.read_account)
    async def read_account(self, request: ReadAccount, call: RpcCall) -> Account:
        caller = call.principal
        if request.user_id is None or request.user_id == caller.user_id:
            return await self.account_of(caller)
        if not access_table.may(caller, Permission.EVERYTHING):
            raise errors.NotAllowed(
                "this is another user's account", hint="omit userId for your own account; only an administrator can read others"
            )
        owner = TenantId(request.user_id)
        return AccountFor03.of(await self.store.read_account(owner, await self._spending_of(owner, call.credential)))

    @serves(ledgers.top_up)
    async def top_up(self, request: TopUp, call: RpcCall) -> Account:
        if not 0 < abs(request.amount_micro) <= MAX_TOP_UP:
            raise errors.BadRequest("the amount is 0 or too large", hint="transfer at most 10 billion credits at once")
        _check_note(request.note)
        owner, spending = await self._find_owner(request.user, call.credential)
        transfer_id = request.transfer_id or RequestId(uuid4())
        if await self.store.top_up(transfer_id, owner, request.amount_micro, request.note, spending):
            _log.info("credits moved", owner=owner, micro=request.amount_micro, transfer_id=transfer_id, by=call.principal.user_id)
        account = await self.store.read_account(owner, spending)
        self.audit_reporting.report_action("credits.move", call.principal, target=owner, micro=str(request.amount_micro), note=request.note)
        return AccountFor03.of(account)

    @serves(ledgers.list_prices)
    async def list_prices(self, request: ListPrices, call: RpcCall) -> ModelPrices:
        return ModelPrices(tuple(row.price for row in await self.store.list_prices(history=request.history)))

    @serves(ledgers.set_price)
    async def set_price(self, request: SetPrice, call: RpcCall) -> ModelPrices:
        prices.check(request.price)
        await self.store.add_price(request.price)
        await self.ledger.refresh_prices()
        _log.info("price set", model=request.price.model, by=call.principal.user_id)
        listed = await self.list_prices(ListPrices(), call)
        price = msgspec.json.encode(request.price).decode()
        self.audit_reporting.report_action("price.set", call.principal, target=request.price.model or "default", price=price)
        return listed

    @serves(ledgers.revert_request)
    async def revert(self, request: RevertRequest, call: RpcCall) -> Account:
        _check_note(request.note)
        try:
            owner = await self.store.revert(request.request_id, request.note)
        except AlreadyReverted:
            raise errors.AlreadyExists("the cost of this request was already refunded") from None
        if owner is None:
            raise errors.NotFound(
                "no request with this id has cost anything", hint="if the request is still running, refund it after it has ended"
            )
        _log.info("request reverted", request_id=request.request_id, user_id=owner, by=call.principal.user_id)
        account = await self.store.read_account(owner, await self._spending_of(owner, call.credential))
        self.audit_reporting.report_action("credits.revert", call.principal, target=request.request_id, note=request.note)
        return AccountFor03.of(account)

    @serves(ledgers.verify_ledger)
    async def verify(self, request: VerifyLedger, call: RpcCall) -> LedgerReport:
        return await self.ledger.verify(full=request.full)

    async def _find_owner(self, text: str, credential: Credential | None) -> tuple[TenantId, Spending]:
        try:
            user = await self.rpc.call(auth.get_user_called, auth.GetUserCalled(text), credential=credential)
        except errors.NotFound:
            owner = _tenant_id(text)
            if owner is None:
                raise
            return owner, await self._spending_of_organisation(owner, credential)
        return TenantId(user.id), self._spending(user)

    async def _spending_of(self, tenant: TenantId, credential: Credential | None) -> Spending:
        try:
            user = await self.rpc.call(auth.get_user, auth.GetUser(UserId(tenant)), credential=credential)
        except errors.NotFound:
            return await self._spending_of_organisation(tenant, credential)
        return self._spending(user)

    async def _spending_of_organisation(self, tenant: TenantId, credential: Credential | None) -> Spending:
        try:
            found = await self.rpc.call(organizations.get_organisation, organizations.GetOrganization(tenant), credential=credential)
        except errors.NotFound:
            raise errors.NotFound(f"no user or organization has the id {tenant}", hint="check the id") from None
        return self._spending(found.organisation)


def _tenant_id(text: str) -> TenantId | None:
    try:
        return TenantId(UUID(text))
    except ValueError:
        return None


def _check_note(note: str) -> None:
    if len(note) > MAX_NOTE_CHARACTERS or not all(letter.isprintable() for letter in note):
        raise errors.BadRequest(f"a note must be one line of at most {MAX_NOTE_CHARACTERS} characters")
