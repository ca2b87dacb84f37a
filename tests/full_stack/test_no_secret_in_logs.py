"""Use every kind of secret at every entry point, correctly and incorrectly. Afterwards no secret may be in a log, a trace, a process
argument, PostgreSQL or Valkey.

The search also finds a secret's bytes in hex and base64. There are two exceptions: without a mail server, auth prints its mails to its
log, and some carry a code; and auth keeps the ID token of a login at a provider, to end the session there.
"""

import asyncio
import base64
import html
import json
import re
import secrets
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from services.auth.mfa import totp
from shared import errors
from shared.api import accounts, auth, organizations
from shared.identity import tickets
from shared.types import Credential
from stack import secret_files
from tests import otlp_receiver
from tests.full_stack import searching
from tests.full_stack.conftest import Surroundings
from tests.full_stack.searching import Hidden, Hit
from tests.integration import asking
from tests.people import ApiClient, Person
from tests.services.auth.oidc.scripted_provider import ScriptedProvider
from tests.stacks import RunningStack, until

#: Without a mail server, auth logs its mails, which carry these kinds of codes.
MAIL_LOG = "log auth mail"
MAILED = frozenset({"reset code", "invitation", "colleague"})
_FORM_TOKEN = re.compile(r'name="token" value="([^"]+)"')
#: A code in a mail, alone on its line.
_CODE_LINE = re.compile(r"^[0-9A-Za-z_-]{40,}$", re.MULTILINE)


# --- the pages -----------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Pages:
    """A minimal browser: it keeps cookies, and sends the token of each form."""

    http: httpx.AsyncClient

    async def send(self, page: str, path: str | None = None, **fields: str) -> httpx.Response:
        """Open a page and send its form to ``path``, by default the page's own."""
        seen = await self.http.get(page)
        token = _FORM_TOKEN.search(seen.text)
        assert token is not None, f"{page}: {seen.status_code} {seen.text[:300]}"
        return await self.http.post(path or page, data={**fields, "token": html.unescape(token[1])})

    async def sign_in(self, name: str, password: str) -> httpx.Response:
        return await self.send("/login", name=name, password=password, then="")


@asynccontextmanager
async def _pages(stack: RunningStack) -> AsyncIterator[Pages]:
    async with stack.http(service="web") as http:
        yield Pages(http)


# --- each kind of secret is created and used -----------------------------------------------------------------------------


def _of_the_house(stack: RunningStack, surroundings: Surroundings, hidden: Hidden) -> None:
    """Add the secrets that the stack was started with: keys of nodes and the mesh, sealing and signing keys, server passwords."""
    for path in (*stack.place.secrets.rglob("*"), *stack.place.keys.glob("*.nk")):
        if path.is_file() and not path.name.startswith("database_url"):
            hidden.add(path.name, path.read_text(encoding="utf-8").strip())
    hidden.add("data_key", base64.b64decode(secret_files.read(stack.place, "data_key")))
    hidden.add("secret at the provider", surroundings.provider_secret)
    assert {"data_key", "admin_key", "admin_password", "mesh_ca.nk", "relay_seed", "key_pepper", "auth.nk"} <= hidden.forms.keys()


async def _keys(stack: RunningStack, api_client: ApiClient, ann: Person, hidden: Hidden) -> None:
    made = [ann.key.secret]
    for kind in (auth.KeyKind.LIVE, auth.KeyKind.TEST):
        one = await api_client.mesh.rpc.call(auth.generate_api_key, auth.GenerateApiKey(kind.value, kind=kind), credential=ann.access_token)
        made.append(one.api_key)
    rotated = await api_client.mesh.rpc.call(auth.rotate_api_key, auth.RotateApiKey("live"), credential=ann.access_token)
    by_cli = (await stack.aicli("keys", "create", "cli", "--json", AICLI_API_KEY=ann.key.secret)).json()["key"]
    async with stack.http(ann.access_token) as http:
        by_http = (await http.post("/api/auth/api-keys", json={"name": "http"})).json()["api_key"]
    for key in (*made, rotated.api_key, by_cli, by_http):
        hidden.add("API key", key.rpartition("_")[2])
        for service in ("gateway", "web"):
            async with stack.http(service=service) as http:
                await http.get("/v1/models", headers={"x-api-key": key})
                await http.get("/v1/models", headers={"authorization": f"Bearer {key[:-1]}"})
    await stack.aicli("keys", "scan", "-", "--json", stdin=by_cli)
    gone = await stack.aicli("keys", "revoke", "cli", "--json", AICLI_API_KEY=ann.key.secret)
    assert gone.status == 0
    async with stack.http(by_cli) as http:
        assert (await http.get("/v1/models")).status_code == 401


