import msgspec
import pytest
from litestar.types import ASGIApp

from shared import errors
from shared.api import gateway, membership
from shared.api.deployments import CopyState, ModelCopy
from shared.api.membership import MemberState
from shared.config_documents import DeploymentDocument
from shared.types import ModelName, Role, UserRole
from tests.services.web.browser import Browser, forms_of
from tests.services.web.pages.admin import followed
from tests.services.web.pages.admin.admin_mesh import GATEWAY, WAITING, WORKER, AdminMesh

HOSTILE = "<script>alert(1)</script>\u202egnp"


@pytest.fixture
def mesh() -> AdminMesh:
    return AdminMesh()


@pytest.fixture
async def root(mesh: AdminMesh, browser: Browser) -> Browser:
    mesh.add_person("root", UserRole.ADMIN)
    await browser.sign_in("root", "correct horse")
    return browser


@pytest.fixture
async def alice(mesh: AdminMesh, browser: Browser) -> Browser:
    """A node owner's browser."""
    mesh.add_person("alice", UserRole.NODE_OWNER)
    await browser.sign_in("alice", "correct horse")
    return browser


async def test_administrator_sees_every_machine_with_path_load_and_models(root: Browser, mesh: AdminMesh) -> None:
    mesh.add_member(WORKER, name="rig-1")
    mesh.add_node(WORKER)
    mesh.add_node(GATEWAY, Role.GATEWAY)
    page = await root.get("/admin/nodes")
    assert page.status_code == 200
    for text in ("rig-1", "alice · gpu=a100", "Direct (NAT)", "23 ms", "2 of 4 busy, 1 queued", "smollm2", "the mesh", "2 nodes, 2 OK"):
        assert text in page.text
    assert f'href="/admin/nodes/{WORKER}/revoke"' in page.text
    assert f'href="/admin/nodes/{GATEWAY}/revoke"' not in page.text


async def test_reason_why_a_machine_is_unused_is_shown(root: Browser, mesh: AdminMesh) -> None:
    mesh.add_node(WORKER, why_not="its clock is 40 s off")
    page = await root.get("/admin/nodes")
    assert "Degraded" in page.text
    assert "its clock is 40 s off" in page.text


@pytest.mark.parametrize("accepts", [True, False])
async def test_a_machine_without_a_model_is_free(root: Browser, mesh: AdminMesh, *, accepts: bool) -> None:
    row = mesh.add_node(WORKER, why_not="it has no model to serve")
    mesh.nodes[-1] = msgspec.structs.replace(row, models=(), free_bytes=12 * 10**9, accepts_models=accepts)
    page = await root.get("/admin/nodes")
    no = "" if accepts else ", accepts no models of the mesh"
    assert f"free, 12 GB{no}: it has no model to serve" in page.text
    assert ">Free</span>" in page.text


async def test_without_machines_the_page_links_to_tickets(root: Browser) -> None:
    page = await root.get("/admin/nodes")
    assert '<p class="card empty" data-live-show="no_nodes">No nodes yet.' in page.text
    assert '<div class="card table wide nodes" hidden' in page.text


async def test_owner_has_a_page_with_their_own_machines(alice: Browser, mesh: AdminMesh) -> None:
    mesh.add_member(WORKER, name="mine")
    mesh.add_member(WAITING, name="of somebody else", owner="bob")
    mesh.add_node(WORKER)
    mesh.add_node(GATEWAY, Role.GATEWAY)
    page = await alice.get("/nodes")
    assert page.status_code == 200
    assert "mine" in page.text
    for text in ("of somebody else", WAITING, GATEWAY, "Administration", "Approve"):
        assert text not in page.text
    assert f'href="/nodes/{WORKER}/revoke"' in page.text
    assert (await alice.get("/admin/nodes")).status_code == 403


