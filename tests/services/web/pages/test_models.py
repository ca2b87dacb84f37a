import html
import re

import msgspec
import pytest
from litestar.types import ASGIApp

from shared import errors
from shared.api import configuration, gateway, ledger, metrics
from shared.api.servers import ServerRow
from shared.config_documents import ConfigKind, ServerDocument, ServerKind
from shared.types import LoadPurpose, MicroCredits, ModelName, NodeId, UserRole
from tests.services.web.browser import Browser, forms_of
from tests.services.web.fake_mesh import Account, FakeMesh
from tests.services.web.pages.admin import followed

AWAY = errors.NotReachable("no node of that role is alive", hint="see `aicli stack status`")
ORDERS = "/models/orders"


async def sign_in(mesh: FakeMesh, browser: Browser, role: UserRole) -> Browser:
    user = msgspec.structs.replace(mesh.add_account("alice", "correct horse"), role=role)
    mesh.accounts["alice"] = Account(user, "correct horse")
    await browser.sign_in("alice", "correct horse")
    mesh.calls.clear()
    return browser


@pytest.fixture
async def alice(mesh: FakeMesh, browser: Browser) -> Browser:
    """A user's browser."""
    return await sign_in(mesh, browser, UserRole.USER)


@pytest.fixture
async def dana(mesh: FakeMesh, browser: Browser) -> Browser:
    """A developer's browser, in a mesh with one worker."""
    mesh.add_worker("UWORKER1", "smollm2")
    return await sign_in(mesh, browser, UserRole.DEVELOPER)


def orders(mesh: FakeMesh) -> list[msgspec.Struct]:
    return [each.request for each in mesh.calls if each.method in ("gateway.loadModel", "gateway.unloadModel")]


async def test_served_models_with_workers_and_prices(alice: Browser, mesh: FakeMesh) -> None:
    mesh.served = (gateway.ServedModel(ModelName("smollm2"), 1, 32_768, aliases=("small", "gpt-3.5-turbo")),)
    mesh.add_worker("UWORKER1AAAA", "smollm2", labels={"room": "3"})
    mesh.add_worker("UWORKER2AAAA", "smollm2", "unserved", why_not="its clock is off")
    mesh.prices = [ledger.ModelPrice(None, MicroCredits(100_000), MicroCredits(200_000), MicroCredits(100))]
    page = await alice.get("/models")
    assert page.status_code == 200
    for text in (
        "<bdi>smollm2</bdi>", "alias: small, gpt-3.5-turbo", "32,768", "1 of 2", "UWORKER1A", "room=3", "1 of 4 busy, 2 queued",
        "its clock is off", ">0.1</td>", "0.2<span", "+ 0.0001 per request", 'href="/playground?model=smollm2"',
    ):  # fmt: skip
        assert text in page.text, text
    # Users who can't load models see neither unserved models nor the buttons.
    assert "unserved" not in page.text
    assert ORDERS not in forms_of(page)


async def test_what_workers_work_without_is_shown(alice: Browser, mesh: FakeMesh) -> None:
    mesh.warning = "UWORKER1… a, b: swapped <too> often"
    assert "UWORKER1… a, b: swapped &lt;too&gt; often." in (await alice.get("/models")).text


async def test_unpriced_model_is_free_and_an_embedding_model_has_no_try_link(alice: Browser, mesh: FakeMesh) -> None:
    mesh.served = (gateway.ServedModel(ModelName("vectors"), 1, 512, only_embeds=True),)
    page = await alice.get("/models")
    assert page.text.count(">Free</td>") == 2
    assert "embeddings" in page.text
    assert "/playground?model" not in page.text


async def test_a_context_that_a_server_does_not_say_is_a_dash(alice: Browser, mesh: FakeMesh) -> None:
    mesh.served = (gateway.ServedModel(ModelName("gpt-x"), 1, 0),)
    assert '<td role="cell" class="n" data-label="Context">–</td>' in (await alice.get("/models")).text


@pytest.mark.parametrize(("role", "message"), [(UserRole.USER, "ask an administrator of this mesh"), (UserRole.ADMIN, "add one")])
async def test_missing_models_are_explained(mesh: FakeMesh, browser: Browser, role: UserRole, message: str) -> None:
    mesh.workers = 0
    page = await (await sign_in(mesh, browser, role)).get("/models")
    assert page.status_code == 200
    assert message in page.text


