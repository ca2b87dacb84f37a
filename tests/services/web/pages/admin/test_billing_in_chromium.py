"""The pages of plans, invoices and sales in a browser: accessible on a desktop and a phone, in light and in dark, and on paper."""

from datetime import timedelta
from uuid import UUID, uuid4

import msgspec
import pytest
from litestar.types import ASGIApp

from services.web import rendering
from services.web.settings import WebSettings
from shared.api.billing import Customer, InvoiceLine, InvoicePurpose, InvoiceState, MonthRevenue, PlanState
from shared.api.ledger import ModelPrice
from shared.types import MicroCredits, ModelName, TenantId, UserRole
from tests import feature_parts
from tests.acceptance.chromium import Browser
from tests.services.web import servers
from tests.services.web.fake_mesh import NOW
from tests.services.web.js.site import wait_for
from tests.services.web.pages import in_chromium
from tests.services.web.pages.admin.admin_mesh import AdminMesh

LONG = "W" * 60
PATHS = {
    "billing": "/billing",
    "invoice": "/billing/invoices/INV-2026-000001",
    "invoice-of-admin": "/admin/money/invoices/INV-2026-000003",
    "invoice-test": "/billing/invoices/TEST-INV-2026-000004",
    "credit-note": "/billing/invoices/INV-2026-000002",
    "pricing": "/pricing",
    "money": "/admin/money",
}


@pytest.fixture
def settings(settings: WebSettings) -> WebSettings:
    return msgspec.structs.replace(settings, money="on", pricing_page="on")


@pytest.fixture
def renderer() -> rendering.Renderer:
    return rendering.Renderer.load(sells=True, has_pricing=True)


@pytest.fixture
def mesh() -> AdminMesh:
    mesh = AdminMesh()
    root = mesh.add_person("root", UserRole.ADMIN)
    mesh.next_plan, mesh.waits_for, mesh.plan_state = "pro", "INV-2026-000003", PlanState.PAST_DUE
    mesh.add_invoice(
        state=InvoiceState.PAID, paid_at=NOW, reference=f"wire {LONG}", lines=(InvoiceLine(LONG * 2, 2900), InvoiceLine("x", 1))
    )
    mesh.add_invoice(-2900, purpose=InvoicePurpose.CREDIT_NOTE, corrects="INV-2026-000001", state=InvoiceState.PAID, reference="typo")
    mesh.add_invoice(10**9, state=InvoiceState.LATE)
    mesh.add_invoice(number="TEST-INV-2026-000004", tax_name="")
    mesh.customers = (
        Customer(TenantId(root.id), "pro@3", None, PlanState.ACTIVE, "manual", NOW + timedelta(days=3)),
        Customer(TenantId(uuid4()), LONG, LONG, PlanState.PAST_DUE, "stripe", None),
        Customer(TenantId(UUID(int=1)), None, "pro@0", PlanState.GIVEN, "manual", None),
    )
    mesh.months = (MonthRevenue("2026-05", "EUR", 3451), MonthRevenue("2026-09", "EUR", 123_456), MonthRevenue("2026-11", "EUR", 690_200))
    for of_feature in feature_parts.modules("web.hostile"):
        of_feature.seed(mesh, f"no space {LONG}")
    mesh.prices = [ModelPrice(None, MicroCredits(100_000_000), MicroCredits(200_000_000), since=NOW)]
    mesh.prices.append(ModelPrice(ModelName("mistral-7b"), MicroCredits(150_000_000), MicroCredits(300_000_000), since=NOW))
    return mesh


@pytest.mark.nightly("pages")
@pytest.mark.parametrize("name", PATHS)
async def test_the_page_is_accessible_and_fits(app: ASGIApp, mesh: AdminMesh, chrome: Browser, name: str) -> None:
    token = mesh.add_session(mesh.accounts["root"].user)
    async with in_chromium.signed_in(app, chrome, token) as (page, origin):
        async for _ in in_chromium.each_look(page, f"{origin}{PATHS[name]}"):
            if name == "money":
                await wait_for(page, "document.querySelector('.uplot canvas').clientWidth > 200")


@pytest.mark.nightly("pages")
async def test_only_the_invoice_is_printed(app: ASGIApp, mesh: AdminMesh, chrome: Browser) -> None:
    token = mesh.add_session(mesh.accounts["root"].user)
    async with servers.serving(app) as origin:
        page = await chrome.open(width=794, dark=True)
        await page.send("Network.setCookie", name="aimesh_session", value=token, url=origin)
        await page.goto(f"{origin}{PATHS['invoice-of-admin']}")
        await page.send("Emulation.setEmulatedMedia", media="print")
        places = "[...document.querySelectorAll('body > :not(.unseen), main > *')]"
        assert await page.evaluate(f"{places}.filter(one => one.offsetParent !== null).map(one => one.localName)") == ["main", "article"]
        assert await page.evaluate("getComputedStyle(document.querySelector('article')).backgroundColor") == "rgb(255, 255, 255)"
