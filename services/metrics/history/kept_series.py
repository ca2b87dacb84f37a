"""Define which series have a history, and by which labels. Pure.

A node has at most MAX_SERIES of them, in the order of the list: series of the node, then of models, then histograms. Other labels are
summed, and so are all values of ``status`` except success.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from shared import features
from shared.telemetry import answer_instruments, host_instruments, instruments
from shared.telemetry.instrument import Instrument
from shared.types import SERVICE_NAMES, Role

#: Per row, 800 bytes.
MAX_SERIES = 200
#: Per sample: a hundred thousand numbers, 400 kB.
MAX_NODES = 500
#: Model names are shorter. Prevents nodes from filling the layouts table.
MAX_LABEL_VALUE = 200

SUCCESS, OTHER = "success", "other"
#: A service and counter that every sample has from the second one on, to count the samples of a period.
WITNESS = (SERVICE_NAMES[Role.METRICS], instruments.NATS_RECONNECTS.name)
_GROWING = ("_total", "_bucket", "_sum", "_count")
#: Its ``status`` has many codes; all but success are combined.
_FOLDED = instruments.REQUESTS


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptSeries:
    """One row of the list."""

    instrument: Instrument
    #: The part of a histogram: _bucket, _sum or _count; else empty.
    suffix: str = ""
    labels: tuple[str, ...] = ()
    #: The stored buckets of a histogram, as in the text; else empty.
    bounds: tuple[str, ...] = ()
    #: Series with one of these labels empty are left out, such as calls without a model.
    filled: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.instrument.name + self.suffix


def is_counter(name: str) -> bool:
    """Return whether a name is a counter's by Prometheus convention, which also covers names of earlier versions."""
    return name.endswith(_GROWING)


def is_share(name: str) -> bool:
    """Return whether to average a metric over nodes instead of summing it."""
    return name.endswith(("_ratio", "_celsius", "_age_seconds", "_seconds_left", "_step_seconds", "_trip_seconds", "_valid"))


def _histogram(instrument: Instrument, bounds: tuple[str, ...], filled: tuple[str, ...] = ()) -> tuple[KeptSeries, ...]:
    """Return the rows of a histogram; the bucket +Inf is its count."""
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
#: All nodes of a machine report the same figures, so charts need the machine.
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
    answer_instruments.QUEUE_DEPTH,
    instruments.WORKER_UP,
    instruments.ENGINE_TOKENS_PER_SECOND,
    instruments.ENGINE_STEP_SECONDS,
    instruments.ENGINE_RESTARTS,
    instruments.COST,
    answer_instruments.COMPLETED_TOKENS,
)

#: What features keep: instrument and labels.
_OF_FEATURES = [row for part in features.modules("instruments") for row in getattr(part, "KEPT", {}).items()]

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
    KeptSeries(instrument=host_instruments.ENERGY, labels=("device", "source")),
    KeptSeries(instrument=host_instruments.ENERGY_COST, labels=("device",)),
    *(KeptSeries(instrument=one, labels=("model",)) for one in _OF_MODEL),
    *(KeptSeries(instrument=one, labels=labels) for one, labels in _OF_FEATURES),
    KeptSeries(instrument=instruments.WORKER_SLOTS, labels=("model", "state")),
    # By the worker that a gateway reports.
    KeptSeries(instrument=instruments.WRONG_COUNTS, labels=("exported_node",)),
    KeptSeries(instrument=answer_instruments.TOKENS, labels=("model", "type")),
    KeptSeries(instrument=answer_instruments.DRAFTED_TOKENS, labels=("model", "result")),
    KeptSeries(instrument=answer_instruments.COMPLETED_REQUESTS, labels=("model", "status")),
    *_histogram(answer_instruments.TTFT_SECONDS, ("0.1", "0.5", "1.0", "2.5", "10.0")),
    *_histogram(instruments.REQUEST_DURATION, ("0.32", "1.28", "5.12", "20.48"), filled=("model",)),
)
BY_NAME: Mapping[str, tuple[int, KeptSeries]] = {kept.name: (place, kept) for place, kept in enumerate(ALL)}


def name_of(kept: KeptSeries, labels: Mapping[str, str]) -> str | None:
    """Return the name of a series in a layout; None if it has no history. ``labels`` are escaped."""
    if any(not labels.get(label) for label in kept.filled) or (kept.bounds and labels.get("le") not in kept.bounds):
        return None
    pairs = []
    for label in sorted(kept.labels):
        value = labels.get(label, "")
        if label == "status" and value != SUCCESS:
            value = OTHER if kept.instrument is _FOLDED else value
        if len(value) > MAX_LABEL_VALUE or not value.isprintable():  # PostgreSQL rejects NUL
            return None
        if value:
            pairs.append(f'{label}="{value}"')
    return f"{kept.name}{{{','.join(pairs)}}}" if pairs else kept.name
