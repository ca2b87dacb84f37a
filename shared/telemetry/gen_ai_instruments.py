"""Declare OpenTelemetry's metrics for generative AI; part of the instrument list.

Names and buckets are those of gen-ai-metrics.md in open-telemetry/semantic-conventions-genai, translated to Prometheus.
``answer_metrics`` records them together with the platform's own.
"""

from shared.telemetry.instrument import FIRST_TOKEN_SECONDS, OUTPUT_TOKEN_SECONDS, Instrument, InstrumentKind

_LABELS = ("gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model")

_DURATION_SECONDS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
_TOKENS = tuple(float(4**power) for power in range(14))

# --- workers ---------------------------------------------------------------------------------------------------------

SERVER_REQUEST_DURATION = Instrument(
    name="gen_ai_server_request_duration_seconds",
    kind=InstrumentKind.HISTOGRAM,
    unit="seconds",
    labels=(*_LABELS, "error_type"),
    buckets=_DURATION_SECONDS,
    help="Duration of a request on a worker; error_type is empty on success",
)
SERVER_TIME_TO_FIRST_TOKEN = Instrument(
    name="gen_ai_server_time_to_first_token_seconds",
    kind=InstrumentKind.HISTOGRAM,
    unit="seconds",
    labels=_LABELS,
    buckets=FIRST_TOKEN_SECONDS,
    help="Time from the start of a request on a worker to its first text, including queueing",
)
SERVER_TIME_PER_OUTPUT_TOKEN = Instrument(
    name="gen_ai_server_time_per_output_token_seconds",
    kind=InstrumentKind.HISTOGRAM,
    unit="seconds",
    labels=_LABELS,
    buckets=OUTPUT_TOKEN_SECONDS,
    help="Mean time per token after the first of each successful answer on a worker",
)

# --- gateways --------------------------------------------------------------------------------------------------------

CLIENT_OPERATION_DURATION = Instrument(
    name="gen_ai_client_operation_duration_seconds",
    kind=InstrumentKind.HISTOGRAM,
    unit="seconds",
    labels=(*_LABELS, "error_type"),
    buckets=_DURATION_SECONDS,
    help="Duration of an admitted request at a gateway; error_type is empty on success. Excludes answers from the response cache",
)
CLIENT_TOKEN_USAGE = Instrument(
    name="gen_ai_client_token_usage_tokens",
    kind=InstrumentKind.HISTOGRAM,
    unit="tokens",
    labels=(*_LABELS, "gen_ai_token_type"),
    buckets=_TOKENS,
    help="Billed tokens per request at a gateway, by type: input or output",
)
CLIENT_TIME_TO_FIRST_CHUNK = Instrument(
    name="gen_ai_client_operation_time_to_first_chunk_seconds",
    kind=InstrumentKind.HISTOGRAM,
    unit="seconds",
    labels=_LABELS,
    buckets=FIRST_TOKEN_SECONDS,
    help="Time from the start of a request at a gateway to its first text",
)
CLIENT_TIME_PER_OUTPUT_CHUNK = Instrument(
    name="gen_ai_client_operation_time_per_output_chunk_seconds",
    kind=InstrumentKind.HISTOGRAM,
    unit="seconds",
    labels=_LABELS,
    buckets=OUTPUT_TOKEN_SECONDS,
    help="Mean time per chunk after the first of each successful answer at a gateway",
)

ALL: tuple[Instrument, ...] = tuple(found for found in list(globals().values()) if isinstance(found, Instrument))
