"""How counters grew, step by step: what the alerts look back on after a start. Pure."""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta

from services.metrics.history.rolling import RAW, Piece


@dataclass(frozen=True, slots=True)
class Stretch:
    """What is asked of counters, of one time."""

    piece: Piece
    step_seconds: int
    names: Collection[str]
    #: Buckets of histograms, as their text has them.
    bounds: Collection[str]
    services: Collection[str]
    #: Nodes are told apart.
    by_node: bool

    def looked(self, step: int) -> datetime:
        """At the last look of a step, all that grew in it had grown."""
        return self.piece.begin + timedelta(seconds=(step + 1) * self.step_seconds - RAW)


@dataclass(frozen=True, slots=True)
class Growth:
    """How much one counter grew in one step."""

    service: str
    #: Empty where they are not told apart.
    node: str
    #: As in a layout.
    name: str
    step: int
    growth: float
