"""Convert the metrics text of the mesh to one row of numbers per node. Pure.

Counters become their increase since the previous sample. A counter that decreased was reset to 0, and a new series of a known node
started at 0. The first row of a node has no counters, because their start is unknown; charts show a gap. The same applies to all nodes
after a restart of this service.
"""

import math
import re
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, TypeAlias

from services.metrics.export import series
from services.metrics.history import kept_series
from shared.telemetry.instruments import Instruments

#: The limit of PostgreSQL's `real`.
MAX: Final = 3.4e38
#: Counters of a node that is missing for more samples (ten minutes) are forgotten.
_MAX_MISSED: Final = 40
#: Cached heads, about 300 bytes each; 200 workers have half of them.
_MAX_HEADS: Final = 100_000

Names: TypeAlias = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class HistoryRow:
    """One sample of one node."""

    service: str
    node: str
    names: Names
    #: Four-byte floats, because ten minutes of them can wait in memory.
    values: Sequence[float]


@dataclass(frozen=True, slots=True)
class MeshReading:
    at: datetime
    rows: tuple[HistoryRow, ...]
    left_out: int


@dataclass(frozen=True, slots=True)
class _SeriesSlot:
    service: str
    node: str
    name: str
    order: int
    grows: bool


@dataclass(slots=True)
class _Seen:
    """The counters of one node at the last sample that had them."""

    counters: dict[str, float] = field(default_factory=dict)
    missed: int = 0


class RowReader:
    """Remembers the counters of the previous sample."""

    def __init__(self) -> None:
        self._places: dict[str, _SeriesSlot | None] = {}
        self._texts: dict[str, str] = {}
        self._seen: dict[tuple[str, str], _Seen] = {}
        self._names: dict[Names, Names] = {}

    def read(self, text: str, at: datetime) -> MeshReading:
        """Read a text in the format 0.0.4, as ``prometheus_merge.render`` writes it."""
        if len(self._places) > _MAX_HEADS:
            self._places, self._texts = {}, {}
        found: dict[tuple[str, str], dict[tuple[int, str], float]] = {}
        counters: dict[tuple[str, str], dict[str, float]] = {}
        left_out = 0
        for line in _lines(text):
            head, _, number = line.rpartition(" ")
            place = self._places[head] if head in self._places else self._find_place(head)
            if place is None or not abs(value := float(number)) <= MAX:
                continue
            node = (place.service, place.node)
            if node not in found and len(found) >= kept_series.MAX_NODES:
                left_out += 1
                continue
            row, key = found.setdefault(node, {}), (place.order, place.name)
            if place.name != _NODE_UP:
                counters.setdefault(node, {})
            if place.grows:
                counters[node][head] = value
                if node not in self._seen:
                    continue
                value = self._growth(node, head, value)
            row[key] = row.get(key, 0.0) + value
        rows = tuple(self._row(node, row) for node, row in found.items() if row)
        self._remember(counters)
        left_out += sum(max(0, len(row) - kept_series.MAX_SERIES) for row in found.values())
        return MeshReading(at, rows, left_out)

    def _find_place(self, head: str) -> _SeriesSlot | None:
        parsed = series.parse_head(head)
        known = None if parsed is None else kept_series.BY_NAME.get(parsed.name)
        place = None
        if parsed is not None and known is not None:
            order, one = known
            name, labels = kept_series.name_of(one, parsed.labels), parsed.labels
            if name is not None and labels.get("service") and labels.get("node"):
                # Thousands of series share a few texts.
                service, node, name = (self._texts.setdefault(text, text) for text in (labels["service"], labels["node"], name))
                place = _SeriesSlot(service, node, name, order, kept_series.is_counter(one.name))
        self._places[head] = place
        return place

    def _growth(self, node: tuple[str, str], head: str, value: float) -> float:
        before = self._seen[node].counters.get(head, 0.0)
        return value - before if value >= before else value

    def _row(self, node: tuple[str, str], found: dict[tuple[int, str], float]) -> HistoryRow:
        ordered = sorted(found)[: kept_series.MAX_SERIES]
        names = tuple(name for _, name in ordered)
        values = array("f", (math.copysign(min(abs(found[key]), MAX), found[key]) for key in ordered))
        return HistoryRow(*node, self._names.setdefault(names, names), values)

    def _remember(self, counters: dict[tuple[str, str], dict[str, float]]) -> None:
        for node, seen in list(self._seen.items()):
            seen.missed += 1
            if seen.missed > _MAX_MISSED:
                del self._seen[node]
        for node, values in counters.items():
            self._seen[node] = _Seen(values)
        if len(self._names) > kept_series.MAX_NODES * 4:
            self._names = {}


def _lines(text: str) -> Iterator[str]:
    """Yield the lines of stored families, without unstored buckets. Splits one family at a time to save memory."""
    end = -1
    while end < len(text):
        begin = end + 1
        end = text.find(_NEXT_FAMILY, begin)
        if end < 0:
            end = len(text)
        found = _FAMILY.match(text, begin, end)
        if found is None or (unkept := _UNKEPT.get(found[1])) is None:
            continue
        for line in text[begin:end].split("\n")[2:]:
            if line and not unkept(line):
                yield line


def _unkept(name: str) -> Callable[[str], bool]:
    """Return a test for unstored buckets of an instrument, which most lines are. It needs no parsing."""
    bounds = tuple(f'le="{bound}"' for one in kept_series.ALL if one.instrument.name == name for bound in one.bounds)
    empty = tuple(
        f'{before}{label}=""' for one in kept_series.ALL if one.instrument.name == name for label in one.filled for before in "{,"
    )
    bucket = f"{name}_bucket{{"
    return lambda line: line.startswith(bucket) and (any(label in line for label in empty) or not any(bound in line for bound in bounds))


_NEXT_FAMILY: Final = "\n# HELP "
_FAMILY: Final = re.compile(r"# HELP (\S+)")
_UNKEPT: Final = {name: _unkept(name) for name in {one.instrument.name for one in kept_series.ALL}}
#: We report this about a node, which may not have responded itself.
_NODE_UP: Final = Instruments.node_up.name
