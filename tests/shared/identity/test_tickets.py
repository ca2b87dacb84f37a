"""Tickets: a line that is read whole or not at all, and what using a ticket signs."""

import base64
import hashlib
import random

import msgpack
import msgspec
import nkeys
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared import errors
from shared.identity import node_keys, tickets
from shared.identity.tickets import Ticket
from shared.types import MeshName, NodeId
from tests.cases import case

RAW = bytes(range(32))
CA = node_keys.Authority(bytes(nkeys.encode_seed(RAW, nkeys.PREFIX_BYTE_ACCOUNT)))
TICKET = Ticket(1, "t-1", RAW, node_keys.raw_of(CA.id), MeshName("home"), ("203.0.113.5:49737",), (bytes(32),))
TEXT = (
    "aip_join_lwGjdC0xxCAAAQIDBAUGBwgJCgsMDQ4PEBESExQVFhcYGRobHB0eH8QgA6EHv_POEL4dcN0Y50vAmWfk1jCbpQ1fHdyGZBJVMbikaG9tZZGxMjAzLjAu"
    "MTEzLjU6NDk3MzeRxCAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAJC7WwA"
)
NEWCOMER, AUTH = (
    NodeId("UASUHOJP6EEVKEKHNLOIG2O3NXOJGNTFUEMXRXNBIBHOCBTMVFKZ3BWH"),
    NodeId("UALUKU5UK3O57RUQR3FLDQIB7ZVLEHRLVIDBO6K3PVB2MNECTE75KRJ3"),
)


def whole(body: bytes) -> str:
    return tickets.PREFIX + base64.urlsafe_b64encode(body + hashlib.sha256(body).digest()[:4]).decode().rstrip("=")


def test_the_text_format_never_changes() -> None:
    """Frozen: a ticket that was mailed yesterday must work with today's program."""
    assert tickets.parse(TEXT) == TICKET
    # The same texts, made without our code.
    fields = [1, "t-1", RAW, node_keys.raw_of(CA.id), "home", ["203.0.113.5:49737"], [bytes(32)]]
    assert whole(msgpack.packb(fields)) == TEXT
    assert whole(msgpack.packb([*fields, [], "", None, False])) == tickets.render(TICKET)


def test_a_ticket_names_the_mesh_and_contains_the_key() -> None:
    found = tickets.parse(TEXT)
    assert found.authority_id == CA.id
    assert found.key.raw_seed == RAW


def test_line_breaks_of_terminals_and_mails_do_not_matter() -> None:
    broken = "\n  ".join(TEXT[at : at + 40] for at in range(0, len(TEXT), 40)) + "\r\n"
    assert tickets.parse(broken) == TICKET


@pytest.mark.parametrize("text", ["", "aip_join", "aip_sk_123", "hello", " ", "AIP_JOIN_" + TEXT[9:], "é"])
def test_text_that_is_not_a_ticket_is_refused_as_such(text: str) -> None:
    with pytest.raises(errors.BadTicket, match="begins with aip_join_"):
        tickets.parse(text)


def test_a_partly_copied_ticket_is_refused() -> None:
    for text in [*(TEXT[:end] for end in range(len(tickets.PREFIX), len(TEXT))), TEXT + "A", TEXT + "=", TEXT * 2, TEXT + "é"]:
        with case(text), pytest.raises(errors.BadTicket, match="ticket is incomplete"):
            tickets.parse(text)


def test_all_of_a_thousand_flipped_bits_are_detected() -> None:
    for bit in random.Random(7).sample(range(len(TEXT) * 8), 1000):
        letters = [ord(letter) for letter in TEXT]
        letters[bit // 8] ^= 1 << bit % 8
        with pytest.raises(errors.BadTicket, match=r"a ticket begins with aip_join_|the ticket is incomplete"):
            tickets.parse("".join(map(chr, letters)))


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"seed": bytes(31)}, id="a seed that is too short"),
        pytest.param({"authority": bytes(33)}, id="a CA key that is too long"),
        pytest.param({"relays": (b"key",)}, id="a relay that is no key"),
    ],
)
def test_keys_of_the_wrong_length_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(errors.BadTicket, match="the ticket is incomplete"):
        tickets.parse(tickets.render(msgspec.structs.replace(TICKET, **change)))


def test_a_ticket_of_a_newer_version_says_what_to_do() -> None:
    with pytest.raises(errors.BadTicket, match="newer version of aimesh"):
        tickets.parse(tickets.render(msgspec.structs.replace(TICKET, version=2)))


def test_an_overlong_line_is_not_parsed() -> None:
    with pytest.raises(errors.BadTicket, match="ticket is incomplete"):
        tickets.parse(tickets.render(msgspec.structs.replace(TICKET, bootstrap=("203.0.113.5:49737",) * 500)))


@given(st.binary(max_size=200))
def test_no_bytes_crash_the_parser(body: bytes) -> None:
    with pytest.raises(errors.BadTicket, match="the ticket is incomplete"):
        tickets.parse(whole(body))


@given(st.text(max_size=100))
def test_no_text_crashes_the_parser(text: str) -> None:
    with pytest.raises(errors.BadTicket, match="the ticket is incomplete"):
        tickets.parse(tickets.PREFIX + text)


def test_a_proof_is_bound_to_one_ticket_node_auth_and_connection() -> None:
    channel = b"\x01" * 64
    text = tickets.use_text("t-1", NEWCOMER, AUTH, channel)
    assert text == msgpack.packb([1, "t-1", NEWCOMER, AUTH, channel])
    signature = TICKET.key.sign("ticket", text)
    assert node_keys.verify(TICKET.key.id, "ticket", text, signature)
    for other in (
        tickets.use_text("t-2", NEWCOMER, AUTH, channel),
        tickets.use_text("t-1", AUTH, AUTH, channel),
        tickets.use_text("t-1", NEWCOMER, NEWCOMER, channel),
        tickets.use_text("t-1", NEWCOMER, AUTH, b"\x02" * 64),
    ):
        assert not node_keys.verify(TICKET.key.id, "ticket", other, signature)
    assert not node_keys.verify(TICKET.key.id, "ticket", text, TICKET.key.sign_bare(text))


@pytest.mark.parametrize(
    "model", ["", "hf:org/model:Q4_K_M", "oci://registry.example.org/m:1", "https://example.org/m.gguf", "/srv/my model.gguf"]
)
def test_a_ticket_carries_what_the_worker_serves(model: str) -> None:
    ticket = msgspec.structs.replace(TICKET, model=model, accept_models=True)
    assert tickets.parse(tickets.render(ticket)) == ticket


@pytest.mark.parametrize(
    "model", ["smollm2", "hf:a,b", "/m.gguf,evil=/etc/passwd.gguf", "/etc/passwd", "hf:a b", "/a\n.gguf", "hf:" + "x" * 300]
)
def test_a_model_that_could_be_another_setting_is_refused(model: str) -> None:
    with pytest.raises(errors.BadTicket, match="ticket is incomplete"):
        tickets.parse(tickets.render(msgspec.structs.replace(TICKET, model=model)))
