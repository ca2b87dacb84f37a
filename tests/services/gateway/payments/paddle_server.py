"""A Paddle for tests: as much of its API as the gateway uses, with answers that the official library parses, and faults."""

import asyncio
import hashlib
import hmac
import itertools
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from aiohttp import web

KEY, SECRET = "pdl_sdbx_apikey_of_tests", "pdl_ntfset_of_tests"
_NAMES = ("subtotal", "discount", "tax", "total", "credit", "credit_to_balance", "balance", "grand_total", "grand_total_tax")
_TOTALS = dict.fromkeys(_NAMES, "0") | {"fee": None, "earnings": None, "currency_code": "EUR"}
_FILTERS = ("customer_id", "subscription_id", "origin", "status")
#: As many as Paddle gives at once.
_PAGE = 30


def _text(moment: datetime) -> str:
    return f"{moment:%Y-%m-%dT%H:%M:%S.%fZ}"


def _begin() -> str:
    """Return a moment 20 to 23 days ago: the first periods are running, and half of each is over. Every month has its day."""
    at = datetime.now(UTC) - timedelta(days=20)
    return _text(at.replace(day=min(at.day, 28)))


_BEGUN = _begin()
_DATES = {"created_at": _BEGUN, "updated_at": _BEGUN}


def _next(moment: str) -> str:
    """Return the same time of the next month."""
    at = datetime.fromisoformat(moment)
    return _text(at.replace(year=at.year + at.month // 12, month=at.month % 12 + 1))


def _period(start: str) -> dict[str, str]:
    return {"starts_at": start, "ends_at": _next(start)}


class PaddleServer:
    def __init__(self) -> None:
        self.url = ""
        self.transactions: dict[str, dict[str, Any]] = {}
        self.subscriptions: dict[str, dict[str, Any]] = {}
        #: For the next requests, in order: "lost" does it and never answers, "down" answers 500, "" nothing.
        self.faults: list[str] = []
        #: Of each transaction.
        self.tax_percent, self.tax_is_on_top, self.discount = 0, False, 0
        #: Subscriptions that end with their period.
        self.canceled: list[str] = []
        #: Oldest first.
        self.adjustments: list[dict[str, Any]] = []
        #: There is one for each address.
        self.customers: dict[str, str] = {}
        self._numbers = itertools.count(1)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        assert request.headers["authorization"] == f"Bearer {KEY}"
        fault = self.faults.pop(0) if self.faults else ""
        if fault == "down":
            return _error(500, "internal_error")
        found = self._answer(request, await request.json() if request.method == "POST" else {})
        if fault == "lost":
            await asyncio.Event().wait()
        if found is None:
            return _error(404, "entity_not_found")
        has_more = False
        if isinstance(found, list):
            start = int(request.query.get("after", "0"))
            found, has_more = found[start : start + _PAGE], len(found) > start + _PAGE
            after = request.url.update_query(after=start + _PAGE)
        page = {"per_page": _PAGE, "next": str(after) if has_more else "", "has_more": has_more, "estimated_total": 1}
        return web.json_response({"data": found, "meta": {"request_id": "r", "pagination": page}})

    def _answer(self, request: web.Request, body: dict[str, Any]) -> Any:
        match request.method, request.path.strip("/").split("/"):
            case "POST", ["transactions"]:
                return self._transaction(body["items"], "api", body.get("custom_data"), body.get("customer_id"))
            case "GET", ["transactions"] | ["adjustments"]:
                return self._list(request)
            case "GET", ["transactions", found]:
                return self._shown(request, self.transactions[found]) if found in self.transactions else None
            case "GET", ["subscriptions", found]:
                return self.subscriptions.get(found)
            case "POST", ["subscriptions", found, act]:
                held = self.subscriptions[found]
                if act == "cancel":
                    assert body == {"effective_from": "next_billing_period"}
                    self.canceled.append(found)
                else:
                    assert (act, body["effective_from"]) == ("charge", "immediately")
                    self._transaction(body["items"], "subscription_charge", held["custom_data"], held["customer_id"], found)
                return held
            case "POST", ["customers", customer, "portal-sessions"]:
                urls = {"general": {"overview": f"https://portal.test/{customer}"}, "subscriptions": []}
                return {"id": "cpls_1", "customer_id": customer, "urls": urls, "created_at": _BEGUN}
        raise AssertionError(request.path)

    def _transaction(self, items: Any, origin: str, ours: Any, customer: str | None, subscription: str | None = None) -> dict[str, Any]:
        number = f"txn_{next(self._numbers)}"
        details = {"tax_rates_used": [], "totals": _TOTALS, "adjusted_totals": None, "payout_totals": None,
                   "adjusted_payout_totals": None, "line_items": []}  # fmt: skip
        self.transactions[number] = {
            "id": number, "status": "ready", "customer_id": customer, "address_id": None, "business_id": None, "custom_data": ours,
            "currency_code": "EUR", "origin": origin, "subscription_id": subscription, "collection_mode": "automatic",
            "items": [{"price": self._price(item), "quantity": item["quantity"], "proration": None} for item in items],
            "details": details, "payments": [], "checkout": {"url": f"https://shop.test/pay?_ptxn={number}"},
            **_DATES, "billed_at": None, "billing_period": None,
        }  # fmt: skip
        return self.transactions[number]

    def _list(self, request: web.Request) -> list[dict[str, Any]]:
        wanted = {name: values.split(",") for name, values in request.query.items() if name in _FILTERS}
        found = self.adjustments if request.path == "/adjustments" else [*self.transactions.values()]
        listed = [self._shown(request, one) for one in found if all(one[name] in values for name, values in wanted.items())]
        return listed[::-1] if request.query.get("order_by") == "id[desc]" else listed

    def _shown(self, request: web.Request, found: dict[str, Any]) -> dict[str, Any]:
        if "details" not in found:
            return found
        shown = self._with_totals(found)
        if request.query.get("include") == "adjustment":
            shown["adjustments"] = [one for one in self.adjustments if one["transaction_id"] == found["id"]]
        return shown

    def _with_totals(self, found: dict[str, Any]) -> dict[str, Any]:
        """Add up the items, less the discount."""
        listed = sum(int(item["price"]["unit_price"]["amount"]) * item["quantity"] for item in found["items"])
        tax = (listed - self.discount) * self.tax_percent // (100 if self.tax_is_on_top else 100 + self.tax_percent)
        subtotal, total = (listed, listed - self.discount + tax) if self.tax_is_on_top else (listed - tax, listed - self.discount)
        totals = {"subtotal": subtotal, "discount": self.discount, "tax": tax, "total": total}
        named = {name: str(amount) for name, amount in totals.items()} | {"currency_code": found["currency_code"]}
        return found | {"details": found["details"] | {"totals": _TOTALS | named}}

    def _price(self, item: dict[str, Any]) -> dict[str, Any]:
        given = item.get("price", {})
        return {
            "id": item.get("price_id") or f"pri_{next(self._numbers)}", "product_id": "pro_1", "description": "x", "type": "standard",
            "unit_price": {"amount": "2900", "currency_code": "EUR"}, "unit_price_overrides": [], "tax_mode": "account_setting",
            "quantity": {"minimum": 1, "maximum": 1}, "status": "active", "custom_data": None, **_DATES,
        } | {name: given[name] for name in ("description", "unit_price", "custom_data") if name in given}  # fmt: skip

    # --- what browsers do ---------------------------------------------------------------------------------------------

    def open_in_browser(self, price: str, claimed: dict[str, Any]) -> str:
        """Open a checkout without the mesh."""
        return str(self._transaction([{"price_id": price, "quantity": 1}], "web", claimed, None)["id"])

    def put_in(self, number: str, price: str, quantity: int = 1) -> None:
        """Replace what a checkout sells, at 29.00 a piece."""
        self.transactions[number]["items"] = [{"price": self._price({"price_id": price}), "quantity": quantity, "proration": None}]

    # --- what customers do --------------------------------------------------------------------------------------------

    def pay(self, number: str, email: str | None = None) -> str:
        """Pay on the page of a transaction, with an address that the payer types. Return the subscription, or the transaction."""
        found, fresh = self.transactions[number], f"ctm_{next(self._numbers)}"
        customer = found["customer_id"] or (self.customers.setdefault(email, fresh) if email else fresh)
        found |= {"status": "completed", "customer_id": customer}
        if not any(item["price"]["id"] in {"pri_pro", "pri_gold"} for item in found["items"]):
            return number
        made = f"sub_{next(self._numbers)}"
        items = [
            {"status": "active", "quantity": 1, "recurring": True, **_DATES, "price": item["price"],
             "product": {"id": "pro_1", "name": "Plan", "tax_category": "standard", "status": "active", **_DATES}}
            for item in found["items"]
        ]  # fmt: skip
        self.subscriptions[made] = {
            "id": made, "status": "active", "customer_id": found["customer_id"], "address_id": "add_1", "business_id": None,
            "currency_code": "EUR", **_DATES, "collection_mode": "automatic", "items": items,
            "billing_cycle": {"interval": "month", "frequency": 1}, "custom_data": found["custom_data"],
            "current_billing_period": _period(_BEGUN),
        }  # fmt: skip
        found |= {"subscription_id": made, "billed_at": _BEGUN, "billing_period": _period(_BEGUN)}
        return made

    def renew(self, subscription: str, *, price: str | None = None, is_paid: bool = True) -> str:
        """Begin the next period; return its transaction. Another plan's ``price``: the customer has changed it."""
        held = self.subscriptions[subscription]
        for item in held["items"] if price else ():
            item["price"] = self._price({"price_id": price})
        items = [{"price_id": item["price"]["id"], "quantity": 1} for item in held["items"]]
        made = self._transaction(items, "subscription_recurring", held["custom_data"], held["customer_id"], subscription)
        period = _period(held["current_billing_period"]["ends_at"])
        held |= {"current_billing_period": period, "status": "active" if is_paid else "past_due"}
        made |= {"billing_period": period, "billed_at": period["starts_at"], "status": "completed" if is_paid else "past_due"}
        return str(made["id"])

    def upgrade(self, subscription: str, price: str) -> str:
        """Change the plan 15 days after the period's start, and pay for it. Return the transaction."""
        held = self.subscriptions[subscription]
        period = held["current_billing_period"]
        made = self.renew(subscription, price=price)
        held["current_billing_period"] = period
        rest = period | {"starts_at": _text(datetime.fromisoformat(period["starts_at"]) + timedelta(days=15))}
        self.transactions[made] |= {"origin": "subscription_update", "billing_period": rest}
        return made

    def adjust(self, number: str, action: str, amount: int, status: str = "approved") -> str:
        """Refund a transaction, or let a bank take it back."""
        made, found = f"adj_{next(self._numbers)}", self.transactions[number]
        none = dict.fromkeys(("subtotal", "fee", "earnings", "retained_fee", "tax"), "0")
        self.adjustments.append(
            {
                "id": made, "action": action, "type": "partial", "transaction_id": number, "customer_id": found["customer_id"],
                "subscription_id": found["subscription_id"], "reason": "x", "credit_applied_to_balance": None, "currency_code": "EUR",
                "status": status, "items": [], "totals": none | {"total": str(amount), "currency_code": "EUR"}, "payout_totals": None,
                "tax_rates_used": [], **_DATES, "created_at": datetime.now(UTC).isoformat(),
            }
        )  # fmt: skip
        return made

    def signed(self, object_id: str, *, age: int = 0, secret: str = SECRET) -> tuple[bytes, str]:
        """Return an event about the object, as Paddle sends it, and its signature."""
        told = next((one for one in self.adjustments if one["id"] == object_id), {"id": object_id})
        body = json.dumps({"event_id": f"evt_{next(self._numbers)}", "event_type": "x", "data": told}).encode()
        at = int(time.time()) - age
        return body, f"ts={at};h1={hmac.new(secret.encode(), b'%d:' % at + body, hashlib.sha256).hexdigest()}"


def _error(status: int, code: str) -> web.Response:
    error = {"type": "api_error", "code": code, "detail": code, "documentation_url": "https://paddle.test"}
    return web.json_response({"error": error}, status=status)


@asynccontextmanager
async def running() -> AsyncIterator[PaddleServer]:
    made = PaddleServer()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", made.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield made
    finally:
        await runner.cleanup()
