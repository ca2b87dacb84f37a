"""The setup checklist: the state of each item, derived from facts, and the pages that show it."""

from datetime import UTC, datetime

import msgspec
import pytest

from services.web.pages import setup_view
from shared import errors
from shared.api.gateway import NodeRows
from shared.api.ledger import ModelPrice, ModelPrices
from shared.api.service_settings import MailTestResult, SetupFacts
from shared.types import MicroCredits, ModelName, Role, UserRole
from tests.services.web.browser import Browser, forms_of
from tests.services.web.pages.admin.admin_mesh import GATEWAY, WORKER, AdminMesh

NOTHING = SetupFacts(
    has_second_factor=False, is_dismissed=False, public_url="", has_mail_server=False, mail_tested_at=None,
    open_registration=False, is_registration_confirmed=False, colleagues=0, invitations=0,
)  # fmt: skip
DAY = datetime(2026, 11, 20, tzinfo=UTC)
HTTPS = "https://ai.example"
DONE = SetupFacts(
    has_second_factor=True, is_dismissed=False, public_url=HTTPS, has_mail_server=True, mail_tested_at=DAY,
    open_registration=False, is_registration_confirmed=True, colleagues=2, invitations=0,
)  # fmt: skip
PRICE = ModelPrice(ModelName("smollm2"), MicroCredits(1), MicroCredits(1), MicroCredits(1), MicroCredits(1))
FREE, NO_NODES = ModelPrices(()), NodeRows(())
#: The prices of a mesh that is completely set up.
PRICED = ModelPrices((PRICE,))


@pytest.fixture
def mesh() -> AdminMesh:
    return AdminMesh()


@pytest.fixture
async def root(mesh: AdminMesh, browser: Browser) -> Browser:
    """A browser signed in as an administrator called root."""
    mesh.add_person("root", UserRole.ADMIN)
    await browser.sign_in("root", "correct horse")
    return browser


@pytest.mark.parametrize(
    ("name", "changed", "site_url", "is_done", "words"),
    [
        ("second-factor", {}, "", False, "authenticator app"),
        ("second-factor", {"has_second_factor": True}, "", True, "asks for a code"),
        ("address", {}, "", False, "Set PUBLIC_URL"),
        ("address", {"public_url": HTTPS}, "", False, "Set PUBLIC_URL"),
        ("address", {"public_url": "http://ai.example"}, "http://ai.example", False, "http://ai.example has no TLS"),
        ("address", {"public_url": HTTPS}, HTTPS, True, "at https://ai.example, over TLS"),
        ("mail", {}, "", False, "Set SMTP_URL"),
        ("mail", {"mail_tested_at": DAY}, "", False, "Set SMTP_URL"),
        ("mail", {"has_mail_server": True}, "", False, "Send yourself an email"),
        ("mail", {"has_mail_server": True, "mail_tested_at": DAY}, "", True, "on 20 Nov 2026"),
        ("registration", {}, "", False, "Closed: only people you invite can register. Keep it"),
        ("registration", {"open_registration": True}, "", False, "Open: anyone who can reach this page can register. Keep it"),
        ("registration", {"open_registration": True, "is_registration_confirmed": True}, "", True, "Open: anyone"),
        ("colleague", {}, "", False, "invite someone"),
        ("colleague", {"invitations": 1}, "", False, "not been accepted yet"),
        ("colleague", {"colleagues": 1}, "", True, "Other people"),
    ],
)
def test_an_item_of_auth(name: str, changed: dict[str, object], site_url: str, is_done: bool, words: str) -> None:
    made = setup_view.checklist(msgspec.structs.replace(NOTHING, **changed), site_url, FREE, NO_NODES)
    (item,) = [item for item in made.items if item.name == name]
    assert (item.is_done, words in item.text) == (is_done, True), item.text
    assert made.done == int(is_done)


def test_items_of_the_gateway(mesh: AdminMesh) -> None:
    gone, gateway, worker = mesh.add_node(WORKER, alive=False), mesh.add_node(GATEWAY, Role.GATEWAY), mesh.add_node(WORKER)
    for rows, is_done, words in (
        ((gone, gateway), False, "create a ticket"),
        ((worker, gone), True, "Machines online: 1."),
        ((worker, worker), True, "Machines online: 2."),
    ):
        (item,) = [item for item in setup_view.checklist(NOTHING, "", FREE, NodeRows(rows)).items if item.name == "machine"]
        assert (item.is_done, words in item.text) == (is_done, True)
    for prices, is_done in ((FREE, False), (PRICED, True)):
        (item,) = [item for item in setup_view.checklist(NOTHING, "", prices, NO_NODES).items if item.name == "price"]
        assert item.is_done is is_done


