"""Numbers out of the mesh's text, for the series that somebody asks for. Pure."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite

from services.metrics import series
from services.metrics.alarms import heads
from services.metrics.alarms.book import Sample
from services.metrics.alerts.expressions import Selector

_LINE = re.compile(r"[^\n]+")


@dataclass(frozen=True, slots=True)
class _Glance:
    """What a line shows before it is taken apart: most of those of a large mesh are not meant."""

    #: One of each must be in it …
    needed: tuple[tuple[str, ...], ...]
    #: … and none of these.
    unwanted: tuple[str, ...]

    @classmethod
    def of(cls, selector: Selector) -> "_Glance":
        # A label that may be empty may be missing.
        needed = tuple(tuple(_pair(label, value) for value in values) for label, values in selector.where if "" not in values)
        unwanted = [_pair(label, value) for label, values in selector.without for value in values if value]
        # Behind another letter it would be another label, such as exported_service.
        return cls(needed, tuple(before + pair for pair in unwanted for before in "{,"))

    def may_be(self, line: str) -> bool:
        return all(any(pair in line for pair in pairs) for pairs in self.needed) and not any(pair in line for pair in self.unwanted)


def read(text: str, wanted: Mapping[str, Sequence[Selector]]) -> Iterator[Sample]:
    """Of each name, all that one of its selectors means, and perhaps more; where it has none, all. What is not a number is left out."""
    glances = {name: [_Glance.of(selector) for selector in selectors] for name, selectors in wanted.items()}
    for found in _LINE.finditer(text):
        line = found.group()
        name = line.partition("{")[0].partition(" ")[0]
        known = glances.get(name)
        if known is None or (known and not any(glance.may_be(line) for glance in known)):
            continue
        head, _, number = line.rpartition(" ")
        value = float(number)
        labels = heads.read(head)
        if labels is not None and isfinite(value):
            yield Sample(name, labels, value)


def _pair(label: str, value: str) -> str:
    return f'{label}="{series.escape(value)}"'
