"""Certificates, delegations, revocation lists and successions: what is accepted, what is refused, and their frozen texts."""

import random
from collections.abc import Callable

import msgpack
import msgspec
import nkeys
import pytest
from nacl.signing import SigningKey

from shared import errors
from shared.identity import certificates, node_keys
from shared.identity.certificates import OF_ANOTHER_MESH, Certificate, Subject
from shared.protocol import wire
from shared.types import AuthorityId, NodeId, Role

NOW = 1_767_225_600
HOUR, DAY = 3600, 86_400


def raw(first: int) -> bytes:
    """Return the seed of a test vector: 32 consecutive bytes."""
    return bytes(range(first, first + 32))


CA = node_keys.Authority(bytes(nkeys.encode_seed(raw(0), nkeys.PREFIX_BYTE_ACCOUNT)))
OTHER_CA = node_keys.Authority(bytes(nkeys.encode_seed(raw(32), nkeys.PREFIX_BYTE_ACCOUNT)))
NODE = node_keys.NodeKey(bytes(nkeys.encode_seed(raw(64), nkeys.PREFIX_BYTE_USER)))
PROCESS = node_keys.NodeKey(bytes(nkeys.encode_seed(raw(96), nkeys.PREFIX_BYTE_USER)))
OURS = (CA.id,)

CERTIFICATE = bytes.fromhex(
    "9901d93855415355484f4a50364545564b454b484e4c4f4947324f334e584f4a474e544655454d5852584e424942484f4342544d56464b5a33425748a6776f726b"
    "6572a36164619192a3677075a461313030ce6955b6a8ce69570a80d938414142324342353736504842425051354f444f52525a324c59434d57505a475747434e32"
    "4b444b3744584f494d5a41534b55593351505a56c440d40859db128dbcceca56b79e7fb96ca376fdb18c0c2e16715d8e1ad74a7202f781c234974e72ee53632655"
    "e6d210d7a3b319a9754b1c35fc9fd7fbb761ae4a07"
)
DELEGATION = bytes.fromhex(
    "9501d93855414c554b5535554b334f35375255515233464c44514942375a564c4548524c564944424f364b33505642324d4e4543544537354b524a33d938554153"
    "55484f4a50364545564b454b484e4c4f4947324f334e584f4a474e544655454d5852584e424942484f4342544d56464b5a33425748ce6955bb58c44044801703731c"
    "70bbc3e259dfcee95fdcbb88a637fe891804cc86e9c0b849a979c048ae450a84765c2d3d100052210e468338350456a9d92c8f07ac2bfd5bf203"
)
LIST = bytes.fromhex(
    "970107ce6955b9000391d93855415355484f4a50364545564b454b484e4c4f4947324f334e584f4a474e544655454d5852584e424942484f4342544d56464b5a33"
    "425748d938414142324342353736504842425051354f444f52525a324c59434d57505a475747434e324b444b3744584f494d5a41534b55593351505a56c440fdf1"
    "3e645768527d3dcfd3b3cf6d78f1a2611b5371a11ac68a32163f9d74697a9b1b2f93e7d721002fd3dc5d0e857ffae740faacae232511e0fc48eddc235b04"
)
SUCCESSION = bytes.fromhex(
    "9401d938414142324342353736504842425051354f444f52525a324c59434d57505a475747434e324b444b3744584f494d5a41534b55593351505a56d938414155"
    "325a4f58424947364d5634465346594e4a4a55324e425044544d4853534e5546373445574953364b4c5a455a43535a57354f494354c44099325cfe41c7e339de63"
    "2d7355c7c965b3d84d72ad563f990c3de17a1ad45a99cc481324f490aa104620d8a47e54e6d779084d0a91b526ff58d00575c1d3c90c"
)

WORKER = Subject(NODE.id, Role.WORKER, "ada", (("gpu", "a100"),))


def client_certificate() -> Certificate:
    return certificates.check(certificates.issue(CA, Subject(NODE.id, Role.CLIENT), NOW), OURS, NOW)


# --- signed texts -------------------------------------------------------------------------------------------------------


def test_the_signed_texts_never_change() -> None:
    """Frozen: if a text changed, nodes of two versions would refuse each other."""
    assert certificates.issue(CA, WORKER, NOW) == CERTIFICATE
    assert certificates.delegate(NODE, PROCESS.id, NOW) == DELEGATION
    assert certificates.issue_list(CA, 7, 3, (NODE.id,), NOW) == LIST
    assert certificates.name_successor(CA, OTHER_CA.id) == SUCCESSION


