"""The filter finds the same however a text is split, and holds back only the last word of prose."""

import random
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.gateway.facts.guardrails import GuardScan
from services.gateway.guard import text_filter
from services.gateway.guard.detectors import Detector
from services.gateway.guard.own_patterns import OwnPatterns
from services.gateway.guard.phone_numbers import BLOCK_CHARACTERS
from services.gateway.guard.text_filter import HOLD, Found, TextFilter
from shared import errors
from shared.config_documents import GuardAction, GuardKind, GuardPattern
from tests import tiers

EVERYTHING = Detector(frozenset(GuardKind), countries=("US", "DE", "FR", "ES", "IT", "SE", "FI"))
OWN = OwnPatterns(
    [
        GuardPattern(name="project", pattern=r"PRJ-\d{4,8}\b", max_length=12),
        GuardPattern(name="falcon", pattern=r"(?i)project\s+falcon", max_length=20),
        GuardPattern(name="letters", pattern=r"x+", max_length=3),
    ]
)
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U"
PEM = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n\nMIIEpAIBAAKCAQEA\nabcd==\n-----END RSA PRIVATE KEY-----"


@pytest.mark.parametrize(
    ("kind", "fields", "why"),
    [
        (GuardKind.NATIONAL_ID, {"countries": ("DE", "QQ")}, "finds no numbers of QQ"),
        (GuardKind.PHONE, {"countries": ("QQ",)}, "finds no numbers of QQ"),
        (GuardKind.OWN, {"patterns": (GuardPattern(name="a", pattern="a(?=b)", max_length=9),)}, "can't search a pattern"),
    ],
)
def test_what_a_guardrail_of_a_newer_release_looks_for_is_not_passed_over(kind: GuardKind, fields: dict[str, Any], why: str) -> None:
    with pytest.raises(errors.ConfigUnreadable, match=why):
        text_filter.open_filter(GuardScan({kind: GuardAction.REFUSE}, **fields))


def test_a_country_matters_only_where_numbers_are_looked_for() -> None:
    assert text_filter.open_filter(GuardScan({GuardKind.EMAIL: GuardAction.REFUSE}, countries=("QQ",)))


#: Matches, parts of matches, and text around them.
SNIPPETS = (
    "4111 1111 1111 1111", "4111-1111-1111-1111", "378282246310005", "bob@example.com", "DE89 3704 0044 0532 0130 00",
    "GB29NWBK60161331926819",
    "+49 170 1234567", "(212) 555-2368", "0170/1234567", "ssn 123-45-6789", "8.8.8.8", "v1.2.3.4", "2001:4860:4860::8888", "12:30:45",
    "AKIAIOSFODNN7EXAMPLE", "ghp_" + "a1" * 18, JWT, PEM, PEM[:60], "PRJ-12345", "PRJ-123456789", "Project  Falcon", "xxxxx", "12345678Z",
    "811228-9874", "hello", "Hello", "HELLO", " ", "  ", "\n", ", ", ".", ":", "(", ")", "+", "-", "@", "\u00a0", "é", "日本", "1", "12 ",
    "A", "x",
    "\u00ad", "\u2011", "\u2013", "\u2007", "\u200b", "\r\n", "4111 1111\n1111 1111", "\uff11", "\u00bd", "e\u0301", "\u0301",
    "\ufb01", "\u2026",
    "-----", "-----BEGIN ", "eyJ", "sk-", "a" * 70, "1 2 3 4 5 6 7 ", "9" * 30,
)  # fmt: skip
TEXTS = st.lists(st.sampled_from(SNIPPETS), max_size=14).map("".join)


def found_in(pieces: Sequence[str], own: OwnPatterns | None = OWN) -> str:
    """Return the text with matches in brackets."""
    text_filter = TextFilter(EVERYTHING, own)
    parts = [part for piece in pieces for part in text_filter.feed(piece)] + text_filter.end()
    return "".join(f"[{part.name or part.kind}:{part.text}]" if isinstance(part, Found) else part for part in parts)


def original(pieces: Sequence[str]) -> str:
    text_filter = TextFilter(EVERYTHING, OWN)
    parts = [part for piece in pieces for part in text_filter.feed(piece)] + text_filter.end()
    return "".join(part.text if isinstance(part, Found) else part for part in parts)


