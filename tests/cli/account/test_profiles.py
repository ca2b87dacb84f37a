"""Profiles for a URL: how `aicli login` makes them, which one is used, and `aicli profile list|use|remove`."""

import json
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import pytest

from cli import profile
from cli.profile import Profile
from shared import errors
from shared.api import accounts, auth
from shared.api.method import Nothing
from shared.types import Credential, Tier, UserId, UserRole
from tests.cases import case
from tests.cli.conftest import KEY
from tests.cli.fake_mesh import Shell

URL = "https://ai.example.org"
NOW = datetime(2026, 1, 1, tzinfo=UTC)
MADE = Credential("aip_live_made")


def person(name: str) -> auth.User:
    return auth.User(UserId(UUID(int=1)), name, f"{name}@example.org", UserRole.USER, Tier.FREE, is_active=True, created_at=NOW)


@pytest.fixture
def laptop(shell: Shell) -> Shell:
    """A folder without a profile."""
    (shell.folder / ".aimesh/profile.toml").unlink()
    mesh = shell.mesh
    mesh.answer(auth.login_user, lambda request: auth.LoginSession(Credential("t"), 600, "s", person(request.credentials.username or "")))
    mesh.answer(auth.logout_user, Nothing())
    key = auth.ApiKey(auth.KeyId(UUID(int=2)), UserId(UUID(int=1)), "laptop", "aip_live_mad…made", is_active=True, created_at=NOW)
    mesh.answer(auth.generate_api_key, auth.CreatedApiKey(MADE, key))
    mesh.answer(auth.list_api_keys, auth.ApiKeys((key,)))
    mesh.answer(auth.revoke_api_key, key)
    preferences = accounts.Preferences()
    own = accounts.OwnAccount(person("ann"), preferences, has_password=True, mfa_enabled=False, recovery_codes_left=0)
    mesh.answer(accounts.get_account, own)
    return shell


def folder_of(shell: Shell) -> Path:
    return profile.folder_of_user(shell.environment)


def log_in(shell: Shell, *arguments: str, stdin: str = "secret\n") -> str:
    result = shell("login", *arguments, "--password-stdin", stdin=stdin)
    assert result.exit_code == 0, result.stderr
    return result.stdout


# --- login ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [(URL, "ann"), ("ann", "--url", URL), ("--url", URL + "/", "ann")])
def test_a_login_at_a_url_makes_a_profile_named_after_its_host(laptop: Shell, arguments: tuple[str, ...]) -> None:
    path = folder_of(laptop) / "ai.example.org.toml"
    assert log_in(laptop, *arguments) == f"Logged in as ann; the key 'laptop' is in {path}.\n"
    assert path.stat().st_mode & 0o777 == 0o600
    found = profile.load(laptop.environment, laptop.folder)
    assert found == Profile(url=URL, nats_url=None, api_key=MADE, username="ann", web_url=URL)
    assert (laptop("profile", "list").stdout.split("\n")[1]).split() == ["ai.example.org", URL, "ann", "yes"]


