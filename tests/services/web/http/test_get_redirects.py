import pytest

from services.web.http import get_redirects

ID = "6d1f0e8a-0000-4000-8000-00000000000f"
READABLE = (
    "/",
    "/organisations",
    "/organisations/{team:uuid}",
    "/settings/security",
    "/admin/nodes",
    "/admin/nodes/{node_id:str}/approve",
    "/a.b",
)


@pytest.mark.parametrize(
    ("path", "above"),
    [
        ("/logout", "/"),
        ("/", "/"),
        ("/organisations/switch", "/organisations"),
        (f"/organisations/{ID}/rename", f"/organisations/{ID}"),
        ("/settings/security/second-factor/begin", "/settings/security"),
        ("/admin/nodes/UABC/approve/x", "/admin/nodes/UABC/approve"),
        ("/admin/nodes/UABC/approve", "/admin/nodes"),
        # A dot is a dot.
        ("/a.b/c", "/a.b"),
        ("/aXb/c", "/"),
        ("/somewhere/else", "/"),
    ],
)
def test_nearest_readable_page(path: str, above: str) -> None:
    assert get_redirects.find(path, READABLE) == above
