"""Phone numbers: with a country code, or as the countries of a policy write them. Pure."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import Enum, auto
from functools import cache

import phonenumbers
from phonenumbers import PhoneNumberFormat

#: Announces a phone number, in some languages.
CONTEXT = re.compile(
    r"\b(?:tel|t[ée]l|phone|telephone|t[ée]l[ée]phone|telefono?|tel[ée]fono|telefon\w*|call|mobile?|mobil\w*|m[óo]vil|portable|cell\w*|cellulare"
    r"|fax|handy\w*|whatsapp|signal|sms|text|dial|reach|contact|ring|anruf\w*|ruf\w*|appel\w*|joindre|llam\w*|chiam\w*|numero|n[úu]mero)\b",
    re.IGNORECASE,
)

#: Phone numbers confirmed in each block of a text; confirming one takes up to half a millisecond. Further candidates count as found.
MAX_PHONES, BLOCK_CHARACTERS = 20, 4000

_DIGITS = re.compile(r"[0-9]+")
#: Digits of a number that begins with 0 and has no form of its country. Shorter ones are rare, and other numbers look like them.
_MIN_DIGITS = 8


class PhoneLikeness(Enum):
    """How sure it is that digits are a phone number."""

    NONE = auto()
    #: A word such as "phone" must come before them.
    DIGITS = auto()
    NUMBER = auto()


@dataclass(slots=True)
class PhoneBudget:
    """The phone numbers that were confirmed in one block of a text."""

    block: int = 0
    known: dict[str, PhoneLikeness] = field(default_factory=dict)

    def copy(self) -> "PhoneBudget":
        return PhoneBudget(self.block, dict(self.known))

    def judge(self, position: int, text: str, confirm: Callable[[], PhoneLikeness]) -> PhoneLikeness:
        """Confirm it if it isn't known and the block has had few. ``position``: in the whole text. A part of a text is read twice."""
        block = position // BLOCK_CHARACTERS
        if block > self.block:
            self.block, self.known = block, {}
        if text not in self.known:
            if len(self.known) == MAX_PHONES:
                return PhoneLikeness.NUMBER
            self.known[text] = confirm()
        return self.known[text]


class PhoneForms:
    def __init__(self, countries: Iterable[str]) -> None:
        self._forms = {country: re.compile(_national_form(country)) for country in countries if knows_country(country)}
        self._national = re.compile("|".join(form.pattern for form in self._forms.values()) or "(?!)")

    def is_likely(self, text: str, digits: str) -> bool:
        """Return whether a text with these digits may be a number. ``judge`` takes a hundred times as long."""
        return text.startswith(("+", "(+")) or self._national.fullmatch(digits) is not None

    def judge(self, text: str, digits: str) -> PhoneLikeness:
        if text.startswith(("+", "(+")):
            number = _parse(text, None)
            return PhoneLikeness.NUMBER if number is not None and phonenumbers.is_valid_number(number) else PhoneLikeness.NONE
        parsed = {country: number for country in self._forms if (number := _parse(text, country)) is not None}
        if not any(self._forms[country].fullmatch(digits) and phonenumbers.is_valid_number(number) for country, number in parsed.items()):
            return PhoneLikeness.NONE
        # It may be grouped as people of another country do.
        return PhoneLikeness.NUMBER if _is_grouped(text, parsed.values()) else PhoneLikeness.DIGITS


def load() -> None:
    for country in phonenumbers.SUPPORTED_REGIONS:
        phonenumbers.PhoneMetadata.metadata_for_region(country)


def knows_country(country: str) -> bool:
    return country in phonenumbers.SUPPORTED_REGIONS


def _is_grouped(text: str, numbers: Iterable[phonenumbers.PhoneNumber]) -> bool:
    """Return whether digits are grouped as in national phone numbers."""
    groups = _DIGITS.findall(text)
    if len(groups) == 1:
        return False
    if text.startswith(("0", "(0")) and not text.startswith("00"):
        return sum(map(len, groups)) >= _MIN_DIGITS and ("." not in text or len(groups) == 5)
    written = (
        phonenumbers.format_number(number, form)
        for number in numbers
        for form in (PhoneNumberFormat.NATIONAL, PhoneNumberFormat.INTERNATIONAL)
    )
    return any(groups == _DIGITS.findall(each) for each in written)


@cache
def _national_form(country: str) -> str:
    metadata = phonenumbers.PhoneMetadata.metadata_for_region(country)
    general = None if metadata is None else metadata.general_desc
    if metadata is None or general is None or general.national_number_pattern is None:
        return "(?!)"
    prefix = metadata.national_prefix_for_parsing or ""
    abroad = metadata.international_prefix or "(?!)"
    return f"(?:(?:{abroad})[0-9]{{7,15}}|(?:{prefix})?(?:{general.national_number_pattern}))"


def _parse(text: str, country: str | None) -> phonenumbers.PhoneNumber | None:
    try:
        return phonenumbers.parse(text, country)
    except phonenumbers.NumberParseException:
        return None
