import html
import re
from pathlib import Path

import pytest

from shared import errors
from shared.api import membership
from shared.api.membership import TicketState
from shared.types import Role, UserRole
from tests.services.web.browser import CONFIRM, Browser, forms_of
from tests.services.web.pages.admin.admin_mesh import AdminMesh

PATH = "/admin/nodes/tickets"


async def make(browser: Browser, path: str = PATH, **typed: str) -> tuple[int, str]:
    wanted = {"role": "worker", "lifetime": "3600", "approval": ""} | typed
    page = await browser.submit(await browser.get(path), path, **wanted)
    return page.status_code, page.text


async def test_new_ticket_is_shown_once_as_a_command(root: Browser, mesh: AdminMesh) -> None:
    status, text = await make(root, uses="5", lifetime="604800", labels="gpu=a100, room=3", approval="yes", owner="alice")
    assert status == 201
    assert re.search(r'<textarea[^>]* id="command" readonly[^>]*>aicli worker --join aip_join_secret</textarea>', text)
    assert 'data-copy="#command"' in text
    wanted = membership.CreateTicket(Role.WORKER, 5, 604_800, {"gpu": "a100", "room": "3"}, needs_approval=True, owner="alice")
    assert mesh.requests_of("auth.createTicket") == [wanted]
    listed = (await root.get(PATH)).text
    assert "aip_join_secret" not in listed
    assert "0123abcd" in listed
    assert "<bdi>gpu=a100</bdi>, <bdi>room=3</bdi>" in listed


async def test_new_workers_ticket_shows_the_line_that_installs_with_a_copy_button(root: Browser, mesh: AdminMesh) -> None:
    mesh.install = "curl -fsS https://ai.example.org/install.sh | sh -s -- aip_join_secret"
    status, text = await make(root, model=" hf:org/model ", accepts="no", place="elsewhere")
    assert status == 201
    assert re.search(r'<textarea[^>]* id="install" readonly[^>]*>curl -fsS https://ai[.]example[.]org/install[.]sh [|] sh', text)
    assert 'data-copy="#install"' in text
    wanted = membership.CreateTicket(Role.WORKER, model="hf:org/model", accept_models=False, elsewhere=True)
    assert mesh.requests_of("auth.createTicket") == [wanted]


async def test_new_workers_ticket_shows_lines_without_an_engine_for_other_systems(root: Browser, mesh: AdminMesh) -> None:
    mesh.install = "curl -fsS http://localhost:3000/install.sh | sh -s -- aip_join_secret"
    _, text = await make(root)
    shown = dict(re.findall(r'<textarea[^>]* id="(front|powershell)" readonly[^>]*>(.*?)</textarea>', text))
    assert shown["front"] == "curl -fsS http://localhost:3000/install.sh | AIMESH_FRONT=1 sh -s -- aip_join_secret"
    assert html.unescape(shown["powershell"]) == "$env:AIMESH_TICKET='aip_join_secret'; irm http://localhost:3000/install.ps1 | iex"
    assert text.count("(not run by us)") == 2
    # A release has no script for PowerShell.
    mesh.install = "curl -fsSL https://example.org/release/install.sh | sh -s -- aip_join_secret"
    assert 'id="powershell"' not in (await make(root))[1]


async def test_without_a_line_that_works_the_page_says_what_is_missing(root: Browser, mesh: AdminMesh) -> None:
    mesh.install_needs = "PUBLIC_URL isn't set"
    _, text = await make(root)
    assert "There is no line that installs aimesh there: PUBLIC_URL isn&#39;t set." in text
    assert 'id="install"' not in text


async def test_client_ticket_has_another_command(root: Browser) -> None:
    _, text = await make(root, role="client")
    assert ">aicli mesh connect aip_join_secret</textarea>" in text


@pytest.mark.parametrize("role", ["worker", "client"])
async def test_install_hint_is_shown_with_the_command(root: Browser, role: str) -> None:
    _, text = await make(root, role=role)
    named = re.findall(r"<code>(?:make )?(setup|worker-\w+)</code>", text)
    assert named == (["setup", "worker-cuda"] if role == "worker" else ["setup"])
    assert ("It needs no compiler" in text) is (role == "worker")
    makefile = (Path(__file__).parents[5] / "Makefile").read_text(encoding="utf-8")
    assert all(re.search(rf"^[\w -]*\b{target}\b[\w -]*:", makefile, re.MULTILINE) for target in named)


async def test_warnings_from_auth_are_shown_with_the_ticket(root: Browser, mesh: AdminMesh) -> None:
    mesh.warnings = ("machines elsewhere cannot reach the DHT nodes at 127.0.0.1",)
    _, text = await make(root)
    assert "Machines elsewhere cannot reach the DHT nodes at 127.0.0.1." in text


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        pytest.param({"uses": "0"}, "Max uses must be a whole number from 1 to 10000.", id="no machine"),
        pytest.param({"uses": "20000"}, "Max uses must be a whole number from 1 to 10000.", id="too many machines"),
        pytest.param({"labels": "gpu"}, "Invalid label: gpu=.", id="a label without a value"),
        pytest.param({"labels": "a=<b>"}, "Invalid label: a=&lt;b&gt;.", id="a label with markup"),
        pytest.param({"labels": ",".join(f"k{n}=v" for n in range(17))}, "Labels must have at most 16 entries.", id="too many labels"),
        pytest.param({"role": "auth"}, "Unknown role.", id="a role that needs the key of the mesh"),
        pytest.param({"lifetime": "99999999"}, "Unknown lifetime.", id="for ever"),
        pytest.param({"owner": "nobody"}, "There is no user called &#39;nobody&#39;.", id="auth refuses"),
    ],
)
async def test_refused_ticket_keeps_the_input(root: Browser, mesh: AdminMesh, typed: dict[str, str], message: str) -> None:
    status, text = await make(root, **typed)
    assert status in (400, 404)
    assert message in text
    assert mesh.tickets == []


