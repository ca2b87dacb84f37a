"""What an authenticated caller may do; a key never has more permissions than its creator."""

from datetime import UTC, datetime, timedelta
from ipaddress import ip_address, ip_network
from uuid import UUID

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.auth import roles
from services.auth.roles import NOT_YOURS
from shared import access_table, errors
from shared.api.auth import ApiKey, ApiKeyLimits, Every, GenerateApiKey, KeyBounds, KeyKind, Principal
from shared.types import KeyId, MicroCredits, ModelName, Permission, TenantId, Tier, UserId, UserRole
from tests.cases import case

ME, OTHER = UserId(UUID(int=1)), UserId(UUID(int=2))


NONE = ApiKeyLimits()


def principal(role: UserRole = UserRole.USER, limits: ApiKeyLimits = NONE) -> Principal:
    return Principal(ME, "me", role, Tier.FREE, key_limits=limits)


def a_key(role: UserRole = UserRole.USER, kind: KeyKind = KeyKind.LIVE, stored: tuple[str, ...] = ()) -> Principal:
    """Return a key with no bounds but its scopes, which follow from its kind and what is stored."""
    return msgspec.structs.replace(principal(role), key_id=KeyId(UUID(int=3)), scopes=roles.scopes_of_key(kind, role, stored))


def limits(name: str, value: int | None) -> ApiKeyLimits:
    return msgspec.structs.replace(NONE, **{name: value})


@pytest.mark.parametrize(
    ("role", "named", "expected"),
    [
        pytest.param(UserRole.USER, None, ME, id="nobody named means oneself"),
        pytest.param(UserRole.USER, ME, ME, id="oneself by name"),
        pytest.param(UserRole.USER, OTHER, None, id="another is refused"),
        pytest.param(UserRole.DEVELOPER, OTHER, None, id="a developer too"),
        pytest.param(UserRole.ADMIN, OTHER, OTHER, id="an administrator may"),
        pytest.param(UserRole.ADMIN, None, ME, id="an administrator means oneself too"),
    ],
)
def test_subject_of(role: UserRole, named: UserId | None, expected: UserId | None) -> None:
    if expected is not None:
        assert roles.subject_of(principal(role), named) == expected
        return
    with pytest.raises(errors.NotAllowed, match=NOT_YOURS):
        roles.subject_of(principal(role), named)


@pytest.mark.parametrize(
    ("ceiling", "asked", "error"),
    [
        pytest.param(None, None, None, id="no limit of either"),
        pytest.param(None, 5, None, id="an unlimited key makes a limited one"),
        pytest.param(5, 5, errors.NotAllowed, id="a limited key makes none"),
        pytest.param(5, None, errors.NotAllowed, id="without a limit"),
    ],
)
def test_limits_of_a_new_key(ceiling: int | None, asked: int | None, error: type[errors.AimeshError] | None) -> None:
    for name in set(ApiKeyLimits.__struct_fields__) - {"budget_every"}:
        with case(name):
            caller = principal(limits=limits(name, ceiling))
            if error is None:
                roles.check_limits_of_new_key(caller, limits(name, asked))
                continue
            with pytest.raises(error):
                roles.check_limits_of_new_key(caller, limits(name, asked))


def test_only_a_budget_is_renewed() -> None:
    with pytest.raises(errors.BadRequest, match="there is no budget to renew") as refused:
        roles.check_limits_of_new_key(principal(), ApiKeyLimits(budget_every=Every.MONTH))
    assert refused.value.field == "budget_every"
    roles.check_limits_of_new_key(principal(), ApiKeyLimits(budget_micro=MicroCredits(1), budget_every=Every.MONTH))


def test_an_invalid_budget_is_refused_with_the_valid_range() -> None:
    with pytest.raises(errors.BadRequest, match=r"budget: from 0\.000001 to .* credits"):
        roles.check_limits_of_new_key(principal(), ApiKeyLimits(budget_micro=MicroCredits(0)))


def test_a_key_cannot_give_a_permission_that_it_lacks() -> None:
    maker = a_key(stored=(Permission.INFER, Permission.WRITE_KEYS))
    asked = KeyBounds(scopes=(Permission.INFER, Permission.READ_USAGE))
    with pytest.raises(errors.NotAllowed, match="you cannot give permissions that you lack: usage:read"):
        roles.terms_of_new_key(maker, UserRole.USER, GenerateApiKey("k", bounds=asked), NOW)


@pytest.mark.parametrize("role", UserRole)
def test_a_key_with_all_permissions_of_its_owner_opens_a_session(role: UserRole) -> None:
    kind = KeyKind.ADMIN if role is UserRole.ADMIN else KeyKind.LIVE
    roles.check_may_open_session(a_key(role, kind))