async def test_administrator_has_one_list(root: Browser) -> None:
    for path, there in (("/nodes", "/admin/nodes"), ("/nodes/tickets", "/admin/nodes/tickets")):
        answer = await root.get(path)
        assert (answer.status_code, answer.headers["location"]) == (303, there)


async def test_others_are_refused(browser: Browser, mesh: AdminMesh) -> None:
    mesh.add_person("bob", UserRole.USER)
    await browser.sign_in("bob", "correct horse")
    for path in ("/nodes", "/nodes/tickets", "/live/nodes", f"/nodes/{WORKER}/revoke"):
        assert (await browser.get(path)).status_code == 403


@pytest.mark.parametrize(
    ("away", "message"),
    [
        pytest.param("gateway", "The gateway isn’t responding,", id="gateway"),
        pytest.param("auth.listNodes", "This mesh has no CA", id="a mesh without certificates"),
    ],
)
async def test_list_is_shown_while_a_part_is_unavailable(root: Browser, mesh: AdminMesh, away: str, message: str) -> None:
    mesh.add_member(WORKER, name="rig-1")
    mesh.add_node(WORKER)
    mesh.broken[away] = errors.Unavailable("this mesh has no CA", hint="set MESH_CA_KEY_FILE at auth")
    page = await root.get("/admin/nodes")
    assert page.status_code == 200
    assert message in page.text
    assert WORKER in page.text


async def test_pending_machine_is_approved_after_reviewing_its_facts(root: Browser, mesh: AdminMesh) -> None:
    mesh.add_member(WAITING, MemberState.PENDING, name="new rig")
    listed = await root.get("/admin/nodes")
    assert f'href="/admin/nodes/{WAITING}/approve" aria-label="Approve new rig {WAITING[:9]}"' in listed.text
    confirm_page = await root.get(f"/admin/nodes/{WAITING}/approve")
    assert WAITING in confirm_page.text
    assert "gpu=a100" in confirm_page.text
    assert mesh.states()[0] is MemberState.PENDING
    done = await root.submit(confirm_page, f"/admin/nodes/{WAITING}/approve")
    assert (done.status_code, done.headers["location"]) == (303, "/admin/nodes?done=approved")
    assert mesh.states()[0] is MemberState.ACTIVE
    assert "Node approved." in (await root.get("/admin/nodes?done=approved")).text
    assert (await root.get(f"/admin/nodes/{WAITING}/approve")).status_code == 404


async def test_owner_cannot_approve(alice: Browser, mesh: AdminMesh) -> None:
    mesh.add_member(WAITING, MemberState.PENDING)
    assert (await alice.get(f"/admin/nodes/{WAITING}/approve")).status_code == 403
    assert (await alice.client.post(f"/admin/nodes/{WAITING}/approve", data={"token": "x"})).status_code == 403
    assert (await alice.get(f"/nodes/{WAITING}/approve")).status_code == 404
    assert mesh.states()[0] is MemberState.PENDING


async def test_owner_accepts_and_refuses_models_of_the_mesh(alice: Browser, mesh: AdminMesh) -> None:
    mesh.add_member(WORKER, name="mine")
    mesh.nodes[:] = [msgspec.structs.replace(mesh.add_node(WORKER), accepts_models=False)]
    path = f"/nodes/{WORKER}/models"
    for link, done in (("Accept models", "accepts"), ("Models", "refuses")):
        assert f'aria-label="{link} on mine {WORKER[:9]}"' in (await alice.get("/nodes")).text
        answer = await alice.submit(await alice.get(path), path, accepts="yes" if done == "accepts" else "no")
        assert answer.headers["location"] == f"/nodes?done={done}"
        assert "put models on the node." in (await alice.get(f"/nodes?done={done}")).text
        assert mesh.nodes[0].accepts_models is (done == "accepts")
    mesh.nodes[0] = msgspec.structs.replace(mesh.nodes[0], labels={"locked": "yes"})
    assert "ALLOW_MODEL_PULLS decides this" in (await alice.submit(await alice.get(path), path, accepts="yes")).text


