"""register, login, logout and keys: their calls and credentials, and where the key is stored."""

import json
from datetime import UTC, datetime
from uuid import UUID

import msgspec
import pytest

from cli import profile
from shared import errors
from shared.api import accounts, auth
from shared.api.auth import ApiKey, Budget, CreatedApiKey, Every, LoginSession, User
from shared.api.method import Nothing
from shared.types import Credential, KeyId, MicroCredits, TenantId, Tier, UserId, UserRole
from tests.cli.conftest import KEY
from tests.cli.fake_mesh import Shell

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
NEW_KEY = Credential("aip_live_new")
TOKEN = Credential("a.jwt.token")


def user(name: str) -> User:
    return User(
        id=UserId(UUID(int=1)),
        username=name,
        email=f"{name}@example.org",
        role=UserRole.USER,
        tier=Tier.FREE,
        is_active=True,
        created_at=NOW,
    )


def key(number: int, name: str, whole: str) -> ApiKey:
    return ApiKey(
        id=KeyId(UUID(int=number)),
        user_id=UserId(UUID(int=1)),
        name=name,
        preview=f"{whole[:12]}…{whole[-4:]}",
        is_active=True,
        created_at=NOW,
    )


@pytest.fixture
def running_service(shell: Shell) -> Shell:
    """A mesh whose auth accepts every user."""

    def log_in(request: auth.LoginUser) -> LoginSession:
        credentials = request.credentials
        if credentials.password != "correct horse":
            raise errors.NotAuthenticated("the name or the password is wrong")
        name = credentials.username or (credentials.email or "").partition("@")[0]
        return LoginSession(access_token=TOKEN, expires_in=600, session_token="session", user=user(name))

    mesh = shell.mesh
    mesh.answer(auth.register_user, lambda request: user(request.user_data.username))
    mesh.answer(auth.login_user, log_in)
    mesh.answer(auth.logout_user, Nothing())
    mesh.answer(auth.generate_api_key, lambda request: CreatedApiKey(NEW_KEY, key(9, request.name, NEW_KEY)))
    mesh.answer(auth.list_api_keys, auth.ApiKeys((key(1, "laptop", KEY), key(2, "other", "aip_live_zzz-other"))))
    mesh.answer(auth.revoke_api_key, lambda request: key(1, request.key, KEY))
    return shell


def calls_of(shell: Shell) -> list[tuple[str, str | None]]:
    return [(entry.method.partition(".")[2], entry.credential) for entry in shell.mesh.calls]


def test_whoami_names_the_account_of_the_key(shell: Shell) -> None:
    shell.mesh.answer(
        accounts.get_account,
        accounts.OwnAccount(user("alice"), accounts.Preferences(), has_password=True, mfa_enabled=False, recovery_codes_left=0),
    )
    assert shell("whoami").stdout == "alice (user, tier free)\n"
    assert json.loads(shell("whoami", "--json").stdout)["username"] == "alice"
    assert shell.mesh.calls[-1].credential == KEY


