"""Who may read a file of models from whom: every reason to refuse a grant."""

from collections.abc import Callable

import msgspec
import pytest

from shared import errors
from shared.identity import certificates, copy_grants
from shared.identity.certificates import LEEWAY_SECONDS
from shared.identity.copy_grants import LIFETIME_SECONDS, CopyGrant
from shared.identity.trust import Trust
from shared.types import Role
from tests.shared.identity.test_trust import CA, NOW, OTHER_CA, certified

DIGEST = bytes(range(32))
GATEWAY, HOLDER, READER = certified(Role.GATEWAY), certified(Role.WORKER), certified(Role.WORKER)


def grant(gateway: Trust = GATEWAY, reader: Trust = READER, holder: Trust = HOLDER, digest: bytes = DIGEST, at: float = NOW) -> bytes:
    return copy_grants.issue(gateway, reader.me.id, holder.me.id, digest, at)


def changed(**change: object) -> bytes:
    """Return a grant with a change that the gateway has not signed."""
    found = msgspec.structs.replace(msgspec.msgpack.decode(grant(), type=CopyGrant), **change)
    return msgspec.msgpack.encode(found)


def check(body: bytes, holder: Trust = HOLDER, now: float = NOW) -> CopyGrant:
    return copy_grants.check(body, holder, READER.me.id, DIGEST, now)


def test_a_grant_holds_for_its_reader_holder_and_file_and_an_hour() -> None:
    assert check(grant()).not_after == NOW + LIFETIME_SECONDS
    check(grant(), now=NOW + LIFETIME_SECONDS + LEEWAY_SECONDS)
    check(grant(), now=NOW - LEEWAY_SECONDS)
    assert len(grant()) < 1024


@pytest.mark.parametrize(
    ("make", "refusal"),
    [
        pytest.param(lambda: b"", errors.NotCertified, id="nothing"),
        pytest.param(lambda: b"please", errors.NotCertified, id="no grant"),
        pytest.param(lambda: grant()[:-1], errors.NotCertified, id="not whole"),
        pytest.param(lambda: grant(reader=HOLDER), errors.NotAllowed, id="of another reader"),
        pytest.param(lambda: grant(holder=READER), errors.NotAllowed, id="at another holder"),
        pytest.param(lambda: grant(digest=bytes(32)), errors.NotAllowed, id="another file"),
        pytest.param(lambda: grant(at=NOW - LIFETIME_SECONDS - LEEWAY_SECONDS - 1), errors.NotAllowed, id="expired"),
        pytest.param(lambda: grant(at=NOW + LEEWAY_SECONDS + 1), errors.NotAllowed, id="for longer than grants last"),
        pytest.param(lambda: changed(version=2), errors.NotAllowed, id="another version"),
        pytest.param(lambda: changed(not_after=int(NOW) + 60), errors.NotCertified, id="changed"),
        pytest.param(lambda: changed(signature=b""), errors.NotCertified, id="not signed"),
        pytest.param(lambda: changed(certificate=b""), errors.NotCertified, id="without a certificate"),
        pytest.param(lambda: changed(certificate=certified(Role.GATEWAY).certificate), errors.NotCertified, id="signed by another gateway"),
        pytest.param(lambda: grant(certified(Role.GATEWAY, OTHER_CA)), errors.NotCertified, id="by another mesh"),
        pytest.param(lambda: grant(certified(Role.WORKER)), errors.WrongRole, id="by a worker"),
        pytest.param(lambda: grant(certified(Role.CLIENT)), errors.WrongRole, id="by a client"),
        pytest.param(lambda: grant(certified(Role.GATEWAY, at=NOW - 30 * 86_400)), errors.CertificateExpired, id="by a former gateway"),
    ],
)
def test_what_is_no_valid_grant_is_refused(make: Callable[[], bytes], refusal: type[errors.NotAllowed]) -> None:
    with pytest.raises(errors.NotAllowed) as refused:
        check(make())
    assert type(refused.value) is refusal


@pytest.mark.parametrize("revoked", [GATEWAY, READER], ids=["gateway", "reader"])
def test_neither_a_revoked_gateway_s_grants_hold_nor_a_revoked_reader_s(revoked: Trust) -> None:
    holder = certified(Role.WORKER)
    body = grant(holder=holder)
    check(body, holder)
    holder.take_list(certificates.issue_list(CA, 1, 1, (revoked.me.id,), NOW))
    with pytest.raises(errors.NodeRevoked):
        check(body, holder)


def test_a_signature_for_another_purpose_is_no_grant() -> None:
    unsigned = msgspec.structs.replace(msgspec.msgpack.decode(grant(), type=CopyGrant), signature=b"")
    text = msgspec.msgpack.encode(unsigned)
    for signature in (GATEWAY.me.sign("hello", text), GATEWAY.me.sign_bare(text)):
        with pytest.raises(errors.NotCertified):
            check(msgspec.msgpack.encode(msgspec.structs.replace(unsigned, signature=signature)))
