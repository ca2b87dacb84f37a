"""Who may log in to NATS, and with which role."""

import base64
import json
import random
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

import nkeys
import pytest

from services.auth.nodes import nats_callout
from services.auth.nodes.enrollment_rules import KnownNode, KnownTicket
from services.auth.nodes.nats_callout import NOT_ENROLLED, Allow, AskStore, LoginRequest, LoginTrust, Refuse
from services.auth.nodes.nats_jwt import NatsIssuer
from shared import errors
from shared.api.membership import MemberState
from shared.identity import certificates, login_tokens, node_keys, tickets
from shared.identity.certificates import Subject
from shared.identity.login_tokens import TicketToken
from shared.protocol import topics
from shared.types import MeshName, NodeId, Role, UserId

CA, OTHER_CA = (node_keys.Authority(node_keys.new_authority_seed()) for _ in range(2))
NODE, STRANGER = (node_keys.NodeKey(node_keys.new_seed()) for _ in range(2))
NOW = 1_800_000_000.0
NONCE = "aNonceOfTheServer"
TRUST = LoginTrust((CA.id,), frozenset(), {})
TICKET = tickets.Ticket(1, "abc123", bytes(range(32)), node_keys.raw_of(CA.id), MeshName("test"))


def login(
    key: node_keys.NodeKey = NODE, token: str = "", *, nonce: str = NONCE, signed: str | None = None, claimed: str = "", type_: str = "nats"
) -> LoginRequest:
    """Return a request as the server sends it: a JWT whose signature is not checked."""
    signature = base64.urlsafe_b64encode(key.sign_bare((signed or nonce).encode())).decode().rstrip("=")
    asked = {
        "server_id": {"id": "NSERVER"},
        "user_nkey": "UUSER",
        "client_info": {"host": "10.1.2.3", "nonce": nonce, "type": type_},
        "connect_opts": {"nkey": claimed or key.id, "sig": signature, "auth_token": token},
    }
    body = base64.urlsafe_b64encode(json.dumps({"nats": asked}).encode()).rstrip(b"=")
    return nats_callout.read_request(b"e30." + body + b".c2ln")


def certificate(role: Role = Role.WORKER, *, key: node_keys.NodeKey = NODE, ca: node_keys.Authority = CA, at: float = NOW) -> bytes:
    return certificates.issue(ca, Subject(key.id, role), at)


def decide(request: LoginRequest, trust: LoginTrust = TRUST, now: float = NOW) -> Allow | Refuse | AskStore:
    return nats_callout.decide(request, trust, now)


def reason(outcome: Allow | Refuse | AskStore) -> str:
    assert isinstance(outcome, Refuse)
    return outcome.reason


@pytest.mark.parametrize("role", [Role.AUTH, Role.GATEWAY, Role.WORKER, Role.METRICS, Role.WEB, Role.CLIENT])
def test_a_certificate_gives_its_role_until_it_ends(role: Role) -> None:
    body = certificate(role)
    ends = certificates.read(body).not_after
    request = login(token=login_tokens.of_certificate(body))
    assert decide(request) == Allow(role, NODE.id, ends + certificates.LEEWAY_SECONDS)
    assert decide(request, now=ends + certificates.LEEWAY_SECONDS) == Allow(role, NODE.id, ends + certificates.LEEWAY_SECONDS)
    assert "expired" in reason(decide(request, now=ends + certificates.LEEWAY_SECONDS + 1))
    assert "clock" in reason(decide(request, now=NOW - certificates.BACKDATED_SECONDS - certificates.LEEWAY_SECONDS - 2))


@pytest.mark.parametrize("kind", [login_tokens.of_certificate, login_tokens.of_newcomer])
def test_a_certificate_of_another_mesh_or_key_gives_nothing(kind: object) -> None:
    assert callable(kind)
    assert "another mesh" in reason(decide(login(token=kind(certificate(ca=OTHER_CA)))))
    assert "another key" in reason(decide(login(STRANGER, token=kind(certificate()))))
    assert "not a certificate" in reason(decide(login(token=kind(b"\x00garbage"))))


def test_the_login_must_be_signed_for_this_connection() -> None:
    token = login_tokens.of_certificate(certificate())
    for request in (
        login(token=token, signed="another nonce"),
        login(STRANGER, token, claimed=NODE.id),
        login(token=token, claimed="nobody"),
        login(token=token, claimed=CA.id),
    ):
        assert "not signed" in reason(decide(request))
    assert "not signed" in reason(decide(login(token=token, nonce="", signed="")))


