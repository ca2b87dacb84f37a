"""What users do with their accounts, from the first key to the last session, in a real browser against a whole stack."""

import re
import time
from pathlib import Path

import pytest

from shared.api import auth
from shared.types import UserRole
from tests import tiers
from tests.acceptance.visitor import NEW_PASSWORD, Visitor
from tests.acceptance.watching import Watch, expected
from tests.people import ApiClient
from tests.stacks import RunningStack, until

#: Web caches a confirmed session for 5 s, and the gateway learns of a revoked key within the same time.
FORGOTTEN_SECONDS = 5.0


async def test_a_key_is_made_used_counted_and_revoked(stack: RunningStack, watch: Watch) -> None:
    await stack.knows_its_models()
    ann = Visitor(await watch.open(), stack.url("web"))
    await ann.register()
    key = await ann.create_key("laptop")
    async with stack.http(key, service="web") as http:
        body = {"messages": [{"role": "user", "content": "one two three"}]}
        answer = await http.post("/v1/chat/completions", json=body)
        assert (answer.status_code, answer.json()["choices"][0]["message"]["content"]) == (200, "one two three"), answer.text
        used = answer.json()["usage"]
        # Failed requests are in the log, too.
        assert (await http.post("/v1/chat/completions", json={**body, "model": "nobody-has-it"})).status_code == 404

        async def counted() -> list[str] | None:
            await ann.goes("/requests")
            rows = await ann.rows()
            return rows if len(rows) == 2 else None

        failed, row = await until(counted, what="both requests are in the log")
        assert "unknown_model" in failed
        for part in ("echo", "laptop"):
            assert part in row
        await ann.goes("/usage")
        requests, tokens, *_ = await ann.texts(".numbers .big")
        # A request that was rejected as the caller's error counts nowhere else.
        assert (requests, tokens) == ("1", str(used["total_tokens"]))

        await ann.revoke_key("laptop")
        revoked = time.monotonic()

        async def refused() -> bool:
            return (await http.post("/v1/chat/completions", json=body)).status_code == 401

        await until(refused, seconds=FORGOTTEN_SECONDS, what="the revoked key is refused")
        print(f"refused {time.monotonic() - revoked:.2f} s after it was revoked")
    # The key's requests stay in the log.
    await ann.goes("/requests")
    assert "laptop" in (await ann.rows())[1]


@pytest.mark.nightly("pages")
async def test_a_new_password_ends_every_other_session(stack: RunningStack, watch: Watch) -> None:
    ann = Visitor(await watch.open(), stack.url("web"))
    await ann.register()
    elsewhere = Visitor(await watch.open(width=390), ann.origin, ann.name)
    await elsewhere.sign_in()

    await ann.goes("/settings/security")
    with expected(ann.page, "status of 400"):
        await ann.page.fill(new_password=NEW_PASSWORD, repeated="not the same at all")
        await ann.page.click("button", "Change password")
    await ann.page.fill(new_password=NEW_PASSWORD, repeated=NEW_PASSWORD)
    await ann.page.click("button", "Change password")
    await ann.sees("Password changed. All other sessions ended.")
    await _is_signed_out(elsewhere)

    with expected(elsewhere.page, "status of 401"):
        await elsewhere.sign_in()
    await elsewhere.sign_in(NEW_PASSWORD)
    assert await elsewhere.page.path() == "/dashboard"


@pytest.mark.nightly("pages")
async def test_a_session_is_seen_and_ended_from_another_one(stack: RunningStack, watch: Watch) -> None:
    ann = Visitor(await watch.open(), stack.url("web"))
    await ann.register()
    others = [Visitor(await watch.open(), ann.origin, ann.name) for _ in range(3)]
    for each in others:
        await each.sign_in()

    await ann.goes("/settings/security")
    first, *rest = await ann.rows("ul.lines li")
    assert ("this browser" in first, len(rest)) == (True, 3)
    assert all("Chrome on Linux" in line and "127.0.0.1" in line for line in (first, *rest))
    await ann.page.click("button[aria-label^='End session: Chrome on Linux']")
    await ann.sees("Session ended.")
    assert len(await ann.rows("ul.lines li")) == 3

    # Ending all other sessions asks for confirmation; Cancel ends none.
    await ann.page.press("button", "End others")
    await ann.page.press("dialog button", "Cancel")
    await ann.page.until("!document.querySelector('dialog')")
    assert len(await ann.rows("ul.lines li")) == 3
    await ann.page.press("button", "End others")
    await ann.page.click("dialog button.danger")
    await ann.sees("All other sessions ended.")
    assert len(await ann.rows("ul.lines li")) == 1
    for each in others:
        await _is_signed_out(each)
    await ann.goes("/dashboard")
    assert await ann.page.path() == "/dashboard"


