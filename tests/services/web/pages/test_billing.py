"""The page of plan, credits and invoices, the pages of invoices, and /pricing."""

from datetime import UTC, datetime, timedelta
from html import unescape

import msgspec
import pytest

from services.web import rendering
from services.web.pages import billing
from services.web.settings import WebSettings
from shared import errors
from shared.api import billing as api
from shared.api.billing import InvoicePurpose, InvoiceState, Party, PlanState
from shared.api.ledger import Allowance, ModelPrice
from shared.types import MicroCredits, ModelName, Tier
from tests.services.web.browser import Browser, forms_of
from tests.services.web.fake_mesh import NOW, FakeMesh

PATH = "/billing"


@pytest.fixture
async def ada(mesh: FakeMesh, browser: Browser) -> Browser:
    mesh.add_account("ada", "correct horse")
    await browser.sign_in("ada", "correct horse")
    return browser


async def test_plan_tokens_credits_and_forecast_are_shown(mesh: FakeMesh, ada: Browser) -> None:
    # Today and the eighth day back don't count.
    for days, tokens in ((0, 10**6), (1, 70_000), (7, 70_000), (8, 10**6)):
        mesh.use(NOW - timedelta(days=days), 1, tokens)
    text = (await ada.get(PATH)).text
    for words in (
        ">55,000</p>", "40,000 of 100,000 used, 5,000 held by running requests; renews 1 Dec 2026", "40 % used, 5 % held", ">12.25</p>",
        "At 20,000 tokens a day, as in the 7 days before today, your tokens end on 23 Nov 2026, 8 days before they renew.",
        "29.00 EUR a month", "1,000,000 tokens a month", "Your plan", "No invoices yet.", "5 to 10,000 EUR",
    ):  # fmt: skip
        assert words in text, words
    assert "enterprise" not in text
    assert "Payment is late" not in text


RENEWS = datetime(2026, 12, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("included", "used", "in_a_week", "words"),
    [
        (None, 5, 700, ""),
        (1000, 1000, 700, "No tokens are left until 1 Dec 2026."),
        (1000, 0, 0, "No usage in the 7 days before today."),
        (1000, 0, None, ""),
        (10**15, 0, 1, "At 1 tokens a day, as in the 7 days before today, your tokens last until they renew."),
        (1000, 0, 700, "At 100 tokens a day, as in the 7 days before today, your tokens end on 30 Nov 2026, 1 day before they renew."),
        (1050, 0, 700, "At 100 tokens a day, as in the 7 days before today, your tokens last until they renew."),
        (
            1000,
            900,
            70_000,
            "At 10,000 tokens a day, as in the 7 days before today, your tokens end on 20 Nov 2026, 11 days before they renew.",
        ),
    ],
)
def test_forecast(included: int | None, used: int, in_a_week: int | None, words: str) -> None:
    assert billing.forecast(Allowance(included, used, 0, RENEWS), in_a_week, NOW) == words


def test_no_forecast_without_an_allowance() -> None:
    assert billing.forecast(None, 700, NOW) == ""


async def test_what_an_account_owes_is_shown(mesh: FakeMesh, ada: Browser) -> None:
    assert "owed" not in (await ada.get(PATH)).text
    mesh.balance = MicroCredits(-5_250_000)
    assert ">5.25 owed; 0.25 reserved for running requests<" in (await ada.get(PATH)).text


async def test_a_larger_plan_is_ordered_and_undone(mesh: FakeMesh, ada: Browser) -> None:
    page = await ada.get(PATH)
    done = await ada.submit(page, f"{PATH}/plan", plan="pro")
    assert (done.status_code, done.headers["location"]) == (303, f"{PATH}/invoices/INV-2026-000001?done=ordered")
    assert "It takes effect once this invoice is paid." in (await ada.get(done.headers["location"])).text
    page = await ada.get(PATH)
    assert "The plan <bdi>pro</bdi> begins when the invoice" in page.text
    again = await ada.submit(page, f"{PATH}/plan", plan="gold")
    assert (again.status_code, "waits for the invoice INV-2026-000001" in again.text) == (409, True)
    done = await ada.submit(page, f"{PATH}/plan", plan="free")
    assert done.headers["location"] == f"{PATH}?done=changed"
    assert "begins when the invoice" not in (await ada.get(done.headers["location"])).text


async def test_a_cheaper_plan_begins_when_the_period_ends(mesh: FakeMesh, ada: Browser) -> None:
    mesh.next_plan = "pro"
    assert "The plan <bdi>pro</bdi> begins on 1 Dec 2026." in (await ada.get(PATH)).text
    mesh.allowance, mesh.plan_state = None, PlanState.PAST_DUE
    text = (await ada.get(PATH)).text
    assert "at the end of the period." in text
    assert "Payment is late" in text


