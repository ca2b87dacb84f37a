"""Define which series have a history, and by which labels. Pure.

A node has at most MAX_SERIES of them, in the order of the list: series of the node, then of models, then histograms. Other labels are
summed, and so are all values of ``status`` except success.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from shared import features
from shared.telemetry.answer_instruments import AnswerInstruments
from shared.telemetry.host_instruments import HostInstruments
from shared.telemetry.instrument import Instrument
from shared.telemetry.instruments import Instruments
from shared.types import SERVICE_NAMES, Role

#: Per row, 800 bytes.
MAX_SERIES = 200
#: Per sample: a hundred thousand numbers, 400 kB.
MAX_NODES = 500
#: Model names are shorter. Prevents nodes from filling the layouts table.
MAX_LABEL_VALUE = 200

SUCCESS, OTHER = "success", "other"
#: A service and counter that every sample has from the second one on, to count the samples of a period.
WITNESS = (SERVICE_NAMES[Role.METRICS], Instruments.nats_reconnects.name)
_GROWING = ("_total", "_bucket", "_sum", "_count")
#: Its ``status`` has many codes; all but success are combined.
_FOLDED = Instruments.requests


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
    Instruments.inflight_requests,
    Instruments.nats_reconnects,
    Instruments.audit_chain_valid,
    Instruments.rate_limit_degraded,
    Instruments.ledger_open_reservations,
    Instruments.ledger_oldest_reservation,
    Instruments.ledger_drift,
    Instruments.settle_journal_rows,
    Instruments.spans_lost,
    Instruments.auth_failures,
    Instruments.registrations,
    Instruments.keys_created,
    Instruments.certificate_seconds_left,
    Instruments.revocation_list_age,
    Instruments.node_up,
    HostInstruments.host_disk_read,
    HostInstruments.host_disk_written,
    HostInstruments.host_network_received,
    HostInstruments.host_network_sent,
    Instruments.contested_keys,
)
#: All nodes of a machine report the same figures, so charts need the machine.
_OF_MACHINE = (
    HostInstruments.host_cpu,
    HostInstruments.host_memory_used,
    HostInstruments.host_memory_total,
    HostInstruments.host_disk_free,
    HostInstruments.host_disk_total,
)
_GPU = (
    HostInstruments.gpu_usage,
    HostInstruments.gpu_memory_used,
    HostInstruments.gpu_memory_total,
    HostInstruments.gpu_power,
    HostInstruments.gpu_temperature,
)
_OF_MODEL = (
    AnswerInstruments.queue_depth,
    Instruments.worker_up,
    Instruments.engine_tokens_per_second,
    Instruments.engine_step_seconds,
    Instruments.engine_restarts,
    Instruments.cost,
    AnswerInstruments.completed_tokens,
)

#: What features keep: instrument and labels.
_OF_FEATURES = [row for part in features.modules("instruments") for row in getattr(part, "KEPT", {}).items()]

ALL: tuple[KeptSeries, ...] = (
    KeptSeries(instrument=Instruments.requests, labels=("status",)),
    *(KeptSeries(instrument=one) for one in _PLAIN),
    KeptSeries(instrument=Instruments.links_by_path, labels=("path",)),
    KeptSeries(instrument=Instruments.round_trip, labels=("path",)),
    KeptSeries(instrument=Instruments.active_users, labels=("time_window",)),
    KeptSeries(instrument=Instruments.ratelimit_decisions, labels=("decision",)),
    KeptSeries(instrument=Instruments.response_cache, labels=("result",)),
    *(KeptSeries(instrument=one, labels=("machine",)) for one in _OF_MACHINE),
    *(KeptSeries(instrument=one, labels=("gpu", "machine")) for one in _GPU),
    KeptSeries(instrument=HostInstruments.energy, labels=("device", "source")),
    KeptSeries(instrument=HostInstruments.energy_cost, labels=("device",)),
    *(KeptSeries(instrument=one, labels=("model",)) for one in _OF_MODEL),
    *(KeptSeries(instrument=one, labels=labels) for one, labels in _OF_FEATURES),
    KeptSeries(instrument=Instruments.worker_slots, labels=("model", "state")),
    # By the worker that a gateway reports.
    KeptSeries(instrument=Instruments.wrong_counts, labels=("exported_node",)),
    KeptSeries(instrument=AnswerInstruments.tokens, labels=("model", "type")),
    KeptSeries(instrument=AnswerInstruments.drafted_tokens, labels=("model", "result")),
    KeptSeries(instrument=AnswerInstruments.completed_requests, labels=("model", "status")),
    *_histogram(AnswerInstruments.ttft_seconds, ("0.1", "0.5", "1.0", "2.5", "10.0")),
    *_histogram(Instruments.request_duration, ("0.32", "1.28", "5.12", "20.48"), filled=("model",)),
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
