"""Every page, with content: a screenshot in each look, no serious axe violations, and nothing wider than a phone.

The pictures are in build/screenshots/, for people to look at.
"""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from litestar.handlers import HTTPRouteHandler

from services.web import application, features
from shared.api import auth, configuration, membership, organizations
from shared.api.method import Method
from shared.identity import node_keys, tickets
from shared.node import enrollment
from shared.node.enrollment import EnrollingNode
from shared.types import Role, UserRole
from tests import feature_parts, outside
from tests.acceptance.album import Album
from tests.acceptance.visitor import NEW_PASSWORD, Visitor, administrator
from tests.acceptance.watching import Watch, expected
from tests.people import ApiClient
from tests.stacks import RunningStack, until

VISITORS = {
    "join": "/join",
    "landing": "/",
    "register": "/register",
    "login": "/login",
    "forgot": "/forgot",
    "forgot-sent": "/forgot?done=sent",
    "reset": "/reset?token=abc",
    "verify": "/verify",
    "login-link": "/login-link?token=abc",
    "login-oidc": "/login/oidc",
}
PERSONAL = {
    "overview": "/dashboard",
    "overview-day": "/dashboard?span=day&show=tokens",
    "keys": "/api-keys",
    "playground": "/playground",
    "usage": "/usage",
    "usage-latency": "/usage?days=90&show=latency",
    "device": "/device",
    "requests": "/requests",
    "requests-none": "/requests?model=nothing",
    "models": "/models",
    "jobs": "/jobs",
    "settings": "/settings",
    "settings-preferences": "/settings/preferences",
    "settings-security": "/settings/security",
    "settings-data": "/settings/data",
    "organisations": "/organisations",
    "invitation": "/invitation?token=abc",
    "login-oidc-fresh": "/login/oidc?fresh=yes",
}
OF_ADMINISTRATORS = {
    "admin-health": "/admin",
    "admin-charts": "/admin/charts",
    "admin-alerts": "/admin/alerts",
    "admin-runbook": "/admin/runbooks/worker_gone",
    "admin-nodes": "/admin/nodes",
    "admin-tickets": "/admin/nodes/tickets",
    "admin-users": "/admin/users",
    "admin-user-new": "/admin/users/new",
    "admin-organisations": "/admin/organisations",
    "policy": "/policies/mesh",
    "admin-prices": "/admin/prices",
    "admin-routes-none": "/admin/routes",
    "admin-audit": "/admin/audit",
    "admin-settings": "/admin/settings",
    "admin-setup": "/admin/setup",
    "admin-invitations": "/admin/invitations",
    "admin-overview": "/dashboard",
    "admin-models": "/models",
    "admin-models-find": "/models/find",
    "admin-models-versions": "/models/versions",
}
_MARKDOWN = """# A heading

Some *words*, `code`, and:

- one
- two

```python
print("hello, " + "world" * 30, "and a line that is longer than any telephone is wide")
```

| Name | Number |
|------|--------|
| one  | 1      |
"""
OF_OWNERS = {"machines": "/nodes", "machines-tickets": "/nodes/tickets"}
#: Of features.
for _path in (tab.path for part in features.parts() for tab in part.tabs if tab.group != "List of nodes"):
    (OF_ADMINISTRATORS if _path.startswith("/admin/") else PERSONAL)[_path[1:].replace("/", "-")] = _path
for _part in feature_parts.modules("web.pictured_pages"):
    OF_ADMINISTRATORS |= _part.OF_ADMINISTRATORS
    OF_OWNERS |= _part.OF_OWNERS
#: Paths that are not pages.
_NO_PAGES = ("/static/", "/live/", ".csv")


@pytest.fixture
async def album() -> AsyncIterator[Album]:
    album = Album()
    yield album
    album.check()