@pytest.mark.parametrize(
    ("broken", "status", "message"),
    [
        ("gateway.listModels", 503, "See <code>aicli stack status</code>."),
        ("gateway.listNodes", 200, "We can’t show where models run right now."),
        ("gateway.listPrices", 200, "Prices are unavailable right now."),
        ("gateway", 503, "No node of that role is alive."),
    ],
)
async def test_unavailable_part_is_missing_alone(alice: Browser, mesh: FakeMesh, broken: str, status: int, message: str) -> None:
    mesh.broken[broken] = AWAY
    page = await alice.get("/models")
    assert page.status_code == status
    assert message in page.text
    assert "No models: no worker is online" not in page.text


async def test_accepted_drafts_are_shown_to_administrators(browser: Browser, mesh: FakeMesh, monkeypatch: pytest.MonkeyPatch) -> None:
    mesh.served = (gateway.ServedModel(ModelName("smollm2"), 1, 32_768),)

    def history(request: metrics.GetHistory, credential: object) -> metrics.History:
        assert (request.names, request.by) == (("ai_platform_drafted_tokens_total",), (metrics.HistoryGrouping.MODEL,))
        rates = {"accepted": 0.75, "rejected": 0.25}
        steps = round((request.until - request.since).total_seconds() / request.step_seconds)
        lines = tuple(
            metrics.HistoryLine(request.names[0], {"model": "smollm2", "result": result}, (rate,) * steps) for result, rate in rates.items()
        )
        return metrics.History(request.since, request.step_seconds, 15, lines)

    monkeypatch.setattr(mesh, "_get_history", history)
    page = await (await sign_in(mesh, browser, UserRole.ADMIN)).get("/models")
    assert "75% of 3,600 drafted tokens accepted in the last hour" in page.text


@pytest.mark.parametrize("role", [UserRole.USER, UserRole.DEVELOPER, UserRole.ADMIN])
async def test_page_has_no_drafts_without_a_history(mesh: FakeMesh, browser: Browser, role: UserRole) -> None:
    page = await (await sign_in(mesh, browser, role)).get("/models")
    assert page.status_code == 200
    assert "drafted" not in page.text
    assert ("metrics.getHistory" in mesh.called_methods()) is (role is UserRole.ADMIN), "others may not read it"


@pytest.mark.parametrize(
    ("typed", "order", "message"),
    [
        (("load", ""), gateway.LoadOnWorker(ModelName("smollm2")), "Model loaded."),
        (("pin", "UWORKER1"), gateway.LoadOnWorker(ModelName("smollm2"), NodeId("UWORKER1"), True), "Model loaded and pinned."),
        (("unpin", ""), gateway.LoadOnWorker(ModelName("smollm2"), None, False), "Model unpinned."),
        (("unload", ""), gateway.UnloadOnWorkers(ModelName("smollm2")), "Model unloaded."),
        (("unload", "UWORKER1"), gateway.UnloadOnWorkers(ModelName("smollm2"), NodeId("UWORKER1")), "Model unloaded."),
    ],
)
async def test_developer_loads_and_unloads_models(
    dana: Browser, mesh: FakeMesh, typed: tuple[str, str], order: msgspec.Struct, message: str
) -> None:
    act, worker = typed
    answer = await dana.submit(await dana.get("/models"), ORDERS, act=act, worker=worker)
    assert (answer.status_code, answer.headers["location"]) == (303, f"/models?done={act}")
    assert orders(mesh) == [order]
    assert message in (await dana.get(f"/models?done={act}")).text


async def test_developer_loads_a_model_for_agents(dana: Browser, mesh: FakeMesh) -> None:
    answer = await dana.submit(await dana.get("/models"), ORDERS, act="load", purpose="agents")
    assert answer.status_code == 303
    assert orders(mesh) == [gateway.LoadOnWorker(ModelName("smollm2"), None, None, LoadPurpose.AGENTS)]
    page = await dana.get("/models")
    assert "Unknown action" in (await dana.submit(page, ORDERS, act="load", purpose="agent")).text


