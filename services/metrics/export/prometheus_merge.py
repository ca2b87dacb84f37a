"""Merge Prometheus texts of several nodes into one valid text. Pure.

Node texts are untrusted: invalid lines are dropped, so that one node cannot break the scrape of the whole mesh. Each series gets the
labels of its node, as in Prometheus with ``honor_labels: false``: a label of the same name with another value becomes ``exported_…``.

Texts in the usual form are parsed in ``Blocks``, ten times as fast as line by line.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from services.metrics.export import series
from services.metrics.export.metric_families import Block, Blocks, WrittenFamily
from services.metrics.export.series import Labelling, SeriesHead
from shared.api.node import Exemplar

#: Further series of a node are dropped. OBSERVABILITY.md §6.2: at most 10,000 per service.
MAX_SERIES_PER_SOURCE = 10_000
MAX_FAMILIES_PER_SOURCE = 1_000

_COMMENT = re.compile(rf"#[ \t]+(HELP|TYPE)[ \t]+({series.NAME})(?:[ \t]+(.*))?")
_VALID_HELP = re.compile(r"(?:[^\\]|\\[\\n])*")

#: Kind -> the allowed suffixes of its series.
_SUFFIXES: dict[str, tuple[str, ...]] = {
    "counter": ("",),
    "gauge": ("",),
    "untyped": ("",),
    "histogram": series.HISTOGRAM_PARTS,
    "summary": ("", "_sum", "_count"),
}


@dataclass(frozen=True, slots=True)
class MetricSource:
    """The text of a node and the labels for all its series."""

    text: str
    labels: Mapping[str, str]
    #: Our own text: its labels take precedence over ``labels``.
    trusted: bool = False
    #: By the text before the number of a bucket.
    exemplars: Mapping[str, Exemplar] = field(default_factory=dict)


class MetricRow(NamedTuple):
    """One series that was parsed line by line."""

    source: int
    head: SeriesHead
    shown: str
    value: str


@dataclass(slots=True)
class Family:
    name: str
    kind: str
    help: str
    blocks: list[Block] = field(default_factory=list)
    rows: list[MetricRow] = field(default_factory=list)
    exemplars: dict[str, Exemplar] = field(default_factory=dict)
    #: The series in ``rows``, without empty labels, which Prometheus treats as absent.
    seen: set[str] = field(default_factory=set)
    #: All label values of our own series. A source with one of them may repeat a series.
    own_values: set[str] = field(default_factory=set)

    @property
    def size(self) -> int:
        """Return the number of series."""
        return len(self.rows) + sum(len(block.numbers) for block in self.blocks)


@dataclass(frozen=True, slots=True)
class Merged:
    #: Sorted by name.
    families: tuple[Family, ...]
    #: How many series were dropped: invalid, over the limit, duplicate, or of a different type than elsewhere.
    dropped: int


@dataclass(frozen=True, slots=True)
class _Declared:
    kinds: Mapping[str, str]
    helps: Mapping[str, str]

    def family_of(self, sample: str) -> tuple[str, str]:
        """Return the family of a series and its kind."""
        for suffix in series.HISTOGRAM_PARTS:
            family = sample.removesuffix(suffix)
            if family != sample and suffix in _SUFFIXES[self.kinds.get(family, "untyped")]:
                return family, self.kinds[family]
        kind = self.kinds.get(sample, "untyped")
        return sample, kind


class Merger:
    """Merges collections. Caches names and labels, which rarely change."""

    def __init__(self, known: Mapping[str, str] | None = None) -> None:
        """If texts disagree about a family, ``known`` (name -> kind) takes precedence, then our own text, then the first."""
        self._known = known or {}
        self._blocks = Blocks(lambda name, family, kind: name in _names(family, kind))

    def merge(self, sources: Sequence[MetricSource]) -> Merged:
        self._blocks.forget_if_many()
        merging = _Merging(self._known, self._blocks)
        alone = _alone(sources)
        ours_first = sorted(sources, key=lambda source: not source.trusted)
        dropped = sum([merging.add(source, is_alone=not source.trusted and tuple(source.labels.items()) in alone) for source in ours_first])
        return Merged(tuple(merging.families[name] for name in sorted(merging.families)), dropped)


def _alone(sources: Sequence[MetricSource]) -> set[tuple[tuple[str, str], ...]]:
    """Return the labels that only one source has; none if sources have different label names."""
    times = Counter(tuple(source.labels.items()) for source in sources if not source.trusted)
    if len({tuple(name for name, _ in labels) for labels in times}) != 1 or () in times:
        return set()
    return {labels for labels, number in times.items() if number == 1 and all(value for _, value in labels)}


def render(merged: Merged) -> str:
    """Render the text format 0.0.4, which has no exemplars."""
    parts: list[str] = []
    for family in merged.families:
        parts.append(f"# HELP {family.name} {family.help}\n# TYPE {family.name} {family.kind}")
        parts += [block.text() for block in family.blocks]
        parts += [f"\n{row.shown} {row.value}" for row in family.rows]
        parts.append("\n")
    return "".join(parts)


class _Merging:
    def __init__(self, known: Mapping[str, str], blocks: Blocks) -> None:
        self._known = known
        self.families: dict[str, Family] = {}
        #: Series name -> its family: a gauge `x_count` cannot coexist with a histogram `x`.
        self._owners = {taken: name for name, kind in known.items() for taken in (name, *_names(name, kind))}
        self._heads: dict[str, SeriesHead | None] = {}
        self._blocks = blocks
        self._sources = 0

    def add(self, source: MetricSource, *, is_alone: bool) -> int:
        """Add the valid series and return how many were dropped. ``is_alone``: no other source has its labels."""
        self._sources += 1
        as_blocks = self._read_blocks(source) if is_alone and source.text.count("\n") <= MAX_SERIES_PER_SOURCE else None
        if as_blocks is None:
            lines = source.text.split("\n")
            return self._add_lines(source, lines, _declarations(lines))
        return sum([self._add_block(source, written, block) for written, block in as_blocks])

    def _read_blocks(self, source: MetricSource) -> list[tuple[WrittenFamily, Block | None]] | None:
        families = self._blocks.split(source.text, _SUFFIXES)
        if families is None or len(families) > MAX_FAMILIES_PER_SOURCE:
            return None
        labels = {name: series.escape(value) for name, value in source.labels.items()}
        exemplars = _by_family(source.exemplars)
        try:
            return [(written, self._blocks.read(written, labels, exemplars.get(written.name, {}))) for written in families]
        except ValueError:
            return None

    def _add_block(self, source: MetricSource, written: WrittenFamily, block: Block | None) -> int:
        declared = _Declared({written.name: written.kind}, {written.name: _valid_help(written.help)})
        family = self._find_family(written.name, written.kind, declared)
        *_, own = source.labels.values()
        if block is None or (family is not None and own in family.own_values):
            return self._add_lines(source, written.body.split("\n"), declared)
        if family is None:
            return len(block.numbers)
        if block.numbers:
            family.blocks.append(block)
        return 0

    def _add_lines(self, source: MetricSource, lines: Sequence[str], declared: _Declared) -> int:
        for name, kind in declared.kinds.items():
            self._find_family(name, kind, declared)  # also families without series
        label = Labelling({name: series.escape(value) for name, value in source.labels.items()}, source.trusted)
        homes: dict[str, Family | None] = {}
        dropped = taken = 0
        for line in lines:
            if not line or line[0] == "#" or line.isspace():
                continue
            head, value = self._parse(line)
            if head is None or taken >= MAX_SERIES_PER_SOURCE:
                dropped += 1
                continue
            if head.name not in homes:
                homes[head.name] = self._home(head.name, declared)
            family = homes[head.name]
            shown, identity = label(head)
            if family is None or identity in family.seen or (series.ODD.match(value) and _only_grows(family, head)):
                dropped += 1
                continue
            taken += 1
            family.seen.add(identity)
            family.rows.append(MetricRow(self._sources, head, shown, value))
            if source.trusted:
                family.own_values.update(head.labels.values(), source.labels.values())
        self._add_exemplars(source.exemplars, homes, label)
        return dropped

    def _add_exemplars(self, exemplars: Mapping[str, Exemplar], homes: Mapping[str, Family | None], label: Labelling) -> None:
        for text, exemplar in exemplars.items():
            head = self._heads.get(text)
            family = None if head is None else homes.get(head.name)
            if head is not None and family is not None:
                shown, identity = label(head)
                if identity in family.seen:
                    family.exemplars[shown] = exemplar

    def _parse(self, line: str) -> tuple[SeriesHead | None, str]:
        text, _, value = line.rpartition(" ")
        if not series.NUMBER_ALONE.fullmatch(value) or (text not in self._heads and not series.HEAD_ALONE.fullmatch(text)):
            # It has a timestamp or unusual spaces, or is invalid.
            found = series.LINE.fullmatch(line)
            if found is None:
                return None, ""
            text, value = found.group(1), found.group(4)
        if text not in self._heads:
            self._heads[text] = series.parse_head(text)
        return self._heads[text], value

    def _home(self, series: str, declared: _Declared) -> Family | None:
        name, kind = declared.family_of(series)
        return self._find_family(name, kind, declared) if series in _names(name, kind) else None

    def _find_family(self, name: str, kind: str, declared: _Declared) -> Family | None:
        family = self.families.get(name)
        if family is not None:
            return family if family.kind == kind else None
        names = (name, *_names(name, kind))
        if self._known.get(name, kind) != kind or any(self._owners.get(taken, name) != name for taken in names):
            return None
        self._owners.update(dict.fromkeys(names, name))
        self.families[name] = Family(name, kind, declared.helps.get(name, ""))
        return self.families[name]


def _declarations(lines: Sequence[str]) -> _Declared:
    kinds: dict[str, str] = {}
    helps: dict[str, str] = {}
    for line in lines:
        found = _COMMENT.fullmatch(line) if line.startswith("#") else None
        if found is None:
            continue
        what, name, rest = found.groups(default="")
        if what == "HELP":
            helps.setdefault(name, _valid_help(rest))
        elif rest in _SUFFIXES and len(kinds) < MAX_FAMILIES_PER_SOURCE:
            kinds.setdefault(name, rest)
    return _Declared(kinds, helps)


def _names(family: str, kind: str) -> tuple[str, ...]:
    return tuple(family + suffix for suffix in _SUFFIXES[kind])


def _only_grows(family: Family, head: SeriesHead) -> bool:
    return family.kind == "counter" or (family.kind == "histogram" and not head.name.endswith("_sum"))


def _by_family(exemplars: Mapping[str, Exemplar]) -> dict[str, dict[str, Exemplar]]:
    found: dict[str, dict[str, Exemplar]] = {}
    for text, exemplar in exemplars.items():
        found.setdefault(text.partition("{")[0].removesuffix("_bucket"), {})[text] = exemplar
    return found


def _valid_help(text: str) -> str:
    return text if _VALID_HELP.fullmatch(text) else text.replace("\\", "\\\\")


def render_family(name: str, kind: str, text: str, values: Iterator[tuple[Mapping[str, str], float]]) -> str:
    """Render one of our own families; ``values`` are pairs of labels and number."""
    lines = [
        f"{series.braced(name, series.pairs({label: series.escape(value) for label, value in sorted(labels.items())}), '')} {number!r}"
        for labels, number in values
    ]
    helped = text.replace("\\", "\\\\").replace("\n", "\\n")
    return "\n".join((f"# HELP {name} {helped}", f"# TYPE {name} {kind}", *lines)) + "\n"
