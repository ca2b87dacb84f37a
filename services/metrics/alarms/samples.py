"""Numbers out of the mesh's text, for the series that somebody asks for. Pure."""

from collections.abc import Iterator, Set
from math import isfinite

from services.metrics.alarms import heads
from services.metrics.alarms.book import Sample


def read(text: str, names: Set[str]) -> Iterator[Sample]:
    """Of these names; what is not a number is left out."""
    for line in text.split("\n"):
        name = line.partition("{")[0].partition(" ")[0]
        if name not in names:
            continue
        head, _, number = line.rpartition(" ")
        value = float(number)
        labels = heads.read(head)
        if labels is not None and isfinite(value):
            yield Sample(name, labels, value)