@pytest.mark.parametrize("token", ["", login_tokens.of_certificate(certificate()), login_tokens.of_newcomer(certificate())])
def test_a_revoked_node_is_refused_whatever_it_shows(token: str) -> None:
    trust = LoginTrust((CA.id,), frozenset({NODE.id}), {NODE.id: Role.WORKER})
    assert reason(decide(login(token=token), trust)) == "this node was revoked"
    assert reason(decide(login(token=login_tokens.of_ticket(TICKET.id, TICKET.key.sign, NODE.id, NONCE)), trust)) == "this node was revoked"


def test_an_enrolled_node_without_a_certificate_has_its_role() -> None:
    trust = LoginTrust((CA.id,), frozenset(), {NODE.id: Role.OPERATOR})
    assert decide(login(), trust) == Allow(Role.OPERATOR, NODE.id, None)
    assert decide(login(STRANGER), trust) == NOT_ENROLLED


def test_an_expired_certificate_lets_its_node_in_as_a_newcomer_for_a_moment() -> None:
    old = certificate(at=NOW - 30 * 24 * 3600)
    assert decide(login(token=login_tokens.of_newcomer(old))) == Allow(Role.NEWCOMER, NODE.id, int(NOW) + 30)
    # A newcomer without a certificate is looked up in the store.
    assert decide(login(token=login_tokens.of_newcomer(b""))) == AskStore(None)


@pytest.mark.parametrize("token", ["certificate", "certificate.a.b", "ticket.abc", "certificate.***", "other.abcd", "x" * 5000])
def test_other_tokens_are_refused(token: str) -> None:
    assert "neither a certificate nor a ticket" in reason(decide(login(token=token)))


# --- tickets -----------------------------------------------------------------------------------------------------------


def known_ticket(**changed: object) -> KnownTicket:
    at = datetime.fromtimestamp(NOW, UTC)
    found = KnownTicket(
        id=TICKET.id, public_key=TICKET.key.id, role=Role.WORKER, owner=UserId(UUID(int=1)), owner_name="ann", labels={},
        needs_approval=False, uses=1, used=0, created_at=at, expires_at=at + timedelta(hours=1), revoked_at=None,
    )  # fmt: skip
    return replace(found, **changed)  # type: ignore[arg-type]


def known_node(state: MemberState = MemberState.ACTIVE, ticket: str | None = TICKET.id) -> KnownNode:
    at = datetime.fromtimestamp(NOW, UTC)
    return KnownNode(
        id=NODE.id, role=Role.WORKER, state=state, name="", owner=None, owner_name="", labels={}, ticket_id=ticket, joined_at=at,
        idle_since=at, renewed_at=None, certified_until=None, revoked_at=None, reason="",
    )  # fmt: skip


def decide_ticket(
    ticket: KnownTicket | None, node: KnownNode | None = None, *, proof: str | None = None, now: float = NOW, type_: str = "nats"
) -> Allow | Refuse:
    request = login(token=proof or login_tokens.of_ticket(TICKET.id, TICKET.key.sign, NODE.id, NONCE), type_=type_)
    question = decide(request)
    assert isinstance(question, AskStore)
    assert isinstance(question.ticket, TicketToken)
    return nats_callout.decide_newcomer(request, question.ticket, ticket, node, now)


def test_logins_behind_a_proxy_do_not_count_for_the_machine_of_the_proxy() -> None:
    assert (login().origin, login(type_="websocket").origin) == ("10.1.2.3", "behind 10.1.2.3")


def test_a_ticket_that_is_bound_to_networks_does_not_work_where_only_a_proxy_knows_the_address() -> None:
    bound = known_ticket(networks=("10.0.0.0/8",))
    assert decide_ticket(bound) == Allow(Role.NEWCOMER, NODE.id, int(NOW) + 30)
    assert "does not work over HTTPS" in reason(decide_ticket(bound, type_="websocket"))
    assert decide_ticket(known_ticket(), type_="websocket") == Allow(Role.NEWCOMER, NODE.id, int(NOW) + 30)


def test_a_ticket_admits_a_newcomer() -> None:
    assert decide_ticket(known_ticket()) == Allow(Role.NEWCOMER, NODE.id, int(NOW) + 30)