def test_no_page_is_forgotten() -> None:
    patterns = {
        path
        for handler in application.ROUTES
        if isinstance(handler, HTTPRouteHandler) and "GET" in handler.http_methods
        for path in handler.paths
        if not any(part in path for part in _NO_PAGES)
    }
    seen = [path.partition("?")[0] for paths in (VISITORS, PERSONAL, OF_OWNERS, OF_ADMINISTRATORS) for path in paths.values()]
    missing = {pattern for pattern in patterns if not any(re.fullmatch(re.sub(r"\{[^}]*\}", "[^/]+", pattern), path) for path in seen)}
    # The tests below reach these by clicking, or they lead elsewhere.
    assert missing <= {
        "/login/code",
        "/login/second-factor",
        "/login/oidc/back",
        "/device/{code:str}",
        "/jobs/{job_id:str}",
        "/jobs/{job_id:str}/{kind:str}",
        "/install.sh",
        "/install.ps1",
        "/install/{path:path}",
        "/install/want/{target:str}",
        "/api-keys/{key_id:uuid}",
        "/api-keys/{key_id:uuid}/revoke",
        "/organisations/{team:uuid}",
        "/admin/users/{user_id:uuid}",
        "/admin/organisations/{team_id:uuid}",
        "/admin/routes/{route:path}",
        "/admin/rollouts/{rollout:uuid}",
        "/admin/nodes/{node_id:str}/approve",
        "/admin/nodes/{node_id:str}/revoke",
        "/nodes/{node_id:str}/revoke",
        # Only a mesh that sells has these; tests/services/web/pages/admin/test_billing_in_chromium.py looks at them.
        "/billing",
        "/billing/invoices/{number:str}",
        "/pricing",
        "/admin/money",
        "/admin/money/invoices/{number:str}",
        # Only a worker that is up has these; tests/services/web/pages/admin/test_hostile_names.py looks at them.
        "/admin/nodes/{worker_id:str}/models",
        "/nodes/{worker_id:str}/models",
    }


@pytest.mark.nightly("pages")
@pytest.mark.timeout(180)
async def test_what_visitors_see(stack: RunningStack, watch: Watch, album: Album) -> None:
    somebody = Visitor(await watch.open(), stack.url("web"))
    page = somebody.page
    for name, path in VISITORS.items():
        await somebody.goes(path)
        await album.add(page, name)
    with expected(page, "status of 404"):
        await somebody.goes("/nothing-here")
    await album.add(page, "not-found")
    with expected(page, "status of 401"):
        await somebody.goes("/login/oidc/back?state=of-somebody-else")
    await album.add(page, "login-oidc-failed")
    somebody.name = "nobody"
    with expected(page, "status of 401"):
        await somebody.sign_in()
    await album.add(page, "login-wrong")


@pytest.mark.nightly("pages")
@pytest.mark.timeout(180)
async def test_what_a_person_sees(stack: RunningStack, watch: Watch, album: Album) -> None:
    ann = Visitor(await watch.open(), stack.url("web"))
    page = ann.page
    await ann.register()
    await album.add(page, "welcome")
    await _work(stack, ann)
    for name, path in PERSONAL.items():
        await ann.goes(path)
        await _settled(ann)
        await album.add(page, name)

    await ann.goes("/settings")
    await page.press("header .account summary")
    await album.add(page, "account-menu", is_covered=True)
    await ann.create_key("a new one")
    await album.add(page, "key-created")
    await ann.goes("/api-keys")
    await page.click("a[aria-label='Manage laptop']")
    await album.add(page, "key")
    await ann.ask_to_revoke("laptop")
    await album.add(page, "key-revoke")
    await ann.goes("/organisations")
    await page.fill(name="Example & Sons")
    await page.click("main button", "Create")
    await album.add(page, "organisation")


@pytest.mark.nightly("pages")
@pytest.mark.timeout(180)
async def test_an_invitation_says_to_whom_one_says_yes(stack: RunningStack, watch: Watch, album: Album) -> None:
    ann, ben, carl = [Visitor(await watch.open(), stack.url("web")) for _ in range(3)]
    for each, name in ((ann, "ann"), (ben, "ben"), (carl, "carl")):
        await each.register(name)
    await ann.goes("/organisations")
    await ann.page.fill(name="Example & Daughters")
    await ann.page.click("main button", "Create")
    await ann.page.fill(email=f"{ben.name}@example.org")
    await ann.page.click("main button", "Invite")
    await album.add(ann.page, "organisation-invited")
    link = str(await ann.page.evaluate("document.getElementById('link').value"))

    with expected(carl.page, "status of 404"):
        await carl.page.goto(link)
        await carl.page.until("document.querySelector('[data-no-offer]').checkVisibility()")
        await album.add(carl.page, "invitation-refused")
    assert "Example" not in await carl.page.text()

    # A user who must sign in first sees the offer afterwards.
    await ben.sign_out()
    await ben.page.goto(link)
    await ben.page.fill(name=ben.name, password=ben.password)
    await ben.page.click("main button", "Sign in")
    await ben.page.until("document.querySelector('[data-offer]').checkVisibility()")
    await ben.sees("Join Example & Daughters as a member?", f"Invited by {ann.name}. Expires")
    await album.add(ben.page, "invitation-offer")
    await ben.page.click("main button", "Join")
    await ben.sees("You joined this organization.")


