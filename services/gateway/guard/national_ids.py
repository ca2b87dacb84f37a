"""National identification numbers: how each country writes them, and how to check one. Pure."""

import importlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Protocol, cast


class _Checker(Protocol):
    def is_valid(self, number: str) -> bool: ...


@dataclass(frozen=True, slots=True)
class NationalId:
    #: A module of python-stdnum.
    module: str
    #: The whole text of a number.
    form: re.Pattern[str]
    #: No checksum, or more than 1 % of random numbers pass it: a word such as "passport" must come before it.
    needs_context: bool = False
    #: Starts with letters, or has letters between its digits.
    has_letters: bool = False

    def is_valid(self, text: str) -> bool:
        return self.form.fullmatch(text) is not None and _checker(self.module).is_valid(text)


def _id(module: str, form: str, *, context: bool = False, letters: bool = False) -> NationalId:
    return NationalId(module, re.compile(form), context, letters)


#: By country code.
NATIONAL_IDS: dict[str, tuple[NationalId, ...]] = {
    "AT": (_id("at.vnr", r"\d{4} ?\d{6}", context=True),),
    "BE": (_id("be.nn", r"\d{2}\.\d{2}\.\d{2}-\d{3}\.\d{2}|\d{11}"),),
    "BR": (_id("br.cpf", r"\d{3}\.\d{3}\.\d{3}-\d{2}|\d{11}", context=True),),
    "CA": (_id("ca.sin", r"\d{3} \d{3} \d{3}|\d{3}-\d{3}-\d{3}|\d{9}", context=True),),
    "CH": (_id("ch.ssn", r"756(?:\.\d{4}\.\d{4}\.\d{2}|\d{10})"),),
    "DE": (_id("de.idnr", r"\d{2} ?\d{3} ?\d{3} ?\d{3}"),),
    "DK": (_id("dk.cpr", r"\d{6}-?\d{4}", context=True),),
    "ES": (
        _id("es.dni", r"\d{2}\.?\d{3}\.?\d{3}[ -]?[A-Za-z]", letters=True),
        _id("es.nie", r"[XYZxyz][ -]?\d{7}[ -]?[A-Za-z]", letters=True),
    ),
    "FI": (_id("fi.hetu", r"\d{6}[-+A-FU-Y]\d{3}[0-9A-Z]", letters=True),),
    "FR": (
        _id("fr.nir", r"[12] ?\d{2} ?\d{2} ?\d{2} ?\d{3} ?\d{3} ?\d{2}", context=True),
        _id("fr.nir", r"[12] ?\d{2} ?\d{2} ?2[AB] ?\d{3} ?\d{3} ?\d{2}", letters=True),
    ),
    "IT": (_id("it.codicefiscale", r"[A-Za-z]{6}\d{2}[A-Za-z]\d{2}[A-Za-z]\d{3}[A-Za-z]", letters=True),),
    "NL": (_id("nl.bsn", r"\d{9}|\d{4}\.\d{2}\.\d{3}", context=True),),
    "NO": (_id("no.fodselsnummer", r"\d{6} ?\d{5}"),),
    "PL": (_id("pl.pesel", r"\d{11}", context=True),),
    "PT": (_id("pt.nif", r"\d{3} ?\d{3} ?\d{3}", context=True),),
    "SE": (_id("se.personnummer", r"(?:\d{2})?\d{6}[-+]\d{4}"),),
    "US": (_id("us.ssn", r"\d{3} \d{2} \d{4}|\d{3}-\d{2}-\d{4}|\d{9}", context=True),),
}  # fmt: skip

#: Announces the number of a person, in the languages of the countries above.
CONTEXT = re.compile(
    r"\b(?:ssn|social security|social insurance|sin|soc\.? sec|national id|identity (?:number|card|no)|id (?:number|no)|tax (?:id|number)"
    r"|personal (?:id|number|code)|burgerservicenummer|bsn|sofinummer|pesel|nif|contribuinte|cpf|nir|s[ée]cu(?:rit[ée] sociale)?|insee"
    r"|steuer-?(?:id|nummer)|sozialversicherung\w*|sv-?n(?:umme)?r|versicherungsn(?:umme)?r|cpr|personnummer|f[øo]dselsnummer"
    r"|codice fiscale|dni|nie|n[úu]mero de identidad|seguridad social|identit[àa]|num[ée]ro (?:de )?s[ée]cu\w*)\b",
    re.IGNORECASE,
)


@cache
def _checker(module: str) -> _Checker:
    return cast("_Checker", importlib.import_module(f"stdnum.{module}"))


def load() -> None:
    for ids in NATIONAL_IDS.values():
        for one in ids:
            _checker(one.module)


def of_countries(countries: Iterable[str]) -> Iterator[NationalId]:
    for country in countries:
        yield from NATIONAL_IDS.get(country, ())
