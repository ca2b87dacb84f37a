"""The metrics of other servers."""

from shared.telemetry.instrument import gauge

UP = gauge("ai_platform_upstream_up", "1 while a server of this worker answers and lists its models", ("server",))
REFUSED = gauge("ai_platform_upstream_refused", "1 while a server refuses this worker's key or account, by its last answers", ("server",))
