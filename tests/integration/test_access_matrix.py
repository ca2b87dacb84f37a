"""Access control of the running services: every caller × every method and route × the caller's own objects and another's.

``shared.access_table`` says which rights a method needs. Who has them, and what follows, is worked out here independently of
``access.check``. A method or a route without a request here fails the test, so no cell is left out.
"""

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import httpx
import msgspec
import pytest
from nats.aio.client import Client as NatsClient

from shared import access_table, errors
from shared.access_rules import AccessRule, Audience
from shared.api import accounts, auth, gateway, organizations, usage_report
from shared.api.method import StreamMethod
from shared.node.client_node import ClientNode
from shared.types import ModelName, NodeId, Role
from tests.integration import access_people, access_requests, asking
from tests.integration.access_people import EVERYTHING, Asker, SeededDb
from tests.integration.access_requests import AnyMethod, Things
from tests.people import ApiClient, Person
from tests.stacks import MESH, RunningStack

pytestmark = pytest.mark.nightly("access")

#: Admitted, whatever the outcome there.
ALLOWED = "allowed"
#: Admitted, and shown; or answered as if the object did not exist, or not allowed.
SHOWN_ALL, HIDDEN = "shown", "hidden"
REFUSALS = {"not_authenticated", "not_allowed", "second_factor_needed", "confirmation_needed", "wrong_role"}
#: No access decision was made.
NO_ANSWERS = {"unknown_method", "internal", "not_reachable", "link_lost", "deadline_exceeded", "overloaded", "protocol_violation"}
METHODS = access_requests.methods()
#: Methods for users, which POST /rpc/{method} serves.
OVER_RPC = {name for name, method in METHODS.items() if Role.CLIENT in method.callers and Role.WORKER not in method.callers}
SECONDS = 10.0

