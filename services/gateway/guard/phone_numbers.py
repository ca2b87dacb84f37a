"""Phone numbers: with a country code, or as the countries of a policy write them. Pure."""

import re
from collections.abc import Iterable
from functools import cache

import phonenumbers
from phonenumbers import PhoneNumberFormat

#: Announces a phone number, in some languages.
CONTEXT = re.compile(
    r"\b(?:tel|t[ée]l|phone|telephone|t[ée]l[ée]phone|telefono?|tel[ée]fono|telefon\w*|call|mobile?|mobil\w*|m[óo]vil|portable|cell\w*|cellulare"
    r"|fax|handy\w*|whatsapp|signal|sms|text|dial|reach|contact|ring|anruf\w*|ruf\w*|appel\w*|joindre|llam\w*|chiam\w*|numero|n[úu]mero)\b",
    re.IGNORECASE,
)

_DIGITS = re.compile(r"[0-9]+")
#: Of a number that begins with 0 and has no form of its country. Shorter ones are rare, and other numbers look like them.
_LEAST_DIGITS = 8
_NOT_DIGITS = re.compile(r"[^0-9]+")


class PhoneForms:
    """Knows the digits of valid numbers."""

    def __init__(self, countries: Iterable[str]) -> None:
        self._countries = tuple(filter(knows_country, countries))
        self._national = re.compile("|".join(map(_national_form, self._countries)) or "(?!)")

    def is_likely(self, text: str) -> bool:
        """Whether the digits may be a number. ``is_valid`` takes a hundred times as long."""
        return text.startswith(("+", "(+")) or self._national.fullmatch(_NOT_DIGITS.sub("", text)) is not None

    def is_valid(self, text: str) -> bool:
        if text.startswith(("+", "(+")):
            return _is_valid(text, None)
        return any(_is_valid(text, country) for country in self._countries)


def knows_country(country: str) -> bool:
    return country in phonenumbers.SUPPORTED_REGIONS


def is_written_as_phone(text: str, countries: Iterable[str]) -> bool:
    """Whether digits are grouped as in national phone numbers, so that no word such as "phone" is needed before them."""
    groups = _DIGITS.findall(text)
    if len(groups) == 1:
        return False
    if text.startswith(("0", "(0")) and not text.startswith("00"):
        return sum(map(len, groups)) >= _LEAST_DIGITS and ("." not in text or len(groups) == 5)
    for country in countries:
        number = _parse(text, country)
        if number is None:
            continue
        for form in (PhoneNumberFormat.NATIONAL, PhoneNumberFormat.INTERNATIONAL):
            if groups == _DIGITS.findall(phonenumbers.format_number(number, form)):
                return True
    return False


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


def _is_valid(text: str, country: str | None) -> bool:
    number = _parse(text, country)
    return number is not None and phonenumbers.is_valid_number(number)
