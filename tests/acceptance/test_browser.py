"""What users do on the web pages in a real browser: with and without JavaScript, on a desktop and on a phone."""

from decimal import Decimal

import pytest

from tests import tiers
from tests.acceptance.visitor import Visitor
from tests.acceptance.watching import Watch, expected
from tests.people import ApiClient
from tests.stacks import RunningStack

BOTH = pytest.mark.parametrize("javascript", [True, False], ids=["with JavaScript", "without JavaScript"])
WITHOUT_AT_NIGHT = pytest.mark.parametrize(
    "javascript", tiers.by_day([True, False], True, group="pages"), ids=["with JavaScript", "without JavaScript"]
)


async def visitor(watch: Watch, stack: RunningStack, /, **look: bool | int) -> Visitor:
    return Visitor(await watch.open(**look), stack.url("web"))


@BOTH
async def test_from_registration_to_a_counted_request(stack: RunningStack, watch: Watch, javascript: bool) -> None:
    ann = await visitor(watch, stack, javascript=javascript)
    await ann.register()
    key = await ann.shown_key()
    assert key is not None

    await ann.page.reload()  # sends the form again, as if the user had confirmed that
    assert (await ann.page.path(), await ann.shown_key()) == ("/dashboard", None)
    assert key not in await ann.page.text()
    await ann.sees("No requests in the last 30 days")

    async with stack.http(key, service="web") as http:
        answer = await http.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "one two three"}]})
        assert answer.status_code == 200, answer.text
        used = answer.json()["usage"]
    cost = used["prompt_tokens"] * Decimal("0.0001") + used["completion_tokens"] * Decimal("0.0002")
    if javascript:
        # The open page updates automatically: the request and the limit immediately, the sums a little later.
        await ann.page.until("document.querySelectorAll('main table.log tbody tr').length === 1")
        await ann.sees("99 of 100 left")
    await ann.page.reload()
    requests, tokens, spent, within = await ann.texts(".numbers .big")
    assert (requests, tokens, Decimal(spent)) == ("1", str(used["total_tokens"]), cost)
    assert within.endswith((" ms", " s"))
    assert await ann.texts(".left-credits .big") == ["unlimited"], "the mesh sells nothing"
    await ann.sees("99 of 100 left")
    (row,) = await ann.rows("main table.log tbody tr")
    assert "echo" in row


@WITHOUT_AT_NIGHT
async def test_a_key_from_creation_to_revocation(stack: RunningStack, watch: Watch, javascript: bool) -> None:
    ann = await visitor(watch, stack, javascript=javascript)
    page = ann.page
    await ann.register()
    key = await ann.create_key("<b>laptop</b> & co", requests_per_hour="7")
    await ann.sees("“<b>laptop</b> & co” is ready.")
    await page.click("nav a", "API keys")
    assert await ann.shown_key() is None
    await ann.sees("7/h")

    async with stack.http(key) as http:
        assert (await http.get("/v1/models")).status_code == 200
        await ann.ask_to_revoke("<b>laptop</b> & co")
        await ann.sees("Programs that use this key stop working immediately.")
        await page.click("main button", "Revoke key")
        await ann.sees("Key revoked.")
        assert (await http.get("/v1/models")).status_code == 401


@WITHOUT_AT_NIGHT
async def test_signing_out_and_in_again(stack: RunningStack, watch: Watch, javascript: bool) -> None:
    ann = await visitor(watch, stack, javascript=javascript)
    await ann.register()
    await ann.sign_out()
    await ann.sees("Create an account")
    await ann.goes("/dashboard")
    assert await ann.page.path() == "/login"

    await ann.sign_in()
    assert await ann.page.path() == "/dashboard"
    cookie = await ann.cookie()
    assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Lax")

    await ann.sign_out()
    with expected(ann.page, "status of 401"):
        await ann.sign_in("not the password")
    assert (ann.page.status, await ann.page.path()) == (401, "/login")
    assert "not the password" not in await ann.page.evaluate("document.documentElement.outerHTML")
    assert await ann.page.evaluate("document.getElementById('name').value") == ann.name


async def test_a_login_link_works_once(stack: RunningStack, watch: Watch, api_client: ApiClient) -> None:
    person = await api_client.register("lin")
    printed = await stack.aicli("dashboard", "--print", AICLI_API_KEY=person.key.secret)
    link = printed.out.strip()
    lin = await visitor(watch, stack)
    await lin.page.goto(link)
    await lin.page.click("button", "Continue")
    assert await lin.page.path() == "/dashboard"
    await lin.sees(person.username)

    other = await visitor(watch, stack)
    await other.page.goto(link)
    with expected(other.page, "status of 401"):
        await other.page.click("button", "Continue")
    assert await other.page.path() != "/dashboard"
    assert other.page.status == 401


async def test_a_page_runs_and_loads_nothing_that_is_not_its_own(stack: RunningStack, watch: Watch) -> None:
    ann = await visitor(watch, stack)
    await ann.goes("/login")
    assert "default-src 'none'" in ann.page.headers["content-security-policy"]
    # Try all three ways to inject something; the watch must report each of them, too.
    markup = "document.body.innerHTML = '<b>made of text</b>'"
    inline = "document.head.append(Object.assign(document.createElement('style'), {textContent: 'body { color: red }'}))"
    outside = "fetch('http://127.0.0.1:9/').then(() => 'asked', () => 'refused')"
    seen = ("require-trusted-types-for", "TrustedHTML", "style-src", "connect-src", "kTrustedTypesSinkViolation", "127.0.0.1:9")
    with expected(ann.page, *seen):
        refused = await ann.page.evaluate(f"(() => {{ try {{ {markup} }} catch (error) {{ return error.name }} }})()")
        await ann.page.evaluate(inline)
        assert (refused, await ann.page.evaluate(outside)) == ("TypeError", "refused")
        assert await ann.page.evaluate("getComputedStyle(document.body).color") != "rgb(255, 0, 0)"


@pytest.mark.nightly("pages")
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
async def test_no_page_scrolls_sideways_on_a_telephone(stack: RunningStack, watch: Watch, dark: bool) -> None:
    ann = await visitor(watch, stack, width=390, dark=dark)
    wide = {}

    async def measure(name: str) -> None:
        wide[name] = await ann.page.evaluate("Math.max(document.documentElement.scrollWidth, document.body.scrollWidth)")

    for path in ("/", "/register", "/login"):
        await ann.goes(path)
        await measure(path)
    with expected(ann.page, "status of 404"):
        await ann.goes("/nothing-here")
    await measure("nothing here")
    await ann.register()
    key = await ann.shown_key()
    await measure("a new key")
    async with stack.http(key) as http:
        await http.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "one two three"}]})
    await ann.page.reload()
    await measure("usage")
    await ann.create_key("long" * 20)
    await measure("keys")
    await ann.ask_to_revoke("long" * 20)
    await measure("revoke")
    assert {name: width for name, width in wide.items() if width > 390} == {}
