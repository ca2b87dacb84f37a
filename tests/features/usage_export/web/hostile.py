"""Sinks with a hostile name. See ``tests.services.web.pages.admin.hostile``."""

from typing import Any

from features.usage_export.contract import UsageSink
from tests.services.web.fake_mesh import NOW


def seed(mesh: Any, name: str) -> dict[str, str]:
    """Return values for the paths of pages."""
    mesh.sinks = (UsageSink(name, NOW, 1, 1.0, error=name),)
    return {}
