"""A file with a hostile name. See ``tests.services.web.pages.admin.hostile``."""

from typing import Any

from features.files.contract import FileFacts, FilePurpose
from tests.services.web.fake_mesh import NOW


def seed(mesh: Any, name: str) -> dict[str, str]:
    """Return values for the paths of pages."""
    mesh.files.append((FileFacts(f"file-{'a' * 26}", name, FilePurpose.BATCH, 1, NOW), b""))
    return {}