@pytest.mark.nightly("pages")
@pytest.mark.timeout(180)
async def test_a_chat_is_to_be_seen(stack: RunningStack, watch: Watch, album: Album) -> None:
    ann = Visitor(await watch.open(), stack.url("web"))
    page = ann.page
    await ann.register()
    await ann.goes("/playground")
    await page.fill(message=_MARKDOWN)
    await page.press("[data-chat=send]")
    await page.until("document.querySelector('[data-chat=usage]:not([hidden])')?.innerText.includes('tokens')")
    await album.add(page, "playground-answer")
    await page.press("details.chat-settings summary")
    await album.add(page, "playground-parameters")
    await page.press("details.chat-settings summary")
    await page.press("[data-chat-act=code]")
    await page.until("document.querySelector('dialog[open]')")
    await album.add(page, "playground-code")


@pytest.mark.nightly("pages")
@pytest.mark.timeout(180)
async def test_what_guards_an_account_is_to_be_seen(stack: RunningStack, watch: Watch, album: Album, api_client: ApiClient) -> None:
    person = await api_client.register("lin")
    link = (await stack.aicli("dashboard", "--json", AICLI_API_KEY=person.key.secret)).json()["url"]
    lin = Visitor(await watch.open(), stack.url("web"), person.username, person.password)
    page = lin.page
    await page.goto(link)
    await page.click("button", "Continue")
    await lin.goes("/settings/security")
    with expected(page, "status of 403"):
        await page.fill(new_password=NEW_PASSWORD, repeated=NEW_PASSWORD)
        await page.click("button", "Change password")
    await album.add(page, "confirm")
    await page.fill(confirm_password=lin.password)
    await page.click("button", "Confirm")
    await page.click("button", "Set up")
    await album.add(page, "second-factor")
    secret = await lin.type_first_code()
    assert secret
    await album.add(page, "recovery-codes")
    await page.click("a.button", "I’ve saved my codes")
    await album.add(page, "settings-security-guarded")
    await lin.sign_out()
    await lin.sign_in(NEW_PASSWORD)
    await album.add(page, "login-code")


@pytest.mark.nightly("pages")
@pytest.mark.timeout(180)
async def test_what_somebody_sees_who_lends_machines(stack: RunningStack, watch: Watch, album: Album, api_client: ApiClient) -> None:
    person = await api_client.register("owen")
    await api_client.mesh.rpc.call(auth.set_role, auth.SetRole(person.username, UserRole.NODE_OWNER), credential=api_client.admin_key)
    owen = Visitor(await watch.open(), stack.url("web"), person.username, person.password)
    page = owen.page
    await owen.sign_in()
    await owen.goes("/nodes")
    await album.add(page, "machines-none")
    async with _waiting_machine(stack, api_client, "--owner", person.username):
        for name, path in OF_OWNERS.items():
            await owen.goes(path)
            await album.add(page, name)
        await owen.goes("/nodes")
        # Node owners can revoke their machine, but can't approve it.
        assert await page.evaluate("document.querySelectorAll('main tbody tr').length") == 1
        assert not await page.evaluate("document.querySelector(\"a[href$='/approve']\")?.checkVisibility()")
        await page.click("a.danger", "Revoke")
        await album.add(page, "machine-revoke")
        await page.click("main button", "Revoke")
        await owen.sees("revoked")


@pytest.mark.nightly("pages")
@pytest.mark.timeout(240)
async def test_what_an_administrator_sees(stack: RunningStack, watch: Watch, album: Album, api_client: ApiClient) -> None:
    ada = await administrator(await watch.open(), stack.url("web"), api_client)
    page = ada.page
    async with _waiting_machine(stack, api_client):
        for name, path in OF_ADMINISTRATORS.items():
            with expected(page, *(["status of 400"] if name.endswith("-wrong") else [])):
                await ada.goes(path)
            await _settled(ada)
            await album.add(page, name)
        await ada.goes("/admin/nodes")
        await page.click("a[href$='/approve']", "Approve")
        await album.add(page, "admin-node-approve")
        await page.click("main a", "Revoke node")
        await album.add(page, "admin-node-revoke")
    await ada.goes("/admin/nodes/tickets")
    await page.click("button", "Create ticket")
    await album.add(page, "admin-ticket-created")
    team = organizations.CreateOrganization("Example & Daughters")
    await api_client.mesh.rpc.call(organizations.create_organisation, team, credential=api_client.admin_key)
    await ada.goes("/admin/organisations")
    await page.click("main tbody a", team.name)
    await album.add(page, "admin-organisation")
    await ada.goes(f"/admin/users?search={ada.name}")
    await page.click("main tbody a", ada.name)
    await album.add(page, "admin-user")
    await _roll_out(stack, api_client)
    await ada.goes("/admin/routes")
    await album.add(page, "admin-routes")
    await page.click("main tbody th a", "assistant")
    await album.add(page, "admin-route")
    await page.click("main a", "A rollout")
    await _settled(ada)
    await album.add(page, "admin-rollout")


