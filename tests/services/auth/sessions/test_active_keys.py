"""Signing keys on a real PostgreSQL: a rotation invalidates no token, and a leaked key is dropped at once."""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import jwt
import pytest
from joserfc.jwk import OKPKey

from services.auth import sealing, store
from services.auth.sealing import DataSealer
from services.auth.sessions.active_keys import ActiveKeys, SigningKeyRpc
from services.auth.sessions.signing_key_store import SigningKeyStore
from services.auth.sessions.signing_keys import KEPT, PUBLISHED, PrivateSigningKey, VerificationKeys
from shared import errors
from shared.api import auth
from shared.api.audit import AuditedAct
from shared.rpc import RpcCall
from shared.types import NodeId, Peer, Role, Tier, UserId, UserRole
from tests import tiers
from tests.services.auth import by_hand

BEGIN = datetime(2026, 2, 1, tzinfo=UTC)
LIFETIME = timedelta(hours=1)
MINUTE = timedelta(minutes=1)
SEALER = DataSealer(bytes(range(32)))
ISSUER = "aimesh/test"


class Clock:
    """Wall clock and monotonic clock that stand still until a test moves them."""

    def __init__(self) -> None:
        self.at = BEGIN

    def now(self) -> datetime:
        return self.at

    def monotonic(self) -> float:
        return (self.at - BEGIN).total_seconds()


Replica = Callable[..., contextlib.AbstractAsyncContextManager[ActiveKeys]]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def replica(postgres_url: str, clock: Clock) -> Replica:
    @contextlib.asynccontextmanager
    async def open_it(sealer: DataSealer = SEALER, *, begin: bool = True) -> AsyncIterator[ActiveKeys]:
        async with store.opened(postgres_url) as database:
            signers = ActiveKeys(SigningKeyStore(database), sealer, LIFETIME, now=clock.now, clock=clock.monotonic)
            if begin:
                await signers.begin()
            yield signers

    return open_it


@pytest.fixture
async def signers(replica: Replica) -> AsyncIterator[ActiveKeys]:
    async with replica() as opened:
        yield opened


@pytest.fixture
async def other(signers: ActiveKeys, replica: Replica) -> AsyncIterator[ActiveKeys]:
    """Another replica of the same service."""
    async with replica() as opened:
        yield opened


def issue(keys: VerificationKeys, now: datetime) -> str:
    """Sign a token as access tokens are signed."""
    key = keys.signer()
    claims = {"iss": key.issuer(ISSUER), "iat": int(now.timestamp()), "exp": int(now.timestamp()) + 600}
    return jwt.encode(claims, key.private, algorithm="EdDSA", headers={"kid": key.kid})


async def read(keys: VerificationKeys, token: str) -> dict[str, Any]:
    """Verify a token and return its claims. Raises NotAuthenticated if the key is no longer ours."""
    key = await keys.find(str(jwt.get_unverified_header(token)["kid"]))
    if key is None:
        raise errors.NotAuthenticated("the access token was not made by this mesh")
    options: Any = {"verify_exp": False, "verify_iat": False}
    return dict(jwt.decode(token, key.public, algorithms=["EdDSA"], issuer=key.issuer(ISSUER), options=options))


async def is_good(keys: VerificationKeys, token: str) -> bool:
    try:
        await read(keys, token)
    except (errors.NotAuthenticated, jwt.InvalidTokenError):
        return False
    return True


def published(signers: ActiveKeys) -> list[str]:
    return [key.kid for key in signers.published()]


async def until(happens: Callable[[], bool]) -> None:
    give_up_at = time.monotonic() + 10
    while not happens():
        assert time.monotonic() < give_up_at
        await asyncio.sleep(0.01)


# --- one replica -----------------------------------------------------------------------------------------------------


async def test_the_first_start_creates_a_key_that_signs_immediately(signers: ActiveKeys, clock: Clock) -> None:
    assert published(signers) == [signers.signer().kid]
    assert (await read(signers, issue(signers, clock.at)))["iss"] == ISSUER


async def test_another_start_finds_the_same_key(signers: ActiveKeys, other: ActiveKeys) -> None:
    assert published(other) == published(signers)


async def test_the_next_key_is_published_then_signs_and_the_old_one_is_dropped(signers: ActiveKeys, clock: Clock) -> None:
    first = signers.signer().kid
    clock.at = BEGIN + LIFETIME - PUBLISHED
    await signers.refresh()
    old, new = published(signers)
    assert (old, signers.signer().kid) == (first, first)
    last = issue(signers, clock.at)
    clock.at = BEGIN + LIFETIME
    assert signers.signer().kid == new, "without a look at the database"
    assert await is_good(signers, last)
    clock.at = BEGIN + LIFETIME + KEPT
    assert not await is_good(signers, last), "also where nobody has swept yet"
    await signers.refresh()
    assert published(signers) == [new]


