import tarfile
from collections.abc import Iterable
from pathlib import Path

import pytest

from stack import stack_home
from stack.stack_home import StackHome


@pytest.fixture
def old_tarfile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make tarfile behave as in Python 3.11.2, which Debian 12 ships."""
    extract = tarfile.TarFile.extractall

    def extractall(
        self: tarfile.TarFile, path: str | Path = ".", members: Iterable[tarfile.TarInfo] | None = None, *, numeric_owner: bool = False
    ) -> None:
        extract(self, path, members, numeric_owner=numeric_owner)

    monkeypatch.delattr(tarfile, "data_filter", raising=False)
    monkeypatch.setattr(tarfile.TarFile, "extractall", extractall)


@pytest.fixture
def home(tmp_path: Path) -> StackHome:
    """Nothing is in it."""
    return stack_home.locate({"AIMESH_HOME": str(tmp_path / "h")})