def test_register_reads_the_password_from_stdin(running_service: Shell) -> None:
    result = running_service("register", "bob", "--email", "bob@example.org", "--password-stdin", stdin="correct horse\r\nrest")
    assert result.exit_code == 0, result.stderr
    assert running_service.mesh.calls[0].request == auth.RegisterUser(auth.UserData("bob", "bob@example.org", "correct horse"))
    assert "correct horse" not in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["register"], "USERNAME", id="no name"),
        pytest.param(["register", "bob"], "--email", id="no address"),
        pytest.param(["register", "bob", "--email", "b@example.org"], "--password-stdin", id="no password"),
        pytest.param(["login", "bob"], "--password-stdin", id="no password to log in"),
        pytest.param(["login", "bob", "--password-stdin"], "the first line of stdin is empty", id="an empty stdin"),
    ],
)
def test_without_a_terminal_there_is_no_prompt(running_service: Shell, arguments: list[str], message: str) -> None:
    result = running_service(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr


def test_login_exchanges_a_password_for_a_key(running_service: Shell) -> None:
    result = running_service("login", "alice", "--key-name", "laptop", "--password-stdin", stdin="correct horse\n")
    assert result.exit_code == 0, result.stderr
    kept = profile.read(running_service.folder / ".aimesh/profile.toml")
    assert (kept.api_key, kept.username) == (NEW_KEY, "alice")
    assert calls_of(running_service) == [
        ("loginUser", KEY),
        ("generateApiKey", TOKEN),
        ("listApiKeys", TOKEN),
        ("revokeApiKey", TOKEN),
        ("logoutUser", TOKEN),
    ]
    # Only the profile's previous key is revoked.
    assert running_service.mesh.calls[3].request == auth.RevokeApiKey(str(UUID(int=1)))
    assert NEW_KEY not in result.output


def test_login_by_email(running_service: Shell) -> None:
    assert running_service("login", "bob@example.org", "--password-stdin", stdin="correct horse").exit_code == 0
    assert running_service.mesh.calls[0].request == auth.LoginUser(auth.Credentials("correct horse", email="bob@example.org"))


def test_login_as_another_user_keeps_the_first_account(running_service: Shell) -> None:
    result = running_service("login", "bob", "--password-stdin", stdin="correct horse")
    kept = running_service.folder / ".aimesh/profile.alice.toml"
    assert (profile.read(kept).api_key, profile.read(kept).username) == (KEY, "alice")
    assert str(kept) in result.stderr


def test_wrong_password_changes_nothing(running_service: Shell) -> None:
    result = running_service("login", "alice", "--password-stdin", stdin="wrong")
    assert result.exit_code == 3
    assert profile.read(running_service.folder / ".aimesh/profile.toml").api_key == KEY


def test_session_is_closed_even_if_key_creation_fails(running_service: Shell) -> None:
    running_service.mesh.answer(auth.generate_api_key, errors.Unavailable("PostgreSQL does not answer"))
    assert running_service("login", "alice", "--password-stdin", stdin="correct horse").exit_code == 5
    assert calls_of(running_service)[-1] == ("logoutUser", TOKEN)


@pytest.mark.parametrize("revoked_before", [False, True])
def test_logout_deletes_the_key(running_service: Shell, revoked_before: bool) -> None:
    if revoked_before:
        running_service.mesh.answer(auth.list_api_keys, errors.NotAuthenticated("this key is revoked"))
    assert running_service("logout").exit_code == 0
    assert profile.read(running_service.folder / ".aimesh/profile.toml").api_key is None
    assert running_service("logout").exit_code == 3


def test_logout_does_not_report_the_old_secret_of_a_rotated_key_as_revoked(running_service: Shell) -> None:
    running_service.mesh.answer(auth.list_api_keys, auth.ApiKeys((key(1, "laptop", NEW_KEY),)))
    done = running_service("logout")
    assert done.exit_code == 0
    assert "keeps working until the overlap ends" in done.stdout
    assert "revoked" not in done.stdout
    assert calls_of(running_service) == [("listApiKeys", KEY)]
    assert profile.read(running_service.folder / ".aimesh/profile.toml").api_key is None


def test_keys_create_json(running_service: Shell) -> None:
    result = running_service("keys", "create", "ci", "--json")
    assert json.loads(result.stdout) == {"key": NEW_KEY, "id": str(UUID(int=9)), "name": "ci"}
    assert running_service.mesh.calls[0].request == auth.GenerateApiKey(name="ci")


def test_keys_create_with_limits(running_service: Shell) -> None:
    limits = ["--requests-per-hour=1", "--requests-per-minute=2", "--tokens-per-minute=3", "--concurrency=4", "--budget=2.5"]
    assert running_service("keys", "create", "ci", *limits).exit_code == 0
    assert running_service("keys", "create", "ci", "--budget", ".000001").exit_code == 0
    assert [entry.request for entry in running_service.mesh.calls] == [
        auth.GenerateApiKey(
            name="ci",
            limits=auth.ApiKeyLimits(
                requests_per_hour=1, requests_per_minute=2, tokens_per_minute=3, concurrency=4, budget_micro=MicroCredits(2_500_000)
            ),
        ),
        auth.GenerateApiKey(name="ci", limits=auth.ApiKeyLimits(budget_micro=MicroCredits(1))),
    ]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--requests-per-hour=0", "1<=x"),
        ("--concurrency=many", "integer"),
        ("--budget=0", "more than 0"),
        ("--budget=-1", "more than 0"),
        ("--budget=1e3", "not an amount"),
        ("--budget=0.0000001", "more than 6 decimals"),
    ],
)
def test_invalid_limit(running_service: Shell, option: str, message: str) -> None:
    result = running_service("keys", "create", "ci", option)
    assert result.exit_code == 2
    assert message in result.stderr
    assert running_service.mesh.calls == []


