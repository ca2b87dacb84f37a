import re
from pathlib import Path

import pytest

from services.web.pages.admin import tickets
from shared import errors
from shared.api import membership
from shared.api.membership import TicketState
from shared.types import Role, UserRole
from tests.services.web.browser import Browser, forms_of
from tests.services.web.pages.admin.admin_mesh import AdminMesh

PATH = "/admin/nodes/tickets"


async def make(browser: Browser, path: str = PATH, **typed: str) -> tuple[int, str]:
    wanted = {"role": "worker", "lifetime": "3600", "approval": ""} | typed
    page = await browser.submit(await browser.get(path), path, **wanted)
    return page.status_code, page.text


async def test_a_new_ticket_is_a_command_to_copy_and_is_shown_once(root: Browser, mesh: AdminMesh) -> None:
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


async def test_a_client_joins_with_another_command(root: Browser) -> None:
    _, text = await make(root, role="client")
    assert ">aicli mesh connect aip_join_secret</textarea>" in text


@pytest.mark.parametrize("role", ["worker", "client"])
async def test_who_lacks_aimesh_there_is_told_how_it_comes(root: Browser, role: str) -> None:
    _, text = await make(root, role=role)
    named = re.findall(r"<code>(?:make )?(setup|worker-\w+)</code>", text)
    assert named == (["worker-cuda", "worker-rocm", "worker-metal", "worker-vulkan", "worker-cpu"] if role == "worker" else ["setup"])
    makefile = (Path(__file__).parents[5] / "Makefile").read_text(encoding="utf-8")
    assert all(re.search(rf"^[\w -]*\b{target}\b[\w -]*:", makefile, re.MULTILINE) for target in named)


async def test_what_auth_warns_of_is_shown_with_the_ticket(root: Browser, mesh: AdminMesh) -> None:
    mesh.warnings = ("machines elsewhere cannot reach the DHT nodes at 127.0.0.1",)
    _, text = await make(root)
    assert "Machines elsewhere cannot reach the DHT nodes at 127.0.0.1." in text


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        pytest.param({"uses": "0"}, "Max uses must be a whole number of at least 1.", id="no machine"),
        pytest.param({"uses": "20000"}, "A ticket can have at most 10,000 uses.", id="too many machines"),
        pytest.param({"labels": "gpu"}, "Invalid label: gpu=.", id="a label without a value"),
        pytest.param({"labels": "a=<b>"}, "Invalid label: a=&lt;b&gt;.", id="a label with markup"),
        pytest.param({"labels": ",".join(f"k{n}=v" for n in range(17))}, "A ticket can have at most 16 labels.", id="too many labels"),
        pytest.param({"role": "gateway"}, "Unknown role.", id="a role of the house"),
        pytest.param({"lifetime": "99999999"}, "Unknown lifetime.", id="for ever"),
        pytest.param({"owner": "nobody"}, "There is no user called &#39;nobody&#39;.", id="auth refuses"),
    ],
)
async def test_a_refused_ticket_keeps_what_was_typed(root: Browser, mesh: AdminMesh, typed: dict[str, str], said: str) -> None:
    status, text = await make(root, **typed)
    assert status in (400, 404)
    assert said in text
    assert mesh.tickets == []


async def test_the_refused_form_has_its_fields_filled(root: Browser) -> None:
    typed = {"role": "client", "uses": "7", "lifetime": "86400", "labels": "gpu", "owner": "alice", "approval": "yes"}
    page = await root.submit(await root.get(PATH), PATH, **typed)
    fields = forms_of(page)[PATH]
    assert {name: fields[name] for name in ("uses", "labels", "owner")} == {"uses": "7", "labels": "gpu", "owner": "alice"}
    assert '<option value="client" selected>' in page.text
    assert '<option value="86400" selected>' in page.text
    assert 'name="approval" value="yes" checked' in page.text


async def test_tickets_are_listed_with_the_good_ones_first(root: Browser, mesh: AdminMesh) -> None:
    for state in (TicketState.REVOKED, TicketState.USED_UP, TicketState.EXPIRED, TicketState.GOOD):
        mesh.add_ticket(f"of-{state.value}", state)
    text = (await root.get(PATH)).text
    assert re.findall(r"<code>(of-\w+)</code></th>", text) == ["of-good", "of-revoked", "of-used_up", "of-expired"]
    assert "1 of 5" in text
    assert text.count('aria-label="Revoke ticket ') == 1


async def test_a_ticket_is_revoked(root: Browser, mesh: AdminMesh) -> None:
    mesh.add_ticket("abcd")
    done = await root.submit(await root.get(PATH), f"{PATH}/abcd/revoke")
    assert (done.status_code, done.headers["location"]) == (303, f"{PATH}?done=revoked")
    assert mesh.tickets[0].state is TicketState.REVOKED
    assert "Ticket revoked." in (await root.get(f"{PATH}?done=revoked")).text


async def test_no_tickets_and_no_ca_are_said(root: Browser, mesh: AdminMesh) -> None:
    assert "No tickets yet." in (await root.get(PATH)).text
    mesh.broken["auth.listTickets"] = errors.Unavailable("this mesh has no CA", hint="set MESH_CA_KEY_FILE at auth")
    page = await root.get(PATH)
    assert page.status_code == 200
    assert "This mesh has no CA." in page.text


async def test_a_mesh_without_hyperswarm_makes_none_and_says_why(root: Browser, mesh: AdminMesh) -> None:
    mesh.broken["auth.createTicket"] = errors.Unavailable("Hyperswarm is off", hint="set DHT_BOOTSTRAP at auth")
    status, text = await make(root, labels="room=3")
    assert status == 503
    assert "Hyperswarm is off." in text
    assert 'value="room=3"' in text


async def test_a_ticket_is_sensitive_and_the_form_is_kept_for_the_password(root: Browser, mesh: AdminMesh) -> None:
    mesh.is_stale = True
    asked = await root.submit(await root.get(PATH), PATH, role="worker", lifetime="3600", labels="room=3", approval="")
    assert asked.status_code == 403
    assert "Confirm it’s you" in asked.text
    assert mesh.tickets == []
    page = await root.submit(asked, PATH, confirm_password="correct horse")
    assert page.status_code == 201
    assert mesh.tickets[0].labels == {"room": "3"}


async def test_a_form_from_elsewhere_makes_no_ticket(root: Browser, mesh: AdminMesh) -> None:
    page = await root.get(PATH)
    assert (await root.submit(page, PATH, {"Sec-Fetch-Site": "cross-site"}, role="worker")).status_code == 403
    assert (await root.submit(page, PATH, token="forged", role="worker")).status_code == 403
    assert mesh.tickets == []


async def test_who_lends_machines_makes_tickets_for_workers_of_their_own(browser: Browser, mesh: AdminMesh) -> None:
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


def test_labels_are_read_with_spaces_and_empty_parts() -> None:
    assert tickets.read_labels(" gpu=a100 ,, room=3 ") == {"gpu": "a100", "room": "3"}
    assert tickets.read_labels("") == {}
