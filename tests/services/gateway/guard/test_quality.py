"""The labeled lines, and how much of what they contain guardrails find."""

from collections import Counter

import pytest

from services.gateway.facts import guardrails
from services.gateway.guard import text_filter
from services.gateway.guard.text_filter import Found
from shared.config_documents import GuardAction, GuardDocument, GuardKind
from tools import guard_quality
from tools.guard_quality import KINDS, MIN, Quality


@pytest.fixture(scope="module")
def measured() -> dict[GuardKind, Quality]:
    """Return the quality on the lines that the rules weren't tuned on."""
    return {found.kind: found for found in guard_quality.measure(line for line in guard_quality.lines() if line.is_untouched)}


def test_there_are_2000_lines_in_five_languages_and_600_of_them_look_alike() -> None:
    lines = guard_quality.lines()
    languages = Counter(line.lang for line in lines)
    assert languages == {"": 600, "en": 280, "de": 280, "fr": 280, "es": 280, "it": 280}
    assert all(line.text.count(text) >= 1 for line in lines for _, text in line.found)
    assert all(bool(line.found) == bool(line.lang) for line in lines)
    assert 350 < sum(line.is_untouched for line in lines) < 450


@pytest.mark.parametrize("kind", KINDS)
def test_guardrails_find_what_they_should_in_lines_that_they_were_not_tuned_by(measured: dict[GuardKind, Quality], kind: GuardKind) -> None:
    found = measured[kind]
    precision, recall = MIN[kind]
    assert found.right + found.missed >= 30, "enough labels to say something"
    assert found.precision >= precision, found
    assert found.recall >= recall, found


def test_lines_are_read_alike_letter_by_letter() -> None:
    document = GuardDocument(prompt=dict.fromkeys(KINDS, GuardAction.REPORT), countries=guard_quality.COUNTRIES)
    scan = guardrails.combine([("mesh", document)]).prompt
    for line in guard_quality.lines()[::7]:
        opened = text_filter.open_filter(scan)
        parts = [part for letter in line.text for part in opened.feed(letter)] + opened.end()
        assert [(part.kind, part.text) for part in parts if isinstance(part, Found)] == guard_quality.find(line.text)