def test_a_certificate_can_be_created_without_our_code() -> None:
    fields = [1, NODE.id, "worker", "ada", [["gpu", "a100"]], NOW - 600, NOW + DAY, CA.id]
    signature = SigningKey(raw(0)).sign(b"\xffaimesh/certificate/1\x00" + msgpack.packb([*fields, b""])).signature
    assert msgpack.packb([*fields, signature]) == CERTIFICATE


def test_labels_are_sorted_so_that_equal_content_gives_equal_text() -> None:
    labels = (("zone", "b"), ("gpu", "a100"))
    one, other = (certificates.issue(CA, Subject(NODE.id, Role.WORKER, "", order), NOW) for order in (labels, labels[::-1]))
    assert one == other


# --- certificates -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("role", "seconds"),
    [(Role.WORKER, DAY), (Role.CLIENT, DAY), (Role.AUTH, 7 * DAY), (Role.GATEWAY, 7 * DAY), (Role.METRICS, 7 * DAY), (Role.WEB, 7 * DAY)],
)
def test_a_certificate_is_valid_from_shortly_before_its_start_until_its_end(role: Role, seconds: int) -> None:
    body = certificates.issue(CA, Subject(NODE.id, role), NOW)
    for good in (NOW - 600 - 60, NOW, NOW + seconds + 60):
        assert certificates.check(body, OURS, good).role is role
    with pytest.raises(errors.CertificateExpired, match="expired 1 min ago"):
        certificates.check(body, OURS, NOW + seconds + 61)
    with pytest.raises(errors.ClockSkew, match="11 min off"):
        certificates.check(body, OURS, NOW - 661)


@pytest.mark.parametrize(
    ("ago", "words"),
    [(3 * HOUR, "3 h ago"), (30 * HOUR, "1 d ago"), (8 * DAY, "8 d ago"), (119, "1 min ago")],
    ids=str,
)
def test_the_error_says_how_long_ago_it_expired(ago: int, words: str) -> None:
    with pytest.raises(errors.CertificateExpired, match=words):
        certificates.check(CERTIFICATE, OURS, NOW + DAY + ago)


def test_only_trusted_cas_count() -> None:
    with pytest.raises(errors.NotCertified, match=OF_ANOTHER_MESH):
        certificates.check(CERTIFICATE, (OTHER_CA.id,), NOW)
    with pytest.raises(errors.NotCertified, match=OF_ANOTHER_MESH):
        certificates.check(CERTIFICATE, (), NOW)
    assert certificates.check(CERTIFICATE, (OTHER_CA.id, CA.id), NOW).owner == "ada"


def test_a_ca_cannot_sign_for_another() -> None:
    found = msgspec.structs.replace(certificates.read(certificates.issue(OTHER_CA, WORKER, NOW)), authority=CA.id)
    with pytest.raises(errors.NotCertified, match=OF_ANOTHER_MESH):
        certificates.check(msgspec.msgpack.encode(found), OURS, NOW)


def test_a_nodes_own_key_is_not_a_ca() -> None:
    """A node's id in place of the CA's, signed by that node, has another prefix and is never trusted."""
    unsigned = msgspec.structs.replace(certificates.read(CERTIFICATE), authority=AuthorityId(NODE.id), signature=b"")
    signed = msgspec.structs.replace(unsigned, signature=NODE.sign("certificate", msgspec.msgpack.encode(unsigned)))
    with pytest.raises(errors.NotCertified, match=OF_ANOTHER_MESH):
        certificates.check(msgspec.msgpack.encode(signed), (AuthorityId(NODE.id),), NOW)


@pytest.mark.parametrize(
    "change",
    [
        {"role": Role.GATEWAY},
        {"node": PROCESS.id},
        {"owner": "eve"},
        {"labels": (("gpu", "h100"),)},
        {"not_after": NOW + 365 * DAY},
        {"not_before": 0},
        {"version": 2},
    ],
    ids=lambda change: str(*change),
)
def test_no_field_can_be_changed(change: dict[str, object]) -> None:
    found = msgspec.structs.replace(certificates.read(CERTIFICATE), **change)
    with pytest.raises(errors.NotCertified, match=OF_ANOTHER_MESH):
        certificates.check(msgspec.msgpack.encode(found), OURS, NOW)


