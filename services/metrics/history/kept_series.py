"""Which series have a history, and by which of their labels. Pure.

A node's row has at most MAX_SERIES of them, those at the beginning of the list first: what is of a node as a whole, then what is
of a model, then histograms. Labels that are not named are summed over; so are the values of ``status`` but success.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from shared.telemetry import host_instruments, instruments
from shared.telemetry.instrument import Instrument
from shared.types import SERVICE_NAMES, Role

#: Of one row: 800 bytes.
MAX_SERIES = 200
#: Of one look; a hundred thousand numbers, 400 kB.
MAX_NODES = 500
#: A name of a model is shorter; what a node makes up must not fill the table of layouts.
MAX_LABEL_VALUE = 200

SUCCESS, OTHER = "success", "other"
#: Service and counter: whoever looks has its own numbers at each look, and this one as soon as it knows what grew since the look before.
WITNESS = (SERVICE_NAMES[Role.METRICS], instruments.NATS_RECONNECTS.name)
_GROWING = ("_total", "_bucket", "_sum", "_count")
#: Its ``status`` is one of many codes, of which all but success are one here.
_FOLDED = instruments.REQUESTS


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptSeries:
    """One row of the list."""

    instrument: Instrument
    #: Empty, or the part of a histogram: _bucket, _sum or _count.
    suffix: str = ""
    labels: tuple[str, ...] = ()
    #: Of a histogram's buckets, as its text has them; empty of others.
    bounds: tuple[str, ...] = ()
    #: Series without these are left out: of calls, those that have to do with no model.
    filled: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.instrument.name + self.suffix


def is_counter(name: str) -> bool:
    """Also of names that an earlier version kept; Prometheus names them so."""
    return name.endswith(_GROWING)


def is_share(name: str) -> bool:
    """Over several nodes the mean says something, and the sum does not."""
    return name.endswith(("_ratio", "_celsius", "_age_seconds", "_seconds_left", "_step_seconds", "_trip_seconds", "_valid"))


def _histogram(instrument: Instrument, bounds: tuple[str, ...], filled: tuple[str, ...] = ()) -> tuple[KeptSeries, ...]:
    """Its number of values is the bucket +Inf."""
    return (
        KeptSeries(instrument=instrument, suffix="_sum", labels=("model",), filled=filled),
        KeptSeries(instrument=instrument, suffix="_bucket", labels=("model", "le"), bounds=(*bounds, "+Inf"), filled=filled),
    )


_PLAIN = (
    instruments.INFLIGHT_REQUESTS,
    instruments.NATS_RECONNECTS,
    instruments.AUDIT_CHAIN_VALID,
    instruments.RATE_LIMIT_DEGRADED,
    instruments.LEDGER_OPEN_RESERVATIONS,
    instruments.LEDGER_OLDEST_RESERVATION,
    instruments.LEDGER_DRIFT,
    instruments.SETTLE_JOURNAL_ROWS,
    instruments.SPANS_LOST,
    instruments.AUTH_FAILURES,
    instruments.REGISTRATIONS,
    instruments.KEYS_CREATED,
    instruments.CERTIFICATE_SECONDS_LEFT,
    instruments.REVOCATION_LIST_AGE,
    instruments.NODE_UP,
    host_instruments.HOST_DISK_READ,
    host_instruments.HOST_DISK_WRITTEN,
    host_instruments.HOST_NETWORK_RECEIVED,
    host_instruments.HOST_NETWORK_SENT,
    instruments.CONTESTED_KEYS,
)
#: All nodes of a machine report the same figures, so charts need to know the machine.
_OF_MACHINE = (
    host_instruments.HOST_CPU,
    host_instruments.HOST_MEMORY_USED,
    host_instruments.HOST_MEMORY_TOTAL,
    host_instruments.HOST_DISK_FREE,
    host_instruments.HOST_DISK_TOTAL,
)
_GPU = (
    host_instruments.GPU_USAGE,
    host_instruments.GPU_MEMORY_USED,
    host_instruments.GPU_MEMORY_TOTAL,
    host_instruments.GPU_POWER,
    host_instruments.GPU_TEMPERATURE,
)
_OF_MODEL = (
    instruments.QUEUE_DEPTH,
    instruments.WORKER_UP,
    instruments.ENGINE_TOKENS_PER_SECOND,
    instruments.ENGINE_STEP_SECONDS,
    instruments.ENGINE_RESTARTS,
    instruments.COST,
    instruments.COMPLETED_TOKENS,
)

ALL: tuple[KeptSeries, ...] = (
    KeptSeries(instrument=instruments.REQUESTS, labels=("status",)),
    *(KeptSeries(instrument=one) for one in _PLAIN),
    KeptSeries(instrument=instruments.LINKS_BY_PATH, labels=("path",)),
    KeptSeries(instrument=instruments.ROUND_TRIP, labels=("path",)),
    KeptSeries(instrument=instruments.ACTIVE_USERS, labels=("time_window",)),
    KeptSeries(instrument=instruments.RATE_LIMIT_DECISIONS, labels=("decision",)),
    KeptSeries(instrument=instruments.RESPONSE_CACHE, labels=("result",)),
    *(KeptSeries(instrument=one, labels=("machine",)) for one in _OF_MACHINE),
    *(KeptSeries(instrument=one, labels=("gpu", "machine")) for one in _GPU),
    *(KeptSeries(instrument=one, labels=("model",)) for one in _OF_MODEL),
    KeptSeries(instrument=instruments.WORKER_SLOTS, labels=("model", "state")),
    # Of the worker that a gateway says it of; there are none where no worker lies.
    KeptSeries(instrument=instruments.WRONG_COUNTS, labels=("exported_node",)),
    KeptSeries(instrument=instruments.TOKENS, labels=("model", "type")),
    KeptSeries(instrument=instruments.COMPLETED_REQUESTS, labels=("model", "status")),
    *_histogram(instruments.TTFT_SECONDS, ("0.1", "0.5", "1.0", "2.5", "10.0")),
    *_histogram(instruments.REQUEST_DURATION, ("0.32", "1.28", "5.12", "20.48"), filled=("model",)),
)
#: What the parts of an instrument's text are called -> the row, and its place in the order.
BY_NAME: Mapping[str, tuple[int, KeptSeries]] = {kept.name: (place, kept) for place, kept in enumerate(ALL)}


def name_of(kept: KeptSeries, labels: Mapping[str, str]) -> str | None:
    """What the series is called in a layout; None where it is not kept. ``labels`` are as the text has them, escapes included."""
    if any(not labels.get(label) for label in kept.filled) or (kept.bounds and labels.get("le") not in kept.bounds):
        return None
    pairs = []
    for label in sorted(kept.labels):
        value = labels.get(label, "")
        if label == "status" and value != SUCCESS:
            value = OTHER if kept.instrument is _FOLDED else value
        if len(value) > MAX_LABEL_VALUE or not value.isprintable():  # PostgreSQL takes no NUL
            return None
        if value:
            pairs.append(f'{label}="{value}"')
    return f"{kept.name}{{{','.join(pairs)}}}" if pairs else kept.name