async def _sessions(stack: RunningStack, api_client: ApiClient, ann: Person, hidden: Hidden) -> None:
    hidden.add("password", ann.password)
    hidden.add("access token", ann.access_token.split(".")[2])
    async with stack.http() as http:
        first = (await http.post("/api/auth/login", json={"username": ann.username, "password": ann.password})).json()
        second = (await http.post("/api/auth/refresh", json={"session_token": first["session_token"]})).json()
        for one in (first, second):
            hidden.add("session token", one["session_token"])
            hidden.add("access token", one["access_token"].split(".")[2])
        await http.post("/api/auth/refresh", json={"session_token": second["session_token"] + "x"})
        await http.get("/api/usage", headers={"authorization": f"Bearer {second['access_token']}x"})
        # A browser's session token where a program's is required.
        async with _pages(stack) as pages:
            assert (await pages.sign_in(ann.username, ann.password)).status_code == 303
            cookie = pages.http.cookies["aimesh_session"]
            hidden.add("session token", cookie)
            assert (await http.post("/api/auth/refresh", json={"session_token": cookie})).status_code == 400
    async with _pages(stack) as pages:
        assert (await pages.sign_in(ann.password, ann.password)).status_code == 401, "typed into the wrong field"
    link = (await stack.aicli("dashboard", "--print", AICLI_API_KEY=ann.key.secret)).out.strip()
    token = parse_qs(urlsplit(link).query)["token"][0]
    hidden.add("login link", token.rpartition("_")[2])
    async with _pages(stack) as pages:
        assert (await pages.send(link.replace(stack.url("web"), ""), "/login-link", link=token)).status_code == 303
        assert (await pages.send(f"/login-link?token={token}", "/login-link", link=token)).status_code == 401


async def _second_factor(stack: RunningStack, api_client: ApiClient, hidden: Hidden) -> None:
    eve = await api_client.register("eve")
    hidden.add("password", eve.password)
    seed = await api_client.mesh.rpc.call(accounts.begin_mfa, accounts.BeginMfa(), credential=eve.access_token)
    raw = base64.b32decode(seed.secret + "=" * (-len(seed.secret) % 8))
    hidden.add("seed of a second factor", seed.secret, raw)
    with pytest.raises(errors.CallerError):
        await api_client.mesh.rpc.call(accounts.enable_mfa, accounts.EnableMfa(seed.secret), credential=eve.access_token)
    code = totp.code_at(raw, totp.step_at(time.time()))
    codes = (await api_client.mesh.rpc.call(accounts.enable_mfa, accounts.EnableMfa(code), credential=eve.access_token)).codes
    hidden.add("recovery code", *codes)
    hidden.add("recovery code", *(one.replace("-", "") for one in codes))
    async with stack.http() as http:
        body = {"username": eve.username, "password": eve.password}
        assert (await http.post("/api/auth/login", json={**body, "code": codes[0]})).status_code == 200
        assert (await http.post("/api/auth/login", json={**body, "code": codes[0]})).status_code == 401
    async with _pages(stack) as pages:
        assert (await pages.sign_in(eve.username, eve.password)).headers["location"] == "/login/code"
        assert (await pages.send("/login/code", code=codes[0], then="")).status_code == 403
        assert (await pages.send("/login/code", code=codes[1], then="")).status_code == 303
    await _seed_on_the_page(stack, api_client, hidden)


async def _seed_on_the_page(stack: RunningStack, api_client: ApiClient, hidden: Hidden) -> None:
    """The setup form contains the seed, so the browser sends it again, even with a mistyped code."""
    fay = await api_client.register("fay")
    async with _pages(stack) as pages:
        await pages.sign_in(fay.username, fay.password)
        shown = await pages.send("/settings/security", "/settings/security/second-factor/begin")
        uri = html.unescape(re.search(r'name="uri" value="([^"]+)"', shown.text)[1])  # type: ignore[index]
        secret = parse_qs(urlsplit(uri).query)["secret"][0]
        hidden.add("seed of a second factor", secret, base64.b32decode(secret + "=" * (-len(secret) % 8)))
        token = html.unescape(_FORM_TOKEN.search(shown.text)[1])  # type: ignore[index]
        wrong = await pages.http.post("/settings/security/second-factor", data={"token": token, "code": "000000", "uri": uri, "then": ""})
        assert wrong.status_code in {400, 403}, wrong.text[:300]


