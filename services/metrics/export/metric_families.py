"""Families of a text that are as nodes write them, taken as a whole. Pure.

A scrape of 200 workers has some 100,000 lines, and nearly all of them are as prometheus_client writes them, and differ from those of
another worker in their numbers alone. Of these, what is before the number is parsed once for all nodes, and nothing is done line by
line. Whatever is not exactly like that is left to ``prometheus_merge``, which looks at each line.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from services.metrics.export import series
from services.metrics.export.series import SeriesHead
from shared.api.node import Exemplar

#: What is between two heads; the last of the split is empty.
_NUMBERS = re.compile(r" ([^ \n]*)\n")
_OPENING = re.compile(rf"({series.NAME}) ?(.*)\n# TYPE ({series.NAME}) ([a-z]+)")
#: Stands for the labels of the source.
_GIVEN = "\0"
#: Numbers that are known to be some; half of a text's are among a few hundred.
_MAX_NUMBERS = 100_000
#: Some 700 bytes each; 200 workers with a hundred models have a fourth of them.
_MAX_HEADS = 40_000
#: How many heads weigh as much as a layout, which refers to some sixty pieces.
_HEADS_OF_A_LAYOUT = 2


@dataclass(frozen=True, slots=True)
class Written:
    """One family as a node has written it: `# HELP`, `# TYPE`, and its lines."""

    name: str
    kind: str
    help: str
    body: str


@dataclass(frozen=True, slots=True)
class Block:
    """The series of one family and one source."""

    #: The labels of the source, as they are shown.
    given: str
    #: What is before each number, the newline included, with ``_GIVEN`` for the labels of the source.
    pieces: list[str]
    numbers: list[str]
    #: What each piece was made of, for all blocks.
    made_of: Mapping[str, SeriesHead]
    #: By the place of the line.
    exemplars: dict[int, Exemplar]
    #: What ``openmetrics`` found out of pieces that lie so, for all blocks.
    layouts: dict[tuple[str, ...], list[tuple[int, int]] | None]

    def text(self, numbers: list[str] | None = None, pieces: list[str] | None = None) -> str:
        """Its lines, each behind a newline; with others of its pieces and other numbers where they are given."""
        of_pieces, of_numbers = self.pieces if pieces is None else pieces, self.numbers if numbers is None else numbers
        parts = [""] * (2 * len(of_pieces))
        parts[::2], parts[1::2] = of_pieces, of_numbers
        return "".join(parts).replace(_GIVEN, self.given)


class Blocks:
    """Reads texts of sources whose labels have all the same names, and for each source other values."""

    def __init__(self, belongs: Callable[[str, str, str], bool]) -> None:
        """``belongs``: whether a series of this name can be in the family of that name and kind."""
        #: Those that were found valid, and of them those that nothing that only grows can have.
        self._numbers: set[str] = set()
        self._odd: set[str] = set()
        self._belongs = belongs
        self._openings: dict[str, tuple[str, str, str] | None] = {}
        #: For the labels that many sources have in common, and for a family and its kind: the piece of each head.
        self._pieces: dict[tuple[tuple[str, ...], str, str], dict[str, str]] = {}
        self._made_of: dict[str, SeriesHead] = {}
        #: Pieces with empty labels, and what they are without them: to Prometheus an empty label is an absent one.
        self._emptied: dict[str, str] = {}
        self._layouts: dict[tuple[str, ...], list[tuple[int, int]] | None] = {}

    def forget_if_many(self) -> None:
        """Between two readings of all sources: nodes may come with ever new labels."""
        if max(len(self._made_of), len(self._openings), _HEADS_OF_A_LAYOUT * len(self._layouts)) > _MAX_HEADS:
            self._openings, self._pieces = {}, {}
            # Blocks that were read before keep theirs.
            self._made_of, self._emptied, self._layouts = {}, {}, {}

    def split(self, text: str, kinds: Mapping[str, object]) -> list[Written] | None:
        """The families of a text; None where it is not made of such, each once."""
        if not text.startswith("# HELP ") or not text.endswith("\n"):
            return None
        found: dict[str, Written] = {}
        for part in text[7:-1].split("\n# HELP "):
            # The comments end with the second line.
            end = part.find("\n", part.find("\n") + 1)
            opening, body = (part, "") if end < 0 else (part[:end], part[end + 1 :] + "\n")
            if opening not in self._openings:
                self._openings[opening] = _read_opening(opening)
            read = self._openings[opening]
            if read is None or read[1] not in kinds or read[0] in found or body.startswith("#") or "\n#" in body:
                return None
            found[read[0]] = Written(*read, body)
        return list(found.values())

    def read(self, written: Written, labels: Mapping[str, str], exemplars: Mapping[str, Exemplar]) -> Block | None:
        """Its lines, each with its exemplar where it has one. None where they need a closer look, be it at their labels alone. Raises
        ValueError where they do not all belong to the family, or one is not valid."""
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

    def _make(self, text: str, written: Written, labels: Mapping[str, str], known: dict[str, str]) -> str:
        """The piece of a head, for all sources; empty where it is one for a closer look."""
        head = series.parse_head(text)
        if head is None or not self._belongs(head.name, written.name, written.kind):
            raise ValueError(written.name)
        *common, own = labels
        is_usual = own not in head.labels and all(head.labels.get(name, labels[name]) == labels[name] for name in common)
        if not is_usual or _GIVEN in text:
            return ""
        rest = {name: value for name, value in head.labels.items() if name not in labels}
        piece = known[text] = f"\n{series.braced(head.name, _GIVEN, series.pairs(rest))} "
        self._made_of[piece] = head
        filled = {name: value for name, value in rest.items() if value}
        if len(filled) < len(rest):
            self._emptied[piece] = f"\n{series.braced(head.name, _GIVEN, series.pairs(filled))} "
        return piece


def _read_opening(text: str) -> tuple[str, str, str] | None:
    """Name, kind and help."""
    found = _OPENING.fullmatch(text)
    if found is None or found.group(1) != found.group(3):
        return None
    return found.group(1), found.group(4), found.group(2)
