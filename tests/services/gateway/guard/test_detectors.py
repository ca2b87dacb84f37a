"""What the detectors find, and lookalikes that they ignore."""

import random
import subprocess
import sys

import pytest

from services.gateway.guard import national_ids, phone_numbers
from services.gateway.guard.detectors import Detector
from services.gateway.guard.phone_numbers import MAX_PHONES, PhoneLikeness
from services.gateway.guard.text_filter import Found, TextFilter
from shared.config_documents import GuardKind
from shared.identity import credentials

#: The random part of a made-up key; the key's last six characters are the checksum.
RANDOM = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefg"
OWN_KEY = f"aip_live_{RANDOM}{credentials.checksum(RANDOM)}"
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U"
PEM = "-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBgkqhkiG9w0BAQEFAASC\nAbCd==\n-----END PRIVATE KEY-----"


def masked(text: str, *kinds: GuardKind, countries: tuple[str, ...] = (), **more: bool) -> str:
    text_filter = TextFilter(Detector(frozenset(kinds or GuardKind), countries=countries, **more))
    parts = [*text_filter.feed(text), *text_filter.end()]
    return "".join(f"[{part.kind}]" if isinstance(part, Found) else part for part in parts)


@pytest.mark.parametrize(
    "text",
    [
        "card 4111 1111 1111 1111.", "(4111-1111-1111-1111)", "4111111111111111", "378282246310005", "3782 822463 10005",
        "6011 1111 1111 1117", "total:5555555555554444,", "1, 2, 4111 1111 1111 1111 7",
    ],
)  # fmt: skip
def test_cards(text: str) -> None:
    assert masked(text, GuardKind.CARD).count("[card]") == 1


@pytest.mark.parametrize(
    "text",
    [
        "4111 1111 1111 1112", "order 9999 9999 9999 9995", "a4111111111111111", "4111111111111111b",
        "41 1111 1111 111111", "0000000000000000",
        "4111 1111-1111 1111", "978-3-16-148410-0", "1732483200000", "41111111111111110",
    ],
)  # fmt: skip
def test_no_cards(text: str) -> None:
    assert masked(text, GuardKind.CARD) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("bob@example.com.", "[email]."),
        ("<bob.smith+tag@mail.example.co.uk>", "<[email]>"),
        ("bob@example.com: hello", "[email]: hello"),
        ("peña@correo.es", "peñ[email]"),
        ("DE89 3704 0044 0532 0130 00 IS MY IBAN", "[iban] IS MY IBAN"),
        ("iban:GB29NWBK60161331926819", "iban:[iban]"),
        ("gb29nwbk60161331926819", "[iban]"),
        ("FR14 2004 1010 0505 0001 3M02 606", "[iban]"),
        ("host 8.8.8.8:53, 2001:4860:4860::8888", "host [ip]:53, [ip]"),
        (f"key {OWN_KEY}!", "key [secret]!"),
        ("AKIAIOSFODNN7EXAMPLE", "[secret]"),
        ("ghp_" + "a1B2" * 9, "[secret]"),
        ("sk-proj-" + "a1B2" * 6, "[secret]"),
        ("sk_live_" + "a1B2" * 6, "[secret]"),
        ("xoxb-123456789012-abcdefghij", "[secret]"),
        ("glpat-" + "a1B2" * 5, "[secret]"),
        (f"Bearer {JWT} x", "Bearer [secret] x"),
        (f"Bearer {JWT + 'a' * 3000} x", "Bearer [secret] x"),
        (f"{PEM} after", "[secret] after"),
        (f"key7{PEM}", "key7[secret]"),
        (PEM.replace("\n", "\\n") + '", "x"', '[secret]", "x"'),
        (f"{PEM[:65]}\nThis line is prose.", "[secret] line is prose."),
        ("-----BEGIN PRIVATE KEY----- is how a key begins", "[secret] is how a key begins"),
    ],
)
def test_addresses_accounts_and_secrets(text: str, expected: str) -> None:
    assert masked(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "git@github.com:owner/name.git", "icon@2x.png", "react@18.2.0", "bob@localhost", "a..b@example.com", "@mention and user@",
        "XX89370400440532013000", "DE893704004405320130", "xDE89370400440532013000",
        "v1.2.3.4", "version 10.0.19041.1", "Chrome/119.0.0.0", "1.2.3.4.5", "300.1.1.1", "127.0.0.1", "192.168.1.10", "192.0.2.1", "::1",
        "12:30:45",
        "10:20:30:40", "std::vector", "fe80::1",
        f"{OWN_KEY[:-1]}1", "sk-learn-contrib-something-very-long", "AKIAIOSFODNN7", "eyJub3QiOiJhIGhlYWRlciJ9.eyJ4Ijox.abc", "ghp_short",
        "-----BEGIN CERTIFICATE-----", "2024-01-15 10:30:00", "3.14159265358979", "d41d8cd98f00b204e9800998ecf8427e",
        "550e8400-e29b-41d4-a716-446655440000",
    ],
)  # fmt: skip
def test_what_looks_alike(text: str) -> None:
    assert masked(text, countries=("US", "DE", "FR", "ES", "IT")) == text


