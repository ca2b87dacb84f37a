"""Signing in at a real login provider in a real browser, under our pages' content security policy."""

import pytest

from tests.acceptance.visitor import Visitor
from tests.acceptance.watching import Watch
from tests.services.auth.oidc import real_provider
from tests.services.auth.oidc.real_provider import PEOPLE
from tests.stacks import RunningStack


@pytest.mark.nightly("stacks")
async def test_an_account_at_the_provider_opens_one_here(stack: RunningStack, watch: Watch, provider_port: int) -> None:
    origin = stack.url("web")
    known = real_provider.client("aimesh", redirect_uris=[f"{origin}/login/oidc/back"], post_logout_redirect_uris=[f"{origin}/"])
    async with real_provider.real_provider(port=provider_port, clients=[known]) as issuer:
        watch.strangers.append(issuer)
        ann = Visitor(await watch.open(), origin)
        await _sign_in(ann, "ann-1")
        await ann.sees("ann@example.com", "and have no password here")
        await ann.sign_out()
        await ann.page.until("document.readyState === 'complete' && location.pathname !== '/logout'")
        await ann.goes("/dashboard")
        assert await ann.page.path() == "/login"

        # The flow works without JavaScript, and another person with the same name gets their own account.
        bob = Visitor(await watch.open(javascript=False, width=390), origin)
        await _sign_in(bob, "bob-2")
        await bob.sees("and have no password here")
        assert "ann@example.com" not in await bob.page.text()


async def _sign_in(person: Visitor, subject: str) -> None:
    page = person.page
    await person.goes("/login?then=/settings/security")
    await page.click("button", "Continue with Example")
    await page.until("document.title === 'Log in at the test provider'")
    # The provider's fields have names but no ids.
    await page.evaluate("document.querySelectorAll('input').forEach(each => { each.id = each.name })")
    await page.fill(login=subject, password=PEOPLE[subject]["password"])
    await page.press("button", "Log in")
    await page.until("document.title === 'May this mesh know who you are?'")
    await page.press("button", "Allow")
    await page.until("location.pathname === '/settings/security' && document.readyState === 'complete'")