def test_keys_create_prints_only_the_key(running_service: Shell) -> None:
    assert running_service("keys", "create", "ci").stdout == f"{NEW_KEY}\n"


def test_keys_list(running_service: Shell) -> None:
    rows = json.loads(running_service("keys", "list", "--json").stdout)
    assert [row["name"] for row in rows] == ["laptop", "other"]
    assert running_service("keys", "list").stdout.splitlines()[1].startswith("laptop")
    limits = auth.ApiKeyLimits(requests_per_hour=1000, tokens_per_minute=500, concurrency=2, budget_micro=MicroCredits(2_500_000))
    running_service.mesh.answer(auth.list_api_keys, auth.ApiKeys((msgspec.structs.replace(key(1, "tight", KEY), limits=limits),)))
    assert "  1,000/h, 500 tokens/min, 2 concurrent, 2.5 credits  " in running_service("keys", "list").stdout
    assert json.loads(running_service("keys", "list", "--json").stdout)[0]["limits"]["budget_micro"] == 2_500_000


def test_keys_revoke(running_service: Shell) -> None:
    assert running_service("keys", "revoke", "laptop").exit_code == 0
    assert running_service.mesh.calls[0].request == auth.RevokeApiKey("laptop")


def test_keys_revoke_offers_the_keys_it_created(running_service: Shell) -> None:
    made = msgspec.structs.replace(key(7, "child", KEY), made_by=key(1, "laptop", KEY).id)
    running_service.mesh.answer(auth.list_api_keys, auth.ApiKeys((key(1, "laptop", KEY), made)))
    result = running_service("keys", "revoke", "laptop")
    assert "Keys it created still work: child." in result.stderr
    assert f"--with-made {key(1, 'laptop', KEY).id}" in result.stderr
    result = running_service("keys", "revoke", "laptop", "--with-made")
    assert running_service.mesh.calls[-1].request == auth.RevokeApiKey("laptop", with_made=True)
    assert "and all keys it created" in result.stdout
    assert "still work" not in result.stderr


def test_keys_create_requests_default_scopes_unless_others_are_named(running_service: Shell) -> None:
    for words, bounds, all_rights in (
        ((), auth.KeyBounds(), False),
        (("--scope", "key:write"), auth.KeyBounds(("key:write",)), False),
        (("--all-rights",), auth.KeyBounds(), True),
    ):
        assert running_service("keys", "create", "robot", *words).exit_code == 0
        assert running_service.mesh.calls[-1].request == auth.GenerateApiKey("robot", bounds=bounds, all_rights=all_rights)


def test_full_key_is_not_accepted_as_a_name(running_service: Shell) -> None:
    result = running_service("keys", "revoke", KEY)
    assert result.exit_code == 2
    assert KEY not in result.stderr
    assert running_service.mesh.calls == []


def test_a_tier_is_shown_without_its_version(running_service: Shell) -> None:
    kept = msgspec.structs.replace(user("bob"), tier="pro@3")
    running_service.mesh.answer(auth.set_tier, lambda _: kept)
    running_service.mesh.answer(auth.list_users, auth.Users((kept,)))
    running_service.mesh.answer(
        accounts.get_account,
        accounts.OwnAccount(kept, accounts.Preferences(), has_password=True, mfa_enabled=False, recovery_codes_left=0),
    )
    assert running_service("admin", "users", "set-tier", "bob", "pro").stdout == "bob: user, tier pro, active\n"
    assert running_service("whoami").stdout == "bob (user, tier pro)\n"
    listed = running_service("admin", "users", "list").stdout
    assert " pro " in listed
    assert "@3" not in listed
    assert json.loads(running_service("admin", "users", "set-tier", "bob", "pro", "--json").stdout)["tier"] == "pro"


