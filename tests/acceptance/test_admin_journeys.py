"""What an administrator does in a browser: the first login with a second factor, and approving a machine."""

import re
import secrets

import pytest

from tests import outside
from tests.acceptance import authenticator
from tests.acceptance.visitor import Visitor, administrator
from tests.acceptance.watching import Watch, expected
from tests.people import ApiClient
from tests.stacks import RunningStack

SUBJECTS = (
    "",
    "/alerts",
    "/nodes",
    "/nodes/tickets",
    "/users",
    "/organisations",
    "/prices",
    "/audit",
    "/settings",
    "/setup",
    "/invitations",
)


async def test_the_admin_of_a_new_mesh_signs_in_for_the_first_time(stack: RunningStack, watch: Watch) -> None:
    told = dict(re.findall(r"^([\w ]+): +(\S+)$", (stack.home / "admin.txt").read_text(encoding="utf-8"), re.MULTILINE))
    # The administrator's key alone opens no page but the setup of a second factor.
    link = (await stack.aicli("dashboard", "--json")).json()["url"]
    admin = Visitor(await watch.open(), told["web"], told["user"], told["password"])
    await admin.page.goto(link)
    await admin.page.click("button", "Continue")
    assert await admin.page.path() == "/login/second-factor"
    for path in ("/dashboard", "/admin"):
        await admin.goes(path)
        assert await admin.page.path() == "/login/second-factor"
    with expected(admin.page, "status of 400"):
        await admin.page.fill(code="000000")
        await admin.page.click("button", "Enable")
    secret, codes = await admin.set_up_factor()
    assert len(set(codes)) >= 8
    for subject in SUBJECTS:
        await admin.goes(f"/admin{subject}")
        assert (admin.page.status, await admin.page.path()) == (200, f"/admin{subject}")
    await admin.sign_out()

    await admin.sign_in()
    assert await admin.page.path() == "/login/code"
    with expected(admin.page, "status of 403"):
        await admin.page.fill(code=_other_than(authenticator.code_of(secret, periods_ahead=1)))
        await admin.page.click("button", "Continue")
    await admin.goes("/admin")
    assert await admin.page.path() == "/login/code"
    # The code of the setup is used up, so send the next one: auth accepts a phone that is a little ahead.
    await admin.page.fill(code=authenticator.code_of(secret, periods_ahead=1))
    await admin.page.click("button", "Continue")
    await admin.goes("/admin")
    assert await admin.page.path() == "/admin"


def _other_than(code: str) -> str:
    return f"{(int(code) + 1) % 1_000_000:06}"


async def test_nobody_else_comes_into_administration(stack: RunningStack, watch: Watch) -> None:
    ann = Visitor(await watch.open(), stack.url("web"))
    await ann.register()
    assert "Admin" not in await ann.texts("nav.pages a")
    for subject in SUBJECTS:
        with expected(ann.page, "status of 403"):
            await ann.goes(f"/admin{subject}")
        await ann.sees("Only administrators can open this page")


@pytest.mark.nightly("pages")
async def test_a_colleague_is_invited_as_administrator_and_starts_with_the_checklist(stack: RunningStack, watch: Watch) -> None:
    ben = Visitor(await watch.open(), stack.url("web"), f"ben-{secrets.token_hex(4)}")
    email, page = f"{ben.name}@example.org", ben.page
    link = (await stack.aicli("admin", "invite", email, "--role", "admin", "--json")).json()["link"]
    code = link.partition("#")[2]
    await page.goto(f"{ben.origin}/join#{code}")
    await page.until("document.body?.innerText.includes('invited you to')")
    await ben.sees("admin invited you to this AI platform as an administrator.", email)
    await page.click("a.button", "Create account")
    assert await page.evaluate("document.getElementById('email').value") == email
    await page.fill(username=ben.name, password=ben.password)
    await page.click("main button", "Create account")
    assert await page.path() == "/login/second-factor"
    await ben.set_up_factor()
    await ben.sees("Set up this mesh", "Your account asks for a code at sign-in.", "Other people have accounts here.", "Set SMTP_URL")
    open_ones = (await stack.aicli("admin", "invitations", "list", "--json")).json()
    assert email not in [each["email"] for each in open_ones]
    # The invitation is used up, even for the same person.
    with expected(page, "status of 404"):
        await ben.goes("/forgot")
        await page.goto(f"{ben.origin}/join#{code}")
        await page.until("document.body?.innerText.includes('already used')")

    await ben.goes("/dashboard")
    await page.click("main button", "Keep open")
    await ben.sees("Open: anyone who can reach this page can register.")
    await ben.goes("/dashboard")
    await page.click("main button", "Dismiss")
    assert "Set up this mesh" not in await page.text()
    await ben.goes("/admin/setup")
    await page.click("main button", "Show on the overview")
    await ben.sees("Set up this mesh")
    await ben.goes("/admin/audit")
    await ben.sees("user.join", "registration.confirm")


@pytest.mark.nightly("pages")
async def test_a_machine_joins_waits_is_approved_and_revoked_on_the_page(stack: RunningStack, watch: Watch, api_client: ApiClient) -> None:
    ada = await administrator(await watch.open(), stack.url("web"), api_client)
    page = ada.page
    await page.click("nav.pages a", "Admin")
    await page.click("nav.tabs a", "Nodes")
    await page.click("a.button", "Add node")
    await page.fill(labels="room=browser")
    await page.press("label.check", "Require approval")
    await page.click("button", "Create ticket")
    command = str(await page.evaluate("document.getElementById('command').value"))
    assert command.startswith("aicli worker --join ")
    with outside.machine() as box:
        worker = box.start_worker(*command.split()[2:], "--backend", "echo")
        # The list updates automatically.
        await ada.goes("/admin/nodes")
        await page.until("document.body.innerText.includes('room=browser')")
        await worker.says("waiting for an administrator to approve")
        (row,) = [row for row in await ada.rows() if "room=browser" in row]
        assert "Pending approval" in row
        await page.click("a[href$='/approve']", "Approve")
        await ada.sees("Approve this node?", "room=browser")
        await page.click("main button", "Approve")
        assert await page.path() == "/admin/nodes"
        await page.until(f"{_row('room=browser')}?.querySelector('.state').innerText === 'OK'")
        await worker.says("serving 1 model")

        node = await page.evaluate(f"{_row('room=browser')}.dataset.id")
        await page.click(f"tr[data-id='{node}'] a.danger", "Revoke")
        await page.fill(reason="it was sold")
        await page.click("main button", "Revoke")
        await page.until(f"{_row('room=browser')}?.querySelector('.state').innerText === 'Revoked'", seconds=10)
        await worker.says("revoked")
        assert "it was sold" in next(row for row in await ada.rows() if "room=browser" in row)
    # All of this is in the audit log.
    await ada.goes("/admin/audit")
    text = await page.text()
    for act in ("ticket", "approve", "revoke"):
        assert act in text


def _row(text: str) -> str:
    return f"[...document.querySelectorAll('main tbody tr')].find(each => each.innerText.includes('{text}'))"