async def test_submitting_a_top_up_twice_is_one_order(mesh: FakeMesh, ada: Browser) -> None:
    page = await ada.get(PATH)
    for _ in range(2):
        done = await ada.submit(page, f"{PATH}/top-ups", amount=" 25.00 ")
        assert done.status_code == 303
    ordered = [call.request for call in mesh.calls if call.method == "gateway.orderTopUp"]
    assert len(ordered) == 2
    assert ordered[0] == ordered[1]
    assert isinstance(ordered[0], api.OrderTopUp)
    assert ordered[0].amount == "25.00"
    assert f'value="{ordered[0].order_id}"' not in (await ada.get(PATH)).text, "the next order is another"


async def test_a_wrong_amount_keeps_the_order(mesh: FakeMesh, ada: Browser) -> None:
    page = await ada.get(PATH)
    wrong = await ada.submit(page, f"{PATH}/top-ups", amount="1e3")
    assert (wrong.status_code, 'aria-errormessage="amount-mistake"' in wrong.text) == (400, True)
    assert forms_of(wrong)[f"{PATH}/top-ups"]["order"] == forms_of(page)[f"{PATH}/top-ups"]["order"]
    assert forms_of(wrong)[f"{PATH}/top-ups"]["amount"] == "1e3"
    assert (await ada.submit(page, f"{PATH}/top-ups", amount="25", order="x")).status_code == 400


async def test_the_provider_takes_the_payment(mesh: FakeMesh, ada: Browser) -> None:
    mesh.pay_at = "https://pay.example/1?a=b&c=d"
    page = await ada.submit(await ada.get(PATH), f"{PATH}/top-ups", amount="25")
    assert page.status_code == 200
    assert 'href="https://pay.example/1?a=b&amp;c=d"' in page.text
    assert "Our payment provider takes it from here" in page.text


async def test_the_provider_has_a_portal(mesh: FakeMesh, ada: Browser) -> None:
    mesh.pay_at = "https://pay.example/portal"
    page = await ada.get(PATH)
    assert "You pay on the next page." in page.text
    portal = await ada.submit(page, f"{PATH}/portal")
    assert (portal.status_code, 'href="https://pay.example/portal"' in portal.text) == (200, True)
    mesh.pay_at = None
    gone = await ada.submit(page, f"{PATH}/portal")
    assert (gone.status_code, "has no payment provider" in gone.text) == (404, True)
    assert "Cards and receipts" not in (await ada.get(PATH)).text


async def test_orders_need_a_fresh_login(mesh: FakeMesh, ada: Browser) -> None:
    mesh.is_stale = True
    asked = await ada.submit(await ada.get(PATH), f"{PATH}/plan", plan="pro")
    assert (asked.status_code, mesh.invoices) == (403, [])
    done = await ada.submit(asked, f"{PATH}/plan", confirm_password="correct horse")
    assert (done.status_code, len(mesh.invoices)) == (303, 1)


async def test_a_member_sees_why_they_cannot_order(mesh: FakeMesh, browser: Browser) -> None:
    team = mesh.add_team("<i>Lab", mesh.add_account("bob", "correct horse"), tier=Tier.FREE)
    await browser.sign_in("bob", "correct horse")
    mesh.acting[next(iter(mesh.sessions))] = team
    mesh.may_order = False
    page = await browser.get(PATH)
    assert '<bdi class="tag">&lt;i&gt;Lab</bdi>' in page.text
    refused = await browser.submit(page, f"{PATH}/plan", plan="pro")
    assert (refused.status_code, "Only owners of an organization" in refused.text, "Buy credits" in refused.text) == (403, True, True)


@pytest.mark.parametrize("path", ["plan", "top-ups"])
async def test_a_form_without_a_token_is_refused(mesh: FakeMesh, ada: Browser, path: str) -> None:
    mesh.calls.clear()
    refused = await ada.client.post(f"{PATH}/{path}", data={"plan": "pro"}, headers={"Sec-Fetch-Site": "same-origin"})
    assert refused.status_code in {400, 403}
    assert not [name for name in mesh.called_methods() if name.startswith("gateway.")]


async def test_invoices_are_listed_in_pages(mesh: FakeMesh, ada: Browser) -> None:
    for _ in range(51):
        mesh.add_invoice()
    text = (await ada.get(PATH)).text
    assert f'href="{PATH}/invoices/INV-2026-000051"' in text
    assert 'href="/billing?before=INV-2026-000002" rel="next"' in text
    text = (await ada.get(f"{PATH}?before=INV-2026-000002")).text
    assert ("INV-2026-000001" in text, "INV-2026-000002" in text, 'rel="next"' in text) == (True, False, False)