async def test_owner_sees_what_a_deployment_wants_there_and_why_it_is_not(alice: Browser, mesh: AdminMesh) -> None:
    mesh.add_member(WORKER, name="mine")
    mesh.nodes[:] = [msgspec.structs.replace(mesh.add_node(WORKER), accepts_models=False)]
    mesh.deployments[ModelName("qwen3:8b")] = DeploymentDocument(source="hf:Qwen/Qwen3-8B-GGUF")
    no = "ask its owner: administrators may not put models on it"
    mesh.copies = (*mesh.copies, ModelCopy(WORKER, CopyState.REFUSED, ModelName("qwen3:8b"), reason=no))
    path = f"/nodes/{WORKER}/models"
    assert (
        'wants <bdi class="tag">qwen3:8b</bdi> here, but <bdi>administrators may not put models on it</bdi>.'
        in (await alice.get(path)).text
    )
    mesh.broken["gateway.listDeployments"] = errors.NotReachable("nobody there")
    assert "wants" not in (await alice.get(path)).text


async def test_owner_removes_a_model_and_accepts_it_again(alice: Browser, mesh: AdminMesh) -> None:
    mesh.add_member(WORKER, name="mine")
    mesh.nodes[:] = [msgspec.structs.replace(mesh.add_node(WORKER), assigned=(ModelName("smollm2"),))]
    path = f"/nodes/{WORKER}/models"
    page = await alice.get(path)
    assert "the mesh</td>" in page.text
    assert "Accept removed" not in page.text
    assert "other is not there" in (await alice.submit(page, f"{path}/remove", model="other")).text.lower()
    done = await alice.submit(page, f"{path}/remove", model="smollm2")
    assert done.headers["location"] == f"{path}?done=removed"
    page = await alice.get(f"{path}?done=removed")
    for text in ("Model removed.", "No models on this machine.", "not put there again", "Accept removed models again"):
        assert text in page.text
    await alice.submit(page, path, accepts="yes")
    assert mesh.nodes[0].refused_models == ()


async def test_administrators_remove_models_from_a_machine_and_ask_its_owner_to_accept_some(root: Browser, mesh: AdminMesh) -> None:
    mesh.add_member(WORKER)
    mesh.nodes[:] = [msgspec.structs.replace(mesh.add_node(WORKER), accepts_models=False)]
    path = f"/admin/nodes/{WORKER}/models"
    page = await root.get(path)
    assert "Ask alice to accept them." in page.text
    assert 'name="accepts"' not in page.text
    await root.submit(page, f"{path}/remove", model="smollm2")
    assert mesh.requests_of("gateway.removeModel") == [gateway.RemoveFromWorker(WORKER, ModelName("smollm2"))]


async def test_others_do_not_see_its_models(alice: Browser, mesh: AdminMesh) -> None:
    mesh.add_member(WORKER, owner="bob")
    mesh.add_node(WORKER)
    assert (await alice.get(f"/nodes/{WORKER}/models")).status_code == 404
    assert (await alice.get(f"/admin/nodes/{WORKER}/models")).status_code == 403


async def test_revoking_needs_confirmation_and_stores_the_reason(root: Browser, mesh: AdminMesh) -> None:
    mesh.add_member(WORKER, name="rig-1")
    confirm_page = await root.get(f"/admin/nodes/{WORKER}/revoke")
    assert "Revoke “<bdi>rig-1</bdi>”?" in confirm_page.text
    assert mesh.states()[0] is MemberState.ACTIVE
    done = await root.submit(confirm_page, f"/admin/nodes/{WORKER}/revoke", reason=" sold ")
    assert done.headers["location"] == "/admin/nodes?done=revoked"
    assert (mesh.states()[0], mesh.members[0].reason) == (MemberState.REVOKED, "sold")
    page = await root.get("/admin/nodes?done=revoked")
    assert "Node revoked." in page.text
    assert "sold" in page.text
    assert (await root.get(f"/admin/nodes/{WORKER}/revoke")).status_code == 404