@pytest.mark.parametrize(
    "changed",
    [
        *(pytest.param({"key_limits": msgspec.structs.replace(NONE, **{name: 5})}, id=name) for name in ApiKeyLimits.__struct_fields__),
        pytest.param({"models": (ModelName("a"),)}, id="bound to models"),
        pytest.param({"networks": ("10.0.0.0/8",)}, id="bound to networks"),
        pytest.param({"team_id": TenantId(UUID(int=9))}, id="of an organisation"),
        pytest.param({"scopes": ("account:write",)}, id="of some scopes"),
        pytest.param({"role": UserRole.ADMIN}, id="an administrator's everyday key"),
    ],
)
def test_a_key_with_fewer_permissions_than_its_owner_opens_no_session(changed: dict[str, object]) -> None:
    with pytest.raises(
        errors.NotAllowed,
        match=r"a key (with its own limit|that is bound to models|with fewer permissions than its owner).* cannot open a session",
    ):
        roles.check_may_open_session(msgspec.structs.replace(a_key(), **changed))


@pytest.mark.parametrize("role", UserRole)
def test_only_administrators_administer(role: UserRole) -> None:
    assert roles.is_admin(principal(role)) == (role is UserRole.ADMIN)


@pytest.mark.parametrize("kind", KeyKind)
def test_only_the_kind_makes_an_admin_key(kind: KeyKind) -> None:
    caller = a_key(UserRole.ADMIN, kind)
    assert roles.is_admin(caller) is (kind is KeyKind.ADMIN)
    if kind is not KeyKind.ADMIN:
        with pytest.raises(errors.NotAllowed, match=NOT_YOURS):
            roles.subject_of(caller, OTHER)


# --- no key exceeds its creator ----------------------------------------------------------------------------------------

NOW = datetime(2026, 11, 21, tzinfo=UTC)
MODELS = tuple(ModelName(name) for name in "abcd")
NETWORKS = ("10.0.0.0/8", "10.1.0.0/16", "10.1.2.0/24", "0.0.0.0/0", "192.0.2.0/24", "::/0", "2001:db8::/32", "2001:db8:1::/48")
ADDRESSES = ("10.1.2.3", "10.9.9.9", "192.0.2.1", "203.0.113.1", "2001:db8:1::1", "2001:db8:2::1", "2001:dead::1")

scope_lists = st.lists(st.sampled_from(list(Permission)), unique=True).map(tuple)
bounds = st.builds(
    KeyBounds,
    scopes=scope_lists,
    models=st.lists(st.sampled_from(MODELS), unique=True).map(tuple),
    networks=st.lists(st.sampled_from(NETWORKS), unique=True, max_size=3).map(tuple),
)
days = st.one_of(st.none(), st.integers(0, 100))
ends = st.one_of(st.none(), st.integers(1, 100).map(lambda count: (NOW + timedelta(days=count)).timestamp()))


@st.composite
def makers(draw: st.DrawFn) -> Principal:
    """A login, or a key of any kind and bounds."""
    role = draw(st.sampled_from(UserRole))
    if draw(st.booleans()):
        return principal(role)
    own = draw(bounds)
    key = a_key(role, draw(st.sampled_from(KeyKind)), own.scopes)
    return msgspec.structs.replace(key, models=own.models, networks=own.networks, expires_at=draw(ends))


def all_of(granted: frozenset[Permission]) -> frozenset[Permission]:
    return frozenset(Permission) if Permission.EVERYTHING in granted else granted


def may(role: UserRole, kind: KeyKind, stored: tuple[str, ...]) -> frozenset[Permission]:
    return all_of(access_table.permissions_of(role, roles.scopes_of_key(kind, role, stored)))


def admits(networks: tuple[str, ...], address: str) -> bool:
    return not networks or any(ip_address(address) in ip_network(network) for network in networks)


# More examples than the profile has, because there are many combinations of creators and kinds of keys.
@settings(max_examples=3 * settings.default.max_examples)
@given(maker=makers(), kind=st.sampled_from(KeyKind), asked=bounds, how_long=days)
def test_a_new_key_has_no_permission_that_its_creator_lacks(
    maker: Principal, kind: KeyKind, asked: KeyBounds, how_long: int | None
) -> None:
    request = GenerateApiKey("k", kind=kind, bounds=asked, days=how_long)
    try:
        terms = roles.terms_of_new_key(maker, maker.role, request, NOW)
    except (errors.NotAllowed, errors.BadRequest):
        return
    granted = all_of(access_table.permissions_of(maker.role, maker.scopes))
    assert may(maker.role, kind, terms.bounds.scopes) <= granted
    assert kind is KeyKind.ADMIN or Permission.EVERYTHING not in may(maker.role, kind, terms.bounds.scopes)
    if maker.scopes is not None and Permission.EVERYTHING not in granted:
        assert all(may(later, kind, terms.bounds.scopes) <= granted for later in UserRole), "nor after its owner was promoted"
    if maker.models:
        assert terms.bounds.models
        assert set(terms.bounds.models) <= set(maker.models)
    for address in ADDRESSES:
        assert admits(maker.networks, address) or not admits(terms.bounds.networks, address)
    if maker.expires_at is not None:
        assert terms.expires_at is not None
        assert terms.expires_at.timestamp() <= maker.expires_at


