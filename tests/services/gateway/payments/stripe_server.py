"""A Stripe for tests: localstripe has customers, payments and subscriptions, and a proxy adds what it lacks.

That is Checkout, the Customer Portal, meter events, idempotency keys, invoices of subscriptions, refunds, disputes, and faults. Requests
are checked with the types of the official library.
"""

import asyncio
import itertools
import json
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pydantic
import stripe
from aiohttp import web
from stripe.params.billing import MeterEventCreateParams
from stripe.params.billing_portal import SessionCreateParams as PortalParams
from stripe.params.checkout import SessionCreateParams

from tests import testnet

KEY, SECRET = "sk_test_localstripe", "whsec_of_tests"


def _strict(params: Any) -> pydantic.TypeAdapter[Any]:
    params.__pydantic_config__ = pydantic.ConfigDict(extra="forbid", arbitrary_types_allowed=True)
    adapter = pydantic.TypeAdapter(params)
    # Names of the base class, which the modules of parameters don't import.
    adapter.rebuild(_types_namespace={"StripeContext": stripe.StripeContext, "Mapping": Mapping})
    return adapter


METER = {
    "id": "mtr_1", "object": "billing.meter", "event_name": "mesh_usage", "status": "active",
    "customer_mapping": {"type": "by_id", "event_payload_key": "customer"}, "value_settings": {"event_payload_key": "tokens"},
}  # fmt: skip
#: In cents.
FEES = {"price_pro": 2900, "price_gold": 9900, "price_platinum": 49900, "price_gift": 0}
TYPES = {
    "/v1/checkout/sessions": _strict(SessionCreateParams),
    "/v1/billing_portal/sessions": _strict(PortalParams),
    "/v1/billing/meter_events": _strict(MeterEventCreateParams),
}