def test_internal_addresses_only_when_asked_for() -> None:
    assert masked("127.0.0.1 and fe80::1:2 and 10.1.2.3", internal_addresses=True) == "[ip] and [ip] and [ip]"


@pytest.mark.parametrize(
    ("text", "countries", "expected"),
    [
        ("+49 170 1234567", (), "[phone]"),
        ("tel:+1 (212) 555-2368,", (), "tel:[phone],"),
        ("+999 1234567", (), "+999 1234567"),
        ("0170/1234567", (), "0170/1234567"),
        ("0170/1234567", ("DE",), "[phone]"),
        ("(212) 555-2368 or 212.555.2368", ("US",), "[phone] or [phone]"),
        ("06 12 34 56 78", ("FR",), "[phone]"),
        ("612 34 56 78", ("ES",), "[phone]"),
        ("2125552368", ("US",), "2125552368"),
        ("call 2125552368", ("US",), "call [phone]"),
        ("2024-01-15, 15.01.2024", ("US", "DE", "FR"), "2024-01-15, 15.01.2024"),
    ],
)
def test_phones(text: str, countries: tuple[str, ...], expected: str) -> None:
    assert masked(text, GuardKind.PHONE, countries=countries) == expected


@pytest.mark.parametrize(
    ("text", "country"),
    [
        ("my SSN is 123-45-6789", "US"), ("SIN: 123-456-782", "CA"), ("Steuer-ID 36 574 261 809", "DE"),
        ("NIR 2 55 08 14 168 025 38", "FR"),
        ("12345678Z", "ES"), ("X-1234567-L", "ES"), ("RCCMNL83S18D969H", "IT"), ("BSN 111222333", "NL"), ("pesel 44051401359", "PL"),
        ("811228-9874", "SE"), ("CPF 390.533.447-05", "BR"), ("85.07.30-033.28", "BE"), ("131052-308T", "FI"), ("NIF 501 964 843", "PT"),
        ("SVNr 1237 010180", "AT"), ("756.9217.0769.85", "CH"), ("CPR 211062-5629", "DK"), ("151086 95088", "NO"),
    ],
)  # fmt: skip
def test_national_ids(text: str, country: str) -> None:
    found = masked(text, GuardKind.NATIONAL_ID, countries=(country,))
    assert found.endswith("[national_id]"), found
    assert masked(text, GuardKind.NATIONAL_ID) == text, "only of the policy's countries"


@pytest.mark.parametrize("country", national_ids.NATIONAL_IDS)
def test_numbers_that_pass_by_chance_need_a_word_before_them(country: str) -> None:
    draw = random.Random(7)
    for one in national_ids.NATIONAL_IDS[country]:
        if one.has_letters or one.needs_context:
            continue
        lengths = [length for length in range(8, 16) if one.form.fullmatch("7561234567890"[:length].zfill(length)) or length in {10, 11}]
        for length in lengths:
            numbers = [str(draw.randrange(10**length)).zfill(length) for _ in range(3_000)]
            assert sum(map(one.is_valid, numbers)) <= 0.01 * len(numbers), one.module


def test_an_ssn_without_its_word_is_another_number() -> None:
    assert masked("ticket 123-45-6789", GuardKind.NATIONAL_ID, countries=("US",)) == "ticket 123-45-6789"
    far = "my ssn is, as I have told you several times already now: 123-45-6789"
    assert masked(far, GuardKind.NATIONAL_ID, countries=("US",)) == far