@pytest.mark.parametrize("how_long", [0, 11])
def test_a_key_that_expires_creates_none_that_is_valid_for_longer(how_long: int) -> None:
    ends_at = (NOW + timedelta(days=10)).timestamp()
    maker = msgspec.structs.replace(a_key(UserRole.ADMIN, KeyKind.ADMIN), expires_at=ends_at)
    assert roles.terms_of_new_key(maker, maker.role, GenerateApiKey("k", days=10), NOW).expires_at == NOW + timedelta(days=10)
    with pytest.raises(errors.NotAllowed, match="days: longer than this key itself"):
        roles.terms_of_new_key(maker, maker.role, GenerateApiKey("k", days=how_long), NOW)


@given(maker=makers(), kind=st.sampled_from(KeyKind), stored=bounds, ends_at=ends)
def test_a_key_with_fewer_permissions_cannot_rotate_it(maker: Principal, kind: KeyKind, stored: KeyBounds, ends_at: float | None) -> None:
    expires_at = None if ends_at is None else datetime.fromtimestamp(ends_at, UTC)
    key = ApiKey(KeyId(UUID(int=4)), ME, "k", "…", True, NOW, kind=kind, bounds=stored, expires_at=expires_at)
    try:
        roles.check_may_rotate(maker, key, maker.role)
    except errors.NotAllowed:
        assert maker.key_id is not None, "a login rotates all of its user's"
        roles.check_may_rotate(maker, msgspec.structs.replace(key, id=KeyId(UUID(int=3))), maker.role)
        return
    assert may(maker.role, kind, stored.scopes) <= all_of(access_table.permissions_of(maker.role, maker.scopes))
    assert maker.key_id is None or maker.expires_at is None or (ends_at is not None and ends_at <= maker.expires_at)
    assert all(admits(maker.networks, address) or not admits(stored.networks, address) for address in ADDRESSES)


BOUND_TO_A_MODEL, BOUND_TO_A_NETWORK = KeyBounds(models=(ModelName("a"),)), KeyBounds(networks=("10.0.0.0/8",))


@pytest.mark.parametrize(
    ("by", "rotated", "why"),
    [
        pytest.param(BOUND_TO_A_MODEL, KeyBounds(), "models: beyond those of this key: every model", id="every model"),
        pytest.param(BOUND_TO_A_MODEL, KeyBounds(models=(ModelName("b"),)), "models: beyond those of this key: b", id="another model"),
        pytest.param(BOUND_TO_A_MODEL, KeyBounds(models=(ModelName("a"), ModelName("b"))), "beyond those of this key: b", id="more models"),
        pytest.param(BOUND_TO_A_NETWORK, KeyBounds(), "networks: beyond those of this key", id="every network"),
        pytest.param(BOUND_TO_A_NETWORK, KeyBounds(networks=("10.0.0.0/7",)), "networks: beyond those of this key", id="a larger network"),
        pytest.param(
            BOUND_TO_A_NETWORK, KeyBounds(networks=("10.1.0.0/16", "::/0")), "networks: beyond those of this key", id="one network more"
        ),
        pytest.param(BOUND_TO_A_MODEL, BOUND_TO_A_MODEL, "", id="the same model"),
        pytest.param(BOUND_TO_A_NETWORK, KeyBounds(networks=("10.1.0.0/16",)), "", id="a smaller network"),
    ],
)
def test_a_key_cannot_rotate_one_outside_its_bounds(by: KeyBounds, rotated: KeyBounds, why: str) -> None:
    """The two keys differ only in their bounds, so nothing else can be the reason."""
    caller = msgspec.structs.replace(a_key(), models=by.models, networks=by.networks)
    key = ApiKey(KeyId(UUID(int=4)), ME, "k", "…", True, NOW, kind=KeyKind.LIVE, bounds=rotated, expires_at=None)
    if not why:
        roles.check_may_rotate(caller, key, UserRole.USER)
        return
    with pytest.raises(errors.NotAllowed, match=why):
        roles.check_may_rotate(caller, key, UserRole.USER)


def test_a_limited_key_cannot_rotate_others() -> None:
    for name in ApiKeyLimits.__struct_fields__:
        with case(name):
            key = ApiKey(KeyId(UUID(int=4)), ME, "k", "…", True, NOW, kind=KeyKind.LIVE, bounds=KeyBounds(), expires_at=None)
            with pytest.raises(errors.NotAllowed, match="its own limit cannot rotate other keys"):
                roles.check_may_rotate(msgspec.structs.replace(a_key(), key_limits=limits(name, 5)), key, UserRole.USER)


