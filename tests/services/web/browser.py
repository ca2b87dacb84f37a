"""A minimal browser: it keeps cookies, fills in the forms of a page, and sends its origin."""

import re
from html.parser import HTMLParser

import httpx

SAME_ORIGIN = {"Sec-Fetch-Site": "same-origin"}
#: The heading of the page that asks for the password before something sensitive.
CONFIRM = "Confirm it’s you"


class _Forms(HTMLParser):
    """The forms of a page: action -> fields with their values."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, dict[str, str]] = {}
        self._open: dict[str, str] | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        present = dict(attrs)
        if tag == "form":
            if present.get("method") == "get":
                # A search form: its fields are in the URL, and it needs no token.
                return
            assert present.get("method") == "post", "a form says whether it changes something"
            self._open = self.found.setdefault(present["action"] or "", {})
        elif tag == "input" and self._open is not None and present.get("name"):
            self._open[present["name"] or ""] = present.get("value") or ""

    def handle_endtag(self, tag: str) -> None:
        if tag == "form":
            self._open = None


def forms_of(page: httpx.Response) -> dict[str, dict[str, str]]:
    parser = _Forms()
    # Feeding whole pages to this parser would take most of a test's time.
    parser.feed("".join(re.findall(r"<form\b.*?</form>", page.text, re.DOTALL)))
    return parser.found


class Browser:
    def __init__(self, client: httpx.AsyncClient) -> None:
        self.client = client

    async def get(self, path: str) -> httpx.Response:
        return await self.client.get(path)

    async def submit(self, page: httpx.Response, action: str, headers: dict[str, str] = SAME_ORIGIN, /, **values: str) -> httpx.Response:
        """Send the form of ``page`` with ``action``, with ``values`` typed into it."""
        fields = forms_of(page)[action] | values
        return await self.client.post(action, data=fields, headers=headers)

    async def sign_in(self, username: str, password: str) -> httpx.Response:
        return await self.submit(await self.get("/login"), "/login", name=username, password=password)


def shown_key(page: httpx.Response) -> str | None:
    found = re.search(r"<textarea[^>]*>((?:aip_[a-z]+|whsec)_\w+)</textarea>", page.text)
    return found[1] if found else None