def _nested(form: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a form such as `line_items[0][price]=p` says."""
    nested: dict[str, Any] = {}
    for name, value in form.items():
        at, *parts = name.replace("]", "").split("[")
        place = nested
        for part in parts:
            place, at = place.setdefault(at, {}), part
        place[at] = value
    return _with_lists(nested)


def _with_lists(found: Any) -> Any:
    if not isinstance(found, dict):
        return found
    values = {name: _with_lists(value) for name, value in found.items()}
    return [*values.values()] if values and all(name.isdigit() for name in values) else values


class StripeServer:
    def __init__(self, behind: str) -> None:
        self._behind = behind
        self.url = ""
        self.sessions: dict[str, dict[str, Any]] = {}
        #: What each idempotency key was used for: its parameters and its answer.
        self.keys: dict[str, tuple[Any, dict[str, Any]]] = {}
        #: Changes of subscriptions that localstripe can't make.
        self.changed: dict[str, dict[str, Any]] = {}
        #: Of subscriptions, oldest first.
        self.invoices: list[dict[str, Any]] = []
        #: Lines of changes that the next invoice of a subscription will have.
        self.pending: dict[str, list[dict[str, Any]]] = {}
        self.refunds: list[dict[str, Any]] = []
        self.disputes: list[dict[str, Any]] = []
        #: What Stripe has told of them, newest first.
        self.events: list[dict[str, Any]] = []
        #: By identifier.
        self.meter_events: dict[str, dict[str, Any]] = {}
        #: Those that Stripe still refuses.
        self.remembered: set[str] = set()
        self.reads: list[str] = []
        #: Subscriptions that end with their period.
        self.canceled: list[str] = []
        #: For the next requests, in order: "lost" does it and never answers, "down" answers 500, "busy" 429.
        self.faults: list[str] = []
        #: What localstripe has sent by itself.
        self.delivered: asyncio.Queue[tuple[bytes, str]] = asyncio.Queue()
        self._numbers = itertools.count(1)
        #: Keeps the requests alive that get no answer.
        self._never = asyncio.Event()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        if request.path == "/hook":
            await self.delivered.put((await request.read(), request.headers["stripe-signature"]))
            return web.Response()
        assert request.headers["authorization"] == f"Bearer {KEY}"
        fault = self.faults.pop(0) if self.faults else ""
        if fault == "down":
            return web.json_response({"error": {"type": "api_error", "message": "down"}}, status=500)
        if fault == "busy":
            return web.json_response({"error": {"type": "invalid_request_error", "code": "rate_limit", "message": "busy"}}, status=429)
        status, answer = await self._repeatable(request)
        if fault == "lost":
            await self._never.wait()
        return web.json_response(answer, status=status)

    async def _repeatable(self, request: web.Request) -> tuple[int, dict[str, Any]]:
        form = _nested(await request.post()) if request.method == "POST" else {}
        key = request.headers.get("idempotency-key")
        if request.method == "POST" and key in self.keys:
            before, answer = self.keys[key]
            if before != (request.path, form):
                return 400, {"error": {"type": "idempotency_error", "message": "used with other parameters"}}
            return 200, answer
        if request.method == "POST" and request.path in TYPES:
            TYPES[request.path].validate_python(form)
        status, answer = await self._answer(request, form)
        if key is not None:
            self.keys[key] = ((request.path, form), answer)
        return status, answer

    async def _answer(self, request: web.Request, form: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        path = request.path
        self.reads += [path] if request.method == "GET" else []
        if request.method == "GET" and path.startswith("/v1/checkout/sessions/"):
            found = self.sessions.get(path.rpartition("/")[2])
            missing = {"error": {"type": "invalid_request_error", "code": "resource_missing", "message": "No such checkout.session"}}
            return (404, missing) if found is None else (200, found)
        if request.method == "POST" and path == "/v1/checkout/sessions":
            return 200, self._new_session(form)
        if path == "/v1/billing_portal/sessions":
            return 200, {"id": "bps_1", "object": "billing_portal.session", "url": f"https://portal.test/{form['customer']}"}
        if request.method == "POST" and path.startswith("/v1/subscriptions/"):
            assert form == {"cancel_at_period_end": "true"}
            self.canceled.append(path.rpartition("/")[2])
        if path == "/v1/billing/meter_events":
            return self._count(form)
        if (found := self._read(request)) is not None:
            return 200, found
        return await self.call(request.method, path, form)

    def _count(self, form: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        # These are the observed words; the type and the code are those of other mistakes, too.
        identifier, refusal = form["identifier"], "An event already exists with identifier {}."
        if identifier in self.remembered:
            return 400, {"error": {"type": "invalid_request_error", "message": refusal.format(identifier)}}
        assert identifier not in self.meter_events, "counted twice"
        assert time.time() - 35 * 86400 < int(form["timestamp"]) < time.time() + 300
        self.meter_events[identifier] = form
        self.remembered.add(identifier)
        return 200, {"object": "billing.meter_event", **form}

    def _read(self, request: web.Request) -> dict[str, Any] | None:
        match request.path.split("/")[2:]:
            case ["checkout", "sessions"]:
                ((name, wanted),) = ((name, value) for name, value in request.query.items() if name != "limit")
                return self._page(request, [one for one in self.sessions.values() if one[name] == wanted])
            case ["prices", "price_tokens"]:
                return {"id": "price_tokens", "object": "price", "recurring": {"meter": METER["id"], "usage_type": "metered"}}
            case ["billing", "meters"]:
                return {"object": "list", "data": [METER]}
            case ["billing", "meters", "mtr_1"]:
                return METER
            case ["billing", "meters", "mtr_1", "event_summaries"]:
                return {"object": "list", "data": [{"aggregated_value": float(self._sum_up(request.query))}]}
        return self._list(request)

    def _list(self, request: web.Request) -> dict[str, Any] | None:
        match request.path.split("/")[2:]:
            case ["invoice_payments"]:
                assert request.query["payment[type]"] == "payment_intent"
                assert request.query["expand[0]"] == "data.invoice"
                payment = request.query["payment[payment_intent]"]
                paid = [one for one in self.invoices if payment == _payment_of(one)]
                return self._page(request, [{"object": "invoice_payment", "invoice": one} for one in paid])
            case ["invoices"]:
                assert request.query["expand[0]"] == "data.payments"
                since, of = int(request.query["created[gte]"]), request.query["subscription"]
                return self._page(
                    request,
                    [
                        one
                        for one in reversed(self.invoices)
                        if one["created"] >= since and one["status"] == request.query["status"] and _subscription_of(one) == of
                    ],
                )
            case ["refunds" | "disputes" as kind]:
                found = [one for one in getattr(self, kind) if one["payment_intent"] == request.query["payment_intent"]]
                return self._page(request, found[::-1])
            case ["events"]:
                types = {value for name, value in request.query.items() if name.startswith("types[")}
                assert 0 < len(types) <= 20
                told = [one for one in self.events if one["type"] in types and one["created"] >= int(request.query["created[gte]"])]
                after = request.query.get("starting_after")
                return self._page(request, told[[one["id"] for one in told].index(after) + 1 :] if after else told)
        return None

    @staticmethod
    def _page(request: web.Request, found: list[dict[str, Any]]) -> dict[str, Any]:
        limit = int(request.query["limit"])
        return {"object": "list", "data": found[:limit], "has_more": len(found) > limit, "url": request.path}

    def _sum_up(self, query: Mapping[str, str]) -> int:
        start, end = int(query["start_time"]), int(query["end_time"])
        assert start % 60 == end % 60 == 0
        return sum(
            int(event["payload"]["tokens"])
            for event in self.meter_events.values()
            if event["payload"]["customer"] == query["customer"] and start <= int(event["timestamp"]) < end
        )

    def _new_session(self, form: dict[str, Any]) -> dict[str, Any]:
        assert 30 * 60 < int(form["expires_at"]) - time.time() < 24 * 3600
        session_id = f"cs_test_{next(self._numbers)}"
        price = form["line_items"][0].get("price_data", {"unit_amount": "2900", "currency": "eur"})
        self.sessions[session_id] = {
            "id": session_id, "object": "checkout.session", "mode": form["mode"], "metadata": form["metadata"], "status": "open",
            "payment_status": "unpaid", "payment_intent": None, "subscription": None, "customer": form.get("customer"),
            "amount_total": int(price["unit_amount"]), "currency": price["currency"], "total_details": {"amount_tax": 0},
            "url": f"https://checkout.test/{session_id}", "_form": form,
        }  # fmt: skip
        return self.sessions[session_id]

    async def call(self, method: str, path: str, form: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        """Ask localstripe."""
        async with aiohttp.ClientSession() as http:
            headers = {"authorization": f"Bearer {KEY}"}
            async with http.request(method, self._behind + path, json=form or None, headers=headers) as response:
                answer: dict[str, Any] = await response.json()
        if path.startswith("/v1/subscriptions/") and response.status == 200:
            answer |= self.changed.get(answer["id"], {})
            for item in answer["items"]["data"]:
                # Newer versions of Stripe's API have them here.
                item["price"] = {"id": self.changed.get(answer["id"], {}).get("price", item["plan"]["id"]), "object": "price"}
                item["current_period_start"] = answer["current_period_start"]
        return response.status, answer

    async def configure(self, hook: dict[str, Any]) -> tuple[int, str]:
        """Let localstripe send its events."""
        async with aiohttp.ClientSession() as http, http.post(f"{self._behind}/_config/webhooks/one", json=hook) as response:
            return response.status, await response.text()

    async def make(self, path: str, form: dict[str, Any]) -> str:
        status, answer = await self.call("POST", path, form)
        assert status == 200, answer
        return str(answer["id"])

    # --- what customers do --------------------------------------------------------------------------------------------

    async def pay(self, session_id: str) -> str:
        """Pay on the page of a checkout. Return the subscription, or the payment."""
        session = self.sessions[session_id]
        form = session["_form"]
        customer = session["customer"] or await self.make("/v1/customers", {"email": form["customer_email"]})
        card = {"number": "4242424242424242", "exp_month": "12", "exp_year": "2040", "cvc": "123"}
        method = await self.make("/v1/payment_methods", {"type": "card", "card": card})
        await self.make(f"/v1/payment_methods/{method}/attach", {"customer": customer})
        if form["mode"] == "subscription":
            await self.make(f"/v1/customers/{customer}", {"invoice_settings": {"default_payment_method": method}})
            items = [{"plan": form["line_items"][0]["price"]}]
            metadata = form["subscription_data"]["metadata"]
            made = await self.make("/v1/subscriptions", {"customer": customer, "items": items, "metadata": metadata})
            session["subscription"] = made
            await self.renew(made)
        else:
            price = form["line_items"][0]["price_data"]
            payment = {"amount": price["unit_amount"], "currency": price["currency"], "customer": customer, "payment_method": method}
            made = await self.make("/v1/payment_intents", {**payment, "confirm": "true"})
            session["payment_intent"] = made
        session |= {"customer": customer, "status": "complete", "payment_status": "paid"}
        self._keep_event("checkout.session.completed", session)
        return made

    async def renew(self, subscription: str, *, days_ago: int = 0, state: str = "paid") -> str:
        """Begin a period. Return its invoice, which is a draft for an hour; "open" when its card was refused."""
        before, known = sum(_subscription_of(one) == subscription for one in self.invoices), self.changed.setdefault(subscription, {})
        # No two periods of it begin in the same second.
        start = int(time.time()) - days_ago * 86400 + before
        if before:
            known["current_period_start"] = start
        _, found = await self.call("GET", f"/v1/subscriptions/{subscription}")
        lines = [*self.pending.pop(subscription, []), _line(found["items"]["data"][0]["price"]["id"], found["current_period_start"])]
        return self._bill(subscription, lines, state, created=start)

    async def change_plan(self, subscription: str, price: str, *, state: str | None = "paid") -> str | None:
        """Change the plan in the portal, in the middle of a period. Return the invoice; without ``state``, the change is not invoiced
        before the period's end."""
        _, found = await self.call("GET", f"/v1/subscriptions/{subscription}")
        before, now = found["items"]["data"][0]["price"]["id"], int(time.time())
        self.changed.setdefault(subscription, {})["price"] = price
        lines = [_line(before, now, -FEES[before] // 2), _line(price, now, FEES[price] // 2)]
        if state is None:
            self.pending.setdefault(subscription, []).extend(lines)
            return None
        return self._bill(subscription, lines, state)

    def _bill(self, subscription: str, lines: list[dict[str, Any]], state: str, *, created: int | None = None) -> str:
        number, total = next(self._numbers), max(0, sum(line["amount"] for line in lines))
        payment = {"object": "invoice_payment", "payment": {"type": "payment_intent", "payment_intent": f"pi_of_in_{number}"}}
        self.invoices.append(
            {
                "id": f"in_{number}", "object": "invoice", "created": created or int(time.time()), "status": state,
                "amount_due": total, "amount_paid": total if state == "paid" else 0, "lines": {"object": "list", "data": lines},
                "parent": {"type": "subscription_details", "subscription_details": {"subscription": subscription}},
                "payments": {"object": "list", "data": [payment] if total else []},
            }
        )  # fmt: skip
        return f"in_{number}"

    def pay_invoice(self, invoice: str) -> None:
        found = self.find(invoice)
        found |= {"status": "paid", "amount_paid": found["amount_due"]}

    def refund(self, paid: str, amount: int, status: str = "succeeded") -> str:
        """Refund a payment, a checkout's or an invoice's. Return the refund."""
        return self._reverse(self.refunds, paid, {"id": f"re_{next(self._numbers)}", "object": "refund", "status": status}, amount)

    def dispute(self, paid: str, amount: int, status: str = "needs_response") -> str:
        return self._reverse(self.disputes, paid, {"id": f"du_{next(self._numbers)}", "object": "dispute", "status": status}, amount)

    def _reverse(self, where: list[dict[str, Any]], paid: str, made: dict[str, Any], amount: int) -> str:
        payment = (
            _payment_of(self.find(paid)) if paid.startswith("in_") else self.sessions.get(paid, {"payment_intent": paid})["payment_intent"]
        )
        where.append({**made, "amount": amount, "payment_intent": payment, "charge": f"ch_of_{payment}", "created": int(time.time())})
        self.tell_of(made["id"])
        return str(made["id"])

    def tell_of(self, reversal: str, **change: str) -> None:
        """Change a refund or a dispute. Its event may be lost."""
        found = self.find(reversal)
        found |= change
        kind = "refund.updated" if found["object"] == "refund" else "charge.dispute.closed"
        self._keep_event(kind, found)

    def _keep_event(self, kind: str, found: Mapping[str, Any]) -> None:
        told = {name: value for name, value in found.items() if not name.startswith("_")}
        event = {"id": f"evt_{next(self._numbers)}", "object": "event", "type": kind, "data": {"object": told}}
        self.events.insert(0, {**event, "created": int(time.time())})

    def find(self, object_id: str) -> dict[str, Any]:
        (found,) = (one for one in (*self.invoices, *self.refunds, *self.disputes) if one["id"] == object_id)
        return found

    def kept(self, paid: str) -> int:
        """Return what is left of a checkout's or an invoice's payment. While a dispute is open, the bank has the money."""
        if paid in self.sessions:
            session = self.sessions[paid]
            amount, payment = session["amount_total"] if session["payment_status"] == "paid" else 0, session["payment_intent"]
        else:
            invoice = self.find(paid)
            amount, payment = invoice["amount_paid"], _payment_of(invoice)
        returned = {"failed", "canceled", "won"}
        taken = (one for one in (*self.refunds, *self.disputes) if one["payment_intent"] == payment and one["status"] not in returned)
        return int(amount - sum(one["amount"] for one in taken))

    def signed(self, object_id: str, *, age: int = 0, secret: str = SECRET) -> tuple[bytes, str]:
        found = None
        if object_id.startswith(("in_", "re_", "du_")):
            found = self.find(object_id)
        elif object_id.startswith("ch_of_"):
            found = {"id": object_id, "object": "charge", "payment_intent": object_id.removeprefix("ch_of_")}
        return sign(object_id, f"evt_{next(self._numbers)}", found, age=age, secret=secret)


def _line(price: str, start: int, amount: int | None = None) -> dict[str, Any]:
    pricing = {"type": "price_details", "price_details": {"price": price, "product": "prod_plan"}}
    return {
        "object": "line_item", "amount": FEES[price] if amount is None else amount, "period": {"start": start, "end": start + 30 * 86400},
        "pricing": pricing,
    }  # fmt: skip


def _payment_of(invoice: dict[str, Any]) -> str | None:
    payments = invoice["payments"]["data"]
    return payments[0]["payment"]["payment_intent"] if payments else None


def _subscription_of(invoice: dict[str, Any]) -> str:
    return str(invoice["parent"]["subscription_details"]["subscription"])


def sign(object_id: str, event_id: str, found: dict[str, Any] | None = None, *, age: int = 0, secret: str = SECRET) -> tuple[bytes, str]:
    """Return an event about the object, as Stripe sends it, and its signature."""
    kind = "checkout.session" if object_id.startswith("cs_") else "subscription"
    body = json.dumps({"id": event_id, "object": "event", "data": {"object": found or {"id": object_id, "object": kind}}})
    return body.encode(), stripe.WebhookSignature.generate_signature_header(body, secret, int(time.time()) - age)


@asynccontextmanager
async def running(kind: type[StripeServer] = StripeServer) -> AsyncIterator[StripeServer]:
    behind = testnet.free_port()
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "localstripe", "--port", str(behind), "--from-scratch",
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    made = kind(f"http://localhost:{behind}")
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", made.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        async with asyncio.timeout(20):
            while True:
                try:
                    await made.make("/v1/products", {"id": "prod_plan", "name": "Plan", "type": "service"})
                    break
                except aiohttp.ClientError:
                    await asyncio.sleep(0.05)
        for name, amount in FEES.items():
            plan = {"id": name, "amount": str(amount), "currency": "eur", "interval": "month", "product": "prod_plan"}
            await made.make("/v1/plans", plan)
        yield made
    finally:
        await runner.cleanup()
        child.kill()
        await child.wait()