stored_scopes = st.lists(st.one_of(st.text(max_size=20), st.sampled_from([str(permission) for permission in Permission]))).map(tuple)


@given(role=st.sampled_from(UserRole), kind=st.sampled_from(KeyKind), stored=stored_scopes)
def test_a_principal_has_exactly_the_permissions_of_its_key(role: UserRole, kind: KeyKind, stored: tuple[str, ...]) -> None:
    carried = roles.scopes_of_key(kind, role, stored)
    assert {str(permission) for permission in access_table.permissions_of(role, carried)} == set(carried)
    if stored and not set(stored) & set(Permission):
        assert carried == (), "what this version does not know is not everything"


# --- keys that name people -------------------------------------------------------------------------------------------

NAMING = ("inference:execute", "users:name")


def asked(*scopes: str, kind: KeyKind = KeyKind.LIVE, **more: bool) -> GenerateApiKey:
    return GenerateApiKey("webui", kind=kind, bounds=KeyBounds(scopes), **more)


def test_only_an_administrator_makes_a_key_that_names_people_and_only_an_own_one() -> None:
    boss = principal(UserRole.ADMIN)
    for scopes in (NAMING, (*NAMING, "users:unknown")):
        stored = roles.terms_of_new_key(boss, UserRole.ADMIN, asked(*scopes), NOW).bounds.scopes
        assert stored == roles.scopes_of_key(KeyKind.LIVE, UserRole.ADMIN, stored) == scopes
        for owner in set(UserRole) - {UserRole.ADMIN}:
            # Whoever is an administrator no more speaks for nobody.
            assert roles.scopes_of_key(KeyKind.LIVE, owner, stored) == ("inference:execute",)
            for caller in (boss, principal(owner)):
                with case((owner, caller.role)), pytest.raises(errors.NotAllowed, match=r"cannot have .*users:name"):
                    roles.terms_of_new_key(caller, owner, asked(*scopes), NOW)
    with pytest.raises(errors.NotAllowed, match="a key of the kind test cannot have users:name"):
        roles.terms_of_new_key(boss, UserRole.ADMIN, asked(*NAMING, kind=KeyKind.TEST), NOW)
    with pytest.raises(errors.BadRequest, match="users:unknown needs users:name"):
        roles.terms_of_new_key(boss, UserRole.ADMIN, asked("inference:execute", "users:unknown"), NOW)


def test_a_key_without_a_list_names_nobody() -> None:
    boss = principal(UserRole.ADMIN)
    for request in (asked(), asked(all_rights=True), asked(kind=KeyKind.ADMIN), asked("*", "users:name", kind=KeyKind.ADMIN)):
        stored = roles.terms_of_new_key(boss, UserRole.ADMIN, request, NOW).bounds.scopes
        assert "users:name" not in roles.scopes_of_key(request.kind, UserRole.ADMIN, stored)


def test_a_key_gives_no_more_of_naming_than_it_has() -> None:
    for scopes, wanted in (
        (("key:write", *NAMING), (*NAMING, "users:unknown")),
        (("key:write", "inference:execute"), NAMING),
        (("key:write", "inference:execute"), ("inference:execute", "users:name", "users:unknown")),
    ):
        with case(scopes), pytest.raises(errors.NotAllowed, match="you cannot give permissions that you lack: users:"):
            roles.terms_of_new_key(a_key(UserRole.ADMIN, stored=scopes), UserRole.ADMIN, asked(*wanted), NOW)


@given(role=st.sampled_from(UserRole), stored=stored_scopes)
def test_a_named_person_may_do_nothing_that_the_key_or_they_may_not(role: UserRole, stored: tuple[str, ...]) -> None:
    key = msgspec.structs.replace(
        a_key(UserRole.ADMIN, stored=(*NAMING, *stored)), models=(ModelName("m"),), networks=("10.0.0.0/8",), expires_at=5.0,
        key_limits=limits("concurrency", 1), team_id=None,
    )  # fmt: skip
    person = Principal(OTHER, "anna", role, "pro")
    found = roles.named(key, person)
    granted = access_table.permissions_of(found.role, found.scopes)
    assert granted <= access_table.permissions_of(key.role, key.scopes)
    assert Permission.EVERYTHING in access_table.ROLES[role] or granted <= access_table.ROLES[role]
    assert not granted & {Permission.EVERYTHING, Permission.NAME_USERS, Permission.SERVE_STRANGERS}
    assert (found.models, found.networks, found.expires_at) == (key.models, key.networks, key.expires_at)
    assert (found.user_id, found.tier, found.tenant_id, found.named_by) == (OTHER, "pro", OTHER, ME)
    assert found.key_limits == NONE