@pytest.mark.parametrize(
    "between",
    [
        "\u2013", "\u2011", "\u2212", "\u00ad-", "\u2007", "\u00a0", "\u2009", "\u200b ", " \u2060", "\u2010\u00ad", " ",
        # The end of a line, in the middle of the number.
        ("-", "-\n"), ("\u2011", "\u2011\r\n"), (" ", "\n"), (" ", " \n"), ("\u2007", "\r\n"), (" ", "\u2028"),
    ],
)  # fmt: skip
def test_cards_as_pdfs_have_them(between: str | tuple[str, str]) -> None:
    usual, middle = (between, between) if isinstance(between, str) else between
    card = f"4111{usual}1111{middle}1111{usual}1111"
    assert masked(f"card {card}, thanks", GuardKind.CARD) == "card [card], thanks"
    assert masked(f"\u00ad{card}\u00ad", GuardKind.CARD) == "\u00ad[card]\u00ad", "what is around it stays"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("DE89\u20073704\u20070044\n0532\u00a00130\u00a000 is mine", "[iban] is mine"),
        ("mail bob@exam\u00adple.com", "mail [email]"),
        ("mail \uff42ob@example.com", "mail [email]"),
        ("my SSN is 123\u201345\u20136789", "my SSN is [national_id]"),
        ("call +49\u2011170\u20111234567 or +49 170\n1234567", "call [phone] or [phone]"),
        ("key AKIA\u200bIOSFODNN7EXAMPLE", "key [secret]"),
        ("card \uff14111 1111 1111 111\uff11\u2026", "card [card]\u2026"),
        ("stra\u00dfe, na\u0308he 8.8.8.8", "stra\u00dfe, na\u0308he [ip]"),
    ],
)
def test_texts_as_pdfs_have_them(text: str, expected: str) -> None:
    assert masked(text, countries=("US", "DE")) == expected


@pytest.mark.parametrize(
    "text",
    [
        "4111\n1111\n1111\n1111", "41111111\n11111111", "4111 1111\n\n1111 1111", "4111\t1111\t1111\t1111", "4111 1111\n1111\n1111",
        "212\n555\n2368", "212 555\n2368", "DE89 3704\n0044 0532\n0130 00",
    ],
)  # fmt: skip
def test_lists_and_tables_of_numbers(text: str) -> None:
    assert masked(text, countries=("US",)) == text


def test_the_first_kind_counts_where_matches_overlap() -> None:
    assert masked("4111111111111111@example.com", GuardKind.CARD, GuardKind.EMAIL) == "[email]", "the longer one begins at the same place"
    assert masked("+4111 1111 1111 1111", GuardKind.CARD, GuardKind.PHONE) == "+[card]"


def test_texts_that_a_policy_allows_are_not_found() -> None:
    text_filter = TextFilter(Detector(frozenset({GuardKind.EMAIL}), allow=["sup\u00adport@acme.example"]))
    parts = [*text_filter.feed("support@ac\u00adme.example, bob@acme.example "), *text_filter.end()]
    assert [part.text for part in parts if isinstance(part, Found)] == ["bob@acme.example"]


def test_many_candidates_are_not_all_confirmed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def judge(_forms: object, text: str, _digits: str) -> PhoneLikeness:
        asked.append(text)
        return PhoneLikeness.NONE

    monkeypatch.setattr(phone_numbers.PhoneForms, "judge", judge)
    text = "".join(f"+49 170 12345{number}, " for number in range(10, 60))
    assert masked(text, GuardKind.PHONE).count("[phone]") == 50 - MAX_PHONES
    assert len(asked) == MAX_PHONES
    asked.clear()
    # Without word boundaries, each part of a text is read twice.
    masked("".join(f"212-555-{number:04} " for number in range(3_000)), GuardKind.PHONE, countries=("US",))
    assert len(asked) == 10 * MAX_PHONES, "39,000 characters"


_READ = """
import sys
from services.gateway.guard import detectors, national_ids
from services.gateway.guard.text_filter import TextFilter
from shared.config_documents import GuardKind

detectors.load()
loaded = set(sys.modules)
text_filter = TextFilter(detectors.Detector(frozenset(GuardKind), countries=tuple(national_ids.NATIONAL_IDS)))
found = [*text_filter.feed(sys.argv[1]), *text_filter.end()]
print(len(found), sorted(set(sys.modules) - loaded))
"""


def test_no_module_is_loaded_while_a_text_is_read() -> None:
    text = "tel +81 3 1234 5678, +44 20 7946 0958, ssn 123-45-6789, 811228-9874, 4111 1111 1111 1111, DE89370400440532013000"
    ran = subprocess.run([sys.executable, "-c", _READ, text], check=True, capture_output=True, text=True, timeout=60)
    assert ran.stdout == "10 []\n", "parts, and modules"