async def _is_signed_out(visitor: Visitor) -> None:
    async def at_the_door() -> bool:
        await visitor.goes("/dashboard")
        return await visitor.page.path() == "/login"

    await until(at_the_door, seconds=FORGOTTEN_SECONDS + 1, what="the other session has ended")


@pytest.mark.nightly("pages")
async def test_what_is_sensitive_asks_for_the_password_and_keeps_what_was_typed(
    stack: RunningStack, watch: Watch, api_client: ApiClient
) -> None:
    """A user who signed in by a link has proved a key, but no password."""
    person = await api_client.register("lin")
    link = (await stack.aicli("dashboard", "--json", AICLI_API_KEY=person.key.secret)).json()["url"]
    lin = Visitor(await watch.open(), stack.url("web"), person.username, person.password)
    await lin.page.goto(link)
    await lin.page.click("button", "Continue")
    await lin.goes("/settings/security")
    await lin.page.fill(new_password=NEW_PASSWORD, repeated=NEW_PASSWORD)
    with expected(lin.page, "status of 403"):
        await lin.page.click("button", "Change password")
    await lin.sees("Confirm it’s you")
    assert NEW_PASSWORD not in await lin.page.text()
    with expected(lin.page, "status of 403"):
        await lin.page.fill(confirm_password="not the password")
        await lin.page.click("button", "Confirm")
    await lin.page.fill(confirm_password=lin.password)
    await lin.page.click("button", "Confirm")
    await lin.sees("Password changed.")
    await lin.sign_out()
    await lin.sign_in(NEW_PASSWORD)
    assert await lin.page.path() == "/dashboard"


@pytest.mark.parametrize("javascript", tiers.by_day([True, False], True, group="pages"), ids=["with JavaScript", "without JavaScript"])
async def test_a_second_factor_guards_an_account(stack: RunningStack, watch: Watch, javascript: bool) -> None:
    ann = Visitor(await watch.open(javascript=javascript), stack.url("web"))
    await ann.register()
    await ann.goes("/settings/security")
    await ann.page.click("button", "Set up")
    _, codes = await ann.set_up_factor()
    assert len(set(codes)) == len(codes) >= 8
    await ann.sees(f"You have {len(codes)} recovery codes left")
    await ann.sign_out()

    await ann.sign_in()
    assert await ann.page.path() == "/login/code"
    await ann.goes("/dashboard")
    assert await ann.page.path() == "/login/code"
    # A recovery code replaces the phone.
    await ann.page.fill(code=codes[0])
    await ann.page.click("button", "Continue")
    assert await ann.page.path() == "/dashboard"
    await ann.goes("/settings/security")
    await ann.sees(f"You have {len(codes) - 1} recovery codes left")
    await ann.sign_out()
    await ann.sign_in()
    with expected(ann.page, "status of 403"):
        await ann.page.fill(code=codes[0])
        await ann.page.click("button", "Continue")
    assert await ann.page.path() == "/login/code"


async def test_aicli_signs_in_by_the_browser_and_an_administrator_sets_up_the_second_factor_on_the_way(
    stack: RunningStack, watch: Watch, api_client: ApiClient, tmp_path: Path
) -> None:
    person = await api_client.register("ida")
    await api_client.mesh.rpc.call(auth.set_role, auth.SetRole(person.username, UserRole.ADMIN), credential=api_client.admin_key)
    home = {"HOME": str(tmp_path), "AIMESH_HOME": "", "XDG_CONFIG_HOME": ""}
    program = await stack.start_aicli("login", stack.url("web"), "--key-name", "laptop", **home)
    assert program.stderr is not None
    assert program.stdout is not None
    shown = b"".join([await program.stderr.readline() for _ in range(3)]).decode()
    [link] = re.findall(r"https?://\S+/device/[B-Z]{4}-[B-Z]{4}", shown)

    ida = Visitor(await watch.open(), stack.url("web"), person.username, person.password)
    await ida.page.goto(link)
    await ida.page.fill(name=ida.name, password=ida.password)
    await ida.page.click("main button", "Sign in")
    await ida.set_up_factor()
    assert link.endswith(await ida.page.path())
    await ida.sees("Sign in this terminal?", link[-9:], "laptop", "127.0.0.1")
    await ida.page.click("button", "Approve")
    await ida.sees("Approved. Your terminal signs in within a few seconds")

    out, err = await program.communicate()
    assert program.returncode == 0, err.decode()
    assert f"Logged in as {ida.name}; the key 'laptop' is in" in out.decode()
    told = await stack.aicli("whoami", "--json", **home)
    assert (told.json()["username"], told.json()["role"]) == (ida.name, "admin")