async def _reset(stack: RunningStack, api_client: ApiClient, hidden: Hidden) -> None:
    ida = await api_client.register("ida")
    async with _pages(stack) as pages:
        assert (await pages.send("/forgot", name=ida.username)).status_code == 303
        code = await _mailed_code(stack, f"{ida.username}@example.org")
        hidden.add("reset code", code)
        new = secrets.token_urlsafe(18)
        hidden.add("password", ida.password, new)
        assert (await pages.send("/reset", code=code, new_password=new, repeated=new + "x")).status_code == 400
        assert (await pages.send(f"/reset?token={code}", "/reset", code=code, new_password=new, repeated=new)).status_code == 303
        assert (await pages.send("/reset", code=code, new_password=new, repeated=new)).status_code == 401
        assert (await pages.sign_in(ida.username, new)).status_code == 303
    with pytest.raises(errors.NotAuthenticated):
        await api_client.mesh.rpc.call(accounts.reset_password, accounts.ResetPassword(code, new))


async def _mailed_code(stack: RunningStack, to: str) -> str:
    async def find() -> str | None:
        mails = [json.loads(line) for line in stack.log("auth").splitlines() if searching.is_mail(line.encode())]
        codes = [found[0] for mail in mails if mail["to"] == to and (found := _CODE_LINE.search(mail["text"]))]
        return codes[-1] if codes else None

    return await until(find, what=f"a mail with a code for {to}")


async def _invitation(api_client: ApiClient, ann: Person, hidden: Hidden) -> None:
    team = await api_client.mesh.rpc.call(
        organizations.create_organisation, organizations.CreateOrganization("The makers"), credential=ann.access_token
    )
    invited = organizations.InviteMember(team.id, "somebody@example.org")
    made = await api_client.mesh.rpc.call(organizations.invite_member, invited, credential=ann.access_token)
    hidden.add("invitation", made.token)
    for asked in (made.token, made.token + "x"):
        with pytest.raises(errors.NotFound):
            await api_client.mesh.rpc.call(organizations.read_invitation, organizations.ReadInvitation(asked), credential=ann.access_token)
    with pytest.raises(errors.AimeshError):
        await api_client.mesh.rpc.call(
            organizations.accept_invitation, organizations.AcceptInvitation(made.token + "x"), credential=ann.access_token
        )


async def _colleague(stack: RunningStack, api_client: ApiClient, hidden: Hidden) -> None:
    made = (await stack.aicli("admin", "invite", "colleague@example.org", "--json")).json()["token"]
    hidden.add("colleague", made)
    with pytest.raises(errors.NotFound, match="there is no such invitation"):
        await api_client.mesh.rpc.call(organizations.read_colleague_invitation, organizations.ReadColleagueInvitation(made + "x"))
    for code, email in ((made + "x", "colleague@example.org"), (made, "another@example.org")):
        registration = auth.RegisterUser(auth.UserData("colleague", email, "short"), invitation=code)
        with pytest.raises(errors.BadRequest, match="password"):
            await api_client.mesh.rpc.call(auth.register_user, registration)
    found = await api_client.mesh.rpc.call(organizations.read_colleague_invitation, organizations.ReadColleagueInvitation(made))
    assert found.email == "colleague@example.org"


async def _ticket(stack: RunningStack, hidden: Hidden) -> None:
    made = (await stack.aicli("admin", "tickets", "create", "--role", "client", "--json")).json()["ticket"]
    hidden.add("ticket", made.removeprefix(tickets.PREFIX), tickets.parse(made).seed)
    profile = str(stack.home / "joined.toml")
    joined = await stack.aicli("mesh", "connect", "-", "--json", stdin=made, AICLI_PROFILE=profile)
    assert joined.status == 0, joined.err
    again = await stack.aicli("mesh", "connect", "-", "--json", stdin=made, AICLI_PROFILE=f"{profile}.again.toml")
    assert again.status != 0, "it was good for one machine"
    cut = await stack.aicli("mesh", "connect", "-", "--json", stdin=made[:-3], AICLI_PROFILE=f"{profile}.cut.toml")
    assert cut.status != 0