async def test_page_says_which_models_suit_agents_and_what_is_known_of_the_others(alice: Browser, mesh: FakeMesh) -> None:
    long = gateway.ServedModel(ModelName("long"), 1, 65_536, suits_agents=True, agents_hint="tools 47 of 50")
    short = gateway.ServedModel(ModelName("short"), 1, 8192, agents_hint="tools <not> checked")
    mesh.served = (long, short, gateway.ServedModel(ModelName("off"), 0, 0))
    page = (await alice.get("/models")).text
    cells = re.findall(r'<td role="cell" class="wraps" data-label="Agents">(.*?)</td>', page)
    assert [re.sub("<.*?>", " ", cell).split() for cell in cells] == [
        ["Yes", "tools", "47", "of", "50"], ["tools", "&lt;not&gt;", "checked"], ["–"],
    ]  # fmt: skip


async def test_unserved_model_can_be_loaded(dana: Browser, mesh: FakeMesh) -> None:
    mesh.add_worker("UWORKER2", "big")
    page = await dana.get("/models")
    assert "<bdi>big</bdi>" in page.text
    assert "Degraded" in page.text


async def test_gateway_refuses_unauthorized_orders(alice: Browser, mesh: FakeMesh) -> None:
    token = forms_of(await alice.get("/models"))["/logout"]["token"]
    answer = await alice.client.post(
        ORDERS, data={"token": token, "model": "smollm2", "act": "load"}, headers={"Sec-Fetch-Site": "same-origin"}
    )
    assert answer.status_code == 403
    assert "Ask an administrator of this mesh to do it." in answer.text


async def test_worker_that_refused_is_named_with_its_reason(dana: Browser, mesh: FakeMesh) -> None:
    mesh.places = (
        gateway.ModelPlace(NodeId("UWORKER1"), ModelName("smollm2"), "unloaded", ""),
        gateway.ModelPlace(NodeId("UWORKER2AAAA"), ModelName("smollm2"), "", "<b>it answers right now"),
    )
    answer = await dana.submit(await dana.get("/models"), ORDERS, act="unload")
    assert answer.status_code == 200
    assert "Some workers failed." in answer.text
    assert "<code>UWORKER2A</code> &lt;b&gt;it answers right now." in answer.text


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (errors.DeadlineExceeded("no answer"), 504, "eload this page in a minute."),
        (errors.Unavailable("the memory is full", hint="unload another model"), 503, "Unload another model."),
    ],
)
async def test_failed_order_says_what_to_do(dana: Browser, mesh: FakeMesh, error: errors.AimeshError, status: int, message: str) -> None:
    page = await dana.get("/models")
    mesh.broken["gateway.loadModel"] = error
    answer = await dana.submit(page, ORDERS, act="load")
    assert answer.status_code == status
    assert message in answer.text
    assert "<bdi>smollm2</bdi>" in answer.text


@pytest.mark.parametrize("typed", [{"act": "explode"}, {"act": "load", "model": "nope"}, {"act": "load", "extra": "1"}, {"act": ""}])
async def test_unknown_action_is_refused(dana: Browser, mesh: FakeMesh, typed: dict[str, str]) -> None:
    answer = await dana.submit(await dana.get("/models"), ORDERS, **typed)
    assert answer.status_code in (400, 404)


async def test_cross_site_order_changes_nothing(dana: Browser, mesh: FakeMesh) -> None:
    page = await dana.get("/models")
    assert (await dana.submit(page, ORDERS, {"Sec-Fetch-Site": "cross-site"}, act="unload")).status_code == 403
    assert (await dana.submit(page, ORDERS, token="forged", act="unload")).status_code == 403
    assert orders(mesh) == []


async def test_old_login_is_confirmed_first(dana: Browser, mesh: FakeMesh) -> None:
    page = await dana.get("/models")
    mesh.broken["gateway.unloadModel"] = errors.ConfirmationNeeded("confirm that it is you", hint="with your password")
    confirm_page = await dana.submit(page, ORDERS, act="unload")
    assert confirm_page.status_code == 403
    assert forms_of(confirm_page)[ORDERS] | {"token": ""} == {
        "token": "", "model": "smollm2", "act": "unload", "confirm_password": "",
    }  # fmt: skip