async def test_refused_form_is_filled_in(root: Browser) -> None:
    typed = {"role": "client", "uses": "7", "lifetime": "86400", "labels": "gpu", "owner": "alice", "approval": "yes"}
    page = await root.submit(await root.get(PATH), PATH, **typed)
    fields = forms_of(page)[PATH]
    assert {name: fields[name] for name in ("uses", "labels", "owner")} == {"uses": "7", "labels": "gpu", "owner": "alice"}
    assert '<option value="client" selected>' in page.text
    assert '<option value="86400" selected>' in page.text
    assert 'name="approval" value="yes" checked' in page.text


async def test_tickets_are_listed_with_valid_ones_first(root: Browser, mesh: AdminMesh) -> None:
    for state in (TicketState.REVOKED, TicketState.USED_UP, TicketState.EXPIRED, TicketState.GOOD):
        mesh.add_ticket(f"of-{state.value}", state)
    text = (await root.get(PATH)).text
    assert re.findall(r"<code>(of-\w+)</code></th>", text) == ["of-good", "of-revoked", "of-used_up", "of-expired"]
    assert "1 of 5" in text
    assert text.count('aria-label="Revoke ticket ') == 1


async def test_revoke_a_ticket(root: Browser, mesh: AdminMesh) -> None:
    mesh.add_ticket("abcd")
    done = await root.submit(await root.get(PATH), f"{PATH}/abcd/revoke")
    assert (done.status_code, done.headers["location"]) == (303, f"{PATH}?done=revoked")
    assert mesh.tickets[0].state is TicketState.REVOKED
    assert "Ticket revoked." in (await root.get(f"{PATH}?done=revoked")).text


async def test_a_ticket_for_replicas(root: Browser, mesh: AdminMesh) -> None:
    typed = {"role": "gateway", "uses": "", "active_most": "20", "networks": "10.0.0.0/8, fd00::/8", "lifetime": str(90 * 86_400)}
    made = await root.submit(await root.get(PATH), PATH, **typed)
    assert made.status_code == 201
    row = mesh.tickets[-1]
    assert (row.uses, row.active_most, row.networks) == (None, 20, ("10.0.0.0/8", "fd00::/8"))
    assert "JOIN_TICKET_FILE" in made.text
    assert "0 of 20" in made.text


async def test_rotate_a_ticket(root: Browser, mesh: AdminMesh) -> None:
    mesh.add_ticket("abcd")
    done = await root.submit(await root.get(PATH), f"{PATH}/abcd/rotate")
    assert (done.status_code, "aip_join_rotated" in done.text) == (201, True)


async def test_missing_tickets_and_missing_ca_are_reported(root: Browser, mesh: AdminMesh) -> None:
    assert "No tickets yet." in (await root.get(PATH)).text
    mesh.broken["auth.listTickets"] = errors.Unavailable("this mesh has no CA", hint="set MESH_CA_KEY_FILE at auth")
    page = await root.get(PATH)
    assert page.status_code == 200
    assert "This mesh has no CA." in page.text


async def test_mesh_without_hyperswarm_says_why_there_are_no_tickets(root: Browser, mesh: AdminMesh) -> None:
    mesh.broken["auth.createTicket"] = errors.Unavailable("Hyperswarm is off", hint="set DHT_BOOTSTRAP at auth")
    status, text = await make(root, labels="room=3")
    assert status == 503
    assert "Hyperswarm is off." in text
    assert 'value="room=3"' in text


async def test_ticket_is_sensitive_and_the_form_survives_the_confirmation(root: Browser, mesh: AdminMesh) -> None:
    mesh.is_stale = True
    confirm_page = await root.submit(await root.get(PATH), PATH, role="worker", lifetime="3600", labels="room=3", approval="")
    assert confirm_page.status_code == 403
    assert CONFIRM in confirm_page.text
    assert mesh.tickets == []
    page = await root.submit(confirm_page, PATH, confirm_password="correct horse")
    assert page.status_code == 201
    assert mesh.tickets[0].labels == {"room": "3"}


async def test_cross_site_form_creates_no_ticket(root: Browser, mesh: AdminMesh) -> None:
    page = await root.get(PATH)
    assert (await root.submit(page, PATH, {"Sec-Fetch-Site": "cross-site"}, role="worker")).status_code == 403
    assert (await root.submit(page, PATH, token="forged", role="worker")).status_code == 403
    assert mesh.tickets == []


async def test_node_owner_creates_tickets_for_their_own_workers(browser: Browser, mesh: AdminMesh) -> None:
    mesh.add_person("alice", UserRole.NODE_OWNER)
    await browser.sign_in("alice", "correct horse")
    page = await browser.get("/nodes/tickets")
    assert "must approve each node" in page.text
    assert 'value="client"' not in page.text
    assert not {"owner", "approval"} & forms_of(page)["/nodes/tickets"].keys()
    made = await browser.submit(page, "/nodes/tickets", role="worker", lifetime="3600")
    assert made.status_code == 201
    assert mesh.tickets[0].owner == "alice"
    assert (await browser.get(PATH)).status_code == 403
