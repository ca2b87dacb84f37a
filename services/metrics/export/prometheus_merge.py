"""Merges Prometheus texts of several nodes into one valid text. Pure.

A node's text is not trusted: a line that is not valid is left out, never passed on, so that one node cannot spoil the
scrape of the whole mesh. A node's labels are completed by what the mesh knows of it, as Prometheus does with
``honor_labels: false``: a label of the same name with another value is kept as ``exported_…``.

Texts that are exactly as nodes write them are taken in ``blocks``, which is ten times as fast as line by line.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from services.metrics.export import series
from services.metrics.export.metric_families import Block, Blocks, Written
from services.metrics.export.series import Labelling, SeriesHead
from shared.api.node import Exemplar

#: Series of one node; beyond them the rest of its text is left out. OBSERVABILITY.md §6.2: at most 10,000 per service.
MAX_SERIES_PER_SOURCE = 10_000
#: Families that a node may declare without a series in them.
MAX_FAMILIES_PER_SOURCE = 1_000

NAME = series.NAME
_COMMENT = re.compile(rf"#[ \t]+(HELP|TYPE)[ \t]+({NAME})(?:[ \t]+(.*))?")
_VALID_HELP = re.compile(r"(?:[^\\]|\\[\\n])*")

#: What a family of a kind may be made of, after its name.
_SUFFIXES: dict[str, tuple[str, ...]] = {
    "counter": ("",),
    "gauge": ("",),
    "untyped": ("",),
    "histogram": ("_bucket", "_sum", "_count"),
    "summary": ("", "_sum", "_count"),
}


@dataclass(frozen=True, slots=True)
class MetricSource:
    """One text, and the labels that all of its series get."""

    text: str
    labels: Mapping[str, str]
    #: Our own: what it says of its labels stands, and ``labels`` only completes it.
    trusted: bool = False
    #: By what the line of a bucket has before its number.
    exemplars: Mapping[str, Exemplar] = field(default_factory=dict)


class MetricRow(NamedTuple):
    """One series of a family, of a text that was read line by line."""

    #: The number of the source that it came from.
    source: int
    head: SeriesHead
    #: The head with the labels of its source.
    shown: str
    value: str


@dataclass(slots=True)
class Family:
    name: str
    kind: str
    help: str
    blocks: list[Block] = field(default_factory=list)
    rows: list[MetricRow] = field(default_factory=list)
    #: Of ``rows``, by ``Row.shown``.
    exemplars: dict[str, Exemplar] = field(default_factory=dict)
    #: The series in ``rows``. To Prometheus an empty label is an absent one, so they are not part of what stands here.
    seen: set[str] = field(default_factory=set)
    #: All values of labels of what we ourselves say in it: who has one of them may repeat a series.
    told: set[str] = field(default_factory=set)

    @property
    def size(self) -> int:
        """How many series it has."""
        return len(self.rows) + sum(len(block.numbers) for block in self.blocks)


@dataclass(frozen=True, slots=True)
class Merged:
    #: By name.
    families: tuple[Family, ...]
    #: Series that were left out: malformed, impossible, over the limit, repeated, or of a family that has another type elsewhere.
    dropped: int


@dataclass(frozen=True, slots=True)
class _Declared:
    """What the comments of one text say of its families."""

    kinds: Mapping[str, str]
    helps: Mapping[str, str]

    def family_of(self, sample: str) -> tuple[str, str]:
        """The family that a series belongs to, and its kind."""
        for suffix in ("_bucket", "_sum", "_count"):
            family = sample.removesuffix(suffix)
            if family != sample and suffix in _SUFFIXES[self.kinds.get(family, "untyped")]:
                return family, self.kinds[family]
        kind = self.kinds.get(sample, "untyped")
        return sample, kind


class Merger:
    """Remembers the names and labels that nodes have, which are the same at every scrape."""

    def __init__(self, known: Mapping[str, str] | None = None) -> None:
        """Where two texts disagree about a family, ``known`` (name -> kind) is right, then our own text, then the first."""
        self._known = known or {}
        self._blocks = Blocks(lambda name, family, kind: name in _names(family, kind))

    def merge(self, sources: Sequence[MetricSource]) -> Merged:
        """All of them together."""
        self._blocks.forget_if_many()
        merging = _Merging(self._known, self._blocks)
        alone = _alone(sources)
        ours_first = sorted(sources, key=lambda source: not source.trusted)
        dropped = sum([merging.add(source, is_alone=not source.trusted and tuple(source.labels.items()) in alone) for source in ours_first])
        return Merged(tuple(merging.families[name] for name in sorted(merging.families)), dropped)


def merge(sources: Sequence[MetricSource], known: Mapping[str, str] | None = None) -> Merged:
    """Once; who merges again and again keeps a ``Merger``."""
    return Merger(known).merge(sources)


def _alone(sources: Sequence[MetricSource]) -> set[tuple[tuple[str, str], ...]]:
    """The labels that one source alone has; none where they have not all the same names."""
    times = Counter(tuple(source.labels.items()) for source in sources if not source.trusted)
    if len({tuple(name for name, _ in labels) for labels in times}) != 1 or () in times:
        return set()
    return {labels for labels, number in times.items() if number == 1 and all(value for _, value in labels)}


def render(merged: Merged) -> str:
    """In the text format 0.0.4, which has no exemplars."""
    parts: list[str] = []
    for family in merged.families:
        parts.append(f"# HELP {family.name} {family.help}\n# TYPE {family.name} {family.kind}")
        parts += [block.text() for block in family.blocks]
        parts += [f"\n{row.shown} {row.value}" for row in family.rows]
        parts.append("\n")
    return "".join(parts)


class _Merging:
    """The families so far."""

    def __init__(self, known: Mapping[str, str], blocks: Blocks) -> None:
        self._known = known
        self.families: dict[str, Family] = {}
        #: Series name -> the family that it belongs to: a gauge `x_count` cannot stand beside a histogram `x`.
        self._owners = {taken: name for name, kind in known.items() for taken in (name, *_names(name, kind))}
        self._heads: dict[str, SeriesHead | None] = {}
        self._blocks = blocks
        self._sources = 0

    def add(self, source: MetricSource, *, is_alone: bool) -> int:
        """Take over what is valid; returns how many series were not. ``is_alone``: no other source has its labels."""
        self._sources += 1
        as_blocks = self._read_blocks(source) if is_alone and source.text.count("\n") <= MAX_SERIES_PER_SOURCE else None
        if as_blocks is None:
            lines = source.text.split("\n")
            return self._add_lines(source, lines, _declarations(lines))
        return sum([self._add_block(source, written, block) for written, block in as_blocks])

    # --- as a whole -----------------------------------------------------------------------------------------------

    def _read_blocks(self, source: MetricSource) -> list[tuple[Written, Block | None]] | None:
        """None where a part of the text is not as nodes write it."""
        families = self._blocks.split(source.text, _SUFFIXES)
        if families is None or len(families) > MAX_FAMILIES_PER_SOURCE:
            return None
        labels = {name: series.escape(value) for name, value in source.labels.items()}
        exemplars = _by_family(source.exemplars)
        try:
            return [(written, self._blocks.read(written, labels, exemplars.get(written.name, {}))) for written in families]
        except ValueError:
            return None

    def _add_block(self, source: MetricSource, written: Written, block: Block | None) -> int:
        declared = _Declared({written.name: written.kind}, {written.name: _valid_help(written.help)})
        family = self._find_family(written.name, written.kind, declared)
        *_, own = source.labels.values()
        if block is None or (family is not None and own in family.told):
            return self._add_lines(source, written.body.split("\n"), declared)
        if family is None:
            return len(block.numbers)
        if block.numbers:
            family.blocks.append(block)
        return 0

    # --- line by line ---------------------------------------------------------------------------------------------

    def _add_lines(self, source: MetricSource, lines: Sequence[str], declared: _Declared) -> int:
        for name, kind in declared.kinds.items():
            self._find_family(name, kind, declared)  # those without series are shown, too
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
                family.told.update(head.labels.values(), source.labels.values())
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
            # With a time after the number, or other blanks; or not valid.
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
        """The family of this name and kind, made if need be; None if one of its names stands for something else."""
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
    """Those of each histogram."""
    found: dict[str, dict[str, Exemplar]] = {}
    for text, exemplar in exemplars.items():
        found.setdefault(text.partition("{")[0].removesuffix("_bucket"), {})[text] = exemplar
    return found


def _valid_help(text: str) -> str:
    return text if _VALID_HELP.fullmatch(text) else text.replace("\\", "\\\\")


def render_family(name: str, kind: str, text: str, values: Iterator[tuple[Mapping[str, str], float]]) -> str:
    """The text of one family of ours; ``values`` are labels and number."""
    lines = [
        f"{series.braced(name, series.pairs({label: series.escape(value) for label, value in sorted(labels.items())}), '')} {number!r}"
        for labels, number in values
    ]
    helped = text.replace("\\", "\\\\").replace("\n", "\\n")
    return "\n".join((f"# HELP {name} {helped}", f"# TYPE {name} {kind}", *lines)) + "\n"
