"""Parse metric families in the exact form that prometheus_client writes, as a whole. Pure.

A collection from 200 workers has about 100,000 lines, which mostly differ from those of other workers only in their numbers. So the text
before the numbers is parsed once for all nodes. ``prometheus_merge`` parses all other families line by line.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from services.metrics.export import series
from services.metrics.export.series import SeriesHead
from shared.api.node import Exemplar

#: Splits a body into heads and numbers; the last part is empty.
_NUMBERS = re.compile(r" ([^ \n]*)\n")
_OPENING = re.compile(rf"({series.NAME}) ?(.*)\n# TYPE ({series.NAME}) ([a-z]+)")
#: A placeholder for the labels of the source.
_SOURCE_LABELS = "\0"
#: Cached valid numbers; half of all numbers are among a few hundred.
_MAX_NUMBERS = 100_000
#: About 700 bytes each; 200 workers with a hundred models have a quarter of them.
_MAX_HEADS = 40_000
#: The size of a layout, which refers to about sixty pieces, in heads.
_HEADS_OF_A_LAYOUT = 2


@dataclass(frozen=True, slots=True)
class WrittenFamily:
    """One family as a node wrote it."""

    name: str
    kind: str
    help: str
    body: str


@dataclass(frozen=True, slots=True)
class Block:
    """The series of one family and one source."""

    source_labels: str
    #: The text before each number, including the newline, with ``_SOURCE_LABELS`` for the labels of the source.
    pieces: list[str]
    numbers: list[str]
    #: Piece -> its parsed head, for all blocks.
    made_of: Mapping[str, SeriesHead]
    exemplars: dict[int, Exemplar]
    #: The cache of ``openmetrics``, for all blocks.
    layouts: dict[tuple[str, ...], list[tuple[int, int]] | None]

    def text(self, numbers: list[str] | None = None, pieces: list[str] | None = None) -> str:
        """Render the lines, each after a newline; optionally with other numbers or pieces."""
        of_pieces, of_numbers = self.pieces if pieces is None else pieces, self.numbers if numbers is None else numbers
        parts = [""] * (2 * len(of_pieces))
        parts[::2], parts[1::2] = of_pieces, of_numbers
        return "".join(parts).replace(_SOURCE_LABELS, self.source_labels)


class Blocks:
    """Parses texts of sources whose labels have the same names and different values."""

    def __init__(self, belongs: Callable[[str, str, str], bool]) -> None:
        """``belongs`` returns whether a series of this name can be in the family of that name and kind."""
        #: Valid numbers, and those of them that are impossible for counters.
        self._numbers: set[str] = set()
        self._odd: set[str] = set()
        self._belongs = belongs
        self._openings: dict[str, tuple[str, str, str] | None] = {}
        #: Common labels of the sources, family and kind -> the piece of each head.
        self._pieces: dict[tuple[tuple[str, ...], str, str], dict[str, str]] = {}
        self._made_of: dict[str, SeriesHead] = {}
        #: Pieces with empty labels -> the same without them, which is equal to Prometheus.
        self._emptied: dict[str, str] = {}
        self._layouts: dict[tuple[str, ...], list[tuple[int, int]] | None] = {}

    def forget_if_many(self) -> None:
        """Clear large caches; call this between two collections. Nodes can send ever new labels."""
        if max(len(self._made_of), len(self._openings), _HEADS_OF_A_LAYOUT * len(self._layouts)) > _MAX_HEADS:
            self._openings, self._pieces = {}, {}
            # New objects, because existing blocks still use the old ones.
            self._made_of, self._emptied, self._layouts = {}, {}, {}

    def split(self, text: str, kinds: Mapping[str, object]) -> list[WrittenFamily] | None:
        """Return the families of a text, or None if it is not in the expected form."""
        if not text.startswith("# HELP ") or not text.endswith("\n"):
            return None
        found: dict[str, WrittenFamily] = {}
        for part in text[7:-1].split("\n# HELP "):
            end = part.find("\n", part.find("\n") + 1)
            opening, body = (part, "") if end < 0 else (part[:end], part[end + 1 :] + "\n")
            if opening not in self._openings:
                self._openings[opening] = _read_opening(opening)
            read = self._openings[opening]
            if read is None or read[1] not in kinds or read[0] in found or body.startswith("#") or "\n#" in body:
                return None
            found[read[0]] = WrittenFamily(*read, body)
        return list(found.values())

    def read(self, written: WrittenFamily, labels: Mapping[str, str], exemplars: Mapping[str, Exemplar]) -> Block | None:
        """Parse a family. Returns None if it must be parsed line by line. Raises ValueError for an invalid line or a foreign series."""
        parts = _NUMBERS.split(written.body)
        heads, numbers = parts[:-1:2], parts[1::2]
        different = set(numbers)
        if len(self._numbers) > _MAX_NUMBERS:
            self._numbers, self._odd = set(), set()
        if parts[-1] or not self._are_numbers(different - self._numbers):
            raise ValueError(written.name)
        *common, _ = labels.values()
        known = self._pieces.setdefault((tuple(common), written.name, written.kind), {})
        found = list(map(known.get, heads))
        pieces = [piece for piece in found if piece]
        if len(pieces) < len(heads):
            pieces = [piece or self._make(head, written, labels, known) for head, piece in zip(heads, found, strict=True)]
        is_odd = written.kind in {"counter", "histogram"} and not self._odd.isdisjoint(different)
        if is_odd or "" in pieces or self._are_repeated(pieces):
            return None
        at = {heads.index(text): exemplar for text, exemplar in exemplars.items() if text in heads}
        return Block(series.pairs(labels), pieces, numbers, self._made_of, at, self._layouts)

    def _are_numbers(self, texts: set[str]) -> bool:
        if not all(map(series.NUMBER_ALONE.fullmatch, texts)):
            return False
        self._numbers |= texts
        self._odd.update(filter(series.ODD.match, texts))
        return True

    def _are_repeated(self, pieces: list[str]) -> bool:
        different = set(pieces)
        if not self._emptied.keys().isdisjoint(different):
            different = {self._emptied.get(piece, piece) for piece in different}
        return len(different) < len(pieces)

    def _make(self, text: str, written: WrittenFamily, labels: Mapping[str, str], known: dict[str, str]) -> str:
        """Return the piece of a head for all sources; empty if it must be parsed by line."""
        head = series.parse_head(text)
        if head is None or not self._belongs(head.name, written.name, written.kind):
            raise ValueError(written.name)
        *common, own = labels
        is_usual = own not in head.labels and all(head.labels.get(name, labels[name]) == labels[name] for name in common)
        if not is_usual or _SOURCE_LABELS in text:
            return ""
        rest = {name: value for name, value in head.labels.items() if name not in labels}
        piece = known[text] = f"\n{series.braced(head.name, _SOURCE_LABELS, series.pairs(rest))} "
        self._made_of[piece] = head
        filled = {name: value for name, value in rest.items() if value}
        if len(filled) < len(rest):
            self._emptied[piece] = f"\n{series.braced(head.name, _SOURCE_LABELS, series.pairs(filled))} "
        return piece


def _read_opening(text: str) -> tuple[str, str, str] | None:
    found = _OPENING.fullmatch(text)
    if found is None or found.group(1) != found.group(3):
        return None
    return found.group(1), found.group(4), found.group(2)
