"""The web pages in a real browser: what a person does there, with and without JavaScript, on a desk and on a telephone."""

import re
import secrets
from decimal import Decimal

import pytest

from tests.acceptance.chromium import Browser, Page
from tests.stacks import RunningStack

PASSWORD = "correct horse battery staple"
KEY = re.compile(r"aip_live_[A-Za-z0-9]{49}")


def is_quiet(page: Page, origin: str) -> bool:
    """Nothing went wrong in the browser's eyes, and nobody else was asked for anything."""
    foreign = [url for url in page.requests if not url.startswith((f"{origin}/", "data:", "about:"))]
    assert not foreign
    assert not page.problems
    return True


async def register(page: Page, origin: str) -> str:
    """From the start page to the dashboard, which is the answer to the form; returns the new user's name."""
    name = f"ann-{secrets.token_hex(4)}"
    await page.goto(f"{origin}/")
    await page.click("a.button", "Create an account")
    await page.fill(username=name, email=f"{name}@example.org", password=PASSWORD)
    await page.click("button", "Create account")
    assert f"Welcome, {name}" in await page.text()
    return name


async def shown_key(page: Page) -> str | None:
    """The key in the box that shows it once."""
    value = await page.evaluate("document.querySelector('textarea.secret')?.value")
    assert value is None or KEY.fullmatch(value)
    return value


async def sign_out(page: Page) -> None:
    await page.click("header button", "Sign out")


async def sign_in(page: Page, origin: str, name: str, password: str = PASSWORD) -> None:
    await page.goto(f"{origin}/login")
    await page.fill(name=name, password=password)
    await page.click("main button", "Sign in")


@pytest.mark.parametrize("javascript", [True, False], ids=["with JavaScript", "without JavaScript"])
async def test_from_registration_to_a_counted_request(stack: RunningStack, browser: Browser, javascript: bool) -> None:
    origin = stack.url("web")
    page = await browser.open(javascript=javascript)
    await register(page, origin)
    key = await shown_key(page)
    assert key is not None

    await page.reload()  # sends the form again, as a person would allow the browser to
    assert (await page.path(), await shown_key(page)) == ("/dashboard", None)
    assert key not in await page.text()
    assert "No requests in the last 30 days" in await page.text()

    async with stack.http(key, service="web") as http:
        answer = await http.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "one two three"}]})
        assert answer.status_code == 200, answer.text
        tokens = answer.json()["usage"]["total_tokens"]
    await page.reload()
    numbers = await page.evaluate("[...document.querySelectorAll('.numbers .big')].map(each => each.innerText)")
    used = answer.json()["usage"]
    left = 100_000 - (used["prompt_tokens"] * Decimal("0.0001") + used["completion_tokens"] * Decimal("0.0002"))
    assert numbers == ["99 of 100 requests", f"{left:,}", "1", str(tokens)]
    assert await page.evaluate("document.querySelector('.chart title').textContent.endsWith(' tokens, 1 request')")
    assert is_quiet(page, origin)


@pytest.mark.parametrize("javascript", [True, False], ids=["with JavaScript", "without JavaScript"])
async def test_a_key_from_creation_to_revocation(stack: RunningStack, browser: Browser, javascript: bool) -> None:
    origin = stack.url("web")
    page = await browser.open(javascript=javascript)
    await register(page, origin)
    await page.click("nav a", "API keys")
    await page.fill(name="<b>laptop</b> & co")
    # Limits are folded away: most keys have none.
    await page.evaluate("document.querySelector('main details summary').click()")
    await page.fill(requests_per_hour="7")
    await page.click("main button", "Create key")
    key = await shown_key(page)
    assert key is not None
    assert "“<b>laptop</b> & co” is ready." in await page.text()
    await page.goto(f"{origin}/api-keys")
    assert await shown_key(page) is None
    assert "7 / h" in await page.text()

    async with stack.http(key) as http:
        assert (await http.get("/v1/models")).status_code == 200
        await page.click("a[aria-label='Revoke <b>laptop</b> & co']")
        assert "Programs that use it are refused at once." in await page.text()
        await page.click("main button", "Revoke key")
        assert "The key is revoked." in await page.text()
        assert (await http.get("/v1/models")).status_code == 401
    assert is_quiet(page, origin)


async def test_signing_out_and_in_again(stack: RunningStack, browser: Browser) -> None:
    origin = stack.url("web")
    page = await browser.open()
    name = await register(page, origin)
    await sign_out(page)
    assert "Create an account" in await page.text()
    await page.goto(f"{origin}/dashboard")
    assert await page.path() == "/login"

    await page.fill(name=name, password=PASSWORD)
    await page.click("main button", "Sign in")
    assert await page.path() == "/dashboard"
    cookies = (await page.send("Network.getCookies"))["cookies"]
    assert [(cookie["httpOnly"], cookie["sameSite"]) for cookie in cookies] == [(True, "Lax")]
    assert is_quiet(page, origin)

    await sign_out(page)
    await sign_in(page, origin, name, "not the password")
    assert (page.status, await page.path()) == (401, "/login")
    assert "not the password" not in await page.evaluate("document.documentElement.outerHTML")
    assert await page.evaluate("document.getElementById('name').value") == name


async def test_a_login_link_works_once(stack: RunningStack, browser: Browser) -> None:
    printed = await stack.aicli("dashboard", "--print")
    link = printed.out.strip()
    page = await browser.open()
    await page.goto(link)
    await page.click("button", "Continue")
    assert await page.path() == "/dashboard"
    assert "admin" in await page.text()
    assert is_quiet(page, stack.url("web"))

    other = await browser.open()
    await other.goto(link)
    await other.click("button", "Continue")
    assert await other.path() != "/dashboard"
    assert other.status == 401


async def test_a_page_runs_and_loads_nothing_that_is_not_its_own(stack: RunningStack, browser: Browser) -> None:
    page = await browser.open()
    await page.goto(f"{stack.url('web')}/login")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    inline = "document.head.append(Object.assign(document.createElement('script'), {textContent: 'window.ran = true'}))"
    outside = "fetch('http://127.0.0.1:9/').then(() => 'asked', () => 'refused')"
    assert await page.evaluate(f"{inline}, window.ran === true") is False
    assert await page.evaluate(outside) == "refused"
    assert sum("Content Security Policy" in problem for problem in page.problems) >= 2


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
async def test_no_page_scrolls_sideways_on_a_telephone(stack: RunningStack, browser: Browser, dark: bool) -> None:
    origin = stack.url("web")
    page = await browser.open(width=390, dark=dark)
    wide = {}

    async def measure(name: str) -> None:
        wide[name] = await page.evaluate("Math.max(document.documentElement.scrollWidth, document.body.scrollWidth)")

    for path in ("/", "/register", "/login", "/nothing-here"):
        await page.goto(origin + path)
        await measure(path)
    page.problems.clear()  # the 404 is one
    await register(page, origin)
    key = await shown_key(page)
    await measure("a new key")
    async with stack.http(key) as http:
        await http.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "one two three"}]})
    await page.reload()
    await measure("usage")
    await page.goto(f"{origin}/api-keys")
    await page.fill(name="long" * 20)
    await page.click("main button", "Create key")
    await measure("keys")
    await page.click("a.danger")
    await measure("revoke")
    assert {name: width for name, width in wide.items() if width > 390} == {}
    assert is_quiet(page, origin)
