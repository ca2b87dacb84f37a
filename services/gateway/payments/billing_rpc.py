"""Serves plans, orders and invoices to the people who pay, and to administrators."""

from dataclasses import dataclass

from services.gateway.billing.ledger_store import LedgerStore
from services.gateway.billing.reservations import Spending
from services.gateway.facts.config_snapshot import ConfigSource
from services.gateway.facts.plan_offers import PlanOffer
from services.gateway.payments.billing import Billing
from services.gateway.payments.billing_store import BillingStore
from services.gateway.payments.payment_provider import METADATA
from services.gateway.payments.provider_orders import MANUAL
from shared import access_table, errors, plan_names
from shared.api import billing as api
from shared.api import organizations
from shared.api.billing import Customers, Invoice, Invoices, Order, Plans, PlanState, Revenue
from shared.api.organizations import TeamRole
from shared.rpc import RpcCall, RpcClient, serves
from shared.rpc.audit_reporting import AuditReporting
from shared.types import Permission, TenantId


@dataclass(frozen=True, slots=True)
class BillingRpc:
    billing: Billing
    store: BillingStore
    source: ConfigSource
    ledger_store: LedgerStore
    rpc: RpcClient
    audit_reporting: AuditReporting
    currency: str
    is_on: bool

    @serves(api.list_plans)
    async def list_plans(self, request: api.ListPlans, call: RpcCall) -> Plans:
        everyone = call.found is not None and access_table.may(call.found, Permission.EVERYTHING)
        offers = sorted(self.source.config.offers.values(), key=lambda offer: (offer.fee_micro is None, offer.fee_micro, offer.name))
        return Plans(tuple(offer.shown(self.currency) for offer in offers if everyone or offer.for_sale))

    @serves(api.read_billing)
    async def read_billing(self, request: api.ReadBilling, call: RpcCall) -> api.Billing:
        self._ensure_on()
        owner = await self._payer(request.owner, call, may_read=True)
        described = await self.billing.describe(owner)
        present, limits = described.plan, self.source.config.limits
        terms = limits.plan_of(present, shares_limits=described.shares_limits, has_free_tokens=described.has_free_tokens)
        account = await self.ledger_store.read_account(owner, Spending(terms.included_tokens, terms.overage_micro, has_plan=True))
        held = await self.store.find_subscription(owner)
        offer = PlanOffer(plan_names.name_of(present), int(present.partition("@")[2] or 0), terms)
        state = PlanState.GIVEN if held is None else held.state
        next_plan = None if held is None or held.next_plan is None else plan_names.name_of(held.next_plan)
        waits_for = None if held is None or next_plan is None else held.invoice
        provider = self.billing.provider
        name, has_portal = (MANUAL, False) if provider is None else (provider.name, provider.customer_of(held) is not None)
        return api.Billing(offer.shown(self.currency), state, account, name, next_plan, waits_for, portal=has_portal)

    @serves(api.set_plan)
    async def set_plan(self, request: api.SetPlan, call: RpcCall) -> Order:
        self._ensure_on()
        owner = await self._payer(request.owner, call)
        is_admin = request.owner is not None and access_table.may(call.principal, Permission.EVERYTHING)
        if is_admin:
            order = await self.billing.give_plan(owner, request.plan)
        else:
            order = await self.billing.order_plan(owner, request.plan)
        self.audit_reporting.report_action("plan.set", call.principal, target=owner, plan=request.plan, reason=request.reason)
        return order

    @serves(api.order_top_up)
    async def order_top_up(self, request: api.OrderTopUp, call: RpcCall) -> Order:
        self._ensure_on()
        owner = await self._payer(request.owner, call)
        return await self.billing.order_top_up(owner, request)

    @serves(api.open_portal)
    async def open_portal(self, request: api.OpenPortal, call: RpcCall) -> api.Portal:
        """Raises NotFound for somebody who has never paid through a provider, and Unavailable."""
        self._ensure_on()
        owner = await self._payer(request.owner, call)
        if self.billing.provider is None:
            raise errors.NotFound("this mesh has no payment provider", hint="see `aicli billing invoices`")
        return api.Portal(await self.billing.provider.open_portal(owner))

    @serves(api.list_invoices)
    async def list_invoices(self, request: api.ListInvoices, call: RpcCall) -> Invoices:
        owner = None
        if not (request.everyone and access_table.may(call.principal, Permission.EVERYTHING)):
            owner = await self._payer(request.owner, call, may_read=True)
        found = await self.store.list_invoices(owner, only_open=request.only_open, before=request.before, limit=request.limit)
        return Invoices(found)

    @serves(api.get_invoice)
    async def get_invoice(self, request: api.GetInvoice, call: RpcCall) -> Invoice:
        """Raises NotFound for an invoice of others."""
        owner = None if access_table.may(call.principal, Permission.EVERYTHING) else call.principal.tenant_id
        found = await self.store.find_invoice(request.number, owner)
        if found is None:
            raise errors.NotFound(f"there is no invoice {request.number}", hint="see `aicli billing invoices`")
        return found

    @serves(api.pay_invoice)
    async def pay_invoice(self, request: api.PayInvoice, call: RpcCall) -> Invoice:
        paid = await self.billing.pay(request.number, request.reference)
        self.audit_reporting.report_action("invoice.pay", call.principal, target=request.number, reference=request.reference)
        return paid

    @serves(api.void_invoice)
    async def void_invoice(self, request: api.VoidInvoice, call: RpcCall) -> Invoice:
        if request.lost:
            found = await self.billing.void_lost(request.number, request.reason)
        else:
            found = await self.billing.void(request.number, request.reason, refund=request.refund)
        refund, lost = str(request.refund).lower(), str(request.lost).lower()
        self.audit_reporting.report_action(
            "invoice.void", call.principal, target=request.number, reason=request.reason, refund=refund, lost=lost
        )
        return found

    @serves(api.adopt_payment)
    async def adopt_payment(self, request: api.AdoptPayment, call: RpcCall) -> api.ProviderPayment:
        """Raises NotFound, and what ``ProviderOrders.adopt`` raises."""
        if self.billing.provider is None:
            raise errors.NotFound("this mesh has no payment provider", hint="see `aicli admin invoices list`")
        if request.owner is not None:
            await self.billing.describe(request.owner)
        found = await self.billing.provider.adopt(request.id, request.owner)
        if request.owner is not None:
            await self.billing.apply()
            self.audit_reporting.report_action(
                "payment.adopt", call.principal, target=request.owner, payment=found.id, reason=request.reason
            )
        claimed = {name: found.claimed[name][:100] for name in METADATA if name in found.claimed}
        return api.ProviderPayment(
            found.id, found.payment is not None, found.amount_minor, found.currency, found.customer, found.subscription, claimed
        )

    @serves(api.list_customers)
    async def list_customers(self, request: api.ListCustomers, call: RpcCall) -> Customers:
        self._ensure_on()
        return Customers(await self.store.list_customers(request.after, request.limit))

    @serves(api.read_revenue)
    async def read_revenue(self, request: api.ReadRevenue, call: RpcCall) -> Revenue:
        self._ensure_on()
        return Revenue(await self.store.sum_revenue(self.currency))

    def _ensure_on(self) -> None:
        if not self.is_on:
            raise errors.NotFound("this mesh sells nothing", hint="an administrator can start it with MONEY=on; see docs/howto/billing.md")

    async def _payer(self, owner: TenantId | None, call: RpcCall, *, may_read: bool = False) -> TenantId:
        """Return whose bill it is. Members of an organization may read its bill; owners may change it. Raises NotFound for others'."""
        principal = call.principal
        owner = principal.tenant_id if owner is None else owner
        if (owner == TenantId(principal.user_id) and principal.team_id is None) or access_table.may(principal, Permission.EVERYTHING):
            return owner
        found = (
            await self.rpc.call(organizations.get_organisation, organizations.GetOrganization(owner), credential=call.credential)
        ).organisation
        if not may_read and found.role is not TeamRole.OWNER:
            raise errors.NotAllowed("only owners of an organization change what it pays", hint="ask an owner")
        return owner