async def test_a_night_of_rotations_under_load_refuses_nothing(signers: ActiveKeys, other: ActiveKeys, clock: Clock) -> None:
    """Many tokens at once, on two replicas that refresh every few minutes, over eight key rotations."""
    replicas, kept, kids = (signers, other), deque[tuple[datetime, str]](), set()
    refused = 0

    async def one(number: int) -> None:
        nonlocal refused
        token = issue(replicas[number % 2], clock.at)
        kids.add(jwt.get_unverified_header(token)["kid"])
        if number % 10 == 0:
            kept.append((clock.at, token))
        refused += not await is_good(replicas[(number + 1) % 2], token)
        _, older = kept[number % len(kept)]
        refused += not await is_good(replicas[number % 2], older)

    for step in range(96):
        clock.at = BEGIN + step * timedelta(minutes=5)
        while kept and clock.at - kept[0][0] > timedelta(minutes=11):
            kept.popleft()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(replicas[step % 2].refresh())
            for number in range(tiers.volume(20, least=10)):
                tasks.create_task(one(number))
        # The other replica refreshes within a minute.
        clock.at += MINUTE
        await replicas[(step + 1) % 2].refresh()
    assert (refused, len(kids)) == (0, 8)


# --- several replicas ------------------------------------------------------------------------------------------------


async def test_replicas_that_start_concurrently_create_one_key(replica: Replica) -> None:
    async with contextlib.AsyncExitStack() as stack:
        many = [await stack.enter_async_context(replica(begin=False)) for _ in range(4)]
        await asyncio.gather(*(one.begin() for one in many))
        for one in many:
            await one.refresh()
        assert len({tuple(published(one)) for one in many}) == 1
        assert len(published(many[0])) == 1


async def test_replicas_that_rotate_concurrently_create_one_key(signers: ActiveKeys, other: ActiveKeys, clock: Clock) -> None:
    clock.at = BEGIN + LIFETIME - MINUTE
    await asyncio.gather(signers.refresh(), other.refresh())
    await asyncio.gather(signers.refresh(), other.refresh())
    assert published(signers) == published(other)
    assert len(published(signers)) == 2


async def test_a_replica_learns_of_a_new_key_immediately(signers: ActiveKeys, other: ActiveKeys) -> None:
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(other.run())
        async with signers.rotating(at_once=True):
            pass
        await until(lambda: published(other) == published(signers))
        running.cancel()


async def test_unknown_key_ids_cause_one_query_in_ten_seconds(signers: ActiveKeys, other: ActiveKeys, clock: Clock) -> None:
    clock.at += MINUTE
    async with signers.rotating(at_once=True):
        pass
    token = issue(signers, clock.at)
    assert await asyncio.gather(*(is_good(other, token) for _ in range(200))) == [True] * 200, "one looks, and all wait for it"
    clock.at += timedelta(seconds=5)
    async with signers.rotating(at_once=True):
        pass
    assert not await is_good(other, issue(signers, clock.at)), "too early to look again"
    clock.at += timedelta(seconds=5)
    assert await is_good(other, issue(signers, clock.at))
    assert await other.find("nobody's") is None


# --- an administrator ------------------------------------------------------------------------------------------------


class Trail:
    def __init__(self) -> None:
        self.acts: list[AuditedAct] = []
        self.fails = False

    async def add(self, transaction: object, act: AuditedAct) -> None:
        if self.fails:
            raise errors.Unavailable("no log")
        self.acts.append(act)

    def note(self, act: AuditedAct) -> None:
        self.acts.append(act)


@pytest.fixture
def trail() -> Trail:
    return Trail()


@pytest.fixture
def publication(signers: ActiveKeys, trail: Trail) -> SigningKeyRpc:
    return SigningKeyRpc(trail, signers)


def by_admin() -> RpcCall:
    made = RpcCall(Peer(Role.CLIENT, NodeId("U" * 56)), deadline=time.monotonic() + 10, credential=None, idempotency_key=None)
    made.found = auth.Principal(user_id=UserId(UUID(int=1)), username="root", role=UserRole.ADMIN, tier=Tier.FREE)
    return made


async def test_a_manual_rotation_publishes_the_key_first(
    publication: SigningKeyRpc, signers: ActiveKeys, clock: Clock, trail: Trail
) -> None:
    first, token = signers.signer().kid, issue(signers, clock.at)
    answer = await publication.rotate_signing_keys(auth.RotateSigningKeys(), by_admin())
    assert [key.kid for key in answer.keys] == published(signers)
    assert (len(answer.keys), signers.signer().kid) == (2, first)
    again = await publication.rotate_signing_keys(auth.RotateSigningKeys(), by_admin())
    assert again == answer, "one that is on its way is enough"
    clock.at += PUBLISHED
    assert signers.signer().kid == answer.keys[1].kid
    assert await is_good(signers, token)
    assert [(act.action, act.tenant_id, act.details) for act in trail.acts] == [("signing_keys.rotate", None, {"at_once": "no"})] * 2


