"""Measure what guardrails find in the lines of tests/data/guard, and write docs/reference/guardrails.md.

One fifth of the lines, chosen by the hash of their text, is measured here and never used to tune the detectors.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import msgspec

from services.gateway.facts import guardrails
from services.gateway.guard import text_filter
from services.gateway.guard.text_filter import Found
from shared.config_documents import GuardAction, GuardDocument, GuardKind
from tools import generated

PATH = generated.ROOT / "tests" / "data" / "guard" / "corpus.jsonl"
COUNTRIES = ("DE", "ES", "FR", "IT", "US")
#: Have no patterns of their own to be measured by.
KINDS = tuple(kind for kind in GuardKind if kind is not GuardKind.OWN)
#: Lowest precision and recall. Phone numbers and national numbers are often known only by their surroundings.
_FIRM, _SOFT = (0.98, 0.95), (0.90, 0.85)
MIN: dict[GuardKind, tuple[float, float]] = {
    kind: _SOFT if kind in {GuardKind.PHONE, GuardKind.NATIONAL_ID} else _FIRM for kind in KINDS
}  # fmt: skip
_HEAD = """# Guardrails

What guardrails find in 2,000 labeled lines in English, German, French, Spanish and Italian, with the countries DE, ES, FR, IT and US. 600
of the lines only look like matches: versions, ISBNs, order numbers, hashes, code, times. The figures are those of one fifth of the
lines, chosen by hash, which is never used to tune the detectors. A match counts if it is exactly the labeled text.

Precision is the share of matches that are right; recall is the share of labels that are found. The lines are short and their values made
up, half of them by Faker, so real texts may give other figures. See also the
[limitations](../howto/policies-and-guardrails.md#limitations).
"""


class LabeledLine(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    lang: str
    text: str
    found: tuple[tuple[GuardKind, str], ...]

    @property
    def is_untouched(self) -> bool:
        return hashlib.sha256(self.text.encode()).digest()[0] % 5 == 0


@dataclass(frozen=True, slots=True)
class Quality:
    kind: GuardKind
    right: int
    wrong: int
    missed: int

    @property
    def precision(self) -> float:
        return self.right / max(1, self.right + self.wrong)

    @property
    def recall(self) -> float:
        return self.right / max(1, self.right + self.missed)


def lines() -> list[LabeledLine]:
    decoder = msgspec.json.Decoder(LabeledLine)
    return [decoder.decode(line) for line in PATH.read_bytes().splitlines()]


def find(text: str) -> list[tuple[GuardKind, str]]:
    document = GuardDocument(prompt=dict.fromkeys(KINDS, GuardAction.REPORT), countries=COUNTRIES)
    opened = text_filter.open_filter(guardrails.combine([("mesh", document)]).prompt)
    return [(part.kind, part.text) for part in (*opened.feed(text), *opened.end()) if isinstance(part, Found)]


def measure(chosen: Iterable[LabeledLine]) -> Iterator[Quality]:
    right: Counter[GuardKind] = Counter()
    wrong: Counter[GuardKind] = Counter()
    missed: Counter[GuardKind] = Counter()
    for line in chosen:
        found, labels = Counter(find(line.text)), Counter(line.found)
        for counter, those in ((right, found & labels), (wrong, found - labels), (missed, labels - found)):
            for (kind, _), number in those.items():
                counter[kind] += number
    for kind in KINDS:
        yield Quality(kind, right[kind], wrong[kind], missed[kind])


def page() -> str:
    rows = (
        (
            f"`{found.kind}`",
            str(found.right + found.missed),
            f"{found.precision:.3f}",
            f"{found.recall:.3f}",
            "{:.2f} and {:.2f}".format(*MIN[found.kind]),
        )
        for found in measure(line for line in lines() if line.is_untouched)
    )
    return _HEAD + "\n" + generated.table(("kind", "labels", "precision", "recall", "required"), rows)


if __name__ == "__main__":
    for line in lines():
        if not line.is_untouched and Counter(find(line.text)) != Counter(line.found):
            print(line.text, "|", find(line.text), "|", line.found)
    for found in measure(line for line in lines() if not line.is_untouched):
        print(found.kind, f"{found.precision:.3f} {found.recall:.3f}", found)
