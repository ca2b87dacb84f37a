"""Which profile a command uses, and that a profile is unchanged after writing and reading."""

import os
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli import profile
from cli.profile import Profile
from shared import errors
from shared.types import Credential, MeshName
from tests import capabilities

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


def put(path: Path, mesh: str) -> Path:
    profile.write(path, Profile(node_key_file=Path("/keys/client.nk"), mesh=MeshName(mesh), api_key=Credential("of-" + mesh)))
    return path


@pytest.fixture
def places(tmp_path: Path) -> Path:
    """A folder with a profile in every possible place, each for a mesh named after its place."""
    put(tmp_path / "config/aimesh/profiles/default.toml", "default")
    put(tmp_path / "config/aimesh/profiles/work.toml", "work")
    put(tmp_path / "file.toml", "file")
    put(tmp_path / "stack/profile.toml", "stack")
    put(tmp_path / "checkout/.aimesh/profile.toml", "checkout")
    (tmp_path / "checkout/.git").mkdir()
    (tmp_path / "checkout/deep/inside").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("folder", "environment", "mesh"),
    [
        pytest.param("elsewhere", {}, "default", id="the user's default comes last"),
        pytest.param("checkout", {}, "checkout", id="a stack in the folder goes before the default"),
        pytest.param("checkout/deep/inside", {}, "checkout", id="the stack is found from anywhere in its checkout"),
        pytest.param("checkout", {"AIMESH_HOME": "{}/stack"}, "stack", id="AIMESH_HOME goes before the folder"),
        pytest.param("elsewhere", {"AIMESH_HOME": "../stack"}, "stack", id="AIMESH_HOME may be relative"),
        pytest.param("checkout", {"AIMESH_HOME": "{}/stack", "AICLI_PROFILE": "work"}, "work", id="AICLI_PROFILE goes before all"),
        pytest.param("checkout", {"AICLI_PROFILE": "{}/file.toml"}, "file", id="AICLI_PROFILE may be a path"),
        pytest.param("checkout", {"AICLI_PROFILE": "../file.toml"}, "file", id="AICLI_PROFILE may be a relative path"),
        pytest.param("checkout", {"AICLI_PROFILE": ""}, "checkout", id="an empty variable is none"),
    ],
)
def test_which_profile_is_used(places: Path, folder: str, environment: dict[str, str], mesh: str) -> None:
    full = {"XDG_CONFIG_HOME": str(places / "config"), **{name: value.format(places) for name, value in environment.items()}}
    assert profile.load(full, places / folder).mesh == mesh


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        pytest.param({"AICLI_PROFILE": "nowhere"}, "no profile 'nowhere'", id="a named profile that is not there"),
        pytest.param({"AICLI_PROFILE": "a b"}, "neither a profile name nor a path", id="no name"),
        pytest.param({"AIMESH_HOME": "/nowhere"}, "AIMESH_HOME is /nowhere", id="a home without a stack"),
    ],
)
def test_named_profile_is_never_skipped(places: Path, environment: dict[str, str], message: str) -> None:
    with pytest.raises(errors.BadSettings, match=message):
        profile.load({"XDG_CONFIG_HOME": str(places / "config"), **environment}, places / "checkout")


def test_profile_in_a_parent_outside_any_checkout_is_ignored(tmp_path: Path) -> None:
    put(tmp_path / ".aimesh/profile.toml", "strangers")
    (tmp_path / "mine").mkdir()
    with pytest.raises(errors.BadSettings, match="no profile"):
        profile.find({"HOME": str(tmp_path / "home")}, tmp_path / "mine")


def test_foreign_stack_is_used_only_if_named(places: Path) -> None:
    capabilities.require("root")
    stack = places / "checkout/.aimesh/profile.toml"
    os.chown(stack, 4711, 4711)
    with pytest.raises(errors.BadSettings, match="belongs to another user"):
        profile.load({}, places / "checkout")
    assert profile.load({"AICLI_PROFILE": str(stack)}, places / "checkout").mesh == "checkout"


def test_key_in_the_environment_precedes_the_profile(places: Path) -> None:
    used = profile.load({"AICLI_API_KEY": " another \n"}, places / "checkout")
    assert (used.mesh, used.api_key, used.username) == ("checkout", "another", None)