async def test_an_emergency_rotation_invalidates_old_tokens(
    publication: SigningKeyRpc, signers: ActiveKeys, other: ActiveKeys, clock: Clock
) -> None:
    async with signers.rotating(at_once=False):
        pass
    leaked, token = signers.signer(), issue(signers, clock.at)
    (key,) = (await publication.rotate_signing_keys(auth.RotateSigningKeys(at_once=True), by_admin())).keys
    assert key.kid != leaked.kid
    await other.refresh()
    for one in (signers, other):
        assert published(one) == [key.kid]
        assert not await is_good(one, token)
        assert await is_good(one, issue(signers, clock.at))
    assert (await read(signers, issue(signers, clock.at)))["iss"] == f"{ISSUER}/1"
    # A token with the old issuer is refused, even if the new key signs it.
    forged = jwt.encode({"iss": ISSUER}, signers.signer().private, algorithm="EdDSA", headers={"kid": key.kid})
    assert not await is_good(signers, forged)


async def test_a_rotation_that_cannot_be_logged_does_not_happen(publication: SigningKeyRpc, signers: ActiveKeys, trail: Trail) -> None:
    trail.fails = True
    before = published(signers)
    with pytest.raises(errors.Unavailable, match="no log"):
        await publication.rotate_signing_keys(auth.RotateSigningKeys(at_once=True), by_admin())
    await signers.refresh()
    assert published(signers) == before


async def test_published_keys_follow_rfc_8037(publication: SigningKeyRpc, signers: ActiveKeys, clock: Clock) -> None:
    (key,) = (await publication.get_signing_keys(auth.GetSigningKeys(), by_admin())).keys
    jwk = jwt.PyJWK({"kty": "OKP", "crv": "Ed25519", "use": "sig", "alg": "EdDSA", "kid": key.kid, "x": key.x})
    token = issue(signers, clock.at)
    assert jwt.decode(token, jwk, algorithms=["EdDSA"], options={"verify_exp": False, "verify_iat": False})["iss"] == ISSUER
    assert jwk.key_id == OKPKey(jwk.key, None).thumbprint() == key.kid


def test_the_thumbprint_is_that_of_rfc_8037() -> None:
    """RFC 8037, appendix A.3."""
    raw = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
    key = PrivateSigningKey.from_raw(raw, 0)
    assert (key.x, key.kid) == ("11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo", "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k")


# --- storage ---------------------------------------------------------------------------------------------------------


async def test_the_database_alone_cannot_sign(signers: ActiveKeys, postgres_url: str) -> None:
    raw = signers.signer().private.private_bytes_raw()
    sealed = await by_hand.value(postgres_url, "SELECT sealed_private FROM auth.signing_keys")
    assert raw not in sealed
    assert signers.signer().x == await by_hand.value(postgres_url, "SELECT public_x FROM auth.signing_keys")


async def test_a_foreign_key_in_the_table_is_ignored(signers: ActiveKeys, postgres_url: str, clock: Clock) -> None:
    stranger = PrivateSigningKey.generate(9)
    copied = "INSERT INTO auth.signing_keys SELECT $1, public_x, sealed_private, 9, made_at, signs_from FROM auth.signing_keys"
    await by_hand.run(postgres_url, copied, stranger.kid)
    clock.at += MINUTE
    await signers.refresh()
    assert await signers.find(stranger.kid) is None
    assert signers.signer().epoch == 0
    async with signers.rotating(at_once=True):
        pass
    assert signers.signer().epoch == 1


async def test_a_new_data_key_takes_over_and_the_former_is_no_longer_needed(signers: ActiveKeys, replica: Replica) -> None:
    new = bytes(32)
    async with replica(DataSealer(new, bytes(range(32)))) as opened:
        assert published(opened) == published(signers)
    async with replica(DataSealer(new)) as opened:
        assert published(opened) == published(signers)
    with pytest.raises(errors.Unavailable, match="another DATA_KEY"):
        async with replica(SEALER):
            pass


async def test_a_sealed_key_opens_only_for_its_own_row(signers: ActiveKeys, postgres_url: str) -> None:
    sealed = await by_hand.value(postgres_url, "SELECT sealed_private FROM auth.signing_keys")
    kid = signers.signer().kid
    assert PrivateSigningKey.from_raw(SEALER.open("signing-key", kid, sealed), 0).kid == kid
    for purpose, owner in (("signing-key", "another"), ("totp", kid)):
        with pytest.raises(errors.Internal, match="the stored value was changed, or encrypted for something else"):
            SEALER.open(purpose, owner, sealed)
    assert sealing.key_id_of(sealed) == SEALER.key_id
