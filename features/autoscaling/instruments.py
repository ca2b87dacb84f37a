"""The metrics of autoscaling."""

from shared.telemetry.instrument import gauge

WANTED_REPLICAS = gauge("ai_platform_wanted_replicas", "Workers that the pool should have now", ("pool",))
POOL_REPLICAS = gauge(
    "ai_platform_pool_replicas", "Workers of the pool, by state: ready, or starting while they load their model", ("pool", "state")
)
DENIED_REPLICAS = gauge(
    "ai_platform_denied_replicas", "Workers that the demand needs and the pool's maximum or its budget of the day forbids", ("pool",)
)
SCALING_AGE = gauge("ai_platform_scaling_age_seconds", "Age of the newest data about the pool; over 30 its size is not changed", ("pool",))
SCALE_HOOK_FAILURES = gauge(
    "ai_platform_scale_hook_failures", "How often the pool's hook has failed in a row; 0 after a success", ("pool",)
)
POOLS_FILE_BAD = gauge("ai_platform_pools_file_bad", "1 while POOLS_FILE has changed and can't be used, so that the old pools stay; else 0")

#: The history has these, by which labels.
KEPT = {WANTED_REPLICAS: ("pool",), POOL_REPLICAS: ("pool", "state")}
