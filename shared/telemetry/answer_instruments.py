"""The instruments of requests for models and of their answers. `aicli top` shows them, too."""

from enum import StrEnum

from shared.telemetry.instrument import FIRST_TOKEN_SECONDS, counter, gauge, histogram


class DraftResult(StrEnum):
    """What became of a drafted token."""

    ACCEPTED = "accepted"
    REJECTED = "rejected"


class AnswerInstruments:
    tokens = counter(
        "ai_platform_tokens_total",
        "Tokens by type: input (prompt) or output (generated). Gateway and inference both count them, so filter by service",
        ("type", "model"),
        unit="tokens",
    )
    reasoning_tokens = counter(
        "ai_platform_reasoning_tokens_total",
        "Output tokens that the gateway's answers spent on thoughts",
        ("model",),
        unit="tokens",
    )
    ttft_seconds = histogram(
        "ai_platform_ttft_seconds",
        "Time from the start of a request to its first text, including queueing",
        ("model",),
        unit="seconds",
        buckets=FIRST_TOKEN_SECONDS,
    )
    queue_depth = gauge("ai_platform_queue_depth", "Requests that are waiting for a free slot", ("model",))
    oldest_wait = gauge(
        "ai_platform_oldest_wait_seconds",
        "How long the oldest request that waits for a slot or the start of a worker has waited",
        ("model",),
    )
    model_requests = counter(
        "ai_platform_model_requests_total",
        "Requests for a model, each once however often it is retried, by result: arrived, or refused because the queue is full",
        ("model", "result"),
    )
    queue_wait_seconds = histogram(
        "ai_platform_queue_wait_seconds",
        "Time that a request waited at the gateway for a worker; excludes rejected and canceled requests",
        ("model",),
        unit="seconds",
        buckets=FIRST_TOKEN_SECONDS,
    )
    drafted_tokens = counter(
        "ai_platform_drafted_tokens_total",
        "Tokens of answers that the engine guessed from the text before and computed at once, by result: accepted or rejected",
        ("model", "result"),
    )
    completed_requests = counter(
        "ai_platform_completed_requests_total",
        "Completed inference requests over all gateways, by status: success, error, timeout, cancelled, limited or rejected (invalid)",
        ("status", "model"),
    )
    completed_tokens = counter(
        "ai_platform_completed_tokens_total",
        "Tokens of completed inference requests over all gateways, prompt and answer together",
        ("model",),
        unit="tokens",
    )

    # --- inference

    batch_preempted = counter(
        "ai_platform_batch_preempted_total", "How often a batch answer lost its slot because a live request needed it", ("model",)
    )
    batch_step_share = gauge(
        "ai_platform_batch_step_share",
        "Share of batch answers in the tokens that the engine generated in the last 10 s, from 0 to 1; 0 when idle",
        ("model",),
    )