#: Methods whose credential is in the request: a wrong one is refused for every caller.
BRINGS_ITS_OWN = {
    "auth.refreshSession", "auth.resumeSession", "auth.redeemLoginLink", "auth.validateApiKey", "auth.identify",
    "auth.resetPassword",
    "auth.verifyAddress",
    "POST /api/auth/refresh",
}  # fmt: skip
#: These act on a session, which a key doesn't have, or must not be open to a leaked key.
LOGINS_ALONE = {
    "auth.confirmLogin", "auth.confirmAgain", "auth.changePassword", "auth.beginMfa", "auth.enableMfa", "auth.disableMfa",
    "auth.renewRecoveryCodes", "auth.switchOrganisation", "auth.decideDeviceLogin", "POST /api/auth/confirm",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Cell:
    way: str
    #: A method or a route.
    what: str
    asker: str
    #: "", "own" or "another's".
    whose: str


# --- expected results -----------------------------------------------------------------------------------------------------


def expected(row: AccessRule, asker: Asker, way: str, what: str) -> str:
    """Return the expected result of a call that names no one else's objects."""
    refusals = (
        ("not_authenticated", asker.credential is None),
        ("second_factor_needed", asker.is_halfway and not row.halfway),
        ("not_allowed", bool(row.needs) and EVERYTHING not in asker.may and not asker.may & set(row.needs)),
        ("confirmation_needed", row.fresh and asker.is_stale),
        ("not_allowed", asker.is_bound and way not in {"http", "rpc"}),
    )
    if row.who is Audience.NODE:
        return "not_authenticated" if what in BRINGS_ITS_OWN else ALLOWED
    role_of_way = "client" if way == "rpc" else way
    if asker.credential is None and role_of_way in {role.value for role in row.unless}:
        return ALLOWED
    return next((code for code, is_so in refusals if is_so), None) or _by_its_handler(asker, what)


def _by_its_handler(asker: Asker, what: str) -> str:
    """Return the expected result after the access check: rules of single methods."""
    if asker.is_key and (what in LOGINS_ALONE or (what == "auth.createLoginLink" and (asker.is_narrow or asker.is_bound))):
        return "not_allowed"
    lacks_code = asker.is_halfway and asker.has_factor
    match what:
        case "auth.confirmLogin" | "POST /api/auth/confirm" if lacks_code:
            return "not_allowed"  # the request's code is wrong
        case "auth.beginMfa" | "auth.enableMfa" if lacks_code:
            return "second_factor_needed"  # a password alone must not suffice to replace the factor
        case "auth.confirmAgain" if asker.has_factor:
            return "second_factor_needed"  # the request has no code
        case "auth.disableMfa" if asker.is_admin:
            return "not_allowed"  # an administrator needs a second factor
        case _:
            return ALLOWED


@pytest.fixture
async def site(stack: RunningStack, api_client: ApiClient) -> AsyncIterator["Site"]:
    async with AsyncExitStack() as opened:
        web = await opened.enter_async_context(access_people.node(stack, Role.WEB))
        operator = await opened.enter_async_context(stack.operator())
        http = await opened.enter_async_context(stack.http())
        yield Site(stack, api_client, web, operator, http)


class Site:
    """The endpoints, and the callers' connections to them."""

    def __init__(self, stack: RunningStack, api_client: ApiClient, web: ClientNode, operator: NatsClient, http: httpx.AsyncClient) -> None:
        self.stack, self.api_client, self.web = stack, api_client, web
        self._operator, self._http = operator, http
        self.links = {"client": api_client.mesh, "web": web}

    async def over_link(
        self, mesh: ClientNode, method: AnyMethod, request: msgspec.Struct, asker: Asker, *, seconds: float = SECONDS
    ) -> str:
        to = None if method.served_by is not None else self._some_node(mesh)
        try:
            if isinstance(method, StreamMethod):
                async with mesh.rpc.stream(method, request, to=to, deadline_seconds=seconds, credential=asker.credential) as answer:
                    async for _ in answer:
                        break
            else:
                await mesh.rpc.call(method, request, to=to, deadline_seconds=seconds, credential=asker.credential)
        except errors.AimeshError as error:
            return errors.code_of(error)
        return ALLOWED

    async def over_nats(self, method: AnyMethod, request: msgspec.Struct, asker: Asker) -> str:
        headers = {"content-type": "application/json"} | (
            {} if asker.credential is None else {"authorization": f"Bearer {asker.credential}"}
        )
        if isinstance(method, StreamMethod):
            headers["stream"] = "true"  # the first message shows whether the call was admitted
        answer = await self._operator.request(_subject(method), msgspec.json.encode(request), timeout=SECONDS, headers=headers)
        if "Nats-Service-Error-Code" not in (answer.headers or {}):
            return ALLOWED
        return str(msgspec.json.decode(answer.data)["error"]["code"])

    async def over_http(self, route: str, body: Any, asker: Asker, which: str = "none") -> str:
        verb, path = route.split(" ")
        headers = {"X-Forwarded-For": "192.0.2.7", "Idempotency-Key": "matrix"} if verb == "DELETE" else {"X-Forwarded-For": "192.0.2.7"}
        if asker.credential is not None:
            headers["authorization"] = f"Bearer {asker.credential}"
        url = re.sub("{[^}]*}", which, path)
        answer = await self._http.request(verb, url, json=body, headers=headers)
        assert answer.status_code < 500, answer.text
        if answer.is_success:
            return ALLOWED
        if verb == "HEAD":  # an error has no body; that of another verb with the same rule has one
            rule = access_table.ROUTES[route]
            other = next(each for each in ("GET", "PATCH") if access_table.ROUTES.get(f"{each} {path}") == rule)
            status, answer = answer.status_code, await self._http.request(other, url, headers=headers)
            assert answer.status_code == status
        body = answer.json()
        error = body["error"] if isinstance(body["error"], dict) else body
        return str(error.get("aimesh_code", error["code"]))

    async def over_rpc(self, method: AnyMethod, request: msgspec.Struct, asker: Asker) -> str:
        headers = {"X-Forwarded-For": "192.0.2.7", "content-type": "application/json"}
        if asker.credential is not None:
            headers["authorization"] = f"Bearer {asker.credential}"
        answer = await self._http.post(f"/rpc/{method.name}", content=msgspec.json.encode(request), headers=headers)
        if answer.is_success and "event: error\ndata: " in answer.text:
            return str(msgspec.json.decode(answer.text.partition("event: error\ndata: ")[2].partition("\n")[0])["error"]["code"])
        return ALLOWED if answer.is_success else str(answer.json()["error"]["code"])

    async def over(self, way: str, method: AnyMethod, request: msgspec.Struct, asker: Asker) -> str:
        """Call over a link of this role, or over HTTP."""
        if way == "rpc":
            return await self.over_rpc(method, request, asker)
        return await self.over_link(self.links[way], method, request, asker)

    def ways(self, method: AnyMethod) -> list[str]:
        return [way for way in self.links if Role(way) in method.callers] + ["rpc"] * (method.name in OVER_RPC)

    @staticmethod
    def _some_node(mesh: ClientNode) -> NodeId:
        return mesh.directory.usable(Role.GATEWAY)[0].node


def _subject(method: AnyMethod) -> str:
    return f"aimesh.{MESH}.rpc.{method.served_by}.{method.name.partition('.')[2]}"


def seen(code: str) -> str:
    """Return the result of a cell: a method that isn't served, or didn't answer, doesn't count as admitted."""
    return code if code in REFUSALS or code in NO_ANSWERS else ALLOWED


def _fits(code: str, wanted: str) -> bool:
    match wanted:
        case "hidden":
            return code in {"not_allowed", "not_found"}
        case "shown":
            return code == ALLOWED
        case _:
            return seen(code) == wanted


class Matrix:
    """Checks and counts cells, and collects the wrong ones."""

    def __init__(self) -> None:
        self.cells: Counter[Cell] = Counter()
        self.wrong: list[str] = []

    def assert_cell(self, cell: Cell, code: str, wanted: str) -> None:
        self.cells[cell] += 1
        if not _fits(code, wanted):
            self.wrong.append(f"{cell.way:9} {cell.what:36} {cell.asker:40} {cell.whose:10} {code}, and ought to be {wanted}")

    def assert_unreachable(self, cell: Cell, code: str) -> None:
        self.cells[cell] += 1
        if code not in {"not_reachable", "deadline_exceeded", "wrong_role"}:
            self.wrong.append(f"{cell.way:9} {cell.what:36} {cell.asker:40} {code}, and there ought to be no way")

    def check(self, cells: int) -> None:
        """Check that so many cells were asserted, each once, and that none was wrong."""
        assert not self.wrong, "\n" + "\n".join(self.wrong)
        assert len(self.cells) == cells
        assert set(self.cells.values()) == {1}


# --- every method and route -----------------------------------------------------------------------------------------------


def test_every_method_and_route_has_a_request_here() -> None:
    assert set(access_requests.REQUESTS) <= set(access_table.METHODS) == set(METHODS)
    assert set(access_requests.BODIES) == set(access_table.ROUTES)
    for method in METHODS.values():
        assert isinstance(access_requests.request_of(method), method.request), method.name


@pytest.mark.timeout(300)
async def test_everybody_by_every_method_and_route(site: Site) -> None:
    askers = await SeededDb(site.stack, site.api_client, site.web).askers()
    matrix = Matrix()
    for asker in askers:
        for name, row in access_table.METHODS.items():
            method = METHODS[name]
            for way in site.ways(method):
                code = await site.over(way, method, access_requests.request_of(method), asker)
                matrix.assert_cell(Cell(way, name, asker.name, ""), code, expected(row, asker, way, name))
        for route, row in access_table.ROUTES.items():
            code = await site.over_http(route, access_requests.BODIES[route](), asker)
            matrix.assert_cell(Cell("http", route, asker.name, ""), code, expected(row, asker, "http", route))
    ways = sum(len(site.ways(METHODS[name])) for name in access_table.METHODS)
    matrix.check(len(askers) * (ways + len(access_table.ROUTES)))


@pytest.mark.timeout(300)
async def test_the_operator_by_every_method(site: Site) -> None:
    """A stock NATS client with the operator's key sends a user's credential as a header."""
    askers = await SeededDb(site.stack, site.api_client, site.web).askers()
    matrix = Matrix()
    for asker in askers:
        for name, row in access_table.METHODS.items():
            method = METHODS[name]
            if method.served_by is None:
                continue
            code = await site.over_nats(method, access_requests.request_of(method), asker)
            matrix.assert_cell(Cell("operator", name, asker.name, ""), code, _for_operator(method, row, asker))
    # Methods that every node serves about itself have no subject.
    matrix.check(len(askers) * sum(method.served_by is not None for method in METHODS.values()))


def _for_operator(method: AnyMethod, row: AccessRule, asker: Asker) -> str:
    if method.name == "inference.tryServer":
        # Only a worker with REMOTE_MODEL_HOSTS has it, and this stack has none.
        return "unknown_method"
    return expected(row, asker, "operator", method.name) if Role.OPERATOR in method.callers else "wrong_role"


@pytest.mark.timeout(300)
async def test_nodes_that_no_method_is_for_are_refused_whoever_is_behind_them(site: Site) -> None:
    askers = await SeededDb(site.stack, site.api_client, site.web).askers()
    matrix = Matrix()
    closed = [(way, name) for way in site.links for name in METHODS if Role(way) not in METHODS[name].callers]

    async def ask(way: str, name: str, asker: Asker) -> None:
        code = await site.over_link(
            site.links[way], METHODS[name], access_requests.request_of(METHODS[name]), asker, seconds=UNREACHABLE_SECONDS
        )
        cell = Cell(way, name, asker.name, "")
        if _has_link(way, METHODS[name]):
            matrix.assert_cell(cell, code, "wrong_role")
        else:
            matrix.assert_unreachable(cell, code)

    for asker in askers:
        await asyncio.gather(*(ask(way, name, asker) for way, name in closed))
    matrix.check(len(askers) * len(closed))


#: Roles that a node of this role has links to; NATS itself refuses the others.
LINKED = {"client": {Role.AUTH, Role.GATEWAY}, "web": {Role.AUTH, Role.GATEWAY, Role.METRICS}}
UNREACHABLE_SECONDS = 0.5


def _has_link(way: str, method: AnyMethod) -> bool:
    return method.served_by is None or method.served_by in LINKED[way]


# --- own objects and another's --------------------------------------------------------------------------------------------


#: Not even an administrator can do these for another user.
AS_ONESELF = {"auth.endSession", "auth.switchOrganisation", "gateway.giveFeedback", "POST /api/feedback"}
#: What an administrator can see of another user.
SHOWN = {
    "auth.listApiKeys", "auth.getOrganisation", "auth.getUserUsage", "gateway.getUserQuota", "gateway.getUsageReport",
    "gateway.listRequests", "gateway.readAccount",
}  # fmt: skip


def _of_their_own(asker: Asker, what: str) -> str:
    """Return the expected result for the caller's own objects after the access check: rules of single methods."""
    if what == "auth.removeOrganisationMember":
        return "not_allowed"  # the last owner of an organization cannot leave it
    if what == "auth.rotateApiKey" and (asker.is_narrow or asker.is_bound) and not asker.is_admin:
        return "not_allowed"  # the caller would get the rotated key, which has more rights than the caller's key
    return ALLOWED


def _wanted(asker: Asker, cell: Cell, at_the_gate: str) -> str:
    if at_the_gate != ALLOWED:
        return at_the_gate
    if cell.whose == "own":
        return _of_their_own(asker, cell.what)
    rotates_for_longer = asker.is_key and cell.what == "auth.rotateApiKey"  # the victim's key expires after the caller's
    if EVERYTHING not in asker.may or cell.what in AS_ONESELF or rotates_for_longer or cell.what == "auth.removeOrganisationMember":
        return HIDDEN
    return SHOWN_ALL if cell.what in SHOWN else ALLOWED


@pytest.mark.timeout(300)
async def test_ones_own_and_anothers(site: Site) -> None:
    seeded_db = SeededDb(site.stack, site.api_client, site.web)
    # Administrators come last, because they can change another user's objects.
    askers = sorted(await seeded_db.askers(), key=lambda asker: EVERYTHING in asker.may and not asker.is_halfway)
    victim = await seeded_db.register("victim")
    things = seeded_db.things[victim.id]
    before, touched = await _state(site, victim, things), False
    matrix = Matrix()
    for asker in askers:
        if EVERYTHING in asker.may and not asker.is_halfway and not touched:
            assert await _state(site, victim, things) == before, "until now it was nobody's business"
            touched = True
        await _ask_about(site, matrix, asker, things, "another's")
        if asker.user_id is not None:
            await _ask_about(site, matrix, asker, seeded_db.things[asker.user_id], "own")
    assert touched
    named = sum(len(site.ways(METHODS[name])) for name in access_requests.NAMING) + len(access_requests.NAMING_BODIES)
    matrix.check(named * (2 * len(askers) - 1))


async def _ask_about(site: Site, matrix: Matrix, asker: Asker, things: Things, whose: str) -> None:
    for route, body in access_requests.NAMING_BODIES.items():
        code = await site.over_http(route, body(things), asker, things.key)
        cell = Cell("http", route, asker.name, whose)
        matrix.assert_cell(cell, code, _wanted(asker, cell, expected(access_table.ROUTES[route], asker, "http", route)))
    is_over = False
    # The method that replaces the login's token comes last.
    for name in sorted(access_requests.NAMING, key=lambda name: name == "auth.switchOrganisation"):
        for way in site.ways(METHODS[name]):
            code = await site.over(way, METHODS[name], access_requests.NAMING[name](things), asker)
            cell = Cell(way, name, asker.name, whose)
            wanted = _wanted(asker, cell, expected(access_table.METHODS[name], asker, way, name))
            matrix.assert_cell(cell, code, "not_authenticated" if is_over else wanted)
            is_over = is_over or (name == "auth.switchOrganisation" and code == ALLOWED)


async def _state(site: Site, victim: Person, things: Things) -> object:
    """Return everything that others could have changed."""
    ask, own = site.api_client.mesh.rpc.call, victim.access_token
    keys = await ask(auth.list_api_keys, auth.ListApiKeys(), credential=own)
    page = await ask(organizations.get_organisation, organizations.GetOrganization(things.team), credential=own)
    sessions = await ask(accounts.list_sessions, accounts.ListSessions(), credential=own)
    logged = await ask(usage_report.list_requests, usage_report.ListRequests(), credential=own)
    shown = [(key.id, key.name, key.preview, key.is_active) for key in keys.keys]
    return shown, page, sorted(session.id for session in sessions.sessions), logged


# --- keys limited to models -----------------------------------------------------------------------------------------------


async def test_a_key_for_one_model_sees_and_uses_that_one_alone(site: Site, ann: Person) -> None:
    bounds = auth.KeyBounds((), (ModelName("other"),))
    made = await site.api_client.mesh.rpc.call(
        auth.generate_api_key, auth.GenerateApiKey("other", bounds=bounds), credential=ann.access_token
    )
    bounds = auth.KeyBounds((), (ModelName("echo"),))
    fitting = await site.api_client.mesh.rpc.call(
        auth.generate_api_key, auth.GenerateApiKey("echo", bounds=bounds), credential=ann.access_token
    )
    for key, is_let_in in ((made.api_key, False), (fitting.api_key, True)):
        async with site.stack.http(key) as http:
            shown = [model["id"] for model in (await http.get("/v1/models")).json()["data"]]
            answer = await http.post("/api/inference", json={"prompt": "hi", "model": "echo"})
        listed = await site.api_client.mesh.rpc.call(gateway.list_models, gateway.ListModels(), credential=key)
        assert shown == [model.name for model in listed.models] == (["echo"] if is_let_in else [])
        assert answer.status_code == (200 if is_let_in else 403)
    with pytest.raises(errors.NotAllowed, match="this key may not use echo"):
        await asking.rpc(site.api_client.mesh, made.api_key, "hi")
    assert (await asking.rpc(site.api_client.mesh, fitting.api_key, "hi")).text == "hi"