async def test_hostile_names_are_escaped(dana: Browser, mesh: FakeMesh) -> None:
    name = '"><script>alert(1)</script>\u202e' + "x" * 200
    mesh.served = (gateway.ServedModel(ModelName(name), 1, 512, aliases=(name,)),)
    mesh.add_worker("U<b>", name, why_not="<img src=x>", labels={"room": "<i>"})
    page = await dana.get("/models")
    for bad in ("<script>alert", "<img src=x", "<b>", "<i>"):
        assert bad not in page.text
    assert 'href="/playground?model=%22%3E%3Cscript%3E' in page.text


@pytest.mark.parametrize("role", [UserRole.USER, UserRole.NODE_OWNER])
async def test_only_authorized_users_see_the_buttons(mesh: FakeMesh, browser: Browser, role: UserRole) -> None:
    mesh.add_worker("UWORKER1", "smollm2", "unserved")
    page = await (await sign_in(mesh, browser, role)).get("/models")
    assert ORDERS not in forms_of(page)
    assert "unserved" not in page.text
    assert "Manage" not in page.text


async def test_try_it_links_to_the_playground_with_the_model(alice: Browser, mesh: FakeMesh) -> None:
    mesh.served = tuple(gateway.ServedModel(ModelName(name), 1, 512) for name in ("smollm2", "org/big model+1?&#"))
    page = await alice.get("/models")
    found = re.findall(r'<a href="(/playground[^"]*)" aria-label="Try ', page.text)
    assert found == ["/playground?model=smollm2", "/playground?model=org/big%20model%2B1%3F%26%23"]
    for path, name in zip(found, ("smollm2", "org/big model+1?&#"), strict=True):
        opened = await alice.get(path)
        assert re.search(rf'<option value="{re.escape(html.escape(name))}" selected', opened.text), opened.text


async def test_unknown_notice_is_not_shown(alice: Browser) -> None:
    assert 'role="status"><p>' not in (await alice.get("/models?done=<b>pwned</b>")).text


# --- downloads ------------------------------------------------------------------------------------------------------------------

PULL = gateway.ModelPullRow("qwen", 300 * 2**20, 600 * 2**20, 2.5 * 2**20)
UNKNOWN = gateway.ModelPullRow("<b>", 2**20, None, 0.0)


async def test_running_downloads_are_shown_and_followed(app: ASGIApp, dana: Browser, mesh: FakeMesh) -> None:
    mesh.nodes[0] = msgspec.structs.replace(mesh.nodes[0], pulls=(PULL, UNKNOWN))
    page = await dana.get("/models")
    for text in (">qwen</bdi>", ">UWORKER1<", ">300 MiB of 600 MiB, 50 %<", ">2.5 MiB/s<", ">&lt;b&gt;</bdi>", ">1.0 MiB<"):
        assert text in page.text, text
    values = await followed.first_event(app, "/live/models", "alice")
    named = set(re.findall(r'data-live="([a-z_]+)"', page.text.split('data-live-list="pulls"')[1].split("</tbody>")[0]))
    assert named <= set(values["pulls"][0])
    assert [row["progress"] for row in values["pulls"]] == ["300 MiB of 600 MiB, 50 %", "1.0 MiB"]
    assert len({row["id"] for row in values["pulls"]}) == 2


async def test_downloads_are_hidden_while_there_are_none(dana: Browser, mesh: FakeMesh) -> None:
    assert '<div data-live-show="pulls" hidden>' in (await dana.get("/models")).text


async def test_users_who_cannot_load_models_see_no_downloads(alice: Browser, mesh: FakeMesh) -> None:
    mesh.nodes.append(msgspec.structs.replace(mesh.add_worker("UWORKER9", "smollm2"), pulls=(PULL,)))
    assert "qwen" not in (await alice.get("/models")).text
    assert (await alice.get("/live/models")).status_code == 403


SERVERS = "/models/servers"
RACK = ServerRow("rack", "http://10.0.0.5:8000/v1", ServerKind.VLLM, True, (ModelName("qwen3"),), 2, "")
KEY = "sk-very-secret-0123456789"


@pytest.fixture
async def root(mesh: FakeMesh, browser: Browser) -> Browser:
    """An administrator's browser."""
    mesh.add_worker("UWORKER1", "smollm2")
    return await sign_in(mesh, browser, UserRole.ADMIN)