async def _provider(stack: RunningStack, port: int, hidden: Hidden) -> None:
    provider = ScriptedProvider(issuer=f"http://127.0.0.1:{port}")
    name = f"olga-{secrets.token_hex(4)}"
    provider.claims = {"sub": name, "preferred_username": name, "email": f"{name}@example.org"}
    server = await asyncio.start_server(provider.accept, "127.0.0.1", port)
    try:
        async with _pages(stack) as pages:
            for is_right in (False, True):
                away = await pages.send("/login/oidc", then="", fresh="")
                url = html.unescape(re.search(r'content="0;url=([^"]+)"', away.text)[1])  # type: ignore[index]
                asked = {key: values[0] for key, values in parse_qs(urlsplit(url).query).items()}
                provider.nonce, code = asked["nonce"], secrets.token_urlsafe(24)
                provider.id_token = provider.key.sign({**provider.usual_claims(), **provider.claims})
                hidden.add("code of the provider", code)
                hidden.add("ID token", provider.id_token.rpartition(".")[2])
                hidden.add("binding of a login", pages.http.cookies["aimesh_login"])
                state = asked["state"] if is_right else asked["state"] + "x"
                back = await pages.http.get("/login/oidc/back", params={"code": code, "state": state, "iss": provider.issuer})
                assert (back.status_code == 303) is is_right, back.text[:500]
            hidden.add("session token", pages.http.cookies["aimesh_session"])
        assert provider.authorization or provider.form, "the client's secret was shown to the provider"
    finally:
        server.close()
        for task in provider.serving:
            task.cancel()
        await asyncio.gather(*provider.serving, return_exceptions=True)


async def _prompt(stack: RunningStack, api_client: ApiClient, ann: Person, hidden: Hidden) -> None:
    canary = f"canary{secrets.token_hex(8)}"
    hidden.add("prompt", canary)
    for service in ("gateway", "web"):
        async with stack.http(ann.key.secret, service=service) as http:
            await asyncio.gather(*(ask(http, canary) for ask in asking.OVER_HTTP.values()))
            # The gateway stores the answer for the same idempotency key, and for the same question.
            for _ in range(2):
                await http.post("/v1/chat/completions", json=asking.chat_body(canary, temperature=0), headers={"idempotency-key": service})
            for body in ({"prompt": canary, "model": "none"}, {"prompt": canary, "temperature": canary}, {canary: canary}):
                assert 400 <= (await http.post("/api/inference", json=body)).status_code < 500
            await http.post("/v1/chat/completions", content=f'{{"messages": "{canary}', headers={"content-type": "application/json"})
    await asking.rpc(api_client.mesh, ann.key.secret, canary)
    assert (await stack.aicli("infer", "-m", "echo", "--json", "-", stdin=canary, AICLI_API_KEY=ann.key.secret)).status == 0
    assert (await stack.aicli("infer", "-m", "none", "--json", "-", stdin=canary, AICLI_API_KEY=ann.key.secret)).status != 0


async def _at_wrong_doors(stack: RunningStack, api_client: ApiClient, ann: Person, hidden: Hidden) -> None:
    """Send every secret where it doesn't belong: as a credential, a name, a password, a path and a field."""
    texts = [
        text for forms in hidden.forms.values() for form in sorted(forms)[:1] if (text := form.decode("ascii", "ignore")).isprintable()
    ]
    credentials = [ann.key.secret, ann.password, stack.api_key, *texts]
    for service in ("gateway", "web"):
        async with stack.http(service=service) as http:
            for text in credentials:
                await http.get("/v1/models", headers={"authorization": f"Basic {text}"})
                await http.get("/v1/models", params={"api_key": text}, headers={"cookie": f"aimesh_session={text}"})
                await http.get("/api/" + text.replace("/", "_"))
                await http.post("/api/auth/login", json={"username": text[:60], "password": text})
                await http.post("/api/auth/register", json={"username": ann.username, "email": "none", "password": text})
                await http.post("/api/auth/confirm", json={"code": text}, headers={"authorization": f"Bearer {ann.access_token}"})
    for text in credentials:
        for credential in (text, text + "x"):
            with pytest.raises(errors.AimeshError):
                request = auth.RotateApiKey("there is none", 0)
                await api_client.mesh.rpc.call(auth.rotate_api_key, request, credential=Credential(credential))
    refused = await stack.aicli("login", ann.username, "--password-stdin", "--json", stdin=f"{stack.api_key}\n")
    assert refused.status != 0