async def _roll_out(stack: RunningStack, api_client: ApiClient) -> None:
    """Create a route with two versions and a rollout that has run for an hour."""

    async def call(method: Method[Any, Any], request: Any) -> None:
        await api_client.mesh.rpc.call(method, request, credential=api_client.admin_key)

    for share in (90, 100):
        targets = f"[{{name: local, model: echo, share: {share}}}, {{name: next, model: smollm2, share: {100 - share}}}]"
        await call(configuration.apply_config, configuration.ApplyConfig(f"routes: {{assistant: {{targets: {targets}}}}}", note="by hand"))
    await call(configuration.start_rollout, configuration.StartRollout("assistant", "next"))
    async with stack.database("gateway") as database:
        await database.execute("UPDATE rollouts SET started_at = now() - interval '1 hour'")
        rollout = await database.fetchval("SELECT id FROM rollouts")
        began = datetime.now(UTC) - timedelta(hours=1)
        for minute in range(60):
            point = _point(began + timedelta(minutes=minute), 10 * minute, max(0, minute - 30))
            body = msgspec.json.encode(point).decode()
            await database.execute("INSERT INTO rollout_points VALUES ($1, $2, $3::text::jsonb)", rollout, point.at, body)


def _point(at: datetime, answers: int, failed: int) -> configuration.RolloutPoint:
    half_width = 0.3 / (1 + answers / 50)
    interval = configuration.RolloutInterval("errors", failed, answers, 1, 9 * answers, failed / max(answers, 1), half_width)
    arms = (configuration.RolloutArm(name, answers, 120, 310 + failed, 40.0, 0, 0.0) for name in ("next", "local"))
    return configuration.RolloutPoint(at, 10.0, (next(arms), next(arms)), (interval,))


async def _work(stack: RunningStack, ann: Visitor) -> None:
    """Create two keys, one of them with a limit and revoked, and make some requests, not all of them successful."""
    key = await ann.create_key("laptop")
    await ann.create_key("an old program with a long name", requests_per_hour="7", budget="2.5")
    await ann.revoke_key("an old program with a long name")
    async with stack.http(key) as http:
        for words, model in ((3, "echo"), (20, "echo"), (8, "echo"), (3, "nobody-has-it")):
            body = {"model": model, "messages": [{"role": "user", "content": "word " * words}]}
            assert (await http.post("/v1/chat/completions", json=body)).status_code in (200, 404)

    async def logged() -> bool:
        await ann.goes("/requests")
        return len(await ann.rows()) == 4

    await until(logged, what="all requests are in the log")


async def _settled(visitor: Visitor) -> None:
    """Wait until the charts are drawn."""
    await visitor.page.until("[...document.querySelectorAll('table[data-chart]')].every(each => document.querySelector('canvas'))")


@asynccontextmanager
async def _waiting_machine(stack: RunningStack, api_client: ApiClient, *options: str) -> AsyncIterator[None]:
    """Enroll a machine that has used a ticket and waits for approval."""
    text = await outside.ticket(stack, "worker", "--approval", "--label", "room=3", *options)
    key = node_keys.NodeKey(node_keys.new_seed())
    joining = asyncio.create_task(
        enrollment.enroll(tickets.parse(text), key, EnrollingNode(Role.WORKER, "a waiting machine"), lambda line: None)
    )

    async def waits() -> bool:
        members = await api_client.mesh.rpc.call(membership.list_members, membership.ListMembers(), credential=api_client.admin_key)
        return any(member.id == key.id for member in members.members)

    try:
        await until(waits, seconds=30, what="it waits for approval")
        yield
    finally:
        joining.cancel()
        await asyncio.gather(joining, return_exceptions=True)
