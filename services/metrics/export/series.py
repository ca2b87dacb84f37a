"""Parse lines of Prometheus texts, and label series. Pure."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from prometheus_client.utils import floatToGoString

NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
_PAIR = r'[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\\n]|\\["\\n])*"'
_NUMBER = r"[+-]?(?:(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|Inf|NaN)"
_HEAD = rf"({NAME})(?:\{{((?:{_PAIR}(?:,{_PAIR})*,?)?)\}})?"
HEAD_ALONE = re.compile(_HEAD)
NUMBER_ALONE = re.compile(_NUMBER)
#: Numbers that are impossible for counters.
ODD = re.compile(r"-|.?NaN")
LINE = re.compile(rf"({_HEAD})[ \t]+({_NUMBER})(?:[ \t]+-?[0-9]+)?[ \t]*")
LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\["\\n])*)"')
HISTOGRAM_PARTS = ("_bucket", "_sum", "_count")
_ESCAPED = re.compile(r"\\(.)")


@dataclass(frozen=True, slots=True)
class SeriesHead:
    """The name and labels of a series; the label values are escaped."""

    name: str
    labels: Mapping[str, str]
    #: For possible parts of a histogram, all labels but `le`, which identify the histogram; else empty.
    group: str
    #: The bound of a bucket in OpenMetrics form, else None.
    le: float | None

    @property
    def has_empty(self) -> bool:
        """Return whether a label is empty, which Prometheus treats as absent."""
        return "" in self.labels.values()

    @property
    def filled(self) -> dict[str, str]:
        """Return the labels that are not empty."""
        return {name: value for name, value in self.labels.items() if value}


def parse_head(text: str) -> SeriesHead | None:
    """Return None if it is invalid."""
    found = HEAD_ALONE.fullmatch(text)
    if found is None:
        return None
    name, inside = found.groups(default="")
    found_pairs = LABEL.findall(inside)
    labels = dict(sorted(found_pairs))
    # Reject duplicate labels and names with two leading underscores, which Prometheus reserves.
    if len(labels) != len(found_pairs) or ("__" in inside and any(label.startswith("__") for label in labels)):
        return None
    if not name.endswith(HISTOGRAM_PARTS):
        return SeriesHead(name, labels, "", None)
    group = pairs({label: value for label, value in labels.items() if label != "le"})
    return SeriesHead(name, labels, group, _bound(labels.get("le", "")) if name.endswith("_bucket") else None)


def _bound(text: str) -> float | None:
    if not NUMBER_ALONE.fullmatch(text):
        return None
    bound = float(text)
    if math.isnan(bound):
        return None
    return bound if floatToGoString(bound) == text else None  # type: ignore[no-untyped-call]  # as OpenMetrics parsers check


class Labelling:
    """Adds the labels of a source to its series."""

    def __init__(self, source_labels: Mapping[str, str], trusted: bool) -> None:
        self._source_labels = source_labels
        self._trusted = trusted
        self._text = pairs(source_labels)
        self._identity = pairs({name: value for name, value in source_labels.items() if value})

    def __call__(self, head: SeriesHead) -> tuple[str, str]:
        """Return the head as text, and its identity."""
        if head.labels.keys().isdisjoint(self._source_labels):
            shown = braced(head.name, self._text, pairs(head.labels))
            if not head.has_empty:
                return shown, shown
            return shown, braced(head.name, self._identity, pairs(head.filled))
        labels = self._complete(head.labels)
        known = {name: value for name, value in labels.items() if value}
        return braced(head.name, pairs(labels), ""), braced(head.name, pairs(known), "")

    def _complete(self, own: Mapping[str, str]) -> dict[str, str]:
        if self._trusted:
            return {**self._source_labels, **own}
        rest = {name: value for name, value in own.items() if name not in self._source_labels}
        for name, value in self._source_labels.items():
            if own.get(name, value) == value:
                continue
            moved = f"exported_{name}"
            while moved in rest:
                moved = f"exported_{moved}"
            rest[moved] = own[name]
        return {**self._source_labels, **dict(sorted(rest.items()))}


def pairs(labels: Mapping[str, str]) -> str:
    return ",".join([f'{name}="{value}"' for name, value in labels.items()])


def braced(name: str, first: str, second: str) -> str:
    inside = f"{first},{second}" if first and second else first or second
    return f"{name}{{{inside}}}" if inside else name


def escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def unescape(value: str) -> str:
    return _ESCAPED.sub(lambda found: "\n" if found[1] == "n" else found[1], value)
