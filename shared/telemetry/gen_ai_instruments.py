"""Declare OpenTelemetry's metrics for generative AI; part of the instrument list.

Names and buckets are those of gen-ai-metrics.md in open-telemetry/semantic-conventions-genai, translated to Prometheus.
``answer_metrics`` records them together with the platform's own.
"""

from shared.telemetry.instrument import FIRST_TOKEN_SECONDS, OUTPUT_TOKEN_SECONDS, histogram

_LABELS = ("gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model")

_DURATION_SECONDS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
_TOKENS = tuple(float(4**power) for power in range(14))


class GenAiInstruments:
    server_request_duration = histogram(
        "gen_ai_server_request_duration_seconds",
        "Duration of a request on a worker; error_type is empty on success",
        (*_LABELS, "error_type"),
        unit="seconds",
        buckets=_DURATION_SECONDS,
    )
    server_time_to_first_token = histogram(
        "gen_ai_server_time_to_first_token_seconds",
        "Time from the start of a request on a worker to its first text, including queueing",
        _LABELS,
        unit="seconds",
        buckets=FIRST_TOKEN_SECONDS,
    )
    server_time_per_output_token = histogram(
        "gen_ai_server_time_per_output_token_seconds",
        "Mean time per token after the first of each successful answer on a worker",
        _LABELS,
        unit="seconds",
        buckets=OUTPUT_TOKEN_SECONDS,
    )

    client_operation_duration = histogram(
        "gen_ai_client_operation_duration_seconds",
        "Duration of an admitted request at a gateway; error_type is empty on success. Excludes answers from the response cache",
        (*_LABELS, "error_type"),
        unit="seconds",
        buckets=_DURATION_SECONDS,
    )
    client_token_usage = histogram(
        "gen_ai_client_token_usage_tokens",
        "Billed tokens per request at a gateway, by type: input or output",
        (*_LABELS, "gen_ai_token_type"),
        unit="tokens",
        buckets=_TOKENS,
    )
    client_time_to_first_chunk = histogram(
        "gen_ai_client_operation_time_to_first_chunk_seconds",
        "Time from the start of a request at a gateway to its first text",
        _LABELS,
        unit="seconds",
        buckets=FIRST_TOKEN_SECONDS,
    )
    client_time_per_output_chunk = histogram(
        "gen_ai_client_operation_time_per_output_chunk_seconds",
        "Mean time per chunk after the first of each successful answer at a gateway",
        _LABELS,
        unit="seconds",
        buckets=OUTPUT_TOKEN_SECONDS,
    )
