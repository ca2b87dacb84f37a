"""Writes the parts of a grammar in llguidance's dialect of Lark.  Pure."""

import json
import re

#: Without it, llguidance computes masks of forced text with its own tokenization, which knows nothing of this model.
HEADER = '%llguidance {"no_forcing": true}\n'

#: In a regular expression: an escape, or a character that ends it.
_ENDS = re.compile(r"\\.|[/\n\r]", re.DOTALL)
_ENDINGS = {"/": r"\/", "\n": r"\n", "\r": r"\r", "\\\n": r"\n", "\\\r": r"\r"}


class FormatRefused(Exception):
    """The format is not possible; the message names the place."""


def literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def regex(pattern: str) -> str:
    return f"/{_ENDS.sub(lambda found: _ENDINGS.get(found[0], found[0]), pattern)}/"


def grammar(start: str, *rules: str) -> str:
    return "\n".join((f"{HEADER}start: {start}", *rules)) + "\n"


def ensure_text(text: str, what: str) -> None:
    """Raise FormatRefused for a null character, or half of a surrogate pair."""
    if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
        raise FormatRefused(f"{what} contains characters that are not text")
