import msgspec

from services.web.pages.admin import mesh_settings
from shared import errors
from shared.types import Role
from tests.services.web.browser import Browser
from tests.services.web.pages.admin.admin_mesh import GATEWAY, WORKER, AdminMesh

PATH = "/admin/settings"


async def test_what_the_services_tell_is_shown(root: Browser, mesh: AdminMesh) -> None:
    mesh.add_node(WORKER)
    mesh.add_node(GATEWAY, Role.GATEWAY)
    text = (await root.get(PATH)).text
    for word in (
        "open: anybody",
        "8 characters",
        "PASSWORD_MIN_LENGTH=15",
        "NIST SP 800-63B",
        "key-one",
        "1.0.0",
        "smollm2",
        "http://localhost:3000",
    ):
        assert word in text


async def test_it_stands_without_the_gateway_and_without_auths_word(root: Browser, mesh: AdminMesh) -> None:
    mesh.broken |= {name: errors.NotReachable("no") for name in ("gateway", "auth.getSignInOptions", "auth.getSigningKeys")}
    page = await root.get(PATH)
    assert page.status_code == 200
    assert page.text.count("Auth does not answer right now.") == 2
    assert "The gateway does not answer right now." in page.text


def test_two_versions_at_once_are_an_upgrade_and_those_that_are_gone_do_not_count() -> None:
    mesh = AdminMesh()
    one, gone = mesh.add_node(WORKER), mesh.add_node(WORKER, alive=False)
    rows = (one, msgspec.structs.replace(one, version="1.1.0"), msgspec.structs.replace(gone, version="0.9"))
    found = mesh_settings.versions_of(rows)
    assert [(each.service, each.versions, each.nodes) for each in found] == [("inference", ("1.0.0", "1.1.0"), 2)]