def test_a_certificate_for_a_newcomer_or_another_version_is_rejected() -> None:
    with pytest.raises(errors.NotCertified, match="newcomer"):
        certificates.check(certificates.issue(CA, Subject(NODE.id, Role.NEWCOMER), NOW), OURS, NOW)
    unsigned = msgspec.structs.replace(certificates.read(CERTIFICATE), version=2, signature=b"")
    signed = msgspec.structs.replace(unsigned, signature=CA.sign("certificate", msgspec.msgpack.encode(unsigned)))
    with pytest.raises(errors.NotCertified, match=OF_ANOTHER_MESH):
        certificates.check(msgspec.msgpack.encode(signed), OURS, NOW)


Check = Callable[[bytes], object]
CHECKS: list[tuple[bytes, Check]] = [
    (CERTIFICATE, lambda body: certificates.check(body, OURS, NOW)),
    (DELEGATION, lambda body: certificates.check_delegation(body, PROCESS.id, client_certificate(), NOW)),
    (LIST, lambda body: certificates.check_list(body, OURS)),
    (SUCCESSION, lambda body: certificates.check_succession(body, OURS)),
]


@pytest.mark.parametrize(("body", "check"), CHECKS, ids=["certificate", "delegation", "list", "succession"])
def test_all_of_a_thousand_flipped_bits_are_detected(body: bytes, check: Check) -> None:
    check(body)
    bits = range(len(body) * 8)
    for bit in random.Random(7).sample(bits, min(1000, len(bits))):
        flipped = bytearray(body)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(errors.NotCertified) as refused:
            check(bytes(flipped))
        assert type(refused.value) is errors.NotCertified, f"bit {bit} made it look like something that was ours"


@pytest.mark.parametrize(("body", "check"), CHECKS, ids=["certificate", "delegation", "list", "succession"])
def test_truncated_and_invalid_certificates_are_refused(body: bytes, check: Check) -> None:
    for nonsense in (
        b"",
        b"\xc1",
        b"\x90",
        b"\x80",
        b"\xff" * 100,
        b"\x91" * 5000,
        body + b"\0",
        *(body[:end] for end in range(len(body))),
    ):
        with pytest.raises(errors.NotCertified):
            check(nonsense)


def test_the_longest_certificate_fits_into_a_hello_with_its_delegation() -> None:
    labels = tuple((f"label {number:02}", "x" * 90) for number in range(certificates.MAX_LABELS))
    body = certificates.issue(CA, Subject(NODE.id, Role.CLIENT, "o" * 100, labels), NOW)
    delegation = certificates.delegate(NODE, PROCESS.id, NOW)
    hello = wire.Hello(1, Role.CLIENT, PROCESS.id, NOW * 1000, "aimesh/100.100.100", bytes(64), body, 2**53, delegation)
    assert len(wire.encode([hello])) <= wire.MAX_BYTES_BEFORE_HELLO
    padding = certificates.MAX_CERTIFICATE_BYTES - len(body)
    largest = wire.Hello(1, Role.CLIENT, PROCESS.id, NOW * 1000, "aimesh/100.100.100", bytes(64), body + bytes(padding), 2**53, delegation)
    assert len(wire.encode([largest])) <= wire.MAX_BYTES_BEFORE_HELLO


@pytest.mark.parametrize(
    "labels",
    [
        pytest.param(tuple((str(number), "") for number in range(17)), id="too many"),
        pytest.param(tuple((f"label {number:02}", "€" * 100) for number in range(16)), id="too long"),
    ],
)
def test_labels_too_long_for_a_hello_are_refused(labels: tuple[tuple[str, str], ...]) -> None:
    with pytest.raises(errors.BadRequest, match="labels"):
        certificates.issue(CA, Subject(NODE.id, Role.WORKER, "", labels), NOW)


def test_an_overlong_certificate_is_not_even_parsed() -> None:
    with pytest.raises(errors.NotCertified, match="3073 bytes"):
        certificates.read(bytes(certificates.MAX_CERTIFICATE_BYTES + 1))


# --- delegations --------------------------------------------------------------------------------------------------------