async def _settled(stack: RunningStack, api_client: ApiClient, ann: Person) -> None:
    """Wait for what is written after the answers: the log of the last request, and the audit record of the last refusal."""
    last = await asking.rpc(api_client.mesh, ann.key.secret, "the last one")
    zoe = await api_client.register("zoe")
    with pytest.raises(errors.NotAuthenticated):
        await api_client.mesh.rpc.call(auth.login_user, auth.LoginUser(auth.Credentials("not the password", zoe.username)))

    async def logged() -> bool:
        return str(last.request_id) in stack.log("gateway") and str(last.request_id) in stack.log("inference")

    async def recorded() -> bool:
        async with stack.database("auth") as database:
            rows = await database.fetch("SELECT t::text FROM audit_log AS t")
        return any(str(zoe.id) in row[0] and "refused" in row[0] for row in rows)

    await until(logged, what="the last request is logged")
    await until(recorded, what="the last refusal is in the record")


# --- the tests -----------------------------------------------------------------------------------------------------------


@pytest.mark.timeout(300)
async def test_no_secret_is_found_anywhere(stack: RunningStack, surroundings: Surroundings, api_client: ApiClient) -> None:
    hidden = Hidden()
    ann = await api_client.register("ann")
    _of_the_house(stack, surroundings, hidden)
    await _keys(stack, api_client, ann, hidden)
    await _sessions(stack, api_client, ann, hidden)
    await _second_factor(stack, api_client, hidden)
    await _reset(stack, api_client, hidden)
    await _invitation(api_client, ann, hidden)
    await _colleague(stack, api_client, hidden)
    await _ticket(stack, hidden)
    await _provider(stack, surroundings.provider_port, hidden)
    await _prompt(stack, api_client, ann, hidden)
    await _at_wrong_doors(stack, api_client, ann, hidden)
    await _settled(stack, api_client, ann)

    hits = await searching.search(stack, hidden) | await _handed_on(surroundings.otlp_port, hidden)
    meant = {hit for hit in hits if _is_meant(hit)}
    assert {hit.kind for hit in meant if hit.where == MAIL_LOG} == MAILED, "mails are printed, and carry these and nothing else"
    assert not hits - meant, "\n".join(f"{hit.where}: {hit.kind}" for hit in sorted(hits - meant))


async def _handed_on(port: int, hidden: Hidden) -> set[Hit]:
    """Return the hits in what a collector of traces and logs receives, which starts after everything else."""
    with otlp_receiver.receiving(port) as collector:

        async def has_both() -> bool:
            logged = {service for service, _ in list(collector.lines)}
            return {"gateway", "auth", "web"} <= logged and any(one.name == "ledger.settle" for one in list(collector.spans))

        await until(has_both, seconds=30, what="the collector has traces and logs")
        before = 0
        while before < len(collector.bodies):
            before = len(collector.bodies)
            await asyncio.sleep(0.05)
    return {Hit("OTLP", kind) for body in collector.bodies for kind in hidden.kinds_in(body)}


def _is_meant(hit: Hit) -> bool:
    if hit.where == MAIL_LOG:
        return hit.kind in MAILED
    # The token grants no access here: it is sent back to the provider, to end the session there.
    return hit.kind == "ID token" and hit.where.startswith("valkey auth:oidc:session:")


async def test_the_search_finds_what_is_there(stack: RunningStack) -> None:
    """Without this, the test above would prove nothing."""
    hidden, planted = Hidden(), f"planted{secrets.token_hex(12)}"
    hidden.add("planted", planted)
    assert not await searching.search(stack, hidden)
    log = stack.place.logs / "planted.log"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", "import sys; sys.stdin.read()", planted, stdin=asyncio.subprocess.PIPE
    )
    superuser = await searching.superuser(stack)
    try:
        log.write_text(f'{{"event": "{planted}"}}\n', encoding="utf-8")
        await superuser.execute("CREATE TABLE auth.planted (raw bytea)")
        await superuser.execute("INSERT INTO auth.planted VALUES ($1)", planted.encode())
        async with searching.valkey(stack) as client:
            await client.hset("planted", mapping={"deep": base64.b64encode(planted.encode())})
        found = {hit.where for hit in await searching.search(stack, hidden)}
    finally:
        await superuser.execute("DROP TABLE IF EXISTS auth.planted")
        await superuser.close(timeout=5)
        log.unlink()
        await process.communicate(b"")
    assert found == {f"ps {process.pid}", "log planted", "table auth.planted", "valkey planted"}
