"""The administrators' page of what the mesh sells."""

from datetime import timedelta
from uuid import UUID, uuid4

import jinja2
import pytest

from services.web import features, rendering
from services.web.features import Section, WebPart
from services.web.pages.admin import money
from services.web.request_context import PageRequest
from shared.api.billing import Customer, InvoiceState, MonthRevenue, PlanState
from shared.api.ledger import ModelPrice
from shared.types import MicroCredits, TenantId
from tests.services.web.browser import Browser, forms_of
from tests.services.web.fake_mesh import NOW
from tests.services.web.pages.admin.admin_mesh import AdminMesh

PATH = "/admin/money"


def customer(owner: TenantId, state: PlanState = PlanState.ACTIVE) -> Customer:
    return Customer(owner, "pro@3", None, state, "manual", NOW + timedelta(days=3))


async def test_revenue_customers_invoices_and_plans_are_shown(root: Browser, mesh: AdminMesh) -> None:
    ada = mesh.add_account("ada<b>", "correct horse")
    unknown = TenantId(uuid4())
    mesh.customers = (customer(TenantId(ada.id)), customer(unknown, PlanState.PAST_DUE))
    mesh.months = (MonthRevenue("2026-09", "EUR", 3451), MonthRevenue("2026-11", "EUR", 6902))
    mesh.add_invoice()
    text = (await root.get(PATH)).text
    for words in (
        ">Sep 2026<", '<td class="n" data-value="0.00">0.00 EUR</td>', '<td class="n" data-value="69.02">69.02 EUR</td>', ">ada&lt;b&gt;<",
        str(unknown), ">pro<", "Late", ">23 Nov 2026<", f'href="{PATH}/invoices/INV-2026-000001"', "enterprise", "aicli admin config apply",
    ):  # fmt: skip
        assert words in text, words


async def test_example_prices_are_called_so(root: Browser, mesh: AdminMesh) -> None:
    assert "The prices are examples" not in (await root.get(PATH)).text, "everything is free"
    mesh.prices = [ModelPrice(None, MicroCredits(100_000_000), MicroCredits(200_000_000))]
    assert "The prices are examples" in (await root.get(PATH)).text
    mesh.prices = [ModelPrice(None, MicroCredits(100_000_000), MicroCredits(200_000_001))]
    assert "The prices are examples" not in (await root.get(PATH)).text


async def test_sections_of_features_are_shown(root: Browser, renderer: rendering.Renderer, monkeypatch: pytest.MonkeyPatch) -> None:
    async def read(page_request: PageRequest) -> str:
        return f"read for {page_request.person.user.username}"

    found = [Section(page=page, template="acme/section.html", read=read) for page in (PATH, "/elsewhere")]
    monkeypatch.setattr(features, "parts", lambda: [WebPart(sections=tuple(found))])
    assert isinstance(renderer.templates.loader, jinja2.DictLoader)
    monkeypatch.setitem(renderer.templates.loader.mapping, "acme/section.html", "<h2>{{ section.view }}</h2>")
    assert (await root.get(PATH)).text.count("<h2>read for root</h2>") == 1


async def test_an_empty_mesh_says_so(root: Browser) -> None:
    text = (await root.get(PATH)).text
    for words in ("Nothing was paid in the last 12 months.", "No customers yet.", "No invoices yet."):
        assert words in text, words


async def test_customers_have_pages(root: Browser, mesh: AdminMesh) -> None:
    mesh.customers = tuple(customer(TenantId(UUID(int=number))) for number in range(1, 103))
    text = (await root.get(PATH)).text
    assert f'href="{PATH}?after={UUID(int=100)}" rel="next"' in text
    text = (await root.get(f"{PATH}?after={UUID(int=100)}")).text
    assert (str(UUID(int=101)) in text, str(UUID(int=100)) in text, 'rel="next"' in text) == (True, False, False)
    assert (await root.get(f"{PATH}?after=x")).status_code == 400


async def test_invoices_are_filtered(root: Browser, mesh: AdminMesh) -> None:
    owner = TenantId(uuid4())
    mesh.add_invoice(state=InvoiceState.PAID)
    mesh.add_invoice(owner=owner)
    text = (await root.get(f"{PATH}?show=open")).text
    assert ("INV-2026-000001" in text, "INV-2026-000002" in text) == (False, True)
    text = (await root.get(f"{PATH}?owner={owner}")).text
    assert ("INV-2026-000001" in text, "INV-2026-000002" in text, "All customers" in text) == (False, True, True)


@pytest.mark.parametrize(
    ("act", "field", "states"),
    [
        ("pay", "reference", (InvoiceState.OPEN, InvoiceState.PAID)),
        ("void", "reason", (InvoiceState.LATE, InvoiceState.VOID)),
        ("refund", "reason", (InvoiceState.PAID, InvoiceState.REFUNDED)),
    ],
)
async def test_an_invoice_is_settled_after_a_fresh_login(
    root: Browser, mesh: AdminMesh, act: str, field: str, states: tuple[InvoiceState, InvoiceState]
) -> None:
    before, after = states
    number = mesh.add_invoice(state=before).number
    page, action = await root.get(f"{PATH}/invoices/{number}"), f"{PATH}/invoices/{number}/{act}"
    assert "data-confirm=" in page.text
    mesh.is_stale = True
    asked = await root.submit(page, action, **{field: "wire 17"})
    assert (asked.status_code, mesh.invoices[0].state) == (403, before)
    done = await root.submit(asked, action, confirm_code="123456")
    assert (done.status_code, mesh.invoices[0].state) == (303, after)
    page = await root.get(done.headers["location"])
    assert page.text.count('role="status"') >= 1
    assert action not in forms_of(page)


async def test_what_is_paid_is_not_paid_again(root: Browser, mesh: AdminMesh) -> None:
    number = mesh.add_invoice().number
    page = await root.get(f"{PATH}/invoices/{number}")
    mesh.invoices[0] = mesh.add_invoice(number=number, state=InvoiceState.PAID)
    again = await root.submit(page, f"{PATH}/invoices/{number}/pay", reference="wire 18")
    assert (again.status_code, "was paid" in again.text) == (409, True)


async def test_a_mesh_that_sells_nothing_says_so(root: Browser, mesh: AdminMesh) -> None:
    mesh.sells = False
    assert (await root.get(PATH)).status_code == 404


def test_months_without_revenue_are_lines() -> None:
    months = (MonthRevenue("2026-11", "EUR", 100), MonthRevenue("2027-02", "JPY", 5))
    assert list(money.revenue_lines(months, ("EUR", "JPY"))) == [
        ("Nov 2026", (("1.00 EUR", "1.00"), ("0 JPY", "0"))),
        ("Dec 2026", (("0.00 EUR", "0.00"), ("0 JPY", "0"))),
        ("Jan 2027", (("0.00 EUR", "0.00"), ("0 JPY", "0"))),
        ("Feb 2027", (("0.00 EUR", "0.00"), ("5 JPY", "5"))),
    ]
    assert list(money.revenue_lines((), ())) == []
