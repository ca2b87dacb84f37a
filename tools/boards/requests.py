"""How the whole does, and what the gateway does."""

from services.metrics.alerting.rules.alert_rule import DashboardName
from tools.boards.panel import THIRD, WHOLE, Dashboard, Panel, PanelQuery, PanelUnit, lines, stat

_RATE = "$__rate_interval"


def quantile(share: float, metric: str, *by: str, where: str = "") -> str:
    """Of a histogram, over the time that a point of the chart stands for."""
    labels = ", ".join(("le", *by))
    return f"histogram_quantile({share}, sum by ({labels}) (rate({metric}_bucket{where}[{_RATE}])))"


def rate(metric: str, *by: str, where: str = "") -> str:
    return f"sum by ({', '.join(by)}) (rate({metric}{where}[{_RATE}]))" if by else f"sum(rate({metric}{where}[{_RATE}]))"


_DONE = "ai_platform_completed_requests_total"
_AT_GATEWAY = '{service="gateway"}'

OVERVIEW = Dashboard(
    board=DashboardName.OVERVIEW,
    title="Overview and objectives",
    help="Is it up, is it fast, and how much of what may go wrong has gone wrong?",
    panels=(
        stat(
            "Services that live",
            "Of each of the five at least one",
            PanelUnit.NUMBER,
            "count(count by (service) (ai_platform_node_up == 1))",
        ),
        stat("Workers", "Live workers", PanelUnit.NUMBER, 'sum(ai_platform_node_up{service="inference"})'),
        stat("Requests now", "Running at the gateways", PanelUnit.NUMBER, f"sum(ai_platform_inflight_requests{_AT_GATEWAY})"),
        stat(
            "Alerts",
            "That fire now",
            PanelUnit.NUMBER,
            'count(ALERTS{alertstate="firing", alertname!="watchdog"}) or vector(0)',
            bad_from=1,
        ),
        lines(
            "Requests",
            "Over all gateways, by how they ended",
            PanelUnit.REQUESTS,
            PanelQuery(rate(_DONE, "status"), "{{status}}"),
            stacked=True,
        ),
        lines(
            "Errors against the objective",
            "Share of requests that failed; the objective allows 0.1 %",
            PanelUnit.SHARE,
            PanelQuery("ai_platform:requests:error_ratio_rate5m", "5 min"),
            PanelQuery("ai_platform:requests:error_ratio_rate1h", "1 h"),
            PanelQuery("ai_platform:requests:error_ratio_rate3d", "3 d"),
            bad_from=0.001,
        ),
        lines(
            "Time to the first token",
            "From the request to its first text; 95 % within 2.5 s is the objective",
            PanelUnit.SECONDS,
            PanelQuery(quantile(0.5, "ai_platform_ttft_seconds", where=_AT_GATEWAY), "50 %"),
            PanelQuery(quantile(0.95, "ai_platform_ttft_seconds", where=_AT_GATEWAY), "95 %"),
            PanelQuery(quantile(0.99, "ai_platform_ttft_seconds", where=_AT_GATEWAY), "99 %"),
            bad_from=2.5,
            exemplars=True,
        ),
        lines(
            "Slow first tokens against the objective",
            "Share of first tokens after more than 2.5 s; 5 % are allowed",
            PanelUnit.SHARE,
            PanelQuery("ai_platform:first_tokens:slow_ratio_rate5m", "5 min"),
            PanelQuery("ai_platform:first_tokens:slow_ratio_rate1h", "1 h"),
            bad_from=0.05,
        ),
        lines(
            "Tokens",
            "Written and read in a second, over all gateways",
            PanelUnit.PER_SECOND,
            PanelQuery(rate("ai_platform_tokens_total", "type", where=_AT_GATEWAY), "{{type}}"),
        ),
        lines(
            "Active users",
            "Different users with a completed request",
            PanelUnit.NUMBER,
            PanelQuery("max by (time_window) (ai_platform_active_users)", "{{time_window}}"),
        ),
        Panel(
            title="What the services say",
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
    help="What comes in, what waits, what is refused, and how long each step takes.",
    panels=(
        lines(
            "Calls",
            "By method",
            PanelUnit.REQUESTS,
            PanelQuery(rate("ai_platform_requests_total", "method", where=_AT_GATEWAY), "{{method}}"),
        ),
        lines(
            "Calls that did not succeed",
            "By code",
            PanelUnit.REQUESTS,
            PanelQuery(rate("ai_platform_requests_total", "status", where='{service="gateway", status!="success"}'), "{{status}}"),
            stacked=True,
        ),
        lines(
            "Duration, 95 %",
            "From the start of a call to its end, by model; without one it is a call of accounts or pages",
            PanelUnit.SECONDS,
            PanelQuery(quantile(0.95, "ai_platform_request_duration_seconds", "model", where=_AT_GATEWAY), "{{model}}"),
            exemplars=True,
        ),
        lines(
            "Waiting",
            "Requests that wait for a free place, by model",
            PanelUnit.NUMBER,
            PanelQuery(f"sum by (model) (ai_platform_queue_depth{_AT_GATEWAY})", "{{model}}"),
            bad_from=100,
        ),
        lines(
            "Wait, 95 %",
            "How long a request was kept until a worker had room",
            PanelUnit.SECONDS,
            PanelQuery(quantile(0.95, "ai_platform_queue_wait_seconds", "model"), "{{model}}"),
        ),
        lines(
            "Between two tokens, 95 %",
            "Of each answer the mean",
            PanelUnit.SECONDS,
            PanelQuery(quantile(0.95, "ai_platform_inter_token_seconds", "model"), "{{model}}"),
        ),
        lines(
            "Limits",
            "What they said of requests",
            PanelUnit.REQUESTS,
            PanelQuery(rate("ai_platform_ratelimit_decisions_total", "decision"), "{{decision}}"),
            width=THIRD,
            stacked=True,
        ),
        lines(
            "Refused by a limit",
            "Whose limit it was, by tier",
            PanelUnit.REQUESTS,
            PanelQuery(rate("ai_platform_rate_limit_violations_total", "scope", "tier"), "{{scope}} {{tier}}"),
            width=THIRD,
        ),
        lines(
            "Limits without Valkey",
            "1 while Valkey does not count",
            PanelUnit.YES_OR_NO,
            PanelQuery("max by (node) (ai_platform_ratelimit_degraded)", "{{node}}"),
            width=THIRD,
            bad_from=1,
        ),
        lines(
            "Given to another worker",
            "Retries before the first token, resumptions behind it, and what became of them",
            PanelUnit.REQUESTS,
            PanelQuery(rate("ai_platform_retries_total", "kind", "outcome"), "{{kind}} {{outcome}}"),
            width=THIRD,
        ),
        lines(
            "Answers that broke off",
            "After their first token, by reason",
            PanelUnit.REQUESTS,
            PanelQuery(rate("ai_platform_streams_aborted_total", "reason"), "{{reason}}"),
            width=THIRD,
            stacked=True,
        ),
        lines(
            "Answers from the cache",
            "Where deterministic requests had their answers from",
            PanelUnit.REQUESTS,
            PanelQuery(rate("ai_platform_response_cache_total", "result"), "{{result}}"),
            width=THIRD,
            stacked=True,
        ),
    ),
)
