"""What a row of the instrument list says."""

from dataclasses import dataclass
from enum import StrEnum


class InstrumentKind(StrEnum):
    """What may be done with a metric's numbers."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True, kw_only=True)
class Instrument:
    """One row of the list."""

    name: str
    kind: InstrumentKind
    help: str
    #: Empty for plain numbers.
    unit: str = ""
    labels: tuple[str, ...] = ()
    #: Values of the labels that are known beforehand. A counter shows them as 0 from its start: Prometheus' ``increase`` does not see a
    #: series begin, so without the 0 it misses what is counted first.
    known: tuple[tuple[str, ...], ...] = ()
    #: The upper bounds of a histogram, without infinity.
    buckets: tuple[float, ...] = ()


#: Seconds of a call: OTel's gen_ai durations (.01 … 81.92), and below them what a call inside one house takes.
CALL_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
#: OTel's gen_ai.server.time_to_first_token, and above it what a request queued behind others waits.
FIRST_TOKEN_SECONDS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)

#: OTel's gen_ai.server.time_per_output_token.
OUTPUT_TOKEN_SECONDS = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5)
