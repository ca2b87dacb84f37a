"""The metrics of the usage export."""

from shared.telemetry.instrument import gauge

LAG = gauge(
    "ai_platform_usage_export_lag_seconds",
    "For how long the oldest usage has been settled that a sink of the usage export lacks; 0 if it has all",
    ("sink",),
    unit="seconds",
)
DIFFERENCE_TOKENS = gauge(
    "ai_platform_usage_export_difference_tokens",
    "Difference between a sink of the usage export and the outbox in tokens, yesterday and today; any value but 0 is an error",
    ("sink",),
)
DIFFERENCE_MICRO = gauge(
    "ai_platform_usage_export_difference_micro",
    "Difference between a sink of the usage export, the outbox and the ledger in micro-credits, yesterday and today; any value but 0 is an"
    " error",
    ("sink",),
)
EXCESS_TOKENS = gauge(
    "ai_platform_usage_export_excess_tokens",
    "For seven days after a restore: tokens that a sink of the usage export has and the restored database doesn't know",
    ("sink",),
)
EXCESS_MICRO = gauge(
    "ai_platform_usage_export_excess_micro",
    "For seven days after a restore: micro-credits that a sink of the usage export has and the restored database doesn't know",
    ("sink",),
)