def test_admin_users(running_service: Shell) -> None:
    running_service.mesh.answer(auth.set_tier, lambda request: user(request.user))
    running_service.mesh.answer(auth.set_active, lambda request: user(request.user))
    running_service.mesh.answer(auth.list_users, auth.Users((user("alice"), user("bob"))))
    assert running_service("admin", "users", "set-tier", "bob", "enterprise").exit_code == 0
    assert running_service("admin", "users", "disable", "bob").exit_code == 0
    assert running_service("admin", "users", "enable", "bob").exit_code == 0
    assert [entry.request for entry in running_service.mesh.calls] == [
        auth.SetTier("bob", Tier.ENTERPRISE),
        auth.SetActive("bob", is_active=False),
        auth.SetActive("bob", is_active=True),
    ]
    assert [row["username"] for row in json.loads(running_service("admin", "users", "list", "--json").stdout)] == ["alice", "bob"]


def test_user_list_is_fetched_page_by_page(running_service: Shell) -> None:
    everyone = [msgspec.structs.replace(user(f"user{number}"), id=UserId(UUID(int=number))) for number in range(2500)]

    def page(request: auth.ListUsers) -> auth.Users:
        first = next((place + 1 for place, one in enumerate(everyone) if one.id == request.after), 0)
        return auth.Users(tuple(everyone[first : first + request.limit]), more=len(everyone) > first + request.limit)

    running_service.mesh.answer(auth.list_users, page)
    listed = json.loads(running_service("admin", "users", "list", "--search", "user", "--limit", "2100", "--json").stdout)
    assert [row["username"] for row in listed] == [one.username for one in everyone[:2100]]
    sent = [
        (entry.request.limit, entry.request.search) for entry in running_service.mesh.calls if isinstance(entry.request, auth.ListUsers)
    ]
    assert sent == [(1000, "user"), (1000, "user"), (100, "user")]


def test_a_tier_is_any_plan_that_the_mesh_knows(running_service: Shell) -> None:
    running_service.mesh.answer(auth.set_tier, errors.NotFound("there is no plan 'premium'", hint="use free, pro, enterprise"))
    result = running_service("admin", "users", "set-tier", "bob", "premium")
    assert result.exit_code == 1
    assert "there is no plan 'premium' – use free, pro, enterprise" in result.stderr


@pytest.mark.parametrize(
    ("typed", "budget", "shown"),
    [
        (["20", "--every", "month"], Budget(MicroCredits(20_000_000), Every.MONTH), "Acme: 20 credits every month"),
        (["1"], Budget(MicroCredits(1_000_000)), "Acme: 1 credit"),
        (["--none"], None, "Acme: no budget"),
    ],
)
def test_a_budget_is_set_and_removed(running_service: Shell, typed: list[str], budget: Budget | None, shown: str) -> None:
    running_service.mesh.answer(auth.set_budget, lambda request: auth.OwnerBudget(TenantId(UUID(int=7)), "Acme", request.budget))
    result = running_service("admin", "budget", "acme", *typed)
    assert (result.exit_code, result.stdout.strip()) == (0, shown)
    assert [entry.request for entry in running_service.mesh.calls] == [auth.SetBudget("acme", budget)]


@pytest.mark.parametrize("typed", [[], ["20", "--none"], ["--none", "--every", "day"]])
def test_a_budget_needs_an_amount_or_none(running_service: Shell, typed: list[str]) -> None:
    result = running_service("admin", "budget", "acme", *typed)
    assert (result.exit_code, running_service.mesh.calls) == (2, [])
    assert "give an AMOUNT, or --none to remove the budget" in result.stderr
