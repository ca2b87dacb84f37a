"""Fixtures for tests of the command line."""

from pathlib import Path

import pytest

from cli import profile
from cli.profile import Profile
from shared.identity import credentials, node_keys
from shared.types import Credential
from tests.cli.fake_mesh import FakeMesh, Shell

#: Well formed, with a valid checksum, but not a real key.
KEY = Credential(credentials.PREFIX + "0" * 43 + credentials.checksum("0" * 43))


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    """A folder whose .aimesh/profile.toml is logged in as alice."""
    home = tmp_path / ".aimesh"
    home.mkdir()
    node_key = home / "client.nk"
    node_key.touch(mode=0o600)
    node_key.write_bytes(node_keys.new_seed())
    profile.write(home / "profile.toml", Profile(node_key_file=node_key, api_key=KEY, username="alice"))
    return Shell(tmp_path, FakeMesh(), {"HOME": str(tmp_path / "home")})
