"""OpenTelemetry's metrics of generative AI: part of the instrument list.

Names and buckets of gen-ai-metrics.md in open-telemetry/semantic-conventions-genai, as the translation to Prometheus spells them.
``answer_metrics`` observes them together with the platform's own, so that both families tell of the same moments.
"""

from shared.telemetry.instrument import FIRST_TOKEN_SECONDS, OUTPUT_TOKEN_SECONDS, Instrument, InstrumentKind

#: What a dashboard of others groups by. The models are those that are served.
_LABELS = ("gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model")

_DURATION_SECONDS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
_TOKENS = tuple(float(4**power) for power in range(14))

# --- what a worker serves --------------------------------------------------------------------------------------------

SERVER_REQUEST_DURATION = Instrument(
    name="gen_ai_server_request_duration_seconds",
    kind=InstrumentKind.HISTOGRAM,
    unit="seconds",
    labels=(*_LABELS, "error_type"),
    buckets=_DURATION_SECONDS,
    help="On a worker, from the start of a request to its end; error_type is empty where it went well",
)
SERVER_TIME_TO_FIRST_TOKEN = Instrument(
    name="gen_ai_server_time_to_first_token_seconds",
    kind=InstrumentKind.HISTOGRAM,
    unit="seconds",
    labels=_LABELS,
    buckets=FIRST_TOKEN_SECONDS,
    help="On a worker, from the start of a request to its first text, waiting included",
)
SERVER_TIME_PER_OUTPUT_TOKEN = Instrument(
    name="gen_ai_server_time_per_output_token_seconds",
    kind=InstrumentKind.HISTOGRAM,
    unit="seconds",
    labels=_LABELS,
    buckets=OUTPUT_TOKEN_SECONDS,
    help="On a worker, of each answer that went well, the mean time of a token after the first",
)

# --- what a gateway asks of workers ----------------------------------------------------------------------------------

CLIENT_OPERATION_DURATION = Instrument(
    name="gen_ai_client_operation_duration_seconds",
    kind=InstrumentKind.HISTOGRAM,
    unit="seconds",
    labels=(*_LABELS, "error_type"),
    buckets=_DURATION_SECONDS,
    help="At a gateway, from the start of a request that was let in to its end; error_type is empty where it went well."
    " Answers from the response cache are not in it",
)
CLIENT_TOKEN_USAGE = Instrument(
    name="gen_ai_client_token_usage_tokens",
    kind=InstrumentKind.HISTOGRAM,
    unit="tokens",
    labels=(*_LABELS, "gen_ai_token_type"),
    buckets=_TOKENS,
    help="At a gateway, the tokens of each of them that are paid for, by type: input or output",
)
CLIENT_TIME_TO_FIRST_CHUNK = Instrument(
    name="gen_ai_client_operation_time_to_first_chunk_seconds",
    kind=InstrumentKind.HISTOGRAM,
    unit="seconds",
    labels=_LABELS,
    buckets=FIRST_TOKEN_SECONDS,
    help="At a gateway, from the start of each of them to its first text",
)
CLIENT_TIME_PER_OUTPUT_CHUNK = Instrument(
    name="gen_ai_client_operation_time_per_output_chunk_seconds",
    kind=InstrumentKind.HISTOGRAM,
    unit="seconds",
    labels=_LABELS,
    buckets=OUTPUT_TOKEN_SECONDS,
    help="At a gateway, of each of them that went well, the mean time of a chunk after the first",
)

ALL: tuple[Instrument, ...] = tuple(found for found in list(globals().values()) if isinstance(found, Instrument))
