"""Everything that people read is in plain English: pages, the help of aicli, comments and docstrings."""

import re
import subprocess
from pathlib import Path

import pytest

from tests.test_docs import BY_HAND, ROOT

#: Words and phrases that read as translated, as patterns for whole words. Only ever append here.
REFUSED_WORDS = (
    r"whoever", r"whomever", r"whom", r"go(?:es|ing)? on", r"went on", r"(?:is|are|was|were|be) told", r"of its own", r"by itself",
    r"by themselves", r"lies? about", r"so that nobody", r"such as it is", r"(?:the )?one that", r"looks? after", r"looked after",
    r"as (?:they|it) comes?", r"shall", r"gravest", r"(?:a|the|without) goodbye", r"by lot", r"hand(?:s|ed)? on", r"tak(?:e|es|en) along",
    r"takes? it along", r"good (?:until|till)", r"(?:is|are) good for", r"gives? back", r"given back", r"lets? in", r"let in", r"nobody of",
    r"anew", r"quarter of an hour", r"put (?:it|that) right", r"mend(?:s|ed)?", r"earns its keep", r"promis(?:e|es|ed)", r"in company",
    r"whereby|wherein|therein|thereof|thereby", r"is no more", r"says so where", r"(?:any|every|some)body", r"(?:is|are|was|were) away",
    r"the way back",
)  # fmt: skip
REFUSED = re.compile(rf"\b(?:{'|'.join(REFUSED_WORDS)})\b|(?:^|(?<=[.!?:] ))Besides\b", re.IGNORECASE | re.MULTILINE)
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


_HASH = r"((?:^|(?<=\s))#.*)"
#: Ending of a file -> its comments and docstrings, in groups. Other strings of Python are no prose.
COMMENTS = {
    ".py": re.compile(rf'(^ *"""(?:.|\n)*?""")|"""(?:.|\n)*?"""|{_HASH}', re.MULTILINE),
    ".js": re.compile(r"(/\*(?:.|\n)*?\*/|(?:^|(?<=\s))//.*)", re.MULTILINE),
    **dict.fromkeys((".sh", ".toml", ".yaml", ".yml", ".tf"), re.compile(_HASH, re.MULTILINE)),
    **dict.fromkeys((".sql", ".lua"), re.compile(r"((?:^|(?<=\s))--.*)", re.MULTILINE)),
}
#: In comments of JavaScript it is a type.
PROMISE = re.compile(r"\bpromises?\b", re.IGNORECASE)


def refused_in_comments(text: str, suffix: str) -> list[str]:
    found = ("".join(filter(None, match.groups())) for match in COMMENTS[suffix].finditer(text))
    # A sentence may continue in the next line.
    comments = "\n".join(re.sub(r"^ *(?:#:?|--|//|/?\*+)", "", line) for comment in found for line in comment.splitlines())
    return refused_in(PROMISE.sub("x", comments) if suffix == ".js" else comments)


def test_comments_are_in_plain_english() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
    # Migrations never change, and this file names the words.
    files = [
        path for name in listed if (path := ROOT / name).suffix in COMMENTS and "migrations" not in path.parts and path != Path(__file__)
    ]
    assert len(files) > 2000
    found = {name: refused_in_comments(name.read_text(encoding="utf-8"), name.suffix) for name in files}
    assert {str(path.relative_to(ROOT)): refused for path, refused in found.items() if refused} == {}


@pytest.mark.parametrize(
    ("suffix", "text"),
    [
        (".py", '"""Whoever asks."""'),
        (".py", 'x = """SQL"""\n\n\ndef f():\n    """\n    Stop, then go\n    on.\n    """'),
        (".py", "x = 1  # anew"),
        (".py", "    #: It is\n    #: told."),
        (".js", "f()  // it is told"),
        (".js", "/**\n * Whoever.\n */"),
        (".yaml", "# by itself"),
        (".sql", "SELECT 1  -- of its own"),
    ],
)
def test_a_refused_word_in_a_comment_would_be_found(suffix: str, text: str) -> None:
    assert refused_in_comments(text, suffix)


@pytest.mark.parametrize(
    ("suffix", "text"), [(".py", 'x = """\nwhoever\n"""\nx = "whoever"'), (".js", "/** @returns {Promise<void>} */ whoever()")]
)
def test_a_refused_word_in_code_is_left_alone(suffix: str, text: str) -> None:
    assert not refused_in_comments(text, suffix)


@pytest.mark.parametrize(
    "text",
    [
        "Whoever asks first",
        "The stream goes\non.",
        "He is told.",
        "Besides, it is slow.",
        "It stops. Besides it is slow.",
        "The one that waits",
    ],
)
def test_a_refused_word_would_be_found(text: str) -> None:
    assert refused_in(text)


@pytest.mark.parametrize("text", ["`whoever`", "```\ngo on\n```", "a marshalling yard", "It is beside the file, and besides"])
def test_what_only_looks_like_a_refused_word_is_left_alone(text: str) -> None:
    assert not refused_in(text)