async def test_an_invoice_has_its_parties_lines_and_tax(mesh: FakeMesh, ada: Browser) -> None:
    made = mesh.add_invoice(text="<script>alert(1)</script>")
    page = await ada.get(f"{PATH}/invoices/{made.number}")
    for words in (
        "Invoice INV-2026-000001", "<bdi>Mesh GmbH</bdi>", "<bdi>VAT DE 1</bdi>", "<bdi>ada &lt;b&gt;</bdi>", ">29.00 EUR<",
        "<bdi>VAT</bdi> 19 %",
        ">5.51 EUR<", ">34.51 EUR<", "4 Dec 2026", "To be paid", "&lt;script&gt;alert(1)&lt;/script&gt;",
    ):  # fmt: skip
        assert words in page.text, words
    assert "This is a test" not in page.text
    assert "Mark as paid" not in page.text
    written = await ada.get(f"{PATH}/invoices/{made.number}?format=json")
    assert written.headers["content-type"].startswith("application/json")
    assert msgspec.json.decode(written.content, type=api.Invoice) == made
    assert (await ada.get(f"{PATH}/invoices/INV-2026-000002")).status_code == 404


async def test_tests_and_credit_notes_say_so(mesh: FakeMesh, ada: Browser) -> None:
    mesh.add_invoice(number="TEST-INV-2026-000001", seller=Party(""), tax_name="")
    text = (await ada.get(f"{PATH}/invoices/TEST-INV-2026-000001")).text
    assert "This is a test, and no invoice." in text
    assert "Net" not in text
    note = mesh.add_invoice(
        -2900, purpose=InvoicePurpose.CREDIT_NOTE, corrects="INV-2026-000009", state=InvoiceState.PAID, paid_at=NOW, reference="<b>typo"
    )
    text = (await ada.get(f"{PATH}/invoices/{note.number}")).text
    for words in (
        "Credit note INV-2026-000002",
        ">Credit note<",
        f'href="{PATH}/invoices/INV-2026-000009"',
        "<bdi>&lt;b&gt;typo</bdi>",
        "-34.51 EUR",
    ):
        assert words in text, words
    assert ("Due" in text, "Paid</dt>" in text) == (False, False)


async def test_a_mesh_that_sells_nothing_says_so(mesh: FakeMesh, ada: Browser) -> None:
    mesh.sells = False
    page = await ada.get(PATH)
    assert (page.status_code, "This mesh sells nothing" in page.text) == (404, True)
    assert 'href="/billing"' not in (await ada.get("/dashboard")).text


async def test_usage_may_be_unavailable(mesh: FakeMesh, ada: Browser) -> None:
    mesh.broken["gateway.getUsageReport"] = errors.Unavailable("the database is away")
    page = await ada.get(PATH)
    assert (page.status_code, "Forecast" in page.text) == (200, True)


# --- /pricing ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def settings(settings: WebSettings, request: pytest.FixtureRequest) -> WebSettings:
    return msgspec.structs.replace(settings, **getattr(request, "param", {}))


async def test_pricing_is_off_by_default(browser: Browser, mesh: FakeMesh) -> None:
    assert (await browser.get("/pricing")).status_code == 404
    assert mesh.called_methods() == []


@pytest.mark.parametrize(
    ("settings", "has_plans"), [({"pricing_page": "on", "money": "on"}, True), ({"pricing_page": "on"}, False)], indirect=["settings"]
)
async def test_everyone_sees_the_plans_for_sale_and_the_prices(browser: Browser, mesh: FakeMesh, has_plans: bool) -> None:
    mesh.prices = [ModelPrice(None, MicroCredits(100_000_000), MicroCredits(200_000_000), since=NOW)]
    mesh.prices.append(ModelPrice(ModelName("<b>mistral"), MicroCredits(150_000_000), MicroCredits(0), since=NOW))
    page = await browser.get("/pricing")
    text = unescape(page.text)
    assert ("29.00 EUR a month" in text, 'href="/register">Choose pro' in text) == (has_plans, has_plans)
    assert ("<b>mistral" in text, "<b>mistral" in page.text, ">150<" in text, "enterprise" in text) == (True, False, True, False)


def test_pages_are_linked_if_they_are_on() -> None:
    frame = rendering.PageFrame(
        user=None, team_name=None, here="error", address="", form_token="", theme="system", problem=None, notice=None, banner=None
    )
    view = {"status": 404, "message": "page not found", "hint": "", "request_id": ""}
    for on in (False, True):
        page = rendering.Renderer.load(sells=on, has_pricing=on).render("error.html", frame, view).decode()
        assert ('href="/pricing"' in page) == on
