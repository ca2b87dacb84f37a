"""Serves the /api routes for plans, prepaid credits and invoices. An administrator's key may act for any account."""

from typing import Annotated
from uuid import UUID, uuid5

import msgspec
from msgspec import Meta

from services.gateway.facts.bad_field import BadField
from services.gateway.http_api import request_bodies
from services.gateway.http_api.http_app import HttpRoute
from services.gateway.http_api.http_call import HttpCall
from services.gateway.payments.billing_rpc import BillingRpc
from services.gateway.rpc_api.account_rpc import AccountRpc
from shared import amounts, context
from shared.api import billing as api
from shared.api import ledger
from shared.types import NodeId, RequestId, TenantId

_SECONDS = 10.0
#: For ids of orders that have an Idempotency-Key.
_KEYS = UUID("b0c2d9d4-3a63-4d0e-8a0e-3c1f6b7f1a55")


class PlanBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    plan: api.PlanText
    #: For administrators: the account that gets it, at once.
    owner: TenantId | None = None
    reason: api.Reason = ""


class TopUpBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    #: Such as "25" or "25.00".
    amount: Annotated[str, Meta(min_length=1, max_length=30)]
    currency: str | None = None
    owner: TenantId | None = None


class PortalBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    owner: TenantId | None = None


class CreditBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """For administrators: give credits, or take them back with a negative amount."""

    owner: TenantId
    credits: str
    note: api.Reason = ""


class PaymentBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """For administrators: the money of an invoice has arrived."""

    invoice: api.InvoiceNumber
    reference: Annotated[str, Meta(min_length=1, max_length=200)]


class InvoicesQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    limit: Annotated[int, Meta(ge=1, le=500)] = 50
    #: The last number of the page before.
    before: api.InvoiceNumber | None = None
    open: bool = False
    #: For administrators: of this account, or of all accounts.
    owner: TenantId | None = None
    everyone: bool = False


class RestBilling:
    """Bodies have the names of documents; the handlers are those of the methods."""

    def __init__(self, billing: BillingRpc, accounts: AccountRpc, node: NodeId) -> None:
        self._billing = billing
        self._accounts = accounts
        self._node = node

    def routes(self) -> tuple[HttpRoute, ...]:
        return (
            HttpRoute("GET", "/api/plans", self._plans, "listPlans", "List the plans for sale", answer=api.Plans),
            HttpRoute("GET", "/api/billing", self._read, "readBilling", "Get your plan and what it includes", answer=api.Billing),
            HttpRoute("POST", "/api/billing/plan", self._plan, "setPlan", "Change the plan", body=PlanBody, answer=api.Order),
            HttpRoute("POST", "/api/billing/top-ups", self._top_up, "orderTopUp", "Buy prepaid credits", body=TopUpBody, answer=api.Order),
            HttpRoute("POST", "/api/billing/portal", self._portal, "openPortal", "Open the payment provider's page for cards and invoices",
                      body=PortalBody, answer=api.Portal),
            HttpRoute("GET", "/api/billing/invoices", self._invoices, "listInvoices", "List your invoices, newest first",
                      query=InvoicesQuery, answer=api.Invoices),
            HttpRoute("GET", "/api/billing/invoices/{number}", self._invoice, "getInvoice", "Get an invoice", answer=api.Invoice),
            HttpRoute("POST", "/api/billing/payments", self._pay, "payInvoice", "Mark an invoice as paid", body=PaymentBody,
                      answer=api.Invoice),
            HttpRoute("POST", "/api/billing/credits", self._credit, "topUp", "Give an account credits, or take them back",
                      body=CreditBody, answer=ledger.Account),
        )  # fmt: skip

    async def _plans(self, call: HttpCall) -> None:
        await call.answer(await self._billing.list_plans(api.ListPlans(), call.as_rpc(self._node, _SECONDS)))

    async def _read(self, call: HttpCall) -> None:
        await call.answer(await self._billing.read_billing(api.ReadBilling(), call.as_rpc(self._node, _SECONDS)))

    async def _plan(self, call: HttpCall) -> None:
        body = await call.read_fields(PlanBody)
        await call.answer(await self._billing.set_plan(api.SetPlan(body.plan, body.owner, body.reason), call.as_rpc(self._node, _SECONDS)))

    async def _top_up(self, call: HttpCall) -> None:
        body = await call.read_fields(TopUpBody)
        wanted = api.OrderTopUp(body.amount, _order_id(call), body.currency, body.owner)
        await call.answer(await self._billing.order_top_up(wanted, call.as_rpc(self._node, _SECONDS)))

    async def _portal(self, call: HttpCall) -> None:
        body = await call.read_fields(PortalBody)
        await call.answer(await self._billing.open_portal(api.OpenPortal(body.owner), call.as_rpc(self._node, _SECONDS)))

    async def _invoices(self, call: HttpCall) -> None:
        query = request_bodies.read_query(call.query, InvoicesQuery)
        wanted = api.ListInvoices(query.owner, query.everyone, query.open, query.before, query.limit)
        await call.answer(await self._billing.list_invoices(wanted, call.as_rpc(self._node, _SECONDS)))

    async def _invoice(self, call: HttpCall) -> None:
        await call.answer(await self._billing.get_invoice(api.GetInvoice(call.rest_of_path), call.as_rpc(self._node, _SECONDS)))

    async def _pay(self, call: HttpCall) -> None:
        body = await call.read_fields(PaymentBody)
        await call.answer(await self._billing.pay_invoice(api.PayInvoice(body.invoice, body.reference), call.as_rpc(self._node, _SECONDS)))

    async def _credit(self, call: HttpCall) -> None:
        body = await call.read_fields(CreditBody)
        try:
            micro = amounts.read(body.credits)
        except ValueError as error:
            raise BadField("credits", f"is invalid: {error}") from error
        wanted = ledger.TopUp(str(body.owner), micro, body.note, _order_id(call))
        found = await self._accounts.top_up(wanted, call.as_rpc(self._node, _SECONDS))
        await call.answer(msgspec.convert(found, ledger.Account, from_attributes=True))


def _order_id(call: HttpCall) -> RequestId:
    """The same Idempotency-Key of a caller is the same order."""
    key = call.idempotency_key
    return context.new_request_id() if key is None else RequestId(uuid5(_KEYS, f"{call.caller.user_id}|{key}"))
