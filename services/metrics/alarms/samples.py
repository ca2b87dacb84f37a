"""Numbers out of the mesh's text, for the series that somebody asks for. Pure."""

import re
from collections.abc import Iterator, Set
from math import isfinite

from services.metrics import series
from services.metrics.alarms.book import Sample
from services.metrics.alerts.evaluating import labels

_ESCAPED = re.compile(r"\\(.)")


def read(text: str, names: Set[str]) -> Iterator[Sample]:
    """Of these names; what is not a number is left out."""
    for line in text.split("\n"):
        name = line.partition("{")[0].partition(" ")[0]
        if name not in names:
            continue
        head_text, _, number = line.rpartition(" ")
        head = series.parse_head(head_text)
        value = float(number)
        if head is not None and isfinite(value):
            yield Sample(name, labels(**{label: _plain(text) for label, text in head.labels.items()}), value)


def _plain(escaped: str) -> str:
    """Without the escapes of the text format."""
    return _ESCAPED.sub(lambda found: "\n" if found.group(1) == "n" else found.group(1), escaped)
