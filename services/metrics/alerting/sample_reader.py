"""Read selected series from the metrics text. Pure."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite

from services.metrics.alerting.rules.evaluation import Labels
from services.metrics.alerting.rules.evaluation import labels as sorted_labels
from services.metrics.alerting.rules.expressions import Selector
from services.metrics.alerting.sample_window import Sample
from services.metrics.export import series

_LINE = re.compile(r"[^\n]+")
_ESCAPED = re.compile(r"\\(.)")


@dataclass(frozen=True, slots=True)
class _LineFilter:
    """A cheap test of an unparsed line, because most lines of a large mesh are not wanted."""

    #: The line must contain one text of each group …
    needed: tuple[tuple[str, ...], ...]
    #: … and none of these.
    unwanted: tuple[str, ...]

    @classmethod
    def of(cls, selector: Selector) -> "_LineFilter":
        # A label that can be empty can be missing.
        needed = tuple(tuple(_pair(label, value) for value in values) for label, values in selector.where if "" not in values)
        unwanted = [_pair(label, value) for label, values in selector.without for value in values if value]
        # The character before excludes labels such as exported_service.
        return cls(needed, tuple(before + pair for pair in unwanted for before in "{,"))

    def may_be(self, line: str) -> bool:
        return all(any(pair in line for pair in pairs) for pairs in self.needed) and not any(pair in line for pair in self.unwanted)


def read(text: str, wanted: Mapping[str, Sequence[Selector]]) -> Iterator[Sample]:
    """Yield the finite samples that match a selector of their name, and possibly more; all if the name has no selectors."""
    glances = {name: [_LineFilter.of(selector) for selector in selectors] for name, selectors in wanted.items()}
    for found in _LINE.finditer(text):
        line = found.group()
        name = line.partition("{")[0].partition(" ")[0]
        known = glances.get(name)
        if known is None or (known and not any(glance.may_be(line) for glance in known)):
            continue
        head, _, number = line.rpartition(" ")
        value = float(number)
        labels = _labels(head)
        if labels is not None and isfinite(value):
            yield Sample(name, labels, value)


def _pair(label: str, value: str) -> str:
    return f'{label}="{series.escape(value)}"'


def _labels(head: str) -> Labels | None:
    parsed = series.parse_head(head)
    return None if parsed is None else sorted_labels(**{label: _plain(text) for label, text in parsed.labels.items()})


def _plain(escaped: str) -> str:
    return _ESCAPED.sub(lambda found: "\n" if found.group(1) == "n" else found.group(1), escaped)
