"""A user at a browser, who clicks and types on the pages."""

import json
import re
import secrets
from dataclasses import dataclass
from typing import Any

from shared.api import auth
from shared.types import UserRole
from tests.acceptance import authenticator
from tests.acceptance.chromium import Page
from tests.people import ApiClient

PASSWORD = "correct horse battery staple"
NEW_PASSWORD = "quite another horse battery"
KEY = re.compile(r"aip_live_[A-Za-z0-9]{49}")


@dataclass(slots=True)
class Visitor:
    page: Page
    origin: str
    name: str = ""
    password: str = PASSWORD

    async def goes(self, path: str) -> None:
        await self.page.goto(f"{self.origin}{path}")

    async def sees(self, *words: str) -> bool:
        text = await self.page.text()
        for each in words:
            assert each in text, f"not to be read on {await self.page.path()}: {each!r}\n{text}"
        return True

    async def register(self, name: str = "ann") -> None:
        """Register from the start page. The overview is the answer to the form."""
        self.name = f"{name}-{secrets.token_hex(4)}"
        await self.goes("/")
        await self.page.click("a.button", "Create an account")
        await self.page.fill(username=self.name, email=f"{self.name}@example.org", password=self.password)
        await self.page.click("button", "Create account")
        await self.sees(f"Welcome, {self.name}")

    async def sign_in(self, password: str | None = None) -> None:
        """Sign in up to the page that follows the password."""
        await self.goes("/login")
        await self.page.fill(name=self.name, password=password or self.password)
        await self.page.click("main button", "Sign in")

    async def sign_out(self) -> None:
        await self.page.press("header .account summary")
        await self.page.click("header .menu button", "Sign out")

    async def type_first_code(self) -> str:
        """Go from the page with the QR code to the recovery codes. Return the secret, which a user without a camera types into the app."""
        await self.page.press("summary", "Can’t scan it?")
        secret = str(await self.page.evaluate("document.getElementById('secret').innerText"))
        await self.page.fill(code=authenticator.code_of(secret))
        await self.page.click("button", "Enable")
        return secret

    async def set_up_factor(self) -> tuple[str, list[str]]:
        """Set up the second factor. Return the secret and the recovery codes."""
        secret = await self.type_first_code()
        codes = str(await self.page.evaluate("document.getElementById('codes').innerText")).split()
        await self.page.click("a.button", "I’ve saved my codes")
        return secret, codes

    async def shown_key(self) -> str | None:
        """Return the key in the box that shows it once."""
        value = await self.page.evaluate("document.querySelector('textarea.secret')?.value")
        if value is None:
            return None
        assert KEY.fullmatch(value)
        return str(value)

    async def create_key(self, name: str, **limits: str) -> str:
        """Create a key and return it; ``limits`` are typed into the fields with these ids."""
        await self.goes("/api-keys")
        await self.page.fill(name=name)
        if limits:
            # Collapsed, because most keys have no limits.
            await self.page.press("main details summary", "Limits")
            await self.page.fill(**limits)
        await self.page.click("main button", "Create key")
        key = await self.shown_key()
        assert key is not None
        return key

    async def ask_to_revoke(self, name: str) -> None:
        """Open the page that asks for confirmation."""
        await self.goes("/api-keys")
        await self.page.click(f"a[aria-label={json.dumps(f'Revoke {name}')}]")

    async def revoke_key(self, name: str) -> None:
        await self.ask_to_revoke(name)
        await self.page.click("main button", "Revoke key")
        await self.sees("Key revoked.")

    async def texts(self, selector: str) -> list[str]:
        """Return the text of each matching element, from the top."""
        return list(await self.page.evaluate(f"[...document.querySelectorAll({json.dumps(selector)})].map(each => each.innerText)"))

    async def rows(self, selector: str = "main tbody tr") -> list[str]:
        return [" ".join(text.split()) for text in await self.texts(selector)]

    async def cookie(self) -> dict[str, Any]:
        """Return the session cookie; the only other cookie marks the browser."""
        cookies = {cookie["name"]: cookie for cookie in (await self.page.send("Network.getCookies"))["cookies"]}
        assert set(cookies) <= {"aimesh_session", "aimesh_browser"}
        return dict(cookies["aimesh_session"])


async def administrator(page: Page, origin: str, api_client: ApiClient) -> Visitor:
    """Sign in a new administrator with a second factor."""
    person = await api_client.register("ada")
    await api_client.mesh.rpc.call(auth.set_role, auth.SetRole(person.username, UserRole.ADMIN), credential=api_client.admin_key)
    ada = Visitor(page, origin, person.username, person.password)
    await ada.sign_in()
    await ada.set_up_factor()
    return ada