async def test_refused_revocation_keeps_the_input(root: Browser, mesh: AdminMesh) -> None:
    mesh.add_member(WORKER)
    page = await root.submit(await root.get(f"/admin/nodes/{WORKER}/revoke"), f"/admin/nodes/{WORKER}/revoke", reason="refuse")
    assert page.status_code == 403
    assert "An auth service cannot be revoked" in page.text
    assert forms_of(page)[f"/admin/nodes/{WORKER}/revoke"]["reason"] == "refuse"


async def test_owner_revokes_only_their_own_machines(alice: Browser, mesh: AdminMesh) -> None:
    mesh.add_member(WORKER)
    mesh.add_member(WAITING, owner="bob")
    await alice.submit(await alice.get(f"/nodes/{WORKER}/revoke"), f"/nodes/{WORKER}/revoke")
    assert mesh.states()[0] is MemberState.REVOKED
    assert (await alice.get(f"/nodes/{WAITING}/revoke")).status_code == 404


@pytest.mark.parametrize("action", ["approve", "revoke"])
async def test_cross_site_form_changes_nothing(root: Browser, mesh: AdminMesh, action: str) -> None:
    mesh.add_member(WAITING, MemberState.PENDING)
    path = f"/admin/nodes/{WAITING}/{action}"
    page = await root.get(path)
    assert (await root.submit(page, path, {"Sec-Fetch-Site": "cross-site"})).status_code == 403
    assert (await root.submit(page, path, token="forged")).status_code == 403
    assert mesh.states()[0] is MemberState.PENDING


async def test_hostile_names_are_escaped(root: Browser, mesh: AdminMesh) -> None:
    mesh.add_member(WORKER, name=HOSTILE)
    mesh.add_node(WORKER, why_not="<img src=x>")
    mesh.add_member(WAITING, MemberState.PENDING, name="x" * 100, owner=HOSTILE)
    for path in ("/admin/nodes", f"/admin/nodes/{WORKER}/revoke", f"/admin/nodes/{WAITING}/approve"):
        text = (await root.get(path)).text
        assert "<script>alert" not in text
        assert "<img src=x" not in text
        assert "&lt;script&gt;alert(1)" in text


async def test_unknown_notice_is_not_shown(root: Browser) -> None:
    assert 'role="status"><p>' not in (await root.get("/admin/nodes?done=<b>pwned</b>")).text


async def test_stream_has_the_rows_of_the_page(app: ASGIApp, mesh: AdminMesh) -> None:
    mesh.add_person("alice", UserRole.NODE_OWNER)
    mesh.add_member(WORKER, name="rig-1")
    mesh.add_node(WORKER)
    mesh.add_node(GATEWAY, Role.GATEWAY)
    values = await followed.first_event(app, "/live/nodes", "alice")
    assert [(row["id"], row["state"], row["revoke"]) for row in values["nodes"]] == [(WORKER, "OK", f"/nodes/{WORKER}/revoke")]
    assert (values["summary"], values["no_nodes"], values["connection"]) == ("1 node, 1 OK", False, "")


async def test_stream_without_the_gateway_is_stale(app: ASGIApp, mesh: AdminMesh) -> None:
    mesh.add_person("root", UserRole.ADMIN)
    mesh.broken["gateway"] = errors.NotReachable("nobody there")
    assert await followed.first_event(app, "/live/nodes", "root") == {"connection": "stale"}


async def test_approval_uses_the_users_credential(root: Browser, mesh: AdminMesh) -> None:
    mesh.add_member(WAITING, MemberState.PENDING)
    await root.submit(await root.get(f"/admin/nodes/{WAITING}/approve"), f"/admin/nodes/{WAITING}/approve")
    call = [each for each in mesh.calls if each.method == "auth.approveNode"]
    assert [(each.request, each.credential) for each in call] == [(membership.ApproveMember(WAITING), "access-root")]
