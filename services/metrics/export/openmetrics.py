"""Render merged metrics as OpenMetrics 1.0.0, with exemplars. Pure.

https://prometheus.io/docs/specs/om/open_metrics_spec/. It is stricter than the text format: a reader can reject the whole text for one
inconsistent histogram, so invalid histograms are left out.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence

from services.metrics.export import series
from services.metrics.export.metric_families import Block
from services.metrics.export.prometheus_merge import Family, Merged, MetricRow
from services.metrics.export.series import SeriesHead
from shared.api.node import Exemplar

_TOTAL = "_total"
_TRACE_ID = re.compile(r"(?!0{32})[0-9a-f]{32}")
#: In seconds since 1970: the year 5138.
_LATEST = 1e11
_MAX = 1e18

#: The suffixes of the names that a family occupies.
_TAKEN = {
    "counter": ("", "_total", "_created"),
    "histogram": ("", "_bucket", "_sum", "_count", "_created"),
    "gauge": ("",),
    "unknown": ("",),
}


def render(merged: Merged, known: Mapping[str, str]) -> str:
    """Render all families. The ``known`` ones take precedence if names collide."""
    taken: set[str] = set()
    written: dict[str, str] = {}
    for family in sorted(merged.families, key=lambda one: (one.name not in known, one.name)):
        name, kind = _named(family, taken)
        names = [name + suffix for suffix in _TAKEN[kind]] if kind else []
        if names and taken.isdisjoint(names):
            taken.update(names)
            written[name] = f"# HELP {name} {_help(family.help)}\n# TYPE {name} {kind}{_text(family)}\n"
    return "".join([written[name] for name in sorted(written)]) + "# EOF\n"


def _named(family: Family, taken: set[str]) -> tuple[str, str]:
    """Return the name and kind in OpenMetrics; the kind is empty for summaries, which are left out.

    Counters are named without `_total`. A counter without that suffix, or whose short name is taken, becomes unknown and keeps its name.
    """
    match family.kind:
        case "counter":
            short = family.name.removesuffix(_TOTAL)
            is_one = short != family.name and taken.isdisjoint(short + suffix for suffix in _TAKEN["counter"])
            return (short, "counter") if is_one else (family.name, "unknown")
        case "untyped":
            return family.name, "unknown"
        case "gauge" | "histogram":
            return family.name, family.kind
        case _:
            return family.name, ""


def _text(family: Family) -> str:
    if family.kind != "histogram":
        return "".join([*(block.text() for block in family.blocks), *(f"\n{row.shown} {row.value}" for row in family.rows)])
    return "".join([*map(_block_of_histograms, family.blocks), *_rows_of_histograms(family)])


def _block_of_histograms(block: Block) -> str:
    numbers = block.numbers
    if block.exemplars:
        numbers = list(numbers)
        for place, exemplar in block.exemplars.items():
            numbers[place] = _with(numbers[place], block.made_of[block.pieces[place]], exemplar)
    if _is_usual(block):
        return block.text(numbers)
    heads = [block.made_of[piece] for piece in block.pieces]
    places: dict[str, list[int]] = {}
    for place, head in enumerate(heads):
        places.setdefault(head.group, []).append(place)
    sound = [found for found in places.values() if _adds_up([(heads[place], block.numbers[place]) for place in found])]
    # The lines of each histogram must be adjacent.
    kept = [place for found in sound for place in found]
    return block.text([numbers[place] for place in kept], [block.pieces[place] for place in kept])


def _is_usual(block: Block) -> bool:
    """Return whether all histograms are in the usual layout and consistent. Like ``_adds_up``, but ten times as fast."""
    key = tuple(block.pieces)
    if key not in block.layouts:
        block.layouts[key] = _layout([block.made_of[piece] for piece in block.pieces])
    layout = block.layouts[key]
    if layout is None:
        return False
    numbers = list(map(float, block.numbers))
    for begin, end in layout:
        buckets = numbers[begin:end]
        if buckets != sorted(buckets) or numbers[end] != buckets[-1] or not numbers[end + 1] >= 0:
            return False
        if not all(map(float.is_integer, buckets)):
            return False
    return True


def _layout(heads: Sequence[SeriesHead]) -> list[tuple[int, int]] | None:
    """Return where the buckets of each histogram begin and end. None unless each has rising buckets, then count and sum."""
    layout: list[tuple[int, int]] = []
    groups: set[str] = set()
    begin = 0
    while begin < len(heads):
        group, end, bound = heads[begin].group, begin, -1.0
        while end < len(heads) and (le := heads[end].le) is not None and le > bound and heads[end].group == group:
            end, bound = end + 1, le
        after = heads[end : end + 2]
        is_whole = [head.name.rpartition("_")[2] for head in after] == ["count", "sum"]
        if bound != math.inf or not is_whole or group in groups or any(head.group != group for head in after):
            return None
        groups.add(group)
        layout.append((begin, end))
        begin = end + 2
    return layout


def _rows_of_histograms(family: Family) -> Iterator[str]:
    groups: dict[tuple[int, str], list[MetricRow]] = {}
    for row in family.rows:
        groups.setdefault((row.source, row.head.group), []).append(row)
    written: set[frozenset[tuple[str, str]]] = set()
    for rows in groups.values():
        identity = _identity(rows[0])
        if identity not in written and _adds_up([(row.head, row.value) for row in rows]):
            written.add(identity)
            for row in rows:
                yield f"\n{row.shown} {_with(row.value, row.head, family.exemplars.get(row.shown))}"


def _with(number: str, head: SeriesHead, exemplar: Exemplar | None) -> str:
    """Append a valid exemplar to the number of a bucket: it has a trace id and a value inside the bucket."""
    if exemplar is None or head.le is None or not 0 <= exemplar.value <= min(head.le, _MAX):
        return number
    if not _TRACE_ID.fullmatch(exemplar.trace_id) or not 0 < exemplar.at < _LATEST:
        return number
    return f'{number} # {{trace_id="{exemplar.trace_id}"}} {exemplar.value!r} {exemplar.at:.3f}'


def _identity(row: MetricRow) -> frozenset[tuple[str, str]]:
    return frozenset((name, value) for name, value in series.LABEL.findall(row.shown) if value and name != "le")


def _adds_up(lines: Sequence[tuple[SeriesHead, str]]) -> bool:
    """Return whether a histogram is consistent: rising buckets up to +Inf, a matching count, and a sum."""
    bound, most = -1.0, 0.0
    count = total = None
    for head, text in lines:
        number = float(text)
        if head.le is not None:
            if head.le <= bound or number < most or not number.is_integer():
                return False
            bound, most = head.le, number
        elif head.name.endswith("_count"):
            count = number
        elif head.name.endswith("_sum"):
            total = number
        else:
            return False
    return bound == math.inf and count == most and total is not None and total >= 0


def _help(text: str) -> str:
    return text.replace('"', '\\"')
