"""Texts are normalized alike however they are cut, and the original comes back."""

import random
import unicodedata

import pytest

from services.gateway.guard import searched_text
from services.gateway.guard.searched_text import SearchedText

UNITS = (
    "a",
    "e\u0301",
    "\u0301",
    "\u00ad",
    "\u2011",
    "\u2007",
    "\r\n",
    "\u00bd",
    "\ufb01",
    "\ufdfa",
    "\u00fc",
    "\u4e2d",
    "1",
    " ",
    "\u0132",
    "x",
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\u2010b\u2011c\u2013d\u2014e\u2212f", "a-b-c-d-e-f"),
        ("a\u00a0b\u2007c\u3000d", "a b c d"),
        ("a\r\nb\u2028c", "a\nb\nc"),
        ("a\u00adb\u200bc\u2060d\ufeffe", "abcde"),
        ("\uff11\u00b2 \ufb01 \u00bd", "12 fi 1\u20442"),
        ("na\u0308he", "n\u00e4he"),
        ("\u00fcber \u4e2d\u6587 \u044f", "\u00fcber \u4e2d\u6587 \u044f"),
    ],
)
def test_normalized_texts(text: str, expected: str) -> None:
    assert searched_text.normalize(text) == expected


def test_letters_that_are_left_alone_need_no_change() -> None:
    for letter in map(chr, range(0x10000)):
        if searched_text.normalize(letter) == letter and letter not in " -\n":
            assert unicodedata.normalize("NFKC", letter) == letter
            assert unicodedata.category(letter) not in {"Cf", "Pd", "Zs", "Zl", "Zp"}


def test_the_original_comes_back_however_it_is_cut() -> None:
    for number in range(300):
        draw = random.Random(number)
        text = "".join(draw.choices(UNITS, k=draw.randint(1, 40)))
        searched, taken, forgotten, at = SearchedText(""), "", "", 0
        while at < len(text):
            size = draw.randint(1, 7)
            searched.add(text[at : at + size])
            at += size
            if len(searched.text) > 1:
                cut = draw.randrange(1, len(searched.text))
                taken += draw.choice([searched.take_before, searched.take_through])(cut)
                forgotten += searched.text[:cut]
                searched.forget(cut)
        searched.add("", is_last=True)
        assert forgotten + searched.text == searched_text.normalize(text)
        assert taken + searched.take_before(len(searched.text)) == text