def sent_servers(mesh: FakeMesh) -> list[tuple[configuration.ConfigDocument, bool]]:
    found = [each.request for each in mesh.calls if each.method == "gateway.applyConfig"]
    return [(each.documents[0], each.only_new) for each in found if isinstance(each, configuration.ApplyConfig)]


async def test_administrators_see_servers_and_others_do_not(root: Browser, mesh: FakeMesh) -> None:
    mesh.servers = (RACK, ServerRow("attic", "http://attic", ServerKind.OLLAMA, False, (), 0, "attic <b> does not answer"))
    page = (await root.get("/models")).text
    for text in ("<bdi>rack</bdi>", "<bdi>http://10.0.0.5:8000/v1</bdi>", "<bdi>qwen3</bdi>", "attic &lt;b&gt; does not answer"):
        assert text in page, text


async def test_developers_see_no_servers(dana: Browser, mesh: FakeMesh) -> None:
    page = await dana.get("/models")
    assert SERVERS not in forms_of(page)
    token = forms_of(page)[ORDERS]["token"]
    answer = await dana.client.post(
        SERVERS, data={"token": token, "name": "rack", "act": "remove"}, headers={"Sec-Fetch-Site": "same-origin"}
    )
    assert answer.status_code == 403
    assert "gateway.listServers" not in mesh.called_methods()


async def test_an_administrator_adds_changes_and_removes_a_server(root: Browser, mesh: FakeMesh) -> None:
    mesh.servers = (RACK,)
    typed = {
        "name": "rack",
        "url": " http://10.0.0.5:8000/v1 ",
        "kind": "vllm",
        "key": f" {KEY}\n",
        "models": "qwen3, gemma3,",
        "context": "65536",
        "tools": "yes",
    }
    url, models = typed["url"].strip(), ("qwen3", "gemma3")
    server = ServerDocument(url=url, kind=ServerKind.VLLM, key=KEY, models=models, context=65536, tools=True)
    body = msgspec.json.encode(server).decode()
    document = configuration.ConfigDocument(ConfigKind.SERVER, "rack", body)
    for act, done in (("", "server"), ("replace", "server"), ("remove", "removed")):
        answer = await root.submit(await root.get("/models"), SERVERS, **typed, act=act)
        assert (answer.status_code, answer.headers["location"]) == (303, f"/models?done={done}")
    removed = configuration.ConfigDocument(ConfigKind.SERVER, "rack", None)
    assert sent_servers(mesh) == [(document, True), (document, False), (removed, False)]
    assert "Server saved." in (await root.get("/models?done=server")).text


async def test_a_refused_server_keeps_what_was_typed_but_not_the_key(root: Browser, mesh: FakeMesh) -> None:
    mesh.broken["gateway.applyConfig"] = errors.BadRequest("server rack refuses this worker's key (status 401)", hint="check the key")
    typed = {"name": "rack", "url": "http://10.0.0.5:8000/v1", "kind": "ollama", "key": KEY}
    page = await root.submit(await root.get("/models"), SERVERS, **typed)
    assert page.status_code == 400
    assert "Server rack refuses this worker&#39;s key (status 401)." in page.text
    assert 'value="http://10.0.0.5:8000/v1"' in page.text
    assert '<option value="ollama" selected>' in page.text
    assert KEY not in page.text
    assert "unknown kind" in (await root.submit(page, SERVERS, name="a", url="b", kind="c")).text.lower()
    assert "The context must be a whole number" in (await root.submit(page, SERVERS, **typed, context="8k")).text


async def test_a_server_that_nobody_can_use_yet_is_told(root: Browser, mesh: FakeMesh) -> None:
    mesh.warnings = ("server rack: add rack to `external` of the policies mesh and default",)
    page = await root.submit(await root.get("/models"), SERVERS, name="rack", url="https://api.example.org/v1", kind="openai")
    assert "Server saved, but nobody can use it yet." in page.text
    assert "of the policies mesh and default." in page.text


async def test_the_page_works_with_a_gateway_that_knows_no_servers(root: Browser, mesh: FakeMesh) -> None:
    mesh.broken["gateway.listServers"] = errors.UnknownMethod("there is no method gateway.listServers")
    page = await root.get("/models")
    assert page.status_code == 200
    assert "Servers are unavailable right now." in page.text