@given(TEXT, TEXT, st.none() | TEXT, st.none() | TEXT)
def test_written_profile_is_read_back(mesh: str, url: str, key: str | None, username: str | None) -> None:
    whole = Profile(
        node_key_file=Path("/k.nk"),
        mesh=MeshName(mesh),
        nats_url=url,
        api_key=None if key is None else Credential(key),
        username=username,
    )
    fields = tomllib.loads(profile.render(whole))
    assert fields["mesh"] == mesh
    assert fields["nats_url"] == url
    assert fields.get("api_key") == key
    assert fields.get("username") == username


def test_profile_is_private_from_the_start(tmp_path: Path) -> None:
    path = put(tmp_path / "new/folder/p.toml", "home")
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o077 == 0
    assert list(path.parent.iterdir()) == [path]


def test_node_key_path_is_relative_to_the_profile(tmp_path: Path) -> None:
    path = tmp_path / "p.toml"
    path.touch(mode=0o600)
    path.write_text('node_key_file = "keys/client.nk"\nnew_in_2031 = 1\n')
    assert profile.read(path).node_key_file == tmp_path / "keys/client.nk"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param(b'mesh = "home"', "has no node_key_file", id="no node key"),
        pytest.param(b"mesh = 7\nnode_key_file = 'k'", "mesh must be a string", id="a wrong type"),
        pytest.param(b"mesh = = =", "is not a profile", id="no TOML"),
        pytest.param(b"\xff\xfe", "is not a profile", id="no UTF-8"),
        pytest.param(b"#" * 70_000, "longer than 64 KiB", id="a file of another kind"),
    ],
)
def test_broken_profile_is_named(tmp_path: Path, text: bytes, message: str) -> None:
    path = tmp_path / "p.toml"
    path.touch(mode=0o600)
    path.write_bytes(text)
    with pytest.raises(errors.BadSettings, match=message):
        profile.read(path)


def test_profile_readable_by_others_is_refused(tmp_path: Path) -> None:
    path = put(tmp_path / "p.toml", "home")
    path.chmod(0o644)
    with pytest.raises(errors.BadSettings, match="is readable by other users") as caught:
        profile.read(path)
    assert caught.value.hint == f"chmod 600 {path}"


def test_remote_server_needs_tls(tmp_path: Path) -> None:
    path = tmp_path / "p.toml"
    profile.write(path, Profile(node_key_file=Path("k.nk"), nats_url="nats://nats.example.org:4222"))
    chosen = {"AICLI_PROFILE": str(path)}
    with pytest.raises(errors.BadSettings, match=r"nats\.example\.org is not this machine"):
        profile.load(chosen, tmp_path)
    assert profile.load({**chosen, "ALLOW_PLAIN_NATS": "true"}, tmp_path).nats_url == "nats://nats.example.org:4222"
    profile.write(path, Profile(node_key_file=Path("k.nk"), nats_url="tls://nats.example.org", nats_ca_file=Path("ca.pem")))
    # Paths are relative to the profile.
    assert profile.load(chosen, tmp_path).nats_ca_file == tmp_path / "ca.pem"


def test_profile_created_from_a_ticket_needs_no_nats(tmp_path: Path) -> None:
    path = tmp_path / "p.toml"
    profile.write(path, Profile(node_key_file=Path("k.nk"), nats_url=None, mesh_file=tmp_path / "p.mesh"))
    found = profile.load({"AICLI_PROFILE": str(path)}, tmp_path)
    assert (found.nats_url, found.mesh_file) == (None, tmp_path / "p.mesh")
    path.write_text('node_key_file = "k.nk"\nmesh_file = "p.mesh"\n')
    found = profile.read(path)
    assert (found.nats_url, found.mesh_file) == (None, tmp_path / "p.mesh")
    path.write_text('node_key_file = "k.nk"\nnats_url = "none"\n')
    with pytest.raises(errors.BadSettings, match="without NATS it needs a mesh_file") as caught:
        profile.read(path)
    assert "aicli mesh connect" in caught.value.hint


@pytest.mark.parametrize("name", ["", "a b", "../x", "x.toml", "/etc/x", "-x"])
def test_invalid_profile_names(name: str) -> None:
    with pytest.raises(errors.BadSettings, match="is not a valid profile name"):
        profile.place_of(name, {"HOME": "/h"})


def test_location_of_a_named_profile() -> None:
    assert profile.place_of("cafe", {"HOME": "/h"}) == Path("/h/.config/aimesh/profiles/cafe.toml")