@given(TEXTS, st.randoms(use_true_random=False), st.sampled_from([1, 3, 10, 60, 700]))
@settings(max_examples=tiers.volume(400))
def test_pieces_do_not_change_what_is_found(text: str, draw: random.Random, largest: int) -> None:
    pieces, at = [], 0
    while at < len(text):
        size = draw.randint(1, largest)
        pieces.append(text[at : at + size])
        at += size
    assert found_in(pieces) == found_in([text])
    assert original(pieces) == text


@given(st.lists(st.sampled_from(SNIPPETS), min_size=20, max_size=80).map("".join))
@settings(max_examples=tiers.volume(60))
def test_long_texts_are_read_alike_letter_by_letter(text: str) -> None:
    assert found_in(list(text)) == found_in([text])


@pytest.mark.parametrize("largest", [1, 60, 700])
def test_pieces_do_not_change_what_is_found_beyond_the_budget_of_own_patterns(largest: int) -> None:
    patterns = (("a.*b", 5), ("a.{5,40}c", 30), ("[ab]{3,9}c|ab", 8))
    own = OwnPatterns([GuardPattern(name=f"p{most}", pattern=pattern, max_length=most) for pattern, most in patterns])
    draw = random.Random(largest)
    text = "".join(draw.choices("aabc ", k=BLOCK_CHARACTERS + 1000))
    pieces, at = [], 0
    while at < len(text):
        pieces.append(text[at : at + draw.randint(1, largest)])
        at += len(pieces[-1])
    assert "[own:" in found_in([text], own)
    assert found_in(pieces, own) == found_in([text], own)


def test_the_word_before_a_number_counts_after_the_text_before_it_was_trimmed() -> None:
    prose = "The quick brown fox jumps over the lazy dog. " * 10
    for text, found in (("release version 8.8.8.8 ", False), ("release from 8.8.8.8 ", True)):
        for pieces in ([prose + text], list(prose + text)):
            assert ("[ip:8.8.8.8]" in found_in(pieces, None)) is found


def test_a_secret_without_its_end_does_not_count_the_numbers_before_it_again() -> None:
    text = f"0170/1234567-----BEGIN PRIVATE KEY-----\n{'MIIEvQIBADANBgkqhkiG9w0BAQEFAASC' * 110}\n-----END PRIVATE KEY----- +999 1234567 "
    assert found_in([text], None).endswith("] +999 1234567 ")
    assert found_in(list(text)) == found_in([text])


def test_an_open_secret_does_not_move_the_budget_of_phone_numbers() -> None:
    # Half of the invalid numbers are in the first block of the text, and all are in one part with the key.
    numbers = " ".join(f"+999 170 12345{number}" for number in range(10, 24))
    text = (
        "x, " * ((BLOCK_CHARACTERS - len(numbers) // 2) // 3)
        + numbers
        + "-----BEGIN PRIVATE KEY-----\n"
        + "MIIEvQIBADANBg" * 20
        + "\n-----END PRIVATE KEY-----"
    )
    assert found_in(list(text), None) == found_in([text], None)


def test_a_number_does_not_end_in_a_card_that_begins_in_the_next_part() -> None:
    detector = Detector(frozenset({GuardKind.PHONE, GuardKind.CARD}), countries=("US",))
    text = "212 555 4111 1111 1111 1111"
    (card,) = detector.find(text, 0, len(text), until=4)
    assert (card.kind, card.start) == (GuardKind.CARD, 8)


def held(text: str, own: OwnPatterns | None = None) -> int:
    """Return how many characters at the end of the text are held back."""
    text_filter = TextFilter(EVERYTHING, own)
    given = sum(len(part.text if isinstance(part, Found) else part) for letter in text for part in text_filter.feed(letter))
    return len(text) - given


def test_prose_waits_for_its_last_word_only() -> None:
    assert held("The quick brown") == len("brown")
    assert held("The quick brown ") == 0
    assert held("In 2024 it was ") == 0
    assert held("日本語のテキスト") == 0
    assert held("The quick brown fox jumps over ", OWN) == 20
    assert held("call 4111 1111 ") == len("4111 1111 "), "a card may go on"


def test_what_has_no_border_is_held_for_a_while() -> None:
    for text in ("a" * 5_000, "1" * 5_000, "1 " * 2_500, "@" * 5_000, "A1 " * 1_700):
        text_filter, given, longest = TextFilter(EVERYTHING), 0, 0
        for number, letter in enumerate(text, 1):
            given += sum(len(part.text if isinstance(part, Found) else part) for part in text_filter.feed(letter))
            longest = max(longest, number - given)
        assert HOLD // 2 < longest <= HOLD
