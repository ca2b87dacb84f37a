"""The boards of users, of cost, and of the service level by month."""

from services.metrics.alerting.rules.alert_rule import DashboardName
from tools.boards.panel import WHOLE, Dashboard, PanelQuery, PanelUnit, lines, stat
from tools.boards.requests import rate

_DONE = "ai_platform_completed_requests_total"
_FAILED = '{status=~"error|timeout"}'
_JUDGED = '{status=~"success|error|timeout|cancelled"}'
_FIRST, _AT_GATEWAY = "ai_platform_ttft_seconds", '{service="gateway"}'
_WHOLE, _SUCCEEDED = "gen_ai_client_operation_duration_seconds", '{error_type=""}'
_MONTH = "30d"


def per_day(metric: str, *by: str, divisor: float = 1) -> str:
    total = f"sum by ({', '.join(by)}) (increase({metric}[1d]))" if by else f"sum(increase({metric}[1d]))"
    return total if divisor == 1 else f"{total} / {divisor:g}"


def _mean(histogram: str, where: str, span: str) -> str:
    return f"sum(increase({histogram}_sum{where}[{span}])) / sum(increase({histogram}_count{where}[{span}]))"


def mean_first_text(span: str) -> str:
    return _mean(_FIRST, _AT_GATEWAY, span)


def mean_whole_answer(span: str) -> str:
    return _mean(_WHOLE, _SUCCEEDED, span)


def availability(span: str) -> str:
    """Return the share of requests that did not fail; 1 where none failed."""
    return f"1 - (sum(increase({_DONE}{_FAILED}[{span}])) or vector(0)) / sum(increase({_DONE}{_JUDGED}[{span}]))"


USERS = Dashboard(
    board=DashboardName.USERS,
    title="Users",
    help="How many people use the mesh, and what they use. Figures of one person or key: `aicli report usage`.",
    panels=(
        stat("Active today", "Users with a completed request", PanelUnit.NUMBER, 'max(ai_platform_active_users{time_window="24h"})'),
        stat("Active this week", "Users with a completed request", PanelUnit.NUMBER, 'max(ai_platform_active_users{time_window="7d"})'),
        stat("New users", "Registered in the last 24 hours", PanelUnit.NUMBER, per_day("ai_platform_registrations_total")),
        stat("New keys", "Created in the last 24 hours", PanelUnit.NUMBER, per_day("ai_platform_keys_created_total")),
        lines("Requests per day", "Completed, by model", PanelUnit.NUMBER, per_day(_DONE, "model"), stacked=True),
        lines(
            "Tokens per day",
            "Prompt and answer together, by model",
            PanelUnit.NUMBER,
            per_day("ai_platform_completed_tokens_total", "model"),
            stacked=True,
        ),
        lines("Rejected credentials", "By reason", PanelUnit.REQUESTS, rate("ai_platform_auth_failures_total", "reason")),
        lines(
            "Rejected by a limit",
            "By tier: users who need more than they may",
            PanelUnit.REQUESTS,
            rate("ai_platform_rate_limit_violations_total", "tier"),
        ),
    ),
)

_COST = "ai_platform_cost_micro_total"
_UPSTREAM = "ai_platform_upstream_micro_total"
_MICRO = 1_000_000

COST = Dashboard(
    board=DashboardName.COST,
    title="Cost",
    help="In credits: what users are charged, and what providers charge. By user and key: `aicli report cost`.",
    panels=(
        stat("Charged today", "Credits in the last 24 hours", PanelUnit.NUMBER, per_day(_COST, divisor=_MICRO)),
        stat("Providers today", "Credits in the last 24 hours", PanelUnit.NUMBER, per_day(_UPSTREAM, divisor=_MICRO)),
        stat(
            "Charged, 30 days",
            "Credits in the last 30 days",
            PanelUnit.NUMBER,
            f"sum(increase({_COST}[{_MONTH}])) / {_MICRO}",
        ),
        stat("Open reservations", "Requests whose cost is reserved", PanelUnit.NUMBER, "sum(ai_platform_ledger_open_reservations)"),
        lines("Charged per day", "By model", PanelUnit.NUMBER, per_day(_COST, "model", divisor=_MICRO), stacked=True),
        lines("Providers per day", "By provider", PanelUnit.NUMBER, per_day(_UPSTREAM, "provider", divisor=_MICRO), stacked=True),
        lines(
            "Credits per million tokens",
            "By model, over a day",
            PanelUnit.NUMBER,
            f"sum by (model) (increase({_COST}[1d])) / sum by (model) (increase(ai_platform_completed_tokens_total[1d]))",
        ),
        lines(
            "Daily ceilings",
            "Share of a target's ceiling that is spent or held",
            PanelUnit.SHARE,
            "max by (route, target) (ai_platform_upstream_ceiling_ratio)",
            bad_from=0.9,
        ),
    ),
)

SERVICE_LEVEL = Dashboard(
    board=DashboardName.SERVICE_LEVEL,
    title="Service level",
    help="The objectives over a month: 99.9 % of requests do not fail, and whole answers take less than 5 s on average.",
    panels=(
        stat("Availability, 30 days", "Share of requests that did not fail", PanelUnit.SHARE, availability(_MONTH)),
        stat("Availability, today", "Over the last 24 hours", PanelUnit.SHARE, availability("1d")),
        stat("Average time to first text, 30 days", "Including queueing", PanelUnit.SECONDS, mean_first_text(_MONTH), bad_from=5),
        stat("Average whole answer, 30 days", "From the request to its end", PanelUnit.SECONDS, mean_whole_answer(_MONTH), bad_from=5),
        lines(
            "Availability by month",
            "Each point is the 30 days before it; the objective is 99.9 %",
            PanelUnit.SHARE,
            availability(_MONTH),
            "30 d",
            PanelQuery(availability("1d"), "1 d"),
            width=WHOLE,
        ),
        lines(
            "Average time to first text",
            "From the request to its first text, including queueing",
            PanelUnit.SECONDS,
            mean_first_text("5m"),
            "5 min",
            PanelQuery(mean_first_text("1d"), "1 d"),
            bad_from=5,
        ),
        lines(
            "Average whole answer",
            "From the request to the end of its answer, without failed and cached ones; the objective is below 5 s",
            PanelUnit.SECONDS,
            mean_whole_answer("5m"),
            "5 min",
            PanelQuery(mean_whole_answer("1d"), "1 d"),
            bad_from=5,
        ),
        lines(
            "Nodes",
            "Live nodes (processes, containers or pods), by service",
            PanelUnit.NUMBER,
            "sum by (service) (ai_platform_node_up)",
        ),
    ),
)
