"""Merges Prometheus texts of several nodes into one valid text. Pure.

A node's text is not trusted: a line that is not valid is left out, never passed on, so that one node cannot spoil the
scrape of the whole mesh. A node's labels are completed by what the mesh knows of it, as Prometheus does with
``honor_labels: false``: a label of the same name with another value is kept as ``exported_…``.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

#: Series of one node; beyond them the rest of its text is left out. OBSERVABILITY.md §6.2: at most 10,000 per service.
MAX_SERIES_PER_SOURCE = 10_000
#: Families that a node may declare without a series in them.
MAX_FAMILIES_PER_SOURCE = 1_000

NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
_PAIR = r'[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\\n]|\\["\\n])*"'
_NUMBER = r"[+-]?(?:(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|Inf|NaN)"
_HEAD = rf"({NAME})(?:\{{((?:{_PAIR}(?:,{_PAIR})*,?)?)\}})?"
_HEAD_ALONE = re.compile(_HEAD)
_NUMBER_ALONE = re.compile(_NUMBER)
_LINE = re.compile(rf"({_HEAD})[ \t]+({_NUMBER})(?:[ \t]+-?[0-9]+)?[ \t]*")
_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\["\\n])*)"')
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
class Source:
    """One text, and the labels that all of its series get."""

    text: str
    labels: Mapping[str, str]
    #: Our own: what it says of its labels stands, and ``labels`` only completes it.
    trusted: bool = False


@dataclass(frozen=True, slots=True)
class Merged:
    text: str
    #: Series that were left out: malformed, over the limit, repeated, or of a family that has another type elsewhere.
    dropped: int


@dataclass(frozen=True, slots=True)
class _Head:
    """What stands before the number: the name of a series and its labels, escapes included."""

    name: str
    labels: Mapping[str, str]


@dataclass(slots=True)
class _Family:
    name: str
    kind: str
    help: str
    lines: list[str] = field(default_factory=list)
    #: The series in ``lines``. To Prometheus an empty label is an absent one, so they are not part of what stands here.
    seen: set[str] = field(default_factory=set)


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


def merge(sources: Sequence[Source], known: Mapping[str, str] | None = None) -> Merged:
    """One text of all. Where two disagree about a family, ``known`` (name -> kind) is right, then the first source."""
    merging = _Merging(known or {})
    dropped = sum(merging.add(source) for source in sources)
    return Merged(merging.render(), dropped)


class _Merging:
    """The families so far."""

    def __init__(self, known: Mapping[str, str]) -> None:
        self._known = known
        self._families: dict[str, _Family] = {}
        #: Series name -> the family that it belongs to: a gauge `x_count` cannot stand beside a histogram `x`.
        self._owners = {taken: name for name, kind in known.items() for taken in (name, *_names(name, kind))}
        #: Most nodes of a service have the same heads; each is parsed once. None is one that is not valid.
        self._heads: dict[str, _Head | None] = {}

    def add(self, source: Source) -> int:
        """Take over what is valid; returns how many series were not."""
        lines = source.text.split("\n")
        declared = _declarations(lines)
        for name, kind in declared.kinds.items():
            self._find_family(name, kind, declared)  # those without series are shown, too
        given = {name: _escape(value) for name, value in source.labels.items()}
        label = _Labelling(given, source.trusted)
        homes: dict[str, _Family | None] = {}
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
            if family is None or identity in family.seen:
                dropped += 1
                continue
            taken += 1
            family.seen.add(identity)
            family.lines.append(f"{shown} {value}")
        return dropped

    def render(self) -> str:
        return "".join(_render(self._families[name]) for name in sorted(self._families))

    def _parse(self, line: str) -> tuple[_Head | None, str]:
        text, _, value = line.rpartition(" ")
        if not _NUMBER_ALONE.fullmatch(value) or (text not in self._heads and not _HEAD_ALONE.fullmatch(text)):
            # With a time after the number, or other blanks; or not valid.
            found = _LINE.fullmatch(line)
            if found is None:
                return None, ""
            text, value = found.group(1), found.group(4)
        if text not in self._heads:
            self._heads[text] = _parse_head(text)
        return self._heads[text], value

    def _home(self, series: str, declared: _Declared) -> _Family | None:
        name, kind = declared.family_of(series)
        return self._find_family(name, kind, declared) if series in _names(name, kind) else None

    def _find_family(self, name: str, kind: str, declared: _Declared) -> _Family | None:
        """The family of this name and kind, made if need be; None if one of its names stands for something else."""
        family = self._families.get(name)
        if family is not None:
            return family if family.kind == kind else None
        names = (name, *_names(name, kind))
        if self._known.get(name, kind) != kind or any(self._owners.get(taken, name) != name for taken in names):
            return None
        self._owners.update(dict.fromkeys(names, name))
        self._families[name] = _Family(name, kind, declared.helps.get(name, ""))
        return self._families[name]


class _Labelling:
    """Completes the labels of one source's series by what the mesh knows of it."""

    def __init__(self, given: Mapping[str, str], trusted: bool) -> None:
        self._given = given
        self._trusted = trusted
        self._text = _pairs(given)
        self._identity = _pairs({name: value for name, value in given.items() if value})

    def __call__(self, head: _Head) -> tuple[str, str]:
        """The head as it is shown, and what tells it from all others."""
        if head.labels.keys().isdisjoint(self._given):
            rest = _pairs(head.labels)
            shown = _braced(head.name, self._text, rest)
            if '=""' not in rest:
                return shown, shown
            return shown, _braced(head.name, self._identity, _pairs({name: value for name, value in head.labels.items() if value}))
        labels = self._complete(head.labels)
        known = {name: value for name, value in labels.items() if value}
        return _braced(head.name, _pairs(labels), ""), _braced(head.name, _pairs(known), "")

    def _complete(self, own: Mapping[str, str]) -> dict[str, str]:
        if self._trusted:
            return {**self._given, **own}
        rest = {name: value for name, value in own.items() if name not in self._given}
        for name, value in self._given.items():
            if own.get(name, value) == value:
                continue
            moved = f"exported_{name}"
            while moved in rest:
                moved = f"exported_{moved}"
            rest[moved] = own[name]
        return {**self._given, **dict(sorted(rest.items()))}


