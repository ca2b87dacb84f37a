"""Read the samples of some series from a text of metrics. Pure."""

import math
import re
from collections.abc import Iterator, Set
from dataclasses import dataclass
from typing import TypeAlias

from services.metrics.export.series import parse_head, unescape

#: Sorted by name, without empty ones.
Labels: TypeAlias = tuple[tuple[str, str], ...]

_LINE = re.compile(r"[^\n]+")


@dataclass(frozen=True, slots=True)
class Sample:
    name: str
    labels: Labels
    value: float


def read_samples(text: str, names: Set[str]) -> Iterator[Sample]:
    """Yield the finite samples of the series with these names."""
    for found in _LINE.finditer(text):
        head, _, number = found.group().rpartition(" ")
        name = head.partition("{")[0]
        if name in names and math.isfinite(value := float(number)) and (parsed := parse_head(head)) is not None:
            labels = ((label, unescape(text)) for label, text in sorted(parsed.labels.items()) if text)
            yield Sample(name, tuple(labels), value)
