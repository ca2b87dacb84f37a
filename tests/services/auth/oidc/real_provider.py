"""npm's oidc-provider in its own process, and a browser that logs in there."""

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urljoin, urlsplit

import httpx
from pyhyperswarm import find_node

from services.auth.oidc.flow import ProviderReply
from tests.services.auth.oidc import keys
from tests.services.auth.oidc.keys import Key

FOLDER = Path(__file__).parent / "provider"
START_SECONDS = 60
SECRET = "s" * 40
REDIRECT_URI = "http://127.0.0.1:3000/oidc"
AFTER_LOGOUT = "http://127.0.0.1:3000/"
ALGORITHMS = ("RS256", "PS256", "ES256", "EdDSA")
PUBLIC = "public"
_MAX_STEPS = 12

PEOPLE: dict[str, dict[str, Any]] = {
    "ann-1": {
        "password": "ann's password",
        "preferred_username": "Ann",
        "email": "ann@example.com",
        "email_verified": True,
        "groups": ["staff", "makers"],
    },
    "bob-2": {"password": "bob's password", "preferred_username": "ann", "email": "bob@example.com", "email_verified": False},
}


def client(client_id: str, **changed: Any) -> dict[str, Any]:
    usual = {"client_secret": SECRET, "redirect_uris": [REDIRECT_URI], "post_logout_redirect_uris": [AFTER_LOGOUT]}
    return {"client_id": client_id, **usual, **changed}


def usual_options(signing: list[Key]) -> dict[str, Any]:
    """Return options with one client for each algorithm, named after it, and a public client."""
    clients = [client(algorithm, id_token_signed_response_alg=algorithm) for algorithm in ALGORITHMS]
    public = client(PUBLIC, token_endpoint_auth_method="none")
    del public["client_secret"]
    jwks = [key.jwk(private=True) for key in signing]
    return {"people": PEOPLE, "clients": [*clients, public], "keys": jwks, "algorithms": ALGORITHMS}


def new_keys(generation: str) -> list[Key]:
    return [keys.make(algorithm, f"{algorithm}-{generation}") for algorithm in ALGORITHMS]


@contextlib.asynccontextmanager
async def real_provider(**options: Any) -> AsyncIterator[str]:
    """Yield the issuer. The provider ends with its standard input, so it never outlives this process."""
    assert (FOLDER / "node_modules" / "oidc-provider").is_dir(), "the test provider is not installed: run `make setup`"
    pipe = asyncio.subprocess.PIPE
    arguments = json.dumps({**usual_options(new_keys("1")), **options})
    process = await asyncio.create_subprocess_exec(find_node(), FOLDER / "provider.js", arguments, stdin=pipe, stdout=pipe, stderr=pipe)
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        async with asyncio.timeout(START_SECONDS):
            line = await process.stdout.readline()
        assert line, (await process.stderr.read()).decode()
        yield json.loads(line)["issuer"]
    finally:
        process.stdin.close()
        await process.communicate()


@dataclass
class Browser:
    """Follows redirects and fills in forms."""

    http: httpx.AsyncClient
    #: The headings of the pages that it has seen.
    seen: list[str] = field(default_factory=list)

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, **options: Any) -> AsyncIterator["Browser"]:
        async with httpx.AsyncClient(trust_env=False, timeout=START_SECONDS, **options) as http:
            yield cls(http)

    async def log_in(self, url: str, person: str = "ann-1", *, password: str | None = None, consent: str = "allow") -> ProviderReply:
        """Log in at the provider, and return the provider's reply."""
        typed = {"login": person, "password": password or PEOPLE[person]["password"], "answer": consent}
        landed = await self._follow(await self.http.get(url), typed)
        answered = {name: values[0] for name, values in parse_qs(urlsplit(landed).query).items()}
        return ProviderReply(
            state=answered.get("state", ""), code=answered.get("code"), error=answered.get("error"), iss=answered.get("iss")
        )

    async def log_out(self, url: str) -> str:
        """Log out, and return the final URL."""
        return await self._follow(await self.http.get(url), {"logout": "yes"})

    async def _follow(self, response: httpx.Response, typed: dict[str, str]) -> str:
        for _ in range(_MAX_STEPS):
            if response.is_redirect:
                target = urljoin(str(response.url), response.headers["location"])
                if target.startswith((REDIRECT_URI, AFTER_LOGOUT)):
                    return target
                response = await self.http.get(target)
                continue
            assert response.status_code == 200, f"{response.status_code} at {response.url.path}: {response.text[:500]}"
            self.seen += re.findall(r"<h1>(.*?)</h1>", response.text)
            hidden = dict(re.findall(r'type="hidden" name="(\w+)" value="([^"]*)"', response.text))
            action = re.search(r'action="([^"]*)"', response.text)
            target = urljoin(str(response.url), action[1] if action else "")
            response = await self.http.post(target, data={**hidden, **typed})
        raise AssertionError(f"sent in circles: {self.seen}")