def _declarations(lines: Sequence[str]) -> _Declared:
    kinds: dict[str, str] = {}
    helps: dict[str, str] = {}
    for line in lines:
        found = _COMMENT.fullmatch(line) if line.startswith("#") else None
        if found is None:
            continue
        what, name, rest = found.groups(default="")
        if what == "HELP":
            helps.setdefault(name, rest if _VALID_HELP.fullmatch(rest) else rest.replace("\\", "\\\\"))
        elif rest in _SUFFIXES and len(kinds) < MAX_FAMILIES_PER_SOURCE:
            kinds.setdefault(name, rest)
    return _Declared(kinds, helps)


def _names(family: str, kind: str) -> tuple[str, ...]:
    return tuple(family + suffix for suffix in _SUFFIXES[kind])


def _parse_head(text: str) -> _Head | None:
    found = _HEAD_ALONE.fullmatch(text)
    if found is None:
        return None
    name, inside = found.groups(default="")
    pairs = _LABEL.findall(inside)
    labels = dict(sorted(pairs))
    # A label twice is a mistake, and names that begin with two underscores are Prometheus's own.
    if len(labels) != len(pairs) or any(label.startswith("__") for label in labels):
        return None
    return _Head(name, labels)


def _pairs(labels: Mapping[str, str]) -> str:
    return ",".join([f'{name}="{value}"' for name, value in labels.items()])


def _braced(name: str, first: str, second: str) -> str:
    inside = f"{first},{second}" if first and second else first or second
    return f"{name}{{{inside}}}" if inside else name


def _render(family: _Family) -> str:
    lines = [f"# HELP {family.name} {family.help}", f"# TYPE {family.name} {family.kind}", *family.lines]
    return "\n".join(lines) + "\n"


def render_family(name: str, kind: str, text: str, series: Iterator[tuple[Mapping[str, str], float]]) -> str:
    """The text of one family of ours; ``series`` are labels and value."""
    lines = [
        f"{_braced(name, _pairs({label: _escape(value) for label, value in sorted(labels.items())}), '')} {number!r}"
        for labels, number in series
    ]
    return _render(_Family(name, kind, text.replace("\\", "\\\\").replace("\n", "\\n"), lines))


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
