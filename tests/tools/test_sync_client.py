"""The synchronous Python client matches its asynchronous source."""

import re
from pathlib import Path

import pytest

from tools import generated, sync_client


def test_synchronous_client_is_up_to_date() -> None:
    assert not generated.drift(sync_client.files()), "run `make docs`"


def test_change_on_either_side_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in sync_client.PACKAGE.glob("*.py"):
        (tmp_path / path.name).write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.setattr(sync_client, "PACKAGE", tmp_path)
    assert not generated.drift(sync_client.files())
    source = tmp_path / "async_wire.py"
    source.write_text(source.read_text(encoding="utf-8").replace("await self._perform", "await self._perform_other"), encoding="utf-8")
    client = tmp_path / "client.py"
    client.write_text(client.read_text(encoding="utf-8") + "# by hand\n", encoding="utf-8")
    found = generated.drift(sync_client.files())
    assert {Path(path).name for path in found} == {"wire.py", "client.py"}
    assert "-        # by hand" in found[str(client)] or "-# by hand" in found[str(client)]
    generated.write(sync_client.files())
    assert not generated.drift(sync_client.files())


@pytest.mark.parametrize("name", sync_client.SOURCES)
def test_generated_client_has_nothing_asynchronous(name: str) -> None:
    _notice, _, text = sync_client.generate(name).partition("\n")
    assert not re.findall(r"\b(?:async|await|aclose)\b|\w*Async\w*", text)