def test_a_delegation_admits_one_process_of_one_profile_for_ten_minutes() -> None:
    certificate = client_certificate()
    assert certificates.check_delegation(DELEGATION, PROCESS.id, certificate, NOW).profile == NODE.id
    assert certificates.check_delegation(DELEGATION, PROCESS.id, certificate, NOW + 660)
    with pytest.raises(errors.CertificateExpired, match="ended"):
        certificates.check_delegation(DELEGATION, PROCESS.id, certificate, NOW + 661)
    with pytest.raises(errors.ClockSkew, match="a clock is 1 min off"):
        certificates.check_delegation(DELEGATION, PROCESS.id, certificate, NOW - 61)


@pytest.mark.parametrize("role", [role for role in Role if role not in (Role.CLIENT, Role.NEWCOMER)])
def test_only_clients_delegate(role: Role) -> None:
    certificate = certificates.check(certificates.issue(CA, Subject(NODE.id, role), NOW), OURS, NOW)
    with pytest.raises(errors.NotCertified, match="only clients"):
        certificates.check_delegation(DELEGATION, PROCESS.id, certificate, NOW)


def test_a_delegation_is_valid_only_for_its_key_and_profile() -> None:
    stranger = node_keys.NodeKey(node_keys.new_seed())
    certificate = client_certificate()
    of_another = certificates.delegate(stranger, PROCESS.id, NOW)
    for body, node in ((DELEGATION, stranger.id), (of_another, PROCESS.id), (certificates.delegate(PROCESS, PROCESS.id, NOW), PROCESS.id)):
        with pytest.raises(errors.NotCertified, match="another"):
            certificates.check_delegation(body, node, certificate, NOW)
    forged = msgspec.structs.replace(msgspec.msgpack.decode(of_another, type=certificates.Delegation), profile=NODE.id)
    with pytest.raises(errors.NotCertified, match="another"):
        certificates.check_delegation(msgspec.msgpack.encode(forged), PROCESS.id, certificate, NOW)


# --- lists and successions ----------------------------------------------------------------------------------------------


def test_a_revocation_list_is_accepted_from_anyone_if_a_trusted_ca_signed_it() -> None:
    found = certificates.check_list(LIST, OURS)
    assert (found.number, found.epoch, found.nodes) == (7, 3, (NODE.id,))
    with pytest.raises(errors.NotCertified, match="the revocation list belongs to another mesh"):
        certificates.check_list(LIST, (OTHER_CA.id,))
    assert certificates.check_list(certificates.issue_list(CA, 1, 1, tuple(NodeId(str(n)) for n in range(10_000)), NOW), OURS)
    with pytest.raises(errors.NotCertified, match="this is not a revocation list"):
        certificates.check_list(certificates.issue_list(CA, 1, 1, tuple(NodeId(str(n)) for n in range(10_001)), NOW), OURS)


def test_only_a_trusted_ca_names_its_successor() -> None:
    assert certificates.check_succession(SUCCESSION, OURS).successor == OTHER_CA.id
    with pytest.raises(errors.NotCertified, match="no CA of this mesh has named the successor"):
        certificates.check_succession(SUCCESSION, (OTHER_CA.id,))


def test_a_signature_for_one_purpose_is_valid_for_no_other() -> None:
    """Check each text with its signature for each other purpose, and with the bare signature that a NATS login makes."""
    unsigned = msgspec.structs.replace(certificates.read(CERTIFICATE), signature=b"")
    text = msgspec.msgpack.encode(unsigned)
    for purpose in ("delegation", "revocations", "succession", "hello", "receipt", ""):
        body = msgspec.msgpack.encode(msgspec.structs.replace(unsigned, signature=CA.sign(purpose, text)))
        with pytest.raises(errors.NotCertified, match=OF_ANOTHER_MESH):
            certificates.check(body, OURS, NOW)
    bare = SigningKey(raw(0)).sign(text).signature
    with pytest.raises(errors.NotCertified, match=OF_ANOTHER_MESH):
        certificates.check(msgspec.msgpack.encode(msgspec.structs.replace(unsigned, signature=bare)), OURS, NOW)
    delegation = msgspec.structs.replace(msgspec.msgpack.decode(DELEGATION, type=certificates.Delegation), signature=b"")
    text = msgspec.msgpack.encode(delegation)
    for signature in (NODE.sign_bare(text), NODE.sign("hello", text), NODE.sign("certificate", text)):
        body = msgspec.msgpack.encode(msgspec.structs.replace(delegation, signature=signature))
        with pytest.raises(errors.NotCertified, match="the delegation is for another key, or of another profile"):
            certificates.check_delegation(body, PROCESS.id, client_certificate(), NOW)
