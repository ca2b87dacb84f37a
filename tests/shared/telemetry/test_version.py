import importlib.util
import re
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from shared.telemetry import version


def test_it_is_the_version_of_the_files() -> None:
    """Otherwise a container's nodes would announce "unknown", and `aicli stack migrate --post` could not tell whether they are old."""
    assert re.fullmatch(r"\d+\.\d+\.\d+", version.version())


@pytest.mark.parametrize(("text", "url"), [(None, ""), ("https://example.org/v1\n", "https://example.org/v1")])
def test_the_packages_of_a_release_have_its_address(text: str | None, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if text is not None:
        (tmp_path / version.RELEASE_FILE).write_text(text, encoding="utf-8")
    spec = ModuleSpec("aimesh", None, origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: spec)
    assert version.release_url.__wrapped__() == url
