"""The boards of the overview and of the gateway."""

from services.metrics.alerting.rules.alert_rule import DashboardName
from tools.boards.panel import THIRD, WHOLE, Dashboard, Panel, PanelQuery, PanelUnit, lines, stat

_RATE = "$__rate_interval"


def quantile(share: float, metric: str, *by: str, where: str = "") -> str:
    """Return a quantile of a histogram, over the interval of one point of the chart."""
    labels = ", ".join(("le", *by))
    return f"histogram_quantile({share}, sum by ({labels}) (rate({metric}_bucket{where}[{_RATE}])))"


def rate(metric: str, *by: str, where: str = "") -> str:
    return f"sum by ({', '.join(by)}) (rate({metric}{where}[{_RATE}]))" if by else f"sum(rate({metric}{where}[{_RATE}]))"


_DONE = "ai_platform_completed_requests_total"
_AT_GATEWAY = '{service="gateway"}'

OVERVIEW = Dashboard(
    board=DashboardName.OVERVIEW,
    title="Overview and objectives",
    help="Availability, latency, and the error budget.",
    panels=(
        stat(
            "Services up",
            "Services with at least one live node, of five",
            PanelUnit.NUMBER,
            "count(count by (service) (ai_platform_node_up == 1))",
        ),
        stat("Workers", "Live workers", PanelUnit.NUMBER, 'sum(ai_platform_node_up{service="inference"})'),
        stat("Running requests", "At all gateways", PanelUnit.NUMBER, f"sum(ai_platform_inflight_requests{_AT_GATEWAY})"),
        stat(
            "Alerts", "Firing now", PanelUnit.NUMBER, 'count(ALERTS{alertstate="firing", alertname!="watchdog"}) or vector(0)', bad_from=1
        ),
        lines("Requests", "At all gateways, by outcome", PanelUnit.REQUESTS, rate(_DONE, "status"), stacked=True),
        lines(
            "Error ratio",
            "Share of failed requests; the objective allows 0.1 %",
            PanelUnit.SHARE,
            "ai_platform:requests:error_ratio_rate5m",
            "5 min",
            PanelQuery("ai_platform:requests:error_ratio_rate1h", "1 h"),
            PanelQuery("ai_platform:requests:error_ratio_rate3d", "3 d"),
            bad_from=0.001,
        ),
        lines(
            "Time to first text",
            "From the request to its first text; the objective is p95 within 2.5 s",
            PanelUnit.SECONDS,
            quantile(0.5, "ai_platform_ttft_seconds", where=_AT_GATEWAY),
            "p50",
            PanelQuery(quantile(0.95, "ai_platform_ttft_seconds", where=_AT_GATEWAY), "p95"),
            PanelQuery(quantile(0.99, "ai_platform_ttft_seconds", where=_AT_GATEWAY), "p99"),
            bad_from=2.5,
            exemplars=True,
        ),
        lines(
            "Slow first tokens",
            "Share of first tokens after more than 2.5 s; the objective allows 5 %",
            PanelUnit.SHARE,
            "ai_platform:first_tokens:slow_ratio_rate5m",
            "5 min",
            PanelQuery("ai_platform:first_tokens:slow_ratio_rate1h", "1 h"),
            bad_from=0.05,
        ),
        lines(
            "Tokens",
            "Input and output tokens per second, at all gateways",
            PanelUnit.PER_SECOND,
            rate("ai_platform_tokens_total", "type", where=_AT_GATEWAY),
        ),
        lines("Active users", "Users with a completed request", PanelUnit.NUMBER, "max by (time_window) (ai_platform_active_users)"),
        Panel(
            title="Logs of the services",
            help="Warnings and errors",
            unit=PanelUnit.TEXT,
            kind="logs",
            width=WHOLE,
            queries=(PanelQuery('{service_namespace="aimesh"} | severity_text =~ "warning|error"'),),
        ),
    ),
)

GATEWAY = Dashboard(
    board=DashboardName.GATEWAY,
    title="Gateway",
    help="Incoming, queued and refused requests, and the duration of each step.",
    panels=(
        lines("Calls", "By method", PanelUnit.REQUESTS, rate("ai_platform_requests_total", "method", where=_AT_GATEWAY)),
        lines(
            "Failed calls",
            "By error code",
            PanelUnit.REQUESTS,
            rate("ai_platform_requests_total", "status", where='{service="gateway", status!="success"}'),
            stacked=True,
        ),
        lines(
            "Duration, p95",
            "From start to end of a call, by model; calls without a model are for accounts and pages",
            PanelUnit.SECONDS,
            quantile(0.95, "ai_platform_request_duration_seconds", "model", where=_AT_GATEWAY),
            exemplars=True,
        ),
        lines(
            "Queue",
            "Requests waiting for a slot, by model",
            PanelUnit.NUMBER,
            f"sum by (model) (ai_platform_queue_depth{_AT_GATEWAY})",
            bad_from=100,
        ),
        lines(
            "Queue time, p95",
            "Time until a worker had a free slot",
            PanelUnit.SECONDS,
            quantile(0.95, "ai_platform_queue_wait_seconds", "model"),
        ),
        lines(
            "Inter-token latency, p95", "Mean of each answer", PanelUnit.SECONDS, quantile(0.95, "ai_platform_inter_token_seconds", "model")
        ),
        lines(
            "Rate limits",
            "Decisions",
            PanelUnit.REQUESTS,
            rate("ai_platform_ratelimit_decisions_total", "decision"),
            width=THIRD,
            stacked=True,
        ),
        lines(
            "Rejected by a limit",
            "By scope of the limit and tier",
            PanelUnit.REQUESTS,
            rate("ai_platform_rate_limit_violations_total", "scope", "tier"),
            width=THIRD,
        ),
        lines(
            "Limits without Valkey",
            "1 while limits are counted without Valkey",
            PanelUnit.YES_OR_NO,
            "max by (node) (ai_platform_ratelimit_degraded)",
            width=THIRD,
            bad_from=1,
        ),
        lines(
            "Retries and failovers",
            "Retries before the first token, failovers after it, and their outcome",
            PanelUnit.REQUESTS,
            rate("ai_platform_retries_total", "kind", "outcome"),
            width=THIRD,
        ),
        lines(
            "Interrupted answers",
            "After the first token, by reason",
            PanelUnit.REQUESTS,
            rate("ai_platform_streams_aborted_total", "reason"),
            width=THIRD,
            stacked=True,
        ),
        lines(
            "Response cache",
            "Cache results of deterministic requests",
            PanelUnit.REQUESTS,
            rate("ai_platform_response_cache_total", "result"),
            width=THIRD,
            stacked=True,
        ),
    ),
)