def test_the_first_login_without_an_address_is_at_the_mesh_that_installed_aicli(
    laptop: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = tmp_path / "aimesh/app-client-1"
    app.mkdir(parents=True)
    (app.parent / "current").symlink_to(app)
    (app.parent / "mesh").write_text(f"{URL}\n", encoding="ascii")
    (app.parent / "mesh.pem").touch()
    monkeypatch.setattr(sys, "prefix", str(app))
    assert f"sign in at {URL}: aicli login" in laptop("models").stderr
    log_in(laptop, "ann")
    found = profile.load(laptop.environment, laptop.folder)
    assert (found.url, found.ca_file, found.username) == (URL, app.parent / "mesh.pem", "ann")
    log_in(laptop, "http://127.0.0.1:8000", "bob", "--profile", "other")
    assert log_in(laptop, "ann").endswith("profiles/ai.example.org.toml.\n"), "the default profile"
    (app.parent / "mesh").write_text("\n", encoding="ascii")
    profile.place_of("ai.example.org", laptop.environment).unlink()
    refused = laptop("login", "ann", "--password-stdin", stdin="secret\n")
    assert (refused.exit_code, "no profile found" in refused.stderr) == (2, True), "a release has no mesh"


def test_two_ports_of_one_host_are_two_profiles(laptop: Shell) -> None:
    log_in(laptop, "http://127.0.0.1:8000", "ann")
    log_in(laptop, "http://127.0.0.1:8001", "bob")
    log_in(laptop, "https://ai.example.org:8443", "bob", "--profile", "work")
    assert profile.names(laptop.environment) == ["127.0.0.1-8000", "127.0.0.1-8001", "work"]
    used = profile.load(laptop.environment, laptop.folder)
    assert (used.url, used.username) == ("http://127.0.0.1:8000", "ann"), "the first stays the default"


def test_the_profile_option_of_aicli_names_it_too(laptop: Shell) -> None:
    result = laptop("--profile", "work", "login", URL, "ann", "--password-stdin", stdin="secret\n")
    assert result.exit_code == 0, result.stderr
    assert profile.names(laptop.environment) == ["work"]


def test_a_given_key_is_checked_and_kept(laptop: Shell) -> None:
    result = laptop("login", URL, "--api-key-stdin", stdin=f"{KEY}\n")
    assert result.stdout.startswith("Logged in as ann; the key is in ")
    assert [(call.method, call.credential) for call in laptop.mesh.calls] == [("auth.getAccount", KEY)]
    assert profile.load(laptop.environment, laptop.folder).api_key == KEY
    assert laptop("login", URL, "--api-key-stdin", stdin="aip_live_half\n").exit_code == 2
    laptop.mesh.answer(accounts.get_account, errors.NotAuthenticated("revoked"))
    assert laptop("login", "https://other.example.org", "--api-key-stdin", stdin=f"{KEY}\n").exit_code == 3
    assert profile.names(laptop.environment) == ["ai.example.org"]


def test_logging_in_again_revokes_the_old_key_but_never_sends_it_elsewhere(laptop: Shell) -> None:
    log_in(laptop, URL, "ann")
    laptop.mesh.calls.clear()
    log_in(laptop, URL, "ann")
    assert "auth.revokeApiKey" not in [call.method for call in laptop.mesh.calls]  # the old key's preview is too short to identify it
    laptop.mesh.calls.clear()
    log_in(laptop, "https://elsewhere.example", "ann", "--profile", "ai.example.org")
    assert MADE not in [call.credential for call in laptop.mesh.calls]


def test_a_profile_of_a_mesh_is_never_replaced(laptop: Shell) -> None:
    profile.write(folder_of(laptop) / "lab.toml", Profile(node_key_file=Path("k"), api_key=KEY))
    result = laptop("login", URL, "ann", "--profile", "lab", "--password-stdin", stdin="secret\n")
    assert (result.exit_code, "the profile 'lab' is for a mesh" in result.stderr) == (2, True)
    assert not laptop.mesh.calls


def test_a_stack_in_the_folder_still_comes_first(shell: Shell, laptop: Shell) -> None:
    profile.write(laptop.folder / ".aimesh/profile.toml", Profile(node_key_file=Path("k"), api_key=KEY))
    result = laptop("login", URL, "ann", "--password-stdin", stdin="secret\n")
    assert (
        f"Commands in this folder use the stack in {laptop.folder}. To use this profile: aicli --profile ai.example.org COMMAND"
        in result.stderr
    )


def test_logout_revokes_the_key_and_keeps_the_url(laptop: Shell) -> None:
    log_in(laptop, URL, "ann")
    laptop("logout")
    assert profile.load(laptop.environment, laptop.folder) == Profile(url=URL, nats_url=None, web_url=URL)


# --- URLs -----------------------------------------------------------------------------------------------------------------


def test_urls_that_are_refused() -> None:
    for url in (
        "ai.example.org",
        "ftp://x",
        "https://",
        "https://u:p@x",
        "https://x?a=1",
        "https://x#a",
        "https://x:99999",
        "",
        "https:///x",
    ):
        with case(url), pytest.raises(errors.BadSettings, match=r"the URL is not an address such as https://ai\.example\.org"):
            profile.at_url(url)


def test_plain_http_only_to_this_machine_or_when_insecure(laptop: Shell) -> None:
    for url in ("http://127.0.0.1:3000", "http://localhost", "http://[::1]:3000/base"):
        assert profile.at_url(url).url == url
    result = laptop("login", "http://ai.example.org", "ann", "--password-stdin", stdin="secret\n")
    assert "http:// would send your key to ai.example.org unencrypted" in result.stderr
    assert not laptop.mesh.calls
    log_in(laptop, "http://ai.example.org", "ann", "--insecure")
    assert profile.load(laptop.environment, laptop.folder).insecure
    place = folder_of(laptop) / "ai.example.org.toml"
    place.write_text(place.read_text().replace('insecure = "true"\n', ""))
    with pytest.raises(errors.BadSettings, match=r"ai\.example\.org\.toml: http:// would send your key"):
        profile.load(laptop.environment, laptop.folder)


def test_options_of_a_url_need_one(shell: Shell) -> None:
    for arguments in (("--profile", "x"), ("--insecure",)):
        result = shell("login", "ann", *arguments, "--password-stdin", stdin="secret\n")
        assert (result.exit_code, "need a URL" in result.stderr) == (2, True)
    assert shell("login", URL, "ann", "bob").exit_code == 2


# --- the environment ------------------------------------------------------------------------------------------------------


def test_the_environment_is_enough(laptop: Shell, tmp_path: Path) -> None:
    laptop.environment |= {"AIMESH_URL": URL, "AIMESH_API_KEY": KEY, "AIMESH_CA_FILE": "/ca.pem"}
    assert profile.load(laptop.environment, tmp_path) == Profile(url=URL, nats_url=None, web_url=URL, api_key=KEY, ca_file=Path("/ca.pem"))
    laptop.environment["AICLI_API_KEY"] = "aip_other"
    assert profile.load(laptop.environment, tmp_path).api_key == "aip_other"
    result = laptop("logout")
    assert "AIMESH_URL is set, so there is no profile to log out of" in result.stderr
    laptop.environment["AIMESH_URL"] = "http://ai.example.org"
    assert "unencrypted" in laptop("quota").stderr


def test_a_named_profile_goes_before_the_url_and_the_url_before_a_stack(shell: Shell) -> None:
    shell.environment |= {"AIMESH_URL": URL, "AIMESH_HOME": str(shell.folder / ".aimesh")}
    assert profile.load(shell.environment, shell.folder).url == URL
    profile.write(folder_of(shell) / "lab.toml", Profile(node_key_file=Path("k")))
    assert profile.load({**shell.environment, "AICLI_PROFILE": "lab"}, shell.folder).url is None


def test_the_ca_file_of_the_environment_goes_before_the_profiles(laptop: Shell) -> None:
    log_in(laptop, URL, "ann")
    assert profile.load({**laptop.environment, "AIMESH_CA_FILE": "/ca.pem"}, laptop.folder).ca_file == Path("/ca.pem")


def test_a_profile_survives_being_written_and_read(tmp_path: Path) -> None:
    whole = Profile(url=URL, nats_url=None, ca_file=Path("/ca.pem"), insecure=True, api_key=KEY, username="ann", web_url="https://web")
    for one in (whole, replace(whole, ca_file=None, insecure=False, api_key=None, username=None)):
        profile.write(tmp_path / "p.toml", one)
        assert profile.read(tmp_path / "p.toml") == one


# --- list, use, remove ----------------------------------------------------------------------------------------------------


def test_use_and_remove(laptop: Shell) -> None:
    log_in(laptop, URL, "ann")
    log_in(laptop, "https://work.example.org", "bob")
    lab = folder_of(laptop) / "lab.toml"
    profile.write(lab, Profile(node_key_file=lab.with_suffix(".nk"), nats_url=None, mesh_file=lab.with_suffix(".mesh")))
    lab.with_suffix(".nk").touch()
    (folder_of(laptop) / "broken.toml").write_text("not a profile")
    assert laptop("profile", "use", "work.example.org").stdout == "The default profile is now 'work.example.org'.\n"
    rows = json.loads(laptop("profile", "list", "--json").stdout)
    assert [(row["name"], row["connects_to"], row["username"], row["is_default"]) for row in rows] == [
        ("ai.example.org", URL, "ann", False),
        ("broken", "", None, False),
        ("lab", "mesh home", None, False),
        ("work.example.org", "https://work.example.org", "bob", True),
    ]
    assert profile.load(laptop.environment, laptop.folder).username == "bob"
    removed = laptop("profile", "remove", "work.example.org")
    assert (removed.stdout, "still valid" in removed.stderr) == ("Removed the profile 'work.example.org'.\n", True)
    assert laptop("profile", "remove", "lab").stderr == ""
    assert not lab.with_suffix(".nk").exists()
    unknown = laptop("profile", "use", "work.example.org")
    assert "there is no profile 'work.example.org' – your profiles: ai.example.org, broken" in unknown.stderr
    assert laptop("profile", "remove", "../x").exit_code != 0
    with pytest.raises(errors.BadSettings, match="no profile found"):
        profile.load(laptop.environment, laptop.folder)