def test_an_unusable_ticket_is_refused_with_the_reason() -> None:
    at = datetime.fromtimestamp(NOW, UTC)
    for ticket, words in (
        (None, "does not know the ticket"),
        (known_ticket(used=1), "used up"),
        (known_ticket(expires_at=at), "expired"),
        (known_ticket(revoked_at=at), "revoked"),
        (known_ticket(public_key=STRANGER.id), "signature is wrong"),
    ):
        assert words in reason(decide_ticket(ticket)), words


def test_the_proof_is_only_good_for_one_key_on_one_connection() -> None:
    for proof in (
        login_tokens.of_ticket(TICKET.id, TICKET.key.sign, STRANGER.id, NONCE),
        login_tokens.of_ticket(TICKET.id, TICKET.key.sign, NODE.id, "another nonce"),
    ):
        assert "signature is wrong" in reason(decide_ticket(known_ticket(), proof=proof))


def test_a_node_whose_answer_was_lost_may_come_again_with_its_ticket() -> None:
    assert isinstance(decide_ticket(known_ticket(used=1), known_node()), Allow)
    assert "used up" in reason(decide_ticket(known_ticket(used=1), known_node(ticket="another")))
    assert reason(decide_ticket(known_ticket(), known_node(MemberState.REVOKED))) == "this node was revoked"


def test_a_node_that_waits_for_approval_may_ask_again() -> None:
    request = login(token=login_tokens.of_newcomer(b""))
    assert isinstance(nats_callout.decide_newcomer(request, None, None, known_node(MemberState.PENDING), NOW), Allow)
    assert "needs a ticket" in reason(nats_callout.decide_newcomer(request, None, None, None, NOW))
    assert reason(nats_callout.decide_newcomer(request, None, None, known_node(MemberState.REVOKED), NOW)) == "this node was revoked"


# --- requests and replies ----------------------------------------------------------------------------------------------


def test_no_request_can_break_auth() -> None:
    rng = random.Random(7)
    body = json.dumps({"nats": {"server_id": {"id": "N"}, "user_nkey": "U", "connect_opts": {"nkey": NODE.id, "sig": "AAAA"}}}).encode()
    whole = b"e30." + base64.urlsafe_b64encode(body).rstrip(b"=") + b".c2ln"
    for _ in range(50_000):
        changed = bytearray(whole)
        for _ in range(rng.randrange(1, 4)):
            place = rng.randrange(len(changed) or 1)
            if not changed:
                break
            match rng.randrange(3):
                case 0:
                    changed[place] = rng.randrange(256)
                case 1:
                    del changed[place:]
                    changed += b"." * rng.randrange(3)
                case 2:
                    changed[place:place] = rng.randbytes(3)
        try:
            request = nats_callout.read_request(bytes(changed))
        except errors.ProtocolViolation:
            continue
        assert not isinstance(decide(request), Allow)
    with pytest.raises(errors.ProtocolViolation):
        nats_callout.read_request(whole + b"A" * 100_000)


def test_the_jwts_are_signed_as_nats_signs() -> None:
    seed = node_keys.new_authority_seed()
    account, pair = node_keys.Authority(seed), nkeys.from_seed(bytearray(seed))
    issuer, now = NatsIssuer(account), int(time.time())
    rights = topics.permissions(MeshName("test"), Role.WORKER, NODE.id)
    jwt = issuer.grant("UUSER", NODE.id, "MESH", rights, now=now, until=now + 9)
    answer = issuer.answer("UUSER", "NSERVER", now=now, jwt=jwt).decode()
    for text in (jwt, answer):
        head, body, signature = text.split(".")
        assert pair.verify(f"{head}.{body}".encode(), decoded(signature))
        assert json.loads(decoded(head)) == {"typ": "JWT", "alg": "ed25519-nkey"}
    claims = json.loads(decoded(jwt.split(".")[1]))
    assert (claims["sub"], claims["aud"], claims["name"], claims["exp"]) == ("UUSER", "MESH", NODE.id, now + 9)
    assert claims["nats"]["pub"]["allow"] == list(rights.publish)
    assert claims["nats"]["sub"]["allow"] == list(rights.subscribe)
    assert "exp" not in json.loads(decoded(issuer.grant("U", NodeId("U"), "MESH", rights, now=now, until=None).split(".")[1]))
    refusal = json.loads(decoded(issuer.answer("UUSER", "NSERVER", now=now, error="why").decode().split(".")[1]))
    assert refusal["nats"] == {"error": "why", "type": "authorization_response", "version": 2}


def decoded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
