"""The pages that people read are in plain English, the help of aicli too."""

import re
from pathlib import Path

import pytest

from tests.test_docs import BY_HAND, ROOT

#: Ten that a user would stumble over, as patterns for whole words.
REFUSED_WORDS = (
    r"whoever|whomever", r"(?:is|are|was|were|be) told", r"of its own", r"so that nobody", r"such as it is", r"shall", r"anew",
    r"whereby|wherein|therein|thereof|thereby", r"mend(?:s|ed)?", r"is no more",
)  # fmt: skip
REFUSED = re.compile(rf"\b(?:{'|'.join(REFUSED_WORDS)})\b", re.IGNORECASE)
#: In plain English: what is written by hand, and the help of aicli. The change log, the services' READMEs and other generated pages follow
#: with their sources.
PLAIN_PAGES = [
    ROOT / "docs" / "reference" / "cli.md",
    *(page for page in BY_HAND if page.is_relative_to(ROOT / "docs")),
    *(ROOT / name for name in ("README.md", "SECURITY.md", "CONTRIBUTING.md", "sdk/python/README.md", "sdk/javascript/README.md")),
]


def refused_in(text: str) -> list[str]:
    """`line: words` of each phrase that is refused; code is not looked at, and a paragraph is read as one line."""
    plain = re.sub(r"```.*?```", lambda match: "\n" * match[0].count("\n"), text, flags=re.DOTALL)
    plain = re.sub(r"`[^`\n]*`", "x", plain)
    joined = re.sub(r"(?<=\S)\n *(?=[^\s|#>*-])", " ", plain)
    return [f"{match[0]!r} in {joined[max(0, match.start() - 40) : match.end() + 40]!r}" for match in REFUSED.finditer(joined)]


@pytest.mark.parametrize("page", PLAIN_PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_is_in_plain_english(page: Path) -> None:
    assert not refused_in(page.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "text",
    [
        "Whoever asks first",
        "He is\ntold.",
    ],
)
def test_a_refused_word_would_be_found(text: str) -> None:
    assert refused_in(text)


@pytest.mark.parametrize("text", ["`whoever`", "```\nis told\n```", "a marshalling yard"])
def test_what_only_looks_like_a_refused_word_is_left_alone(text: str) -> None:
    assert not refused_in(text)