def test_the_list_is_shown_until_done_or_dismissed(mesh: AdminMesh) -> None:
    nodes = NodeRows((mesh.add_node(WORKER),))
    assert setup_view.checklist(NOTHING, "", FREE, NO_NODES).is_shown
    assert not setup_view.checklist(msgspec.structs.replace(NOTHING, is_dismissed=True), "", FREE, NO_NODES).is_shown
    complete = setup_view.checklist(DONE, HTTPS, PRICED, nodes)
    assert (complete.done, complete.is_shown) == (7, False)
    # While the gateway is down, the items that depend on it are unknown, not done.
    unknown = setup_view.checklist(DONE, HTTPS, None, None)
    assert [(item.name, item.state, item.tone) for item in unknown.items if not item.is_done] == [
        ("machine", "Unknown", "off"), ("price", "Unknown", "off"),
    ]  # fmt: skip


async def test_the_overview_shows_it_to_administrators_until_dismissed(root: Browser, mesh: AdminMesh) -> None:
    page = await root.get("/dashboard")
    assert "Set up this mesh" in page.text
    assert "0 of 7 done" in page.text
    for path in ("/settings/security", "/admin/settings", "/admin/nodes/tickets", "/admin/prices", "/admin/invitations"):
        assert f'href="{path}"' in page.text
        assert (await root.get(path)).status_code == 200
    assert (await root.submit(page, "/admin/setup/dismiss")).headers["location"] == "/dashboard"
    assert mesh.setup.is_dismissed
    mesh.calls.clear()
    assert "Set up this mesh" not in (await root.get("/dashboard")).text
    assert "gateway.listPrices" not in mesh.called_methods()
    shown_again = await root.submit(await root.get("/admin/setup"), "/admin/setup/dismiss")
    assert shown_again.status_code == 303
    assert "Set up this mesh" in (await root.get("/dashboard")).text


async def test_others_do_not_see_it(browser: Browser, mesh: AdminMesh) -> None:
    mesh.add_account("alice", "correct horse")
    await browser.sign_in("alice", "correct horse")
    await browser.get("/dashboard")
    assert "auth.getSetup" not in mesh.called_methods()


async def test_the_overview_works_without_it(root: Browser, mesh: AdminMesh) -> None:
    mesh.broken["auth.getSetup"] = errors.Unavailable("auth is away")
    page = await root.get("/dashboard")
    assert (page.status_code, "Set up this mesh" in page.text) == (200, False)


async def test_registration_is_confirmed_as_the_page_showed_it(root: Browser, mesh: AdminMesh) -> None:
    page = await root.get("/admin/setup")
    assert forms_of(page)["/admin/setup/registration"]["open"] == "yes"
    mesh.setup = msgspec.structs.replace(mesh.setup, open_registration=False)
    refused = await root.submit(page, "/admin/setup/registration")
    assert (refused.status_code, mesh.setup.is_registration_confirmed) == (400, False)
    assert (await root.submit(refused, "/admin/setup/registration")).headers["location"] == "/admin/setup"
    assert mesh.setup.is_registration_confirmed
    assert "/admin/setup/registration" not in forms_of(await root.get("/admin/setup"))


@pytest.mark.parametrize(
    ("result", "words"),
    [
        (MailTestResult(True, "2.0.0 Ok: queued as 4711"), ("accepted the email", "2.0.0 Ok: queued as 4711")),
        (MailTestResult(False, "the server refuses (550): <b>no</b>"), ("was not sent", "the server refuses (550): &lt;b&gt;no&lt;/b&gt;")),
    ],
)
async def test_the_page_says_what_the_mail_server_answered(
    root: Browser, mesh: AdminMesh, result: MailTestResult, words: tuple[str, ...]
) -> None:
    assert "/admin/setup/mail" not in forms_of(await root.get("/admin/setup")), "without a mail server there is nothing to test"
    mesh.setup, mesh.mail_result = msgspec.structs.replace(mesh.setup, has_mail_server=True), result
    page = await root.get("/admin/setup")
    assert "Test emails go to <bdi>root@example.com</bdi>." in page.text
    answer = await root.submit(page, "/admin/setup/mail")
    assert answer.status_code == 200
    assert all(word in answer.text for word in words)


async def test_too_many_test_emails_are_refused_on_the_page(root: Browser, mesh: AdminMesh) -> None:
    mesh.setup = msgspec.structs.replace(mesh.setup, has_mail_server=True)
    mesh.broken["auth.sendTestMail"] = errors.Limited("you sent too many test emails", hint="try again later", retry_after_seconds=60)
    answer = await root.submit(await root.get("/admin/setup"), "/admin/setup/mail")
    assert (answer.status_code, "You sent too many test emails" in answer.text) == (429, True)
