"""Define the type of a row in the instrument list, and the three kinds of rows.

The list is made of classes. `Metrics` inherits them, so each instrument is an attribute of it: the metric, registered on first use, so
that a node exports only what it measures.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, Protocol, Self, TypeVar, overload

from shared.types import NodeId

if TYPE_CHECKING:
    from shared.telemetry.metric_families import Counter, Gauge, Histogram  # noqa: F401 - in quotes, below

Family_co = TypeVar("Family_co", covariant=True)


class InstrumentKind(StrEnum):
    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Instrument:
    kind: InstrumentKind
    name: str
    help: str
    labels: tuple[str, ...] = ()
    unit: str = ""
    #: Label values that are known in advance. A counter exports them as 0 from the start, because Prometheus' ``increase`` misses the first
    #: increment of a series that begins above 0.
    known: tuple[tuple[str, ...], ...] = ()
    #: The upper bounds of a histogram, without infinity.
    buckets: tuple[float, ...] = ()
    #: In its class; empty for those of features.
    attribute: str = field(default="", init=False, compare=False)


class HasFamilies(Protocol):
    def family(self, instrument: Instrument) -> Any:
        """Return the instrument's metric. It is registered on first use."""
        ...


class _Typed(Instrument, Generic[Family_co]):
    """What `Metrics` shows as a ``Family_co``."""

    def __set_name__(self, owner: type, name: str) -> None:
        object.__setattr__(self, "attribute", name)

    @overload
    def __get__(self, metrics: None, owner: type) -> Self: ...
    @overload
    def __get__(self, metrics: HasFamilies, owner: type) -> Family_co: ...
    def __get__(self, metrics: HasFamilies | None, owner: type) -> Any:
        if metrics is None:
            return self
        found = metrics.family(self)
        # The instance attribute shadows this descriptor from now on.
        metrics.__dict__[self.attribute] = found
        return found


class CounterInstrument(_Typed["Counter"]):
    pass


class GaugeInstrument(_Typed["Gauge"]):
    pass


class HistogramInstrument(_Typed["Histogram"]):
    pass


counter = partial(CounterInstrument, InstrumentKind.COUNTER)
gauge = partial(GaugeInstrument, InstrumentKind.GAUGE)
histogram = partial(HistogramInstrument, InstrumentKind.HISTOGRAM)

#: OTel's gen_ai durations (.01 … 81.92), with smaller buckets for calls on a local network.
CALL_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
#: OTel's gen_ai.server.time_to_first_token, with larger buckets for queued requests.
FIRST_TOKEN_SECONDS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)

#: OTel's gen_ai.server.time_per_output_token.
OUTPUT_TOKEN_SECONDS = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5)


def node_label(node: NodeId) -> str:
    """Shorten a node id for labels and log lines; `aicli nodes` finds it."""
    return node[:12]
